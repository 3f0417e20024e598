"""What a fault is."""

Fault = tuple[str, str, str]  # what goes wrong, the text that stands there, the text that replaces it
