"""What a model larger than memory would do: what stays in memory, what streams from the disk, and the rate that the disk allows.

A token's pass asks for its experts' bytes; the share of them that the cache holds is the hit rate. The disk gives the rest:

    tokens/s ≤ disk's bytes per second / (bytes of experts a token · (1 − hit rate))

The hit rate depends on how a model routes, so there are two, of a simulated cache: with even routing, the worst that can be,
and with routing as of `synth --router skewed` (Zipf's law as fitted to a published trace). Trained models also choose the last
tokens' experts again, so they may do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from oss_tools.convert.routers import row_scales
from oss_tools.engine.stream.plan import PREFIX_SHARE
from oss_tools.engine.stream.reuse import lru_hits, stack_distances
from oss_tools.fit.memory import latent_of, panel_bytes
from oss_tools.machine.memory import WORK_BYTES
from oss_tools.models import Architecture, Entry
from oss_tools.sizes import format_size

PAGE = 4096  # experts begin on pages of their own
LAYERS, TOKENS = 4, 400  # of the simulated cache


@dataclass(frozen=True)
class Experts:
    """A model's experts: `layers` that have them, `each` layer's number of them, of which a token takes `chosen`; bytes of one in
    memory."""

    layers: int
    each: int
    chosen: int
    nbytes: int

    @property
    def total(self) -> int:
        return self.layers * self.each

    @property
    def token_bytes(self) -> int:
        """Of the experts that a token takes in all layers."""
        return self.layers * self.chosen * self.nbytes


@dataclass(frozen=True)
class Streaming:
    """How a model runs in `memory` bytes.

    Attributes:
        memory: what the process may take.
        resident: bytes of weights that are read once and stay.
        fixed: bytes of everything but the cache of experts: those weights, keys and values, work memory.
        experts: what streams.
        slots: experts that the cache has room for.
    """

    memory: int
    resident: int
    fixed: int
    experts: Experts
    slots: int

    @property
    def least(self) -> int:
        """The smallest memory that works: a token's experts of one layer beside all that stays."""
        return self.fixed + self.experts.chosen * self.experts.nbytes

    @property
    def works(self) -> bool:
        return self.memory >= self.least

    def hit_rates(self) -> tuple[float, float]:
        """With even routing and with skewed routing."""
        each, chosen, slots = self.experts.each, self.experts.chosen, 64 * self.slots // self.experts.layers
        return hit_rate(each, chosen, slots, False), hit_rate(each, chosen, slots, True)

    def read_bytes(self) -> tuple[float, float]:
        """That a token has read from the disk, with even routing and with skewed routing."""
        even, skewed = self.hit_rates()
        return self.experts.token_bytes * (1 - even), self.experts.token_bytes * (1 - skewed)

    def rates(self, disk: float, memory: tuple[float, float] | None = None) -> tuple[float, float]:
        """Tokens per second at most, with even routing and with skewed routing.

        disk: its bytes per second. memory: tokens per second where no expert comes from the disk, the slowest and the fastest."""
        low, high = memory or (float("inf"), float("inf"))
        even, skewed = (disk / nbytes if nbytes else float("inf") for nbytes in self.read_bytes())
        return min(even, low), min(skewed, high)


