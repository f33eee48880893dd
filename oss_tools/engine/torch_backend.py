"""The plain path: the forward pass in PyTorch, float32 throughout. It defines what the kernels have to compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Options, Progress, Run
from oss_tools.engine.weights import embedding_name
from oss_tools.errors import MissingPackage, how_to_install
from oss_tools.formats import QTensor
from oss_tools.machine.memory import available_memory
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router

try:
    import torch
    from torch import Tensor
except ImportError:
    raise MissingPackage(f"the torch backend needs PyTorch: {how_to_install('torch')}") from None


class Weights:
    """Tensors by name as float32: dequantized on load if all of them fit in half of the free memory, else on each use."""

    def __init__(self, checkpoint: Checkpoint, threads: int, progress: Progress) -> None:
        expand = TorchBackend.float_bytes(checkpoint) <= available_memory() // 2
        self._held: dict[str, Tensor | QTensor] = {}
        for name, entry in checkpoint.entries.items():
            tensor = checkpoint.read_tensor(name)
            self._held[name] = torch.from_numpy(tensor.dequantize()) if expand or entry.spec.is_vector else tensor
            progress(entry.nbytes)
        self._held.setdefault("lm_head.weight", self._held[embedding_name(checkpoint)])

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
    """What the layers keep of one sequence: per layer float32 [capacity, values of a position], its keys and then its values, or
    its latent and then its rotated key."""

    def __init__(self, layers: Sequence[Heads | Latent], capacity: int) -> None:
        self.layers = [torch.zeros(capacity, h.cached) for h in layers]


class TorchOperations(Operations[Tensor]):
    """The operations, carried out at once, on the batch in `runs`."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.runs: list[Run] = []

    @property
    def _positions(self) -> Tensor:
        return torch.cat([torch.arange(r.start, r.start + len(r.tokens)) for r in self.runs])

    def embed(self, name: str) -> Tensor:
        return self.weights.rows(name, np.concatenate([r.tokens for r in self.runs]).astype(np.int64))

    def positions(self, name: str) -> Tensor:
        return self.weights.rows(name, self._positions.numpy())

    def rms_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * self.weights[name]

    def layer_norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, epsilon)

    def head_norm(self, x: Tensor, heads: int, name: str, epsilon: float) -> Tensor:
        return self.rms_norm(x.reshape(len(x), heads, -1), name, epsilon).view(x.shape)

    def linear(self, x: Tensor, name: str) -> Tensor:
        product = x @ self.weights[f"{name}.weight"].T
        return product + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else product

    def linears(self, x: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        return tuple(self.linear(x, name) for name in names)

    def split(self, x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return x.split(widths, -1)

    def rope(self, x: Tensor, heads: int, rope: Rope, first: int = 0) -> Tensor:
        angles = self._positions.float()[:, None, None] * torch.from_numpy(rope.frequencies)  # [T, 1, pairs]
        cos, sin = angles.cos() * rope.scale, angles.sin() * rope.scale
        before, rotated, after = x.reshape(len(x), heads, -1).tensor_split([first, first + 2 * len(rope.frequencies)], -1)
        a, b = (rotated[..., ::2], rotated[..., 1::2]) if rope.interleaved else rotated.chunk(2, -1)
        pairs = [a * cos - b * sin, b * cos + a * sin]
        rotated = torch.stack(pairs, -1).flatten(-2) if rope.interleaved else torch.cat(pairs, -1)
        return torch.cat([before, rotated, after], -1).reshape(x.shape)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        out, at = torch.empty_like(query), 0
        for run in self.runs:
            rows, stop = slice(at, at + len(run.tokens)), run.start + len(run.tokens)
            cache = run.cache.layers[heads.layer]
            cache[run.start : stop] = torch.cat([key[rows], value[rows]], -1)
            keys, values = (half.view(stop, heads.keys, heads.size) for half in cache[:stop].chunk(2, -1))
            out[rows] = self._attend(query[rows], keys, values, run.start, heads)
            at = rows.stop
        return out

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, start: int, heads: Heads) -> Tensor:
        q = query.view(-1, heads.keys, heads.queries // heads.keys, heads.size)
        logits = torch.einsum("nhgd,mhd->nhgm", q, keys) * heads.factor  # [n, keys, group, m]
        distance = torch.arange(start, start + len(q))[:, None] - torch.arange(len(keys))[None, :]
        hidden = (distance < 0) if heads.window is None else (distance < 0) | (distance >= heads.window)
        logits = logits.masked_fill(hidden[:, None, None, :], -math.inf)
        if heads.sinks:
            sinks = self.weights[heads.sinks].view(1, heads.keys, -1, 1).expand(len(q), -1, -1, 1)
            logits = torch.cat([logits, sinks], -1)
        shares = logits.softmax(-1)[..., : len(keys)]
        return torch.einsum("nhgm,mhd->nhgd", shares, values).reshape(query.shape)

    def latent_attention(self, query: Tensor, latent: Tensor, key: Tensor, name: str, heads: Latent) -> Tensor:
        """In the expanded form: every head's keys and values are computed from the cached latents."""
        weight = self.weights[f"{name}.weight"].view(heads.queries, -1, heads.rank)
        of_key, of_value = weight.split([heads.nope, heads.value], 1)
        out, at = query.new_empty(len(query), heads.queries * heads.value), 0
        for run in self.runs:
            rows, stop = slice(at, at + len(run.tokens)), run.start + len(run.tokens)
            cache = run.cache.layers[heads.layer]
            cache[run.start : stop] = torch.cat([latent[rows], key[rows]], -1)
            latents, shared = cache[:stop].split([heads.rank, heads.rope], -1)
            keys = torch.cat(
                [torch.einsum("mr,hdr->mhd", latents, of_key), shared[:, None].expand(-1, heads.queries, -1)], -1
            )
            values = torch.einsum("mr,hdr->mhd", latents, of_value)
            q = query[rows].view(-1, heads.queries, heads.nope + heads.rope)
            logits = torch.einsum("nhd,mhd->nhm", q, keys) * heads.factor
            hidden = torch.arange(run.start, stop)[:, None] < torch.arange(stop)[None, :]
            shares = logits.masked_fill(hidden[:, None], -math.inf).softmax(-1)
            out[rows] = torch.einsum("nhm,mhd->nhd", shares, values).flatten(1)
            at = rows.stop
        return out

    def gated(self, x: Tensor, gate: str, up: str) -> Tensor:
        return torch.nn.functional.silu(self.linear(x, gate)) * self.linear(x, up)

    def activated(self, x: Tensor, name: str, activation: str = "gelu_tanh") -> Tensor:
        return torch.nn.functional.gelu(self.linear(x, name), approximate="tanh")

    def route(self, x: Tensor, name: str, router: Router) -> Tensor:
        """Weights [T, experts], zero for the experts not chosen."""
        logits = self.linear(x, name)
        scores = logits.sigmoid() if router.score == "sigmoid" else logits.softmax(-1)
        _, chosen = self._selection(logits, scores, router).topk(router.chosen, -1)
        if router.score == "softmax" and router.renormalized:
            weights = logits.gather(1, chosen).softmax(-1)
        else:
            weights = scores.gather(1, chosen)
            if router.renormalized:
                weights = weights / (weights.sum(-1, keepdim=True) + router.epsilon)
        return torch.zeros_like(logits).scatter(1, chosen, weights * router.scale)

    def _selection(self, logits: Tensor, scores: Tensor, router: Router) -> Tensor:
        """What the largest are chosen of; −inf in groups that are not among the best."""
        corrected = scores + self.weights[router.correction] if router.correction else scores
        best = corrected if router.correction or router.score == "sigmoid" else logits  # the logits' order, without ties
        if not router.is_grouped:
            return best
        groups = corrected.view(len(corrected), router.groups, -1)
        of_group = groups.topk(2 if router.group_score == "top2" else 1, -1).values.sum(-1)
        kept = torch.zeros_like(of_group).scatter(1, of_group.topk(router.groups_chosen, -1).indices, 1.0)
        return best.masked_fill(kept.repeat_interleave(groups.shape[-1], 1) == 0, -math.inf)

    def experts(self, x: Tensor, routing: Tensor, name: str, gate: Gate) -> Tensor:
        out = torch.zeros_like(x)
        for expert in routing.any(0).nonzero().flatten().tolist():
            tokens = routing[:, expert].nonzero().flatten()
            inner = self._inner(x[tokens], name, expert, gate)
            out[tokens] += self._expert(inner, f"{name}.down_proj", expert) * routing[tokens, expert, None]
        return out

    def _inner(self, x: Tensor, name: str, expert: int, gate: Gate) -> Tensor:
        """What an expert's gate and up projection come to."""
        if f"{name}.gate_up_proj" in self.weights:
            both = self._expert(x, f"{name}.gate_up_proj", expert)
            g, u = both[:, ::2], both[:, 1::2]
        else:
            g, u = (self._expert(x, f"{name}.{part}_proj", expert) for part in ("gate", "up"))
        if gate.form == "silu":
            return torch.nn.functional.silu(g) * u
        g, u = g.clamp(max=gate.limit), u.clamp(-gate.limit, gate.limit)
        return g * torch.sigmoid(gate.alpha * g) * (u + 1)

    def _expert(self, x: Tensor, name: str, expert: int) -> Tensor:
        product = x @ self.weights.expert(name, expert).T
        return product + self.weights[f"{name}_bias"][expert] if f"{name}_bias" in self.weights else product

    def scaled_by_gate(self, x: Tensor, y: Tensor, name: str) -> Tensor:
        return y * torch.sigmoid(self.linear(x, name))

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
        self.vocabulary = checkpoint.entries[embedding_name(checkpoint)].spec.shape[0]
        self._hidden = torch.empty(0)

    @staticmethod
    def float_bytes(checkpoint: Checkpoint) -> int:
        return 4 * checkpoint.parameters

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return min(cls.float_bytes(checkpoint), checkpoint.nbytes)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        return sum(4 * h.cached for h in architecture.attention_layers())

    def open(self, capacity: int) -> Cache:
        return Cache(self.layers, capacity)

    def grow(self, cache: Cache, capacity: int) -> None:
        larger = Cache(self.layers, capacity)
        for new, old in zip(larger.layers, cache.layers, strict=True):
            new[: len(old)] = old
        cache.layers = larger.layers

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        new = Cache(self.layers, capacity)
        for target, source in zip(new.layers, cache.layers, strict=True):
            target[:length] = source[:length]
        return new

    @torch.inference_mode()
    def run(self, runs: list[Run]) -> None:
        self.ops.runs = runs
        self._hidden = self.architecture.forward(self.ops)

    @torch.inference_mode()
    def logits(self, rows: np.ndarray) -> np.ndarray:
        return self.architecture.logits(self.ops, self._hidden[torch.from_numpy(np.asarray(rows, np.int64))]).numpy()

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        return torch.cat([values[start:stop] for values in cache.layers], 1).numpy()

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        parts = torch.from_numpy(np.ascontiguousarray(block)).split([h.cached for h in self.layers], 1)
        for values, part in zip(cache.layers, parts, strict=True):
            values[start : start + len(block)] = part

    def close(self) -> None:
        """PyTorch's threads are the process's own."""

    def facts(self) -> dict[str, Any]:
        return {"kernels": f"torch {torch.__version__} float32", "threads": torch.get_num_threads()}
