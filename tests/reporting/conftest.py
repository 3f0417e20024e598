"""The writer of fake folders."""

from tests.folders import fake

__all__ = ["fake"]