def experts_of(architecture: Architecture, entries: Sequence[Entry]) -> Experts | None:
    """A model's experts, from its tensors' shapes and formats; None if it has none."""
    found = [entry for entry in entries if entry.spec.role.startswith("experts.")]
    if not found:
        return None
    each = max(entry.spec.matrices[0] for entry in found)
    layers = sum(entry.spec.role == "experts.down" and not entry.spec.is_vector for entry in found)
    nbytes = sum(panel_bytes(entry, latent_of(architecture)) for entry in found) / (layers * each)
    chosen = int(architecture.computation()["num_experts_per_tok"])
    return Experts(layers, each, chosen, -(-int(nbytes) // PAGE) * PAGE)


def dense_bytes(architecture: Architecture, entries: Sequence[Entry]) -> int:
    """Bytes in memory of all weights but the experts."""
    latent = latent_of(architecture)
    return sum(panel_bytes(entry, latent) for entry in entries if not entry.spec.role.startswith("experts."))


def plan(experts: Experts, resident: int, context: int, memory: int) -> Streaming:
    """How a model runs in `memory` bytes, of which weights that stay take `resident`, keys and values `context`."""
    fixed = WORK_BYTES + resident + context
    left = max(memory - fixed, 0)
    least = experts.chosen * experts.nbytes
    prefix = max(min(left // PREFIX_SHARE, left - least), 0)
    return Streaming(memory, resident, fixed, experts, min((left - prefix) // experts.nbytes, experts.total))


def of_facts(architecture: Architecture, facts: dict[str, Any]) -> Streaming:
    """How a loaded model runs, from what its backend says of itself (`facts()["streaming"]`)."""
    routers = [spec for spec in architecture.tensors() if spec.role == "router" and not spec.is_vector]
    chosen = int(architecture.computation()["num_experts_per_tok"])
    experts = Experts(len(routers), routers[0].matrices[1], chosen, facts["expert_bytes"])
    resident, slots = facts["resident_bytes"], facts["slots"]
    return Streaming(resident + facts["cache_bytes"], resident, resident, experts, slots)


@cache
def hit_rate(each: int, chosen: int, slots: int, skewed: bool) -> float:
    """Hit rate of an LRU cache that has room for `slots` experts for every 64 layers of `each`: of the second half of some random
    tokens, in a few layers. The same numbers every time."""
    capacity = slots * LAYERS // 64
    if capacity >= each * LAYERS:
        return 1.0
    scales = [row_scales(each, chosen, str(layer), 0) if skewed else np.ones(each, np.float32) for layer in range(LAYERS)]
    scores = np.random.default_rng(0).standard_normal((TOKENS, LAYERS, each), np.float32) * np.array(scales)
    experts = np.sort(np.argpartition(-scores, chosen - 1)[..., :chosen])
    keys = (experts + each * np.arange(LAYERS)[:, None]).reshape(-1)
    return float(lru_hits(stack_distances(keys), capacity)[len(keys) // 2 :].mean())


# ---- in words, and as a record --------------------------------------------------------------------------------------


def sentences(streaming: Streaming, disk: float | None, memory: tuple[float, float] | None = None) -> list[str]:
    """What there is to say before a model streams. disk: bytes per second, or None if unknown."""
    experts = streaming.experts
    lines = [
        f"in memory: {format_size(streaming.resident)} of weights that stay, and {streaming.slots:,} of {experts.total:,} "
        f"experts ({format_size(streaming.slots * experts.nbytes)} of {format_size(experts.total * experts.nbytes)})",
        f"a token chooses {experts.layers * experts.chosen} experts of {format_size(experts.nbytes)}: "
        f"{format_size(experts.token_bytes)}; those that are not in memory come from the disk",
    ]
    (even, skewed), (most, least) = streaming.hit_rates(), streaming.read_bytes()
    line = f"even routing finds {even:.0%} of them in memory and reads {format_size(most)} a token, "
    line += f"routing as in a published trace {skewed:.0%} and {format_size(least)}"
    if disk:
        slow, fast = streaming.rates(disk, memory)
        line += f"; from a disk of {format_size(disk)}/s: at most {slow:.2g} to {fast:.2g} tokens/s"
    return [*lines, line]


def to_record(streaming: Streaming, disk: float | None, memory: tuple[float, float] | None = None) -> dict[str, Any]:
    """The same in bytes, bytes per second and tokens per second."""
    return {
        "memory_bytes": streaming.memory,
        "works": streaming.works,
        "least_bytes": streaming.least,
        "resident_bytes": streaming.resident,
        "streamed_bytes": streaming.experts.total * streaming.experts.nbytes,
        "experts": streaming.experts.total,
        "expert_bytes": streaming.experts.nbytes,
        "slots": streaming.slots,
        "expert_bytes_per_token": streaming.experts.token_bytes,
        "hit_rates": dict(zip(("even", "skewed"), streaming.hit_rates(), strict=True)),
        "read_bytes_per_token": dict(zip(("even", "skewed"), streaming.read_bytes(), strict=True)),
        "disk_bytes_per_second": disk,
        "tokens_per_second_at_most": list(streaming.rates(disk, memory)) if disk else None,
    }
