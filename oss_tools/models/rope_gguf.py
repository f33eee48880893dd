"""Rotary positions in the words of GGUF: `ARCH.rope.*` and the tensor `rope_freqs.weight`, as llama.cpp reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.models.fields import field, number, shown, single
from oss_tools.models.rope import CLOSE_DIVISORS, PLAIN, Scaling, llama3_divisors, magnitude

THETA = 10000.0  # where a file says nothing
USUAL_FACTORS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
USUAL_CONTEXTS = tuple(1 << n for n in range(8, 21))  # original contexts of models that are stretched


def read_rope(
    raw: Mapping[str, Any], arch: str, head_size: int, context: int, truncate: bool, divisors: np.ndarray | None
) -> tuple[float, Scaling, tuple[str, ...]]:
    """theta, scaling and remarks.

    Args:
        raw: all keys of a file.
        arch: the prefix of its keys.
        head_size, context: of the model.
        truncate: whether yarn's bounds are rounded in models of this architecture, for which GGUF has no key.
        divisors: `rope_freqs.weight`, float32 [head_size / 2], or None.

    Raises BadCheckpoint.
    """
    where, prefix = "metadata", f"{arch}.rope."
    keys = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    named = {f"{prefix}{key}": value for key, value in keys.items()}
    theta = number(named, f"{prefix}freq_base", where, 1e-3, 1e12) if "freq_base" in keys else THETA
    kind = keys.get("scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise BadCheckpoint(f"{where}: {prefix}scaling.type {shown(kind)} is not supported; supported: none, linear, yarn")
    old = "scaling.factor" if "scaling.factor" in keys else "scale_linear"
    factor = number(named, f"{prefix}{old}", where, 0, 1e6) if old in keys else 0.0
    factor = 1.0 if factor == 0 or kind == "none" else factor
    more = number(named, f"{prefix}scaling.attn_factor", where, 0, 1e6) if "scaling.attn_factor" in keys else 1.0
    scaling, remarks = PLAIN, list[str]()
    if kind == "linear" and factor != 1:
        scaling = Scaling("linear", factor)
    if kind == "yarn" and factor != 1:
        scaling, remarks = _yarn(named, prefix, factor, context, truncate)
    if more != 1:
        scaling = replace(scaling, attention_factor=single(scaling.scale * more))
    if divisors is not None:
        scaling = _divided(scaling, head_size, theta, divisors)
    return theta, scaling.for_base(theta), tuple(remarks)


def _yarn(named: Mapping[str, Any], prefix: str, factor: float, context: int, truncate: bool) -> tuple[Scaling, list[str]]:
    length, where = f"{prefix}scaling.original_context_length", "metadata"
    original = field(named, length, int, where, 1, 1 << 30) if length in named else context
    scaling, remarks = Scaling("yarn", factor, original, truncate=truncate), []
    for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        key = f"{prefix}scaling.yarn_{name}"
        value = number(named, key, where, 1e-6, 1e6) if key in named else usual
        if value != usual:
            scaling = replace(scaling, beta_fast=value) if name == "beta_fast" else replace(scaling, beta_slow=value)
            remarks += [f"{where}: {key} is {value:g}: obeyed here; llama.cpp passes over it and takes {usual:g}"]
    key = f"{prefix}scaling.yarn_attn_factor"
    if key in named:
        value = number(named, key, where, 0, 1e6)
        if not math.isclose(value, magnitude(factor), rel_tol=1e-6):
            raise BadCheckpoint(
                f"{where}: {key} is {value:g}: converters mean by it all that cos and sin are multiplied by, llama.cpp passes "
                f"over it and takes {magnitude(factor):.6g}; remove the key, or say the ratio as {prefix}scaling.attn_factor"
            )
    return scaling, remarks


def _divided(scaling: Scaling, head_size: int, theta: float, divisors: np.ndarray) -> Scaling:
    """The scaling with the divisors of a file on top, said as what they amount to where that is known."""
    if divisors.shape != (head_size // 2,) or not np.all(np.isfinite(divisors) & (divisors > 0)):
        raise BadCheckpoint(
            f"rope_freqs.weight: {head_size // 2} positive numbers expected, one for each pair of dimensions"
        )
    values = tuple(divisors.astype(np.float32).tolist())
    if set(values) == {1.0}:
        return scaling
    if scaling == PLAIN and len(set(values)) == 1:
        return Scaling("linear", single(values[0]))
    llama3 = as_llama3(head_size, theta, divisors) if scaling == PLAIN else None
    return replace(llama3 or scaling, divisors=values)


def as_llama3(head_size: int, theta: float, divisors: np.ndarray) -> Scaling | None:
    """Llama 3's parameters that give these divisors, to what float32 makes of them; None where there are none to be found.

    The usual numbers are tried first. Others follow from two dimensions between the bounds, where the inverse of the divisor is
    linear in the frequency; the three bounds count by their ratios only, so that low_freq_factor is taken to be a usual one.
    """
    largest = single(divisors.max())
    for factor, context in itertools.product(dict.fromkeys((largest, *USUAL_FACTORS)), USUAL_CONTEXTS):
        if fits(found := Scaling("llama3", factor, context), head_size, theta, divisors):
            return found
    between = (divisors > 1) & (divisors < divisors.max())
    if between.sum() < 2:
        return None
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    smooth = (1 / divisors[between].astype(np.float64) - 1 / largest) / (1 - 1 / largest)
    slope, offset = np.polyfit(1 / wavelengths[between], smooth, 1)
    if not (slope > 0 > offset):
        return None
    for low in (1.0, 2.0, 0.5, 4.0):
        high, context = low * (1 - 1 / offset), round(-low * slope / offset)
        for digits in (2, 4, 7):
            found = Scaling("llama3", largest, context, low_freq_factor=low, high_freq_factor=float(f"{high:.{digits}g}"))
            if context > 0 and found.high_freq_factor > low and fits(found, head_size, theta, divisors):
                return found
    return None


def fits(scaling: Scaling, head_size: int, theta: float, divisors: np.ndarray) -> bool:
    """Whether llama3's formula gives these divisors."""
    return bool(np.allclose(llama3_divisors(head_size, theta, scaling), divisors, rtol=CLOSE_DIVISORS, atol=0))


def rope_keys(scaling: Scaling, theta: float, arch: str) -> dict[str, Any]:
    """What GGUF's keys say of it: all but `dynamic`, yarn's `truncate` and llama3, for which there is a tensor of divisors."""
    s, prefix = scaling, f"{arch}.rope.scaling."
    keys: dict[str, Any] = {f"{arch}.rope.freq_base": theta}
    if s.kind in ("linear", "yarn"):
        keys |= {f"{prefix}type": s.kind, f"{prefix}factor": s.factor}
    if s.kind == "yarn":
        keys |= {f"{prefix}original_context_length": s.original_context}
        keys |= {f"{prefix}yarn_beta_fast": s.beta_fast, f"{prefix}yarn_beta_slow": s.beta_slow}
    if s.attention_factor is not None:
        keys[f"{prefix}attn_factor"] = s.attention_factor / replace(s, attention_factor=None).scale
    return keys
