"""Carrying out a study: engines, workers, locks and the record."""
