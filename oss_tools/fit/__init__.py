"""Says beforehand whether a model will run here: memory, disk and speed for each format and recipe, and which to choose."""
