"""Inference kernels for NVIDIA GPUs, written against `seam` and `intrinsics`."""
