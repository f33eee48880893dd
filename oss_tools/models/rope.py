"""Rotary position embeddings (https://arxiv.org/abs/2104.09864): how positions are stretched, and what frequencies follow.

The formulas are transformers' (`modeling_rope_utils.py`). How containers say them: `rope_hf.py`, `rope_gguf.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.models.operations import Rope

KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
CLOSE = 2e-6  # relative: what float32 makes of one number on two ways
CLOSE_DIVISORS = 1e-5  # the same of Llama 3's divisors, which other programs compute in float32 and with cancellation


@dataclass(frozen=True)
class Scaling:
    """How rotary positions are stretched beyond the context that a model was trained for first.

    Attributes:
        kind: one of KINDS, transformers' `rope_type`.
        factor: how many times longer the context becomes.
        original_context: positions before that (yarn, llama3).
        beta_fast, beta_slow: yarn's bounds: dimensions that turn more often than beta_fast times within the original context
            are not stretched, those that turn less often than beta_slow times are, by `factor`.
        truncate: whether yarn rounds these bounds to whole dimensions.
        low_freq_factor, high_freq_factor: llama3's bounds, in turns within the original context.
        attention_factor: what cos and sin are multiplied by; None for what the kind says.
        divisors: further divisors of the frequencies, float32 values [head_dim / 2], as a GGUF file's `rope_freqs.weight` holds
            them; those of llama3 stand there, and are then used in place of the formula.
    """

    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    divisors: tuple[float, ...] = ()

    @property
    def scale(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return magnitude(self.factor) if self.kind == "yarn" else 1.0

    @property
    def form(self) -> Any:
        """The words that config.json has for it, of several with one effect."""
        return replace(self, divisors=()) if self.kind == "llama3" else self.kind

    def rope(self, head_size: int, theta: float) -> Rope:
        """The embedding that it amounts to. `dynamic` is plain within the context that a model was made for, and a longer one is
        never opened."""
        frequencies = plain(head_size, theta)
        if divisors := self.all_divisors(head_size, theta):
            frequencies = frequencies / np.array(divisors, np.float32)
        if self.kind == "linear":
            frequencies = frequencies / np.float32(self.factor)
        elif self.kind == "yarn":
            ramp = self._ramp(head_size, theta)
            frequencies = frequencies * (ramp / self.factor + (1 - ramp))
        return Rope(frequencies.astype(np.float32), self.scale)

    def all_divisors(self, head_size: int, theta: float) -> tuple[float, ...]:
        """What GGUF keeps as `rope_freqs.weight`: those read from there, or llama3's; empty where there are none."""
        if self.divisors or self.kind != "llama3":
            return self.divisors
        return tuple(llama3_divisors(head_size, theta, self).tolist())

    def _ramp(self, head_size: int, theta: float) -> np.ndarray:
        """YaRN (https://arxiv.org/abs/2309.00071): 0 where frequencies stay, 1 where they are divided by the factor."""

        def dimension(turns: float) -> float:
            return head_size * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_size - 1)
        return np.clip((np.arange(head_size // 2) - low) / ((high - low) or 1e-3), 0, 1)

    def for_base(self, theta: float) -> Scaling:
        """Itself. Raises BadCheckpoint for a base with which it cannot be."""
        if self.kind == "yarn" and theta <= 1:
            raise BadCheckpoint(f"rope_theta is {theta:g}: YaRN needs one above 1")
        return self


PLAIN = Scaling()


def plain(head_size: int, theta: float) -> np.ndarray:
    """theta^(−2i / head_size), float32 [head_size / 2]."""
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    return (1 / np.float32(theta) ** exponents).astype(np.float32)


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's concentration: 0.1 · weight · ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_divisors(head_size: int, theta: float, scaling: Scaling) -> np.ndarray:
    """Llama 3's divisors of the frequencies, float32 [head_size / 2]: 1 for short wavelengths, `factor` for long ones
    (https://arxiv.org/abs/2407.21783; transformers' `_compute_llama3_parameters`)."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    smooth = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Positions:
    """A rotary embedding as models are compared by: equal to another that turns every dimension alike, whatever the words."""

    theta: float
    head_size: int
    scaling: Scaling

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Positions):
            return False
        a, b = (p.scaling.rope(p.head_size, p.theta) for p in (self, other))
        close = CLOSE_DIVISORS if self.scaling.divisors or other.scaling.divisors else CLOSE
        return bool(
            (self.theta, self.head_size, self._stretch) == (other.theta, other.head_size, other._stretch)
            and np.allclose(a.frequencies, b.frequencies, rtol=close, atol=0)
            and math.isclose(a.scale, b.scale, rel_tol=CLOSE)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def _stretch(self) -> float:
        """What counts only beyond the context that the model was made for."""
        return self.scaling.factor if self.scaling.kind == "dynamic" else 1.0

    def __repr__(self) -> str:
        s = self.scaling
        words = [f"theta {self.theta:g}"]
        if s.kind != "default":
            words += [s.kind, f"factor {s.factor:g}"]
        if s.kind in ("yarn", "llama3"):
            words += [f"original context {s.original_context}"]
        if s.kind == "yarn":
            words += [f"beta {s.beta_fast:g} and {s.beta_slow:g}", *([] if s.truncate else ["not truncated"])]
        if s.kind == "llama3":
            words += [f"low {s.low_freq_factor:g}, high {s.high_freq_factor:g}"]
        elif s.divisors:
            words += [f"divisors {min(s.divisors):.6g} to {max(s.divisors):.6g} (sum {sum(s.divisors):.8g})"]
        if s.attention_factor is not None:
            words += [f"attention factor {s.attention_factor:.7g}"]
        return ", ".join(words)
