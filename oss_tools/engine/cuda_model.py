"""A model on a GPU: its weights, the memory that its passes work in, and the passes themselves, written down as launches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention_many import attend_many_kernel
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.seam import Kernel, NoKernel
from oss_tools.engine.backend import Options, Progress
from oss_tools.engine.compiling import compile_all
from oss_tools.engine.cuda_cache import Pool
from oss_tools.engine.cuda_graphs import Graphs
from oss_tools.engine.cuda_inputs import CHUNK, OUTPUTS, Batch, Step
from oss_tools.engine.cuda_many_tokens import ManyTokens
from oss_tools.engine.cuda_one_token import OneToken
from oss_tools.engine.cuda_sampling import Sampler, sampling_kernel
from oss_tools.engine.cuda_values import Floats, Normed
from oss_tools.engine.cuda_weights import CudaWeights, Stack
from oss_tools.errors import BadRequest
from oss_tools.models import Checkpoint
from oss_tools.models.operations import Rope


@contextmanager
def _refused() -> Iterator[None]:
    """Makes one line of a shape that the kernels cannot be made for."""
    try:
        yield
    except NoKernel as error:
        raise BadRequest(f"{error}: use --device cpu for this model") from None


def _lying(hidden: Normed | Floats) -> Floats:
    """Where the hidden states lie, which are normalized already or will be."""
    return hidden.x if isinstance(hidden, Normed) else hidden


class RecordedModel:
    """Passes of one token and of many, recorded for an architecture.

    Attributes:
        step, batch: what changes between passes.
        pools: pages of keys and values, by the layers' window.
        vocabulary: columns of the logits.
    """

    chunk = CHUNK
    weights_class = CudaWeights

    def __init__(self, device: Device, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        self.options, self.context = options, options.context
        self.architecture = checkpoint.architecture
        self.layers = self.architecture.attention_layers()
        if options.activations not in ("int8", "f32"):
            raise BadRequest(f"activations {options.activations!r}: there are int8 and f32")
        self.element = "f32" if options.activations == "f32" else "bf16"  # of the KV cache
        self.device = device
        self.weights = self.weights_class(self.device, checkpoint, progress, options.say)
        self._buffers: dict[tuple[str, int, str], Any] = {}
        self._ropes: dict[int, tuple[Rope, tuple[Any, Any]]] = {}
        self._graphs = Graphs(self.device)
        self._kernels: dict[str, Kernel] = {}
        self._recorded = False
        self.pools = self._pools()
        self.step = Step(self.device, self.pools)
        self.batch = Batch(self.device, self.pools)
        with _refused():
            self._record()
        self.weights.finish()
        self._compile()

    def _pools(self) -> dict[int | None, Pool]:
        windows = dict.fromkeys(h.window for h in self.layers)
        layers = {w: [h for h in self.layers if h.window == w] for w in windows}
        with _refused():
            pools = {
                w: Pool(self.device, hs, self.options.context, CHUNK, self.element, self._moved) for w, hs in layers.items()
            }
            for pool in pools.values():  # before the weights are read
                attend_kernel(pool.shape, 1)
                if self.options.activations != "f32" and not pool.shape.latent:
                    attend_many_kernel(pool.shape)
        return pools

    def _moved(self) -> None:
        """Pages are elsewhere: what was recorded points to memory that is gone."""
        if self._recorded:
            self._graphs.clear()
            self._record()

    def _record(self) -> None:
        """Writes down the passes of one token and of many: to the hidden states, and from them to the logits."""
        self._recorded = True
        self._one = OneToken(self)
        hidden = self.architecture.forward(self._one)
        self._x = _lying(hidden)
        self._head = OneToken(self)
        self._logits = self._head.floats(self.architecture.logits(self._head, hidden))
        self.vocabulary = self._logits.columns
        self._sampler = Sampler(self.device, self.kernel(sampling_kernel()), self.buffer, self.vocabulary)
        if self.options.activations == "f32":
            return  # the tensor cores would round them
        self._many = ManyTokens(self)
        states = self.architecture.forward(self._many)
        self._states = _lying(states)
        self._heads = ManyTokens(self, self.batch.selected, OUTPUTS)
        self._rows_logits = self._heads.floats(self.architecture.logits(self._heads, states))

    def _compile(self) -> None:
        """Compiles all kernels, or takes them from the cache."""
        jobs = [(kernel.name, partial(self.device.prepare, kernel)) for kernel in self._kernels.values()]
        compile_all(jobs, self.options.on_compile)

    # ---- for the recorders ------------------------------------------------------------------------------------------

    def kernel(self, kernel: Kernel) -> Kernel:
        """The kernel, or the one of its name that there already is."""
        return self._kernels.setdefault(kernel.name, kernel)

    def buffer(self, role: str, count: int, dtype: Any) -> Any:
        """Memory for one kind of value, shared by all layers, zero at first."""
        key = (role, count, np.dtype(dtype).name)
        if key not in self._buffers:
            self._buffers[key] = self.device.zeros(count, dtype)
        return self._buffers[key]

    def shape(self, stack: Stack) -> Shape:
        return Shape(stack.format, stack.columns, self.options.activations)

    def rope_tables(self, rope: Rope) -> tuple[Any, Any]:
        """cos and sin for all positions of the context."""
        if id(rope) not in self._ropes:
            cos, sin = rope.tables(self.options.context)
            self._ropes[id(rope)] = (rope, (self.device.array(cos), self.device.array(sin)))
        return self._ropes[id(rope)][1]
