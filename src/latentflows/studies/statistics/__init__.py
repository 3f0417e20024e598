"""Intervals, tests and their corrections, on plain numbers."""
