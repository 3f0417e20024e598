"""Check a bijection of your own: `check_bijection(MyBijection(4))` tries every property that ours must have."""

from latentflows.testing.base import Settings, Subject, randomize
from latentflows.testing.check import PROPERTIES, Property, PropertyError, Report, check_bijection

__all__ = [
    "PROPERTIES",
    "Property",
    "PropertyError",
    "Report",
    "Settings",
    "Subject",
    "check_bijection",
    "randomize",
]
