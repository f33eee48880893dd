"""What rounding the KV cache costs, and why: which part of it, which positions, which channels.

python -m oss_tools.compare.rounded_cache tiny --depths 0,1024 --output FILE

A model is run with a float32 cache. Every few tokens the newest keys and values are read, rounded by a rule and put back, so that
all later tokens meet what was rounded: a rule costs the KL divergence from the same run without it. Two of the rules are the
formats that the kernels have, which are run themselves too.

Outlier channels are made on purpose: a pair of channels of every key times c, and of every query by c, leaves all scores as they
are, so what a rounded cache then costs is due to the outlier alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.compare.drift import Window, measure, windows
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.errors import BadRequest, OssToolsError
from oss_tools.machine.description import machine, versions
from oss_tools.models.operations import Heads, Rope
from oss_tools.resources import resource

PIECE = 16  # tokens after which the newest keys and values are rounded
FIRST = 4  # positions that a rule may leave exact: those on which attention piles up
OUTLIERS = (4, 16, 64)
Rule = Callable[
    [np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]  # keys, values [n, heads, head_dim] -> the same, rounded


# ---- rules ----------------------------------------------------------------------------------------------------------


def to_bytes(x: np.ndarray, group: int = 0, half_scale: bool = False) -> np.ndarray:
    """Rounded to 8 bits along the last axis, with a scale for all of it, or for each `group`: float32, or float16."""
    blocks = x.reshape(*x.shape[:-1], -1, group or x.shape[-1])
    top = np.abs(blocks).max(-1, keepdims=True)
    scale = top / np.float32(127)
    scale = scale.astype(np.float16).astype(np.float32) if half_scale else scale
    codes = np.clip(np.rint(blocks / np.where(scale > 0, scale, 1)), -127, 127)
    return (codes * scale).reshape(x.shape).astype(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def with_outlier(x: np.ndarray, factor: float) -> np.ndarray:
    """Rounded to 8 bits while one pair of channels that rotate together is so many times as large."""
    larger = np.ones(x.shape[-1], np.float32)
    larger[[x.shape[-1] // 4, x.shape[-1] // 4 + x.shape[-1] // 2]] = factor
    return to_bytes(x * larger) / larger


def rules() -> dict[str, Rule]:
    """By name, what is done to keys and values."""
    found: dict[str, Rule] = {
        "bf16": lambda k, v: (to_bf16(k), to_bf16(v)),
        "q8": lambda k, v: (to_bytes(k), to_bytes(v)),
        "q8, scales in float16": lambda k, v: (to_bytes(k, half_scale=True), to_bytes(v, half_scale=True)),
        "q8 keys, exact values": lambda k, v: (to_bytes(k), v),
        "exact keys, q8 values": lambda k, v: (k, to_bytes(v)),
        "blocks of 32, scales in float16 (llama.cpp's q8_0)": lambda k, v: (to_bytes(k, 32, True), to_bytes(v, 32, True)),
    }
    for factor in OUTLIERS:
        found[f"q8, a pair of key channels × {factor}"] = partial(_outlying, factor)
    return found


def _outlying(factor: float, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return with_outlier(keys, factor), to_bytes(values)


class Rounding:
    """An engine with a float32 cache whose keys and values are rounded by a rule. As `Engine.each_logits`, for `drift.measure`.

    exact: so many first positions are left as they are.
    """

    def __init__(self, engine: Engine, rule: Rule, exact: int = 0) -> None:
        self.engine, self.backend, self._rule, self._exact = engine, engine.backend, rule, exact

    def each_logits(self, tokens: list[int], start: int = 0) -> Iterator[np.ndarray]:
        sequence = self.engine.open(tokens, reuse=0)
        for at in range(0, len(tokens), PIECE):
            piece = tokens[at : at + PIECE]
            self.engine.run([(sequence, piece)])
            yield from self.engine.logits_of(np.arange(min(max(start - at, 0), len(piece)), len(piece)))
            self._round(sequence.cache, at, at + len(piece))

    def _round(self, cache: Any, start: int, stop: int) -> None:
        start = max(start, self._exact)
        if start >= stop:
            return
        block = self.backend.read_cache(cache, start, stop)
        for _, keys, values in by_layer(self.engine, block):
            keys[:], values[:] = self._rule(keys, values)
        self.backend.write_cache(cache, start, block)


def by_layer(engine: Engine, block: np.ndarray) -> Iterator[tuple[Heads, np.ndarray, np.ndarray]]:
    """Each layer's keys and values, views [n, heads, head_dim] of rows of the cache."""
    backend = engine.backend
    assert isinstance(backend, NumbaBackend)
    at = 0
    for pool in backend.pools.values():
        for heads in pool.heads:
            if not isinstance(heads, Heads):
                raise BadRequest("this model caches latents, which are not kept in 8 bits")
            both = block[:, at : at + heads.cached].reshape(len(block), 2, heads.keys, heads.size)
            yield heads, both[:, 0], both[:, 1]
            at += heads.cached


# ---- channels -------------------------------------------------------------------------------------------------------


