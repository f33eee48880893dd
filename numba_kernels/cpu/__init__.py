"""The CPU kernels, written once in terms of `simd`, and the team of threads that replays recorded lists of them."""
