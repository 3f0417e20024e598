"""Readers: one file per format, from the files of a data set to raw arrays, without any preparation."""
