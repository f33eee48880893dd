"""SIMD registers and instructions as Numba values: the vocabulary in which the CPU kernels are written once.

Kernels see vectors of LANES 32-bit lanes, whatever the machine's own registers hold. Paths give the names a meaning: `amx`
(Intel's matrix registers), `avx512bf16` and `avx512` (all with VNNI), `avxvnni`, `avx2`, `i8mm` (Arm with matrix instructions),
`neon` (Arm with the dot-product extension) and `portable` (plain LLVM vectors).
The best path that the CPU has is chosen at import; OSS_TOOLS_SIMD=avx2 (or another name) forces a lower one.
"""

from numba_kernels.simd.path import ACTIVE, executable_paths, path

__all__ = ["ACTIVE", "executable_paths", "path"]
