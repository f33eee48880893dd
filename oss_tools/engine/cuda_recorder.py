"""A forward pass on a GPU, written down as launches of kernels, fused where that saves a pass over memory: what passes of one
token and of many have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.matvec import ADD, GELU, STORE
from numba_kernels.cuda.routing import route_blocks, route_kernel
from numba_kernels.cuda.rows import add_rows_kernel, embed_kernel, layer_norm_kernel
from numba_kernels.cuda.seam import Kernel
from oss_tools.engine.cuda_values import WARPS, Floats, Launch, Model, Normed, Pending, Routing, Value
from oss_tools.engine.cuda_weights import Stack
from oss_tools.errors import BadRequest
from oss_tools.models.operations import Operations, Router


class Recorder(Operations[Value]):
    """What both recorders share. `tokens` is the most tokens of a pass."""

    prefix = ""
    tokens: int

    def __init__(self, model: Model) -> None:
        self.model = model
        self.launches: list[Callable[[int], Launch]] = []
        self.kernels: dict[str, Kernel] = {}
        self._packed: dict[int, tuple[Kernel, tuple[Any, ...], Callable[[Any], None]]] = {}

    def play(self, tokens: int = 1, only: tuple[str, ...] = (), named: str = "") -> None:
        """Puts the launches for so many tokens on the device's stream; all of them, or those of kernels made of the functions
        `only`, or of the one kernel of this name."""
        for number, launch in enumerate(self.launches):
            kernel, grid, arguments = launch(tokens)
            if (not only or kernel.function.__name__ in only) and named in ("", kernel.name):
                self._bound(number, kernel, arguments)(grid)

    def _bound(self, number: int, kernel: Kernel, arguments: tuple[Any, ...]) -> Callable[[Any], None]:
        """A launch with its arguments as the device takes them, made anew only when they are others."""
        held = self._packed.get(number)
        if held is None or held[0] is not kernel or held[1] is not arguments:
            held = self._packed[number] = kernel, arguments, self.model.device.bound(kernel, arguments)
        return held[2]

    def _kernel(self, kernel: Kernel) -> Kernel:
        """The kernel, or the one like it that there already is."""
        return self.kernels.setdefault(kernel.name, self.model.kernel(kernel))

    def _blocks(self, warps_of_work: int, kernel: Kernel) -> Callable[[], int]:
        """How many blocks the kernel gets, known when it is compiled."""
        return lambda: self.model.device.blocks(warps_of_work, kernel)

    def _add(self, kernel: Kernel, grid: Callable[[int], Any], *arguments: Any) -> None:
        """A launch whose grid depends on the number of tokens."""
        self.launches.append(lambda tokens: (kernel, grid(tokens), arguments))

    def _floats(self, role: str, columns: int) -> Floats:
        return Floats(self.model.buffer(self.prefix + role, self.tokens * columns, np.float32), columns, columns)

    def floats(self, value: Value) -> Floats:
        """A value that lies in memory."""
        if isinstance(value, Floats):
            return value
        if isinstance(value, Pending):
            out = self._floats(f"output {value.name}", value.columns)
            value.emit(out, False)
            return out
        raise TypeError(f"a {type(value).__name__} lies nowhere")

    def _ints(self, role: str, count: int) -> Any:
        return self.model.buffer(self.prefix + role, count, np.int32)

    def _source(self, value: Value) -> tuple[Floats, Any, np.float32, bool]:
        """(where x is, norm's weight, epsilon, whether it is to be normalized)."""
        if isinstance(value, Normed):
            return value.x, value.weight, np.float32(value.epsilon), True
        x = self.floats(value)
        return x, x.array, np.float32(0), False

    # ---- operations that both carry out alike -----------------------------------------------------------------------

    @property
    @abstractmethod
    def token_numbers(self) -> Any:
        """The tokens of a pass, on the device."""

    @property
    @abstractmethod
    def position_numbers(self) -> Any:
        """The tokens' positions, on the device."""

    @property
    @abstractmethod
    def sequence_numbers(self) -> Any:
        """Which sequence each token belongs to."""

    @abstractmethod
    def page_tables(self, window: int | None) -> Any:
        """The sequences' tables of pages."""

    def embed(self, name: str) -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("x", stack.columns)
        self._rows_of(stack, self.token_numbers, out, add=False)
        return out

    def positions(self, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        if stack.rows < self.model.context:
            raise BadRequest(f"{name} has {stack.rows} positions; the context has {self.model.context}")
        return Pending(
            "positions", stack.columns, lambda out, add: self._rows_of(stack, self.position_numbers, out, add=add)
        )

    def _rows_of(self, stack: Stack, numbers: Any, out: Floats, *, add: bool) -> None:
        """The rows of a table that have these numbers."""
        kernel = self._kernel(embed_kernel(stack.format, stack.columns, WARPS, add=add))
        parts = -(-stack.columns // kernel.threads)
        arguments = (stack.codes, stack.scales, numbers, stack.rows, out.stride, out.view)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Normed:
        return Normed(self.floats(x), self.model.weights.vector(name), epsilon)

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Floats:
        given = self.floats(x)
        out = self._floats("layer normed", given.columns)
        weight, bias = (self.model.weights.vector(f"{name}.{part}") for part in ("weight", "bias"))
        kernel = self._kernel(layer_norm_kernel(given.columns, WARPS))
        arguments = (given.view, given.stride, weight, bias, np.float32(epsilon), out.view, out.stride)
        self._add(kernel, lambda tokens: tokens, *arguments)
        return out

    def linear(self, x: Value, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        return Pending(
            name.rpartition(".")[2], stack.rows, lambda out, add: self._multiply(stack, x, out, ADD if add else STORE)
        )

    def activated(self, x: Value, name: str, activation: str = "gelu_tanh") -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("activated", stack.rows)
        self._multiply(stack, x, out, GELU)
        return out

    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Floats, ...]:
        heights = self.model.weights.heights(names)
        whole, at = self._floats("projections", sum(heights)), 0
        for stack in self.model.weights.stacks(names):
            self._multiply(stack, x, Floats(whole.array, stack.rows, whole.stride, at), STORE)
            at += stack.rows
        edges = np.cumsum([0, *heights]).tolist()
        return tuple(Floats(whole.array, height, whole.stride, a) for a, height in zip(edges, heights, strict=False))

    @abstractmethod
    def _multiply(self, stack: Stack, value: Value, out: Floats, finish: int) -> None: ...

    def split(self, x: Value, widths: tuple[int, ...]) -> tuple[Floats, ...]:
        whole = self.floats(x)
        edges = np.cumsum([0, *widths]).tolist()
        return tuple(
            Floats(whole.array, width, whole.stride, whole.start + a) for a, width in zip(edges, widths, strict=False)
        )

    def add(self, x: Value, y: Value) -> Value:
        if isinstance(x, Pending):
            return Pending(x.name, x.columns, lambda out, add: self._both(x, y, out, add))
        out = self.floats(x)
        self._both(None, y, out, True)
        return out

    def _both(self, x: Pending | None, y: Value, out: Floats, add: bool) -> None:
        """Adds x and y to values, or stores their sum there."""
        if x:
            x.emit(out, add)
        if isinstance(y, Pending):
            y.emit(out, True)
        else:
            self._add_rows(self.floats(y), None, out, True)

    def _add_rows(self, x: Floats, gate: Floats | None, out: Floats, add: bool) -> None:
        kernel = self._kernel(add_rows_kernel(x.columns, gated=gate is not None, add=add, warps=WARPS))
        parts = -(-x.columns // kernel.threads)
        arguments = (x.view, x.stride, (gate or x).view, out.view, out.stride)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    # ---- experts ----------------------------------------------------------------------------------------------------

    def route(self, x: Value, name: str, router: Router) -> Routing:
        chosen = router.chosen
        (stack,) = self.model.weights.stacks((name,))
        if stack.rows != router.experts:
            raise BadRequest(f"{name} gives {stack.rows} logits for {router.experts} experts")
        source, weight, epsilon, norm = self._source(x)
        choice = Choice(
            router.experts, chosen, router.score == "sigmoid", router.renormalized, router.correction is not None,
            router.groups, router.groups_chosen, {"top2": 2, "max": 1}[router.group_score],
        )  # fmt: skip
        logits, normed = self._floats("router", stack.rows), self._floats("normed", stack.columns)
        ids, shares = self._ints("ids", self.tokens * chosen), self._floats("shares", chosen).array
        counters = self._ints("counters", self.tokens)
        bias = source.array if stack.bias is None else stack.bias
        correction = self.model.weights.vector(router.correction) if router.correction else source.array
        aligned, shape = not (source.start % 4 or source.stride % 4), self.model.shape(stack)

        def emit(chooses: bool) -> None:
            kernel = self._kernel(
                route_kernel(
                    shape, choice, norm=norm, bias=stack.bias is not None, warps=WARPS, aligned=aligned, chooses=chooses
                )
            )  # fmt: skip
            blocks = self._blocks(route_blocks(kernel, WARPS), kernel)
            self._add(
                kernel, lambda tokens: (blocks(), tokens), stack.codes, stack.scales, bias, source.view, source.stride, weight,
                epsilon, logits.view, counters, normed.view, ids, shares, correction, np.float32(router.scale),
                np.float32(router.epsilon),
            )  # fmt: skip

        given = Normed(source, weight, float(epsilon)) if norm and aligned else None
        return Routing(chosen, stack.rows, ids, shares, normed, choice, logits, np.float32(router.scale), given, emit)

    def _expert_stacks(self, name: str) -> tuple[Stack, Stack]:
        """The experts' first projections, rows of gate and up in turn, and their second."""
        weights = self.model.weights
        if weights.has(f"{name}.gate_up_proj"):
            (first,) = weights.stacks((f"{name}.gate_up_proj",))
        else:
            (first,) = weights.stacks((f"{name}.gate_proj", f"{name}.up_proj"), interleave=True)
        (second,) = weights.stacks((f"{name}.down_proj",))
        return first, second

    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Pending:
        gate, values = self.floats(replace(self.linear(x, name), name="gate")), self.floats(y)
        return Pending("scaled", values.columns, lambda out, add: self._add_rows(values, gate, out, add))
