"""Shapes, errors, noise and precision: torch and the standard library alone."""
