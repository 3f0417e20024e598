"""One run and its folder, and all seeds of an arm together."""
