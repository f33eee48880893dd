"""The benchmark of the CPU kernels."""
