"""Models larger than memory: experts are read from the disk when a token chooses them, and kept as long as there is room."""
