"""Random problems for the CUDA kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from numba_kernels.cuda.blocks import LAYOUTS
from numba_kernels.cuda.packing import packed_rows
from numba_kernels.reference import formats as reference
from numba_kernels.reference import ops


def rest_slow(cases: Sequence[Any], *quick: Any) -> list[Any]:
    """The cases as parameters of a test, those marked slow that are not among the quick ones."""
    return [case if case in quick else pytest.param(*_parameters(case), marks=pytest.mark.slow) for case in cases]


def _parameters(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


@dataclass
class Matrix:
    """A random matrix [rows, columns] as its values, and as the device has it."""

    values: np.ndarray
    codes: np.ndarray
    scales: np.ndarray


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def random_planes(name: str, rows: int, columns: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Planes with every code, and moderate scales."""

    def some_bytes(width: int) -> np.ndarray:
        return rng.integers(0, 256, (rows, width), dtype=np.uint8)

    if name == "mxfp4":
        return {"blocks": some_bytes(columns // 2), "scales": rng.integers(118, 126, (rows, columns // 32), dtype=np.uint8)}
    if name in ("q8_0", "q4_0"):
        width = 34 if name == "q8_0" else 18
        blocks = some_bytes(columns // 32 * width).reshape(rows, columns // 32, width)
        scales = rng.uniform(0.001, 0.01, (rows, columns // 32, 1)).astype(np.float16)
        blocks[..., :2] = scales.view(np.uint8).reshape(rows, columns // 32, 2)
        return {"blocks": blocks.reshape(rows, -1)}
    if name.startswith("int8"):
        groups = columns // (LAYOUTS[name].group or columns)
        scales = reference.encode_bfloat16(rng.uniform(0.001, 0.01, (rows, groups)).astype(np.float32))
        return {"codes": some_bytes(columns).view(np.int8), "scales": scales}
    values = floats(rng, rows, columns)
    if name == "bf16":
        return {"values": reference.encode_bfloat16(values)}
    return {"values": values.astype(np.float16 if name == "f16" else np.float32)}


def values_of(name: str, planes: dict[str, np.ndarray], columns: int) -> np.ndarray:
    """float32 [rows, columns], by the plain definitions."""
    rows = len(next(iter(planes.values())))
    if name == "mxfp4":
        blocks = planes["blocks"].reshape(-1, 16)
        return reference.dequantize_mxfp4(blocks, planes["scales"].reshape(-1)).reshape(rows, columns)
    if name in ("q8_0", "q4_0"):
        blocks = planes["blocks"].reshape(-1, 34 if name == "q8_0" else 18)
        scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
        codes = blocks[:, 2:]
        if name == "q8_0":
            return (scale * codes.view(np.int8)).reshape(rows, columns)
        return (scale * (np.concatenate([codes & 15, codes >> 4], 1).astype(np.float32) - 8)).reshape(rows, columns)
    if name.startswith("int8"):
        scales = reference.decode_bfloat16(planes["scales"])
        return planes["codes"] * np.repeat(scales, columns // scales.shape[1], 1)
    values = planes["values"]
    return reference.decode_bfloat16(values) if name == "bf16" else values.astype(np.float32)


def matrix(name: str, rows: int, columns: int, rng: np.random.Generator) -> Matrix:
    planes = random_planes(name, rows, columns, rng)
    codes, scales = packed_rows(name, planes, columns)
    none = np.zeros(1, scales.dtype)
    return Matrix(values_of(name, planes, columns), codes.reshape(-1), scales.reshape(-1) if scales.size else none)


def as_the_kernel_sees(x: np.ndarray, format: str, activations: str) -> np.ndarray:
    """Activations as a kernel for this format takes them: quantized per 16 values, or whole."""
    if activations == "f32" or LAYOUTS[format].is_float:
        return x
    codes, scales = ops.quantize_rows(x, 16)
    return (codes.reshape(*scales.shape, 16) * scales[..., None]).reshape(x.shape).astype(np.float32)


def assert_near(got: np.ndarray, wanted: np.ndarray, tolerance: float = 3e-6) -> None:
    """Largest difference beside the largest value."""
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


def bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16."""
    return reference.decode_bfloat16(reference.encode_bfloat16(x))
