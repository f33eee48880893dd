"""The plain path: the forward pass in PyTorch, float32 throughout. It defines what the kernels have to compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Options, Progress, Run
from oss_tools.engine.memory import available_memory
from oss_tools.errors import MissingPackage
from oss_tools.formats import QTensor
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import Heads, Operations, Rope

try:
    import torch
    from torch import Tensor
except ImportError:
    raise MissingPackage("the torch backend needs PyTorch: pip install 'oss-tools[torch]'") from None

SWIGLU_ALPHA = 1.702  # gpt-oss


class Weights:
    """Tensors by name as float32: dequantized on load if all of them fit in half of the free memory, else on each use."""

    def __init__(self, checkpoint: Checkpoint, threads: int, progress: Progress) -> None:
        expand = TorchBackend.float_bytes(checkpoint) <= available_memory() // 2
        self._held: dict[str, Tensor | QTensor] = {}
        for name, entry in checkpoint.entries.items():
            tensor = checkpoint.read_tensor(name)
            self._held[name] = torch.from_numpy(tensor.dequantize()) if expand or entry.spec.is_vector else tensor
            progress(entry.nbytes)
        self._held.setdefault("lm_head.weight", self._held["model.embed_tokens.weight"])

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> Tensor:
        held = self._held[name]
        return held if isinstance(held, Tensor) else torch.from_numpy(held.dequantize())

    def rows(self, name: str, rows: np.ndarray) -> Tensor:
        """The rows of a matrix, float32 [n, columns]."""
        held = self._held[name]
        return held[torch.from_numpy(rows)] if isinstance(held, Tensor) else torch.from_numpy(held.rows(rows).dequantize())

    def expert(self, name: str, expert: int) -> Tensor:
        """One matrix of a stack [experts, out, in]."""
        held = self._held[name]
        if isinstance(held, Tensor):
            return held[expert]
        count = held.shape[-2]
        return torch.from_numpy(held.rows(slice(expert * count, (expert + 1) * count)).dequantize())


class Cache:
    """Keys and values of one sequence: per layer two tensors float32 [capacity, heads, size]."""

    def __init__(self, layers: list[Heads], capacity: int) -> None:
        self.layers = [torch.zeros(2, capacity, h.keys, h.size) for h in layers]


class TorchOperations(Operations[Tensor]):
    """The operations, carried out at once, on the batch in `runs`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.runs: list[Run] = []

    @property
    def positions(self) -> Tensor:
        return torch.cat([torch.arange(r.start, r.start + len(r.tokens)) for r in self.runs])

    def embed(self, name: str) -> Tensor:
        return self.weights.rows(name, np.concatenate([r.tokens for r in self.runs]).astype(np.int64))

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * self.weights[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        product = x @ self.weights[f"{name}.weight"].T
        return product + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else product

    def linears(self, x: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        return tuple(self.linear(x, name) for name in names)

    def rope(self, x: Tensor, heads: int, rope: Rope) -> Tensor:
        angles = self.positions.float()[:, None, None] * torch.from_numpy(rope.frequencies)  # [T, 1, size / 2]
        cos, sin = angles.cos() * rope.scale, angles.sin() * rope.scale
        a, b = x.view(len(x), heads, -1).chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        out, at = torch.empty_like(query), 0
        for run in self.runs:
            rows, stop = slice(at, at + len(run.tokens)), run.start + len(run.tokens)
            cache = run.cache.layers[heads.layer]
            cache[0, run.start : stop] = key[rows].view(-1, heads.keys, heads.size)
            cache[1, run.start : stop] = value[rows].view(-1, heads.keys, heads.size)
            out[rows] = self._attend(query[rows], cache[:, :stop], run.start, heads)
            at = rows.stop
        return out

    def _attend(self, query: Tensor, cache: Tensor, start: int, heads: Heads) -> Tensor:
        q = query.view(-1, heads.keys, heads.queries // heads.keys, heads.size)
        logits = torch.einsum("nhgd,mhd->nhgm", q, cache[0]) / math.sqrt(heads.size)  # [n, keys, group, m]
        distance = torch.arange(start, start + len(q))[:, None] - torch.arange(cache.shape[1])[None, :]
        hidden = (distance < 0) if heads.window is None else (distance < 0) | (distance >= heads.window)
        logits = logits.masked_fill(hidden[:, None, None, :], -math.inf)
        if heads.sinks:
            sinks = self.weights[heads.sinks].view(1, heads.keys, -1, 1).expand(len(q), -1, -1, 1)
            logits = torch.cat([logits, sinks], -1)
        shares = logits.softmax(-1)[..., : cache.shape[1]]
        return torch.einsum("nhgm,mhd->nhgd", shares, cache[1]).reshape(query.shape)

    def gated(self, x: Tensor, gate: str, up: str) -> Tensor:
        return torch.nn.functional.silu(self.linear(x, gate)) * self.linear(x, up)

    def route(self, x: Tensor, name: str, chosen: int) -> Tensor:
        """Weights [T, experts], zero for the experts not chosen."""
        logits = self.linear(x, name)
        best, index = logits.topk(chosen, -1)
        return torch.zeros_like(logits).scatter(1, index, best.softmax(-1))

    def experts(self, x: Tensor, routing: Tensor, name: str, limit: float) -> Tensor:
        out = torch.zeros_like(x)
        for expert in routing.any(0).nonzero().flatten().tolist():
            tokens = routing[:, expert].nonzero().flatten()
            both = self._expert(x[tokens], f"{name}.gate_up_proj", expert)
            gate, up = both[:, ::2].clamp(max=limit), both[:, 1::2].clamp(-limit, limit)
            inner = gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)
            out[tokens] += self._expert(inner, f"{name}.down_proj", expert) * routing[tokens, expert, None]
        return out

    def _expert(self, x: Tensor, name: str, expert: int) -> Tensor:
        product = x @ self.weights.expert(name, expert).T
        return product + self.weights[f"{name}_bias"][expert] if f"{name}_bias" in self.weights else product

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TorchBackend(Backend):
    """PyTorch on the CPU in float32; `activations` other than f32 are not simulated."""

    name = "torch"
    chunk = 512
    rows = 64
    sequences = 64
    recent = 1 << 30

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.architecture = checkpoint.architecture
        self.layers = self.architecture.attention_layers()
        self.ops = TorchOperations(Weights(checkpoint, options.threads, progress))
        self.vocabulary = checkpoint.entries["model.embed_tokens.weight"].spec.shape[0]
        self._hidden = torch.empty(0)

    @staticmethod
    def float_bytes(checkpoint: Checkpoint) -> int:
        return 4 * checkpoint.parameters

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return min(cls.float_bytes(checkpoint), checkpoint.nbytes)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        return sum(8 * h.keys * h.size for h in architecture.attention_layers())

    def open(self, capacity: int) -> Cache:
        return Cache(self.layers, capacity)

    def grow(self, cache: Cache, capacity: int) -> None:
        larger = Cache(self.layers, capacity)
        for new, old in zip(larger.layers, cache.layers, strict=True):
            new[:, : old.shape[1]] = old
        cache.layers = larger.layers

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        new = Cache(self.layers, capacity)
        for target, source in zip(new.layers, cache.layers, strict=True):
            target[:, :length] = source[:, :length]
        return new

    @torch.inference_mode()
    def run(self, runs: list[Run]) -> None:
        self.ops.runs = runs
        self._hidden = self.architecture.forward(self.ops)

    @torch.inference_mode()
    def logits(self, rows: np.ndarray) -> np.ndarray:
        return self.architecture.logits(self.ops, self._hidden[torch.from_numpy(np.asarray(rows, np.int64))]).numpy()

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        return np.concatenate([t[:, start:stop].transpose(0, 1).reshape(stop - start, -1).numpy() for t in cache.layers], 1)

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        at = 0
        for h, tensor in zip(self.layers, cache.layers, strict=True):
            width = 2 * h.keys * h.size
            part = torch.from_numpy(np.ascontiguousarray(block[:, at : at + width])).view(-1, 2, h.keys, h.size)
            tensor[:, start : start + len(block)] = part.transpose(0, 1)
            at += width

    def close(self) -> None:
        """PyTorch's threads are the process's own."""

    def facts(self) -> dict[str, Any]:
        return {"kernels": f"torch {torch.__version__} float32", "threads": torch.get_num_threads()}
