"""Models whose matrices are drawn on the GPU: what is timed needs neither a file nor the host's memory."""

from __future__ import annotations

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS
from numba_kernels.cuda.noise import draw_matrix
from oss_tools.engine.backend import Options
from oss_tools.engine.cuda_backend import CudaBackend
from oss_tools.engine.cuda_weights import CudaWeights, Stack
from oss_tools.engine.engine import Engine
from oss_tools.formats import Format
from oss_tools.models import Checkpoint, Entry


class DrawnWeights(CudaWeights):
    """Matrices of noise; norms, biases and sinks are the checkpoint's."""

    def _load(self, entries: list[Entry], names: tuple[str, ...], form: Format, interleave: bool) -> Stack:
        count, _, columns = entries[0].spec.matrices
        rows = sum(e.spec.matrices[1] for e in entries)
        layout = LAYOUTS[form.name]
        codes = self.device.empty(count * rows * layout.row_words(columns), np.uint32)
        scales = self.device.zeros(count * rows * layout.row_scales(columns), layout.scale_dtype)
        draw_matrix(self.device, form.name, codes, scales, len(self._stacks) + 1)
        return Stack(form.name, count, rows, columns, codes, scales, self._bias(names, interleave))


class DrawnBackend(CudaBackend):
    """The CUDA backend with weights of noise."""

    name = "cuda, drawn"
    weights_class = DrawnWeights


def drawn_engine(checkpoint: Checkpoint, context: int, activations: str = "int8") -> Engine:
    """An engine for the checkpoint's shape. Raises NoRoom where it does not fit."""
    options = Options(activations=activations, context=context)
    DrawnBackend.require(checkpoint, options)
    backend = DrawnBackend(checkpoint, options, lambda nbytes: None)
    return Engine(checkpoint.architecture, backend, context, 0, checkpoint.metadata())
