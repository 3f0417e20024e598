"""The typed configuration of a run: its parts, its files and overrides, and what combines with what."""
