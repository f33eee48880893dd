"""What rounding the KV cache costs, and why: which part of it, which positions, which channels.

python -m oss_tools.compare.rounded_cache tiny --depths 0,1024 --output FILE

The kernels' own formats are run as they are, and compared with a float32 cache. Everything else is a rule that rounds keys and
values while PyTorch runs the model in float32: what a rule costs is the KL divergence from the same run without it.

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
from types import SimpleNamespace
from typing import Any

import numpy as np

from numba_kernels.reference.ops import mixed
from oss_tools.compare.drift import Window, measure, windows
from oss_tools.engine.engine import Engine
from oss_tools.engine.torch_backend import Tensor, TorchBackend, TorchOperations, Weights, torch
from oss_tools.errors import MissingPackage, OssToolsError, how_to_install
from oss_tools.machine.description import machine, versions
from oss_tools.models.operations import Heads, Rope
from oss_tools.resources import resource

FIRST = 4  # positions that a rule may leave exact: those on which attention piles up
OUTLIER = 16
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


def to_mixed_bytes(x: np.ndarray) -> np.ndarray:
    """Rounded as the kernels round keys: after a Hadamard transform, which is its own inverse."""
    return mixed(to_bytes(mixed(x)))


def with_outlier(rounded: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Rounded while one pair of channels that rotate together is OUTLIER times as large."""
    larger = np.ones(x.shape[-1], np.float32)
    larger[[x.shape[-1] // 4, x.shape[-1] // 4 + x.shape[-1] // 2]] = OUTLIER
    return rounded(x * larger) / larger


def rules() -> dict[str, Rule]:
    """By name, what is done to keys and values."""
    in_blocks = partial(to_bytes, group=32, half_scale=True)
    return {
        "bf16": lambda k, v: (to_bf16(k), to_bf16(v)),
        "q8": lambda k, v: (to_mixed_bytes(k), to_bytes(v)),
        "q8 keys, exact values": lambda k, v: (to_mixed_bytes(k), v),
        "exact keys, q8 values": lambda k, v: (k, to_bytes(v)),
        "q8 without the transform": lambda k, v: (to_bytes(k), to_bytes(v)),
        "without the transform, scales in float16": lambda k, v: (
            to_bytes(k, half_scale=True),
            to_bytes(v, half_scale=True),
        ),
        "blocks of 32 with scales in float16 (llama.cpp's q8_0)": lambda k, v: (in_blocks(k), in_blocks(v)),
        f"q8, two key channels × {OUTLIER}": lambda k, v: (with_outlier(to_mixed_bytes, k), to_bytes(v)),
        f"q8 without the transform, two key channels × {OUTLIER}": lambda k, v: (with_outlier(to_bytes, k), to_bytes(v)),
        f"blocks of 32, two key channels × {OUTLIER}": lambda k, v: (with_outlier(in_blocks, k), in_blocks(v)),
    }


class Rounding(TorchOperations):
    """Rounds keys and values by a rule before they are cached, but not those of the first `exact` positions. Remembers those of
    the last pass, by layer, if `keeps`."""

    def __init__(self, weights: Weights, rule: Rule, exact: int = 0, keeps: bool = False) -> None:
        super().__init__(weights)
        self._rule, self._exact, self._keeps = rule, exact, keeps
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def attention(self, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        given = [x.reshape(len(x), heads.keys, heads.size).numpy() for x in (key, value)]
        if self._keeps:
            self.kept[heads.layer] = given[0].copy(), given[1].copy()
        rounded = self._rule(*given)
        is_exact = (self._positions.numpy() < self._exact)[:, None, None]
        both = (np.where(is_exact, x, y) for x, y in zip(given, rounded, strict=True))
        key, value = (torch.from_numpy(np.ascontiguousarray(x)).reshape(len(x), -1) for x in both)
        return super().attention(query, key, value, heads)

    def rope(self, x: Tensor, heads: int, rope: Rope, first: int = 0) -> Tensor:
        self.rotation = rope
        return super().rope(x, heads, rope, first)


def torch_backend(engine: Engine) -> TorchBackend:
    assert isinstance(engine.backend, TorchBackend)
    return engine.backend


class LlamaCpp:
    """llama.cpp with a KV cache of another format, for `drift.measure`. Raises MissingPackage."""

    FORMATS = {"f16": 1, "q8_0": 8}  # noqa: RUF012  (ggml's numbers)

    def __init__(self, path: Path, cache: str, context: int, threads: int) -> None:
        try:
            from llama_cpp import Llama
        except ImportError:
            raise MissingPackage(f"llama.cpp is missing: {how_to_install('peers')}") from None
        kind = self.FORMATS[cache]
        self._model = Llama(
            str(path), n_ctx=context, n_batch=512, n_threads=threads or None, n_threads_batch=threads or None,
            logits_all=True, type_k=kind, type_v=kind, flash_attn=True, verbose=False,
        )  # fmt: skip
        self.backend = SimpleNamespace(vocabulary=self._model.n_vocab())

    def each_logits(self, tokens: list[int], start: int = 0) -> Iterator[np.ndarray]:
        self._model.reset()
        self._model.eval(tokens)
        yield self._model.scores[start : len(tokens)]


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
    backend = torch_backend(engine)
    plain, backend.ops = backend.ops, Rounding(backend.ops.weights, lambda k, v: (k, v), keeps=True)
    engine.logits(tokens[: backend.chunk])
    ops, backend.ops = backend.ops, plain
    layers = []
    for layer, (keys, values) in sorted(ops.kept.items()):
        row: dict[str, Any] = {"layer": layer}
        kinds = {"keys": keys, "keys_before_rotation": unrotated(keys, ops.rotation), "values": values}
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
    load = partial(Engine.load, path, threads=threads, context=max(depths) + 160, prefix_budget=0)
    kernels = partial(load, activations="f32")
    record: dict[str, Any] = {"model": path.name if model != "tiny" else model, "depths": list(depths), "places": places}
    with kernels(cache="f32") as whole:
        found = windows(whole.text, max(depths), places)
        record["kernels"] = []
        for element in ("bf16", "q8"):
            with kernels(cache=element) as rounded:
                record["kernels"].append({"cache": element, "points": _points(whole, rounded, found, depths)})
            say(f"{model}: kernels, {element}: {_words(record['kernels'][-1])}")
    if path.suffix == ".gguf":
        record["llama.cpp"] = []
        context = max(depths) + 160
        halves, rounded_peer = (LlamaCpp(path, element, context, threads) for element in ("f16", "q8_0"))
        record["llama.cpp"].append({"cache": "q8_0", "points": _points(halves, rounded_peer, found, depths)})
        say(f"{model}: llama.cpp, q8_0 from f16: {_words(record['llama.cpp'][-1])}")
    record["rules"] = []
    with load(backend="torch") as whole, load(backend="torch") as other:
        record["layers"] = channels(whole, found[-1].at(max(depths))[0])
        tried: list[tuple[str, Rule, int]] = [(name, rule, 0) for name, rule in rules().items()]
        tried.append((f"q8, the first {FIRST} positions exact", rules()["q8"], FIRST))
        for name, rule, exact in tried:
            backend = torch_backend(other)
            backend.ops = Rounding(backend.ops.weights, rule, exact)
            record["rules"].append({"rule": name, "points": _points(whole, other, found, depths)})
            say(f"{model}: {name}: {_words(record['rules'][-1])}")
    return record


def _points(whole: Any, other: Any, places: list[Window], depths: Sequence[int]) -> list[dict[str, Any]]:
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
        "versions": versions("numpy", "numba", "llvmlite", "torch", "llama-cpp-python"),
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