def unrotated(keys: np.ndarray, rope: Rope) -> np.ndarray:
    """Keys [n, heads, head_dim] of positions 0, 1, …, as they were before their rotation."""
    pairs = len(rope.frequencies)
    cos, sin = (table[:, None] / np.float32(rope.scale**2) for table in rope.tables(len(keys)))
    rotated, rest = np.split(keys, [2 * pairs], -1)
    a, b = (rotated[..., ::2], rotated[..., 1::2]) if rope.interleaved else np.split(rotated, 2, -1)
    both = a * cos + b * sin, b * cos - a * sin
    turned = np.stack(both, -1).reshape(rotated.shape) if rope.interleaved else np.concatenate(both, -1)
    return np.concatenate([turned, rest], -1)


def channels(engine: Engine, tokens: list[int]) -> list[dict[str, Any]]:
    """What each layer caches of these tokens: keys, keys before their rotation, and values.

    `largest_channel_of_rms`: the root mean square of the largest channel beside that of all channels of its head, 1 where all are
    alike; `peak_of_rms`: the largest |x| of a position beside its root mean square, median and largest, on which the size of an
    8-bit step depends; `first_of_median`: the length of the first position's vector beside the median, for each head.
    """
    backend = engine.backend
    assert isinstance(backend, NumbaBackend)
    ropes = [rope for rope, _ in backend._ropes.values()]
    sequence = engine.open(tokens, reuse=0)
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for at in range(0, len(tokens), PIECE):
        stop = min(at + PIECE, len(tokens))
        engine.run([(sequence, tokens[at:stop])])
        for heads, keys, values in by_layer(engine, backend.read_cache(sequence.cache, at, stop)):
            found.setdefault(heads.layer, []).append((keys.copy(), values.copy()))
    layers = []
    for layer, parts in sorted(found.items()):
        keys, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        row: dict[str, Any] = {"layer": layer}
        kinds = {"keys": keys, "values": values}
        if len(ropes) == 1:
            kinds["keys_before_rotation"] = unrotated(keys, ropes[0])
        for name, x in kinds.items():
            rms = np.sqrt(np.square(x[FIRST:]).mean(0))  # [heads, head_dim]
            peak = np.abs(x).max(-1) / np.maximum(np.sqrt(np.square(x).mean(-1)), 1e-12)  # [n, heads]
            row[name] = {
                "largest_channel_of_rms": float((rms.max(-1) / np.sqrt(np.square(rms).mean(-1))).max()),
                "peak_of_rms": [float(np.median(peak)), float(peak.max())],
            }
        for name, x in (("keys", keys), ("values", values)):
            size = np.sqrt(np.square(x).sum(-1))
            row[name]["first_of_median"] = [float(v) for v in size[0] / np.maximum(np.median(size, 0), 1e-12)]
        layers.append(row)
    return layers


# ---- the record -----------------------------------------------------------------------------------------------------


def study(model: str, depths: Sequence[int], places: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of a model. Raises what `Engine.load` raises."""
    path = resource("tiny/checkpoint") if model == "tiny" else Path(model)
    # float32 activations: where they are rounded to 8 bits, and where experts are chosen, small differences make large ones
    load = partial(Engine.load, path, threads=threads, context=max(depths) + 160, prefix_budget=0, activations="f32")
    record: dict[str, Any] = {"model": model, "depths": list(depths), "places": places, "drift": [], "rules": []}
    with load(cache="f32") as whole, load(cache="f32") as other:
        found = windows(whole.text, max(depths), places)
        longest = found[-1].at(max(depths))[0]
        record["layers"] = channels(whole, longest)
        for element in ("bf16", "q8"):
            with load(cache=element) as rounded:
                record["drift"].append({"cache": element, "points": _points(whole, rounded, found, depths)})
            say(f"{model}: {element}: {_words(record['drift'][-1])}")
        tried: list[tuple[str, Any, int]] = [(name, rule, 0) for name, rule in rules().items()]
        tried.append((f"q8, the first {FIRST} positions exact", rules()["q8"], FIRST))
        for name, rule, exact in tried:
            points = _points(whole, Rounding(other, rule, exact), found, depths)
            record["rules"].append({"rule": name, "points": points})
            say(f"{model}: {name}: {_words(record['rules'][-1])}")
    return record


def _points(whole: Engine, other: Any, places: list[Window], depths: Sequence[int]) -> list[dict[str, Any]]:
    return [asdict(point) for point in measure(whole, other, places, depths)]


def _words(row: dict[str, Any]) -> str:
    return ", ".join(f"{point['kld']['value']:.2e} behind {point['depth']}" for point in row["points"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints, or tiny")
    parser.add_argument("--depths", default="0,1024", help="tokens of context, separated by commas")
    parser.add_argument("--places", type=int, default=4, help="places of the text at which 127 tokens are predicted")
    parser.add_argument("--threads", type=int, default=0, help="threads to use; 0 means every core")
    parser.add_argument("--output", type=Path, help="write the record to this file")
    given = parser.parse_args()
    depths = [int(part) for part in given.depths.split(",")]
    record: dict[str, Any] = {
        "kind": "rounded cache",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite"),
        "models": [],
    }
    try:
        for model in given.models:
            record["models"].append(study(model, depths, given.places, given.threads, lambda line: print(line, flush=True)))
    except OssToolsError as error:
        sys.exit(str(error))
    if given.output:
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
