"""What the arithmetic instructions of PTX compute, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ptx_program import Fault


def dtype_of(kind: str) -> np.dtype:
    """b32, u8, s64, f32, … as NumPy's type; predicates are bool."""
    if kind == "pred":
        return np.dtype(bool)
    letter, bits = kind[0], int(kind[1:])
    return np.dtype({"b": "u", "u": "u", "s": "i", "f": "f"}[letter] + str(bits // 8))


def compare(relation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unordered = relation.endswith("u") and relation not in ("u",) and a.dtype.kind == "f"
    base = relation[:-1] if unordered else relation
    result = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[
        {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(base, base)
    ]
    nan = (np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else np.zeros(len(a), bool)
    return np.where(nan, unordered, result)


def shift(a: np.ndarray, b: np.ndarray, left: bool) -> np.ndarray:
    bits = 8 * a.itemsize
    amount = np.minimum(b.astype(np.uint32), bits - 1).astype(a.dtype)
    shifted = a << amount if left else a >> amount
    beyond = b.astype(np.uint32) >= bits
    return np.where(beyond, 0 if left or a.dtype.kind == "u" else shifted, shifted).astype(a.dtype)


def minimum(a: np.ndarray, b: np.ndarray, least: bool) -> np.ndarray:
    if a.dtype.kind == "f":
        return (np.fmin if least else np.fmax)(a, b)
    return (np.minimum if least else np.maximum)(a, b)


def multiply(code: tuple[str, ...], kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if kind[0] == "f":
        return a * b
    if "wide" in code:
        return a.astype(dtype_of(f"{kind[0]}{2 * int(kind[1:])}")) * b
    if "hi" in code:
        bits = int(kind[1:])
        return np.array([int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)], object).astype(dtype_of(kind))
    return a * b


def convert(code: tuple[str, ...], target: str, source: str, value: np.ndarray) -> np.ndarray:
    to = dtype_of(target)
    if "sat" in code:
        if target != "f32":
            raise Fault("a saturating conversion to an integer")
        return np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(to)
    if source[0] == "f" and target[0] in "su":
        rounded = np.rint(value.astype(np.float64)) if "rni" in code else np.trunc(value.astype(np.float64))
        if "rmi" in code:
            rounded = np.floor(value.astype(np.float64))
        info = np.iinfo(to)
        return np.clip(np.nan_to_num(rounded, nan=0, posinf=2.0**70, neginf=-(2.0**70)), info.min, info.max).astype(to)
    if source[0] == "f" and source == target and any(r in code for r in ("rni", "rmi", "rzi")):
        return (np.rint if "rni" in code else np.floor if "rmi" in code else np.trunc)(value)
    return value.astype(to)


def permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    both = np.stack([a, b], 1).view(np.uint8).reshape(len(a), 8)
    out = np.zeros((len(a), 4), np.uint8)
    for i in range(4):
        s = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = np.take_along_axis(both, (s & np.uint32(7)).astype(np.int64)[:, None], 1)[:, 0]
        out[:, i] = np.where(s & np.uint32(8), (byte.view(np.int8) >> 7).view(np.uint8), byte)
    return out.view(np.uint32)[:, 0]


def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    left = a.view(np.int8 if kinds[0] == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)
    right = b.view(np.int8 if kinds[1] == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)
    return c + (left * right).sum(1, dtype=np.int32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint32)


def bf16_values(words: np.ndarray) -> np.ndarray:
    """[..., 2] float32 from words [...]."""
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1).view(np.float32)


def matrix_of(regs: list[np.ndarray]) -> list[np.ndarray]:
    """mma.m16n8k16 of whole warps: registers [lanes] of A (4), B (2) and C (4) to those of D (4)."""
    words = [r.reshape(-1, 8, 4) for r in regs]  # [warps, g, t]
    a = np.zeros((len(words[0]), 16, 16), np.float32)
    b = np.zeros((len(words[0]), 16, 8), np.float32)
    c = np.zeros((len(words[0]), 16, 8), np.float32)
    for i, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
        a[:, row : row + 8, column : column + 8] = bf16_values(words[i]).reshape(-1, 8, 8)
    for i in range(2):
        b[:, 8 * i : 8 * i + 8] = bf16_values(words[4 + i]).reshape(-1, 8, 8).transpose(0, 2, 1)
    for i in range(2):
        pair = np.stack([words[6 + 2 * i], words[7 + 2 * i]], -1).view(np.float32)
        c[:, 8 * i : 8 * i + 8] = pair.reshape(-1, 8, 8)
    d = (c.astype(np.float64) + a.astype(np.float64) @ b).astype(np.float32)
    quarters = d.reshape(-1, 2, 8, 4, 2)
    return [quarters[:, i, :, :, j].reshape(-1) for i in range(2) for j in range(2)]


UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": lambda x: -x,
    "abs": np.abs,
    "not": lambda x: ~x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: np.ones_like(x) / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "mov": lambda x: x,
    "popc": lambda x: np.bitwise_count(x).astype(np.uint32),
}
