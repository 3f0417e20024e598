"""Side by side with other libraries: scripts that measure, each with a dated result file."""
