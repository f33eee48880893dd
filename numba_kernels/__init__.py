"""Array kernels: arrays in, arrays out. Knows NumPy and Numba, and nothing of checkpoints, models or the CLI."""
