"""What a cache of experts of any size would have hit, from a trace of which experts a model chose (`--trace-experts`).

python -m oss_tools.measure.expert_cache TRACE [--sizes 64,128] [--layers] [--expert-bytes 13.2MB] [--json]

A cache holds experts of all layers together, as the engine's does. For every size: least recently used out first (LRU), by the
stack distances of one pass (Mattson et al., 1970, "Evaluation techniques for storage hierarchies"); least often used out first
(LFU); and the best that is possible at all, farthest next use out first (Belady, 1966).

What is asked for is counted as the engine counts it: in a forward pass a layer asks for each of its chosen experts once, for
all its tokens together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.engine.stream.reuse import NEVER, belady_hits, lfu_hits, lru_hits, stack_distances
from oss_tools.engine.stream.trace import Trace, read_trace
from oss_tools.errors import OssToolsError
from oss_tools.sizes import format_size, parse_size
from oss_tools.tables import print_facts, print_table

DEFAULT_SIZES = 10  # that are tried where none are named


@dataclass(frozen=True)
class Accesses:
    """What was asked for, in order.

    Attributes:
        keys: int64, layer's place · experts + expert.
        layers: numbers of the layers, by place.
        experts: of a layer.
        tokens: of the trace.
        passes: forward passes.
    """

    keys: np.ndarray
    layers: tuple[int, ...]
    experts: int
    tokens: int
    passes: int

    @property
    def places(self) -> np.ndarray:
        """Of each access, the place of its layer."""
        return self.keys // self.experts


def accesses_of(trace: Trace) -> Accesses:
    """A trace as a sequence of accesses. Within a layer experts come in the order of their numbers."""
    keys = []
    for chosen in trace.passes:
        for place, experts in enumerate(chosen):
            keys.append(np.unique(experts).astype(np.int64) + place * trace.experts)
    whole = np.concatenate(keys) if keys else np.empty(0, np.int64)
    return Accesses(whole, trace.layers, trace.experts, trace.tokens, len(trace.passes))


# ---- the record -----------------------------------------------------------------------------------------------------


def measure(accesses: Accesses, sizes: Sequence[int] = ()) -> dict[str, Any]:
    """What caches of those sizes would have hit, in all and layer by layer; and how unevenly experts were chosen.

    Raises ValueError for a size below 1.
    """
    keys, places = accesses.keys, accesses.places
    distances = stack_distances(keys)
    count = max(len(keys), 1)
    rows = []
    for size in sizes or default_sizes(accesses):
        if size < 1:
            raise ValueError(f"a cache of {size} experts: there is none below 1")
        lru = lru_hits(distances, size)
        row = {
            "experts": size,
            "share_of_all": size / (len(accesses.layers) * accesses.experts),
            "lru": float(lru.sum() / count),
            "lfu": float(lfu_hits(keys, size).sum() / count),
            "best": float(belady_hits(keys, size).sum() / count),
            "lru_misses_per_token": float((count - lru.sum()) / max(accesses.tokens, 1)),
            "lru_by_layer": [float(lru[places == place].mean()) for place in range(len(accesses.layers))],
        }
        rows.append(row)
    return {
        "kind": "expert-cache",
        "tokens": accesses.tokens,
        "passes": accesses.passes,
        "accesses": len(keys),
        "layers": list(accesses.layers),
        "experts": accesses.experts,
        "first_uses": int((distances == NEVER).sum()),
        "chosen": [_evenness(keys[places == place] % accesses.experts, accesses) for place in range(len(accesses.layers))],
        "sizes": rows,
    }


def default_sizes(accesses: Accesses) -> list[int]:
    """Tenths of all experts."""
    everything = len(accesses.layers) * accesses.experts
    return sorted({max(everything * tenth // DEFAULT_SIZES, 1) for tenth in range(1, DEFAULT_SIZES + 1)})


def _evenness(experts: np.ndarray, accesses: Accesses) -> dict[str, float]:
    """Of a layer: how many experts were used, what share of its accesses goes to the most popular eighth of them, and the
    exponent of Zipf's law that fits best (0 is even)."""
    counts = np.sort(np.bincount(experts, minlength=accesses.experts))[::-1]
    popular = max(accesses.experts // 8, 1)
    used = counts[counts > 0]
    ranks = np.log(np.arange(1, len(used) + 1))
    slope = float(np.polyfit(ranks, np.log(used), 1)[0]) if len(used) > 1 else 0.0
    return {
        "used": len(used),
        "share_of_popular_eighth": float(counts[:popular].sum() / max(counts.sum(), 1)),
        "zipf": max(-slope, 0.0),
    }


def show(record: dict[str, Any], by_layer: bool, expert_bytes: int | None) -> None:
    """The record as a table."""
    layers, experts = record["layers"], record["experts"]
    popular = [chosen["share_of_popular_eighth"] for chosen in record["chosen"]]
    zipf = [chosen["zipf"] for chosen in record["chosen"]]
    print_facts(
        {
            "trace": f"{record['tokens']:,} tokens in {record['passes']:,} passes, {record['accesses']:,} experts asked for",
            "model": f"{len(layers)} layers with {experts} experts",
            "first uses": f"{record['first_uses']:,}, which no cache hits",
            "evenness": f"an eighth of a layer's experts gets {_range(popular, '.0%')}; Zipf's exponent {_range(zipf, '.2f')}",
        }
    )
    rows = []
    for row in record["sizes"]:
        cells = [f"{row['experts']:,}", f"{row['share_of_all']:.0%}"]
        if expert_bytes:
            cells.append(format_size(row["experts"] * expert_bytes))
        cells += [f"{row[policy]:.1%}" for policy in ("lru", "lfu", "best")]
        misses = row["lru_misses_per_token"]
        cells.append(format_size(misses * expert_bytes) if expert_bytes else f"{misses:.1f}")
        rows.append(cells)
    size = ["bytes"] if expert_bytes else []
    headers = ["experts", "of all", *size, "LRU", "LFU", "best", "LRU reads a token"]
    print_table(rows, headers, right=range(len(headers)))
    if by_layer:
        print()
        by_layers = [
            [str(layer), *(f"{row['lru_by_layer'][i]:.1%}" for row in record["sizes"])] for i, layer in enumerate(layers)
        ]
        headers = ["layer", *(f"{row['experts']:,}" for row in record["sizes"])]
        print_table(by_layers, headers, title="LRU by layer and size of the cache", right=range(len(headers)))


def _range(values: list[float], form: str) -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, help="a file that --trace-experts wrote")
    parser.add_argument(
        "--sizes", default="", help="how many experts the cache holds, a list such as 64,128; by default tenths of all"
    )
    parser.add_argument("--layers", action="store_true", help="also least-recently-used caches for each layer")
    parser.add_argument("--expert-bytes", help="the bytes of one expert, to print sizes in bytes too")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of tables")
    given = parser.parse_args()
    try:
        accesses = accesses_of(read_trace(given.trace))
        if not len(accesses.keys):
            sys.exit(f"{given.trace}: holds no tokens")
        record = measure(accesses, [int(part) for part in given.sizes.split(",") if part])
        expert_bytes = parse_size(given.expert_bytes) if given.expert_bytes else None
    except (OssToolsError, ValueError) as error:
        sys.exit(str(error))
    if given.json:
        print(json.dumps(record, indent=1))
    else:
        show(record, given.layers, expert_bytes)


if __name__ == "__main__":
    main()
