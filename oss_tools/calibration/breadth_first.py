"""A forward pass that takes all tokens of a text through one operation before it begins the next.

So each matrix is read once, used for every token, and dropped: a model of any size goes through, layer by layer, since a token
meets the weights in the order of the layers. Products are NumPy's (its BLAS, float32), and so are all other operations, in
slices of tokens. The plain path that it is held against is the torch backend's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.calibration.attention import attend
from oss_tools.calibration.routing import Routing, gated_value, route, sigmoid
from oss_tools.calibration.visitor import Visitor
from oss_tools.calibration.weights import OUTPUT_ROWS, VisitedWeights
from oss_tools.models import Checkpoint
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router

SLICE = 1024  # tokens that a thread works on at a time
PRODUCT = 4096  # tokens in one product
OUTPUT = "lm_head"

Progress = Callable[[int], None]


class BreadthFirst(Operations[Any]):
    """The operations on the tokens of many sequences, each by itself; values are float32 [N, width], sequence after sequence.

    Attributes:
        tokens: all tokens, int64 [N].
        lengths: of the sequences.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sequences: Sequence[np.ndarray],
        visitor: Visitor | None = None,
        progress: Progress = lambda work: None,
        threads: int = 0,
    ) -> None:
        """visitor: is told of the matrices. progress: is called with the products just taken, in multiplications."""
        self.checkpoint = checkpoint
        self.tokens = np.concatenate([np.asarray(s, np.int64) for s in sequences])
        self.lengths = [len(s) for s in sequences]
        self._weights, self._progress = VisitedWeights(checkpoint, visitor), progress
        self._positions = np.concatenate([np.arange(length) for length in self.lengths])
        self._pool = ThreadPoolExecutor(threads or cores())

    def forward(self) -> np.ndarray:
        """The final hidden states, normed, of all tokens: float32 [N, hidden]."""
        hidden: np.ndarray = self.checkpoint.architecture.forward(self)
        return hidden

    def visit_output(self, hidden: np.ndarray) -> None:
        """Tells the visitor of the output's matrix, whose product with all tokens would fill no memory."""
        self._weights.matrices((OUTPUT,), None, hidden)

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """The next token's logits from final hidden states: float32 [n, vocabulary]."""
        name = self._weights.name_of(OUTPUT)
        _, rows, _ = self.checkpoint.entries[name].spec.matrices
        out = np.empty((len(hidden), rows), np.float32)
        for start in range(0, rows, OUTPUT_ROWS):
            stop = min(start + OUTPUT_ROWS, rows)
            out[:, start:stop] = hidden @ self.checkpoint.read(name, 0, start, stop).dequantize().T
        bias = self._weights.vector(f"{OUTPUT}.bias")
        return out if bias is None else out + bias

    def close(self) -> None:
        """Ends threads."""
        self._pool.shutdown()

    def __enter__(self) -> BreadthFirst:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- work in slices ---------------------------------------------------------------------------------------------

    def _in_slices(self, work: Callable[[slice], None], rows: int) -> None:
        """Calls work with slices of rows, in several threads."""
        slices = [slice(start, min(start + SLICE, rows)) for start in range(0, rows, SLICE)]
        for _ in self._pool.map(work, slices):
            pass

    def _product(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """x · weightᵀ + bias, float32 [n, out]."""
        if out is None:
            out = np.empty((len(x), len(weight)), np.float32)
        for start in range(0, len(x), PRODUCT):
            rows = slice(start, min(start + PRODUCT, len(x)))
            np.matmul(x[rows], weight.T, out=out[rows])
            if bias is not None:
                out[rows] += bias
            self._progress((rows.stop - start) * weight.size)
        return out

    # ---- operations -------------------------------------------------------------------------------------------------

    def embed(self, name: str) -> np.ndarray:
        return self._weights.rows(name, self.tokens)

    def positions(self, name: str) -> np.ndarray:
        return self._weights.rows(name, self._positions)

    def rms_norm(self, x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
        weight = self._weights.vector(name)
        assert weight is not None
        out = np.empty_like(x)

        def work(rows: slice) -> None:
            _rms(x[rows], weight, epsilon, out[rows])

        self._in_slices(work, len(x))
        return out

    def layer_norm(self, x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
        weight, bias = self._weights.vector(f"{name}.weight"), self._weights.vector(f"{name}.bias")
        out = np.empty_like(x)

        def work(rows: slice) -> None:
            centred = x[rows] - x[rows].mean(-1, keepdims=True)
            centred /= np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(epsilon))
            out[rows] = centred * weight + bias

        self._in_slices(work, len(x))
        return out

    def head_norm(self, x: np.ndarray, heads: int, name: str, epsilon: float) -> np.ndarray:
        weight = self._weights.vector(name)
        assert weight is not None

        def work(rows: slice) -> None:
            each = x[rows].reshape(-1, heads, len(weight))
            _rms(each, weight, epsilon, each)

        self._in_slices(work, len(x))
        return x

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        (product,) = self.linears(x, (name,))
        return product

    def linears(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
        weights = self._weights.matrices(names, None, x)
        return tuple(
            self._product(x, w(), self._weights.vector(f"{name}.bias")) for name, w in zip(names, weights, strict=True)
        )

    def split(self, x: np.ndarray, widths: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.ascontiguousarray(part) for part in np.split(x, np.cumsum(widths)[:-1], -1))

    def rope(self, x: np.ndarray, heads: int, rope: Rope, first: int = 0) -> np.ndarray:
        cos, sin = rope.tables(max(self.lengths))
        pairs = len(rope.frequencies)
        if rope.interleaved:
            of_a, of_b = slice(first, first + 2 * pairs, 2), slice(first + 1, first + 2 * pairs, 2)
        else:
            of_a, of_b = slice(first, first + pairs), slice(first + pairs, first + 2 * pairs)

        def work(rows: slice) -> None:
            each, at = x[rows].reshape(rows.stop - rows.start, heads, -1), self._positions[rows]
            c, s = cos[at][:, None], sin[at][:, None]
            a, b = each[..., of_a].copy(), each[..., of_b].copy()
            each[..., of_a], each[..., of_b] = a * c - b * s, b * c + a * s

        self._in_slices(work, len(x))
        return x

    def attention(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: Heads) -> np.ndarray:
        sinks = self._weights.vector(heads.sinks) if heads.sinks else None
        out = np.empty_like(query)

        def work(rows: slice) -> None:
            q, k, v = (x[rows].reshape(rows.stop - rows.start, -1, heads.size) for x in (query, key, value))
            out[rows] = attend(q, k, v, heads.factor, heads.window, sinks).reshape(out[rows].shape)

        self._in_sequences(work)
        return out

    def latent_attention(
        self, query: np.ndarray, latent: np.ndarray, key: np.ndarray, name: str, heads: Latent
    ) -> np.ndarray:
        """In the expanded form: every head's keys and values are computed from the latents."""
        (read,) = self._weights.matrices((name,), None, latent)
        weight = read()
        out = np.empty((len(query), heads.queries * heads.value), np.float32)

        def work(rows: slice) -> None:
            n = rows.stop - rows.start
            expanded = (latent[rows] @ weight.T).reshape(n, heads.queries, -1)
            shared = np.broadcast_to(key[rows][:, None], (n, heads.queries, heads.rope))
            keys = np.concatenate([expanded[..., : heads.nope], shared], -1)
            seen = attend(query[rows].reshape(keys.shape), keys, expanded[..., heads.nope :], heads.factor)
            out[rows] = seen.reshape(n, -1)

        self._in_sequences(work)
        self._progress(len(query) * weight.size)
        return out

    def _in_sequences(self, work: Callable[[slice], None]) -> None:
        ends = np.cumsum(self.lengths).tolist()
        for _ in self._pool.map(work, [slice(end - n, end) for end, n in zip(ends, self.lengths, strict=True)]):
            pass

    def gated(self, x: np.ndarray, gate: str, up: str) -> np.ndarray:
        reads = self._weights.matrices((gate, up), None, x)
        biases = [self._weights.vector(f"{name}.bias") for name in (gate, up)]
        return self._gated(x, [read() for read in reads], biases, Gate())

    def _gated(
        self, x: np.ndarray, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None], gate: Gate
    ) -> np.ndarray:
        """What a gate and an up projection come to, [n, inner]; one weight has them in turn, row by row."""
        inner = len(weights[0]) // (3 - len(weights))
        out = np.empty((len(x), inner), np.float32)
        for start in range(0, len(x), PRODUCT):
            rows = slice(start, min(start + PRODUCT, len(x)))
            parts = [self._product(x[rows], w, b) for w, b in zip(weights, biases, strict=True)]
            g, u = parts if len(parts) == 2 else (parts[0][:, ::2], parts[0][:, 1::2])
            here = out[rows]

            def work(part: slice, g: np.ndarray = g, u: np.ndarray = u, here: np.ndarray = here) -> None:
                here[part] = gated_value(g[part], u[part], gate)

            self._in_slices(work, len(here))
        return out

    def activated(self, x: np.ndarray, name: str, activation: str = "gelu_tanh") -> np.ndarray:
        h = self.linear(x, name)

        def work(rows: slice) -> None:
            part = h[rows]
            inner = np.tanh(np.float32(np.sqrt(2 / np.pi)) * (part + np.float32(0.044715) * part**3))
            part *= np.float32(0.5) * (1 + inner)

        self._in_slices(work, len(h))
        return h

    def route(self, x: np.ndarray, name: str, router: Router) -> Routing:
        logits = self.linear(x, name)
        correction = self._weights.vector(router.correction) if router.correction else None
        parts = [route(logits[at : at + SLICE], router, correction) for at in range(0, len(logits), SLICE)]
        return Routing(*(np.concatenate([getattr(p, field) for p in parts]) for field in ("chosen", "weights")))

    def experts(self, x: np.ndarray, routing: Routing, name: str, gate: Gate) -> np.ndarray:
        out = np.zeros_like(x)
        parts = ("gate_up",) if f"{name}.gate_up_proj" in self.checkpoint.entries else ("gate", "up")
        first, down = tuple(f"{name}.{part}_proj" for part in parts), f"{name}.down_proj"
        self._weights.tell(first, x)
        count, _, _ = self.checkpoint.entries[down].spec.matrices
        by_expert = np.argsort(routing.chosen.reshape(-1), kind="stable")
        edges = np.searchsorted(routing.chosen.reshape(-1), np.arange(count + 1), sorter=by_expert)
        for expert in range(count):
            places = by_expert[edges[expert] : edges[expert + 1]]
            tokens = places // routing.chosen.shape[1]
            if not self._weights.is_visited and not len(tokens):
                continue
            met = x[tokens]
            weights = (
                [read() for read in self._weights.matrices(first, expert, met)]
                if len(tokens)
                else self._weights.unmet(first, expert, met)
            )
            inner = self._gated(met, weights, [self._weights.vector(f"{n}_bias", expert) for n in first], gate)
            (read,) = self._weights.matrices((down,), expert, inner)
            if len(tokens):
                result = self._product(inner, read(), self._weights.vector(f"{down}_bias", expert))
                result *= routing.weights.reshape(-1)[places][:, None]
                out[tokens] += result
        return out

    def scaled_by_gate(self, x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
        y *= sigmoid(self.linear(x, name))
        return y

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        def work(rows: slice) -> None:
            x[rows] += y[rows]

        self._in_slices(work, len(x))
        return x


def _rms(x: np.ndarray, weight: np.ndarray, epsilon: float, out: np.ndarray) -> None:
    scale = np.square(x).mean(-1, keepdims=True) + np.float32(epsilon)
    np.multiply(x, 1 / np.sqrt(scale), out=out)
    out *= weight
