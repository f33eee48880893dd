"""The kernels' values as annotations name them: for readers and type checkers, not for Numba, which infers its own types."""

from typing import Any

Address = int
Int = int
Float = Any
Floats = Any
Words = Any
Doubles = Any
