"""ggml's other formats (k-quants, i-quants, ternary ones, its NVFP4): readable, one format per type that gguf-py decodes.

Named after ggml's types in lower case; its NVFP4, whose blocks differ from `nvfp4`'s, is `ggml_nvfp4`.
Source: gguf-py's `constants.py` (block sizes) and `quants.py` (decoding).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from oss_tools.formats import float as _float  # noqa: F401  (these four register the types that are also written)
from oss_tools.formats import ggml as _ggml  # noqa: F401
from oss_tools.formats import ggml_k as _ggml_k  # noqa: F401
from oss_tools.formats import mxfp4 as _mxfp4  # noqa: F401
from oss_tools.formats.base import _REGISTRY, Format
from oss_tools.formats.qtensor import Plane

NAMES = {"NVFP4": "ggml_nvfp4"}


class ReadOnly(Format):
    """A ggml type that gguf-py decodes. Plane: `blocks` uint8 [.., block bytes · K / block], ggml's own bytes."""

    type: GGMLQuantizationType
    block_bytes: int

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"blocks": Plane(np.dtype(np.uint8), columns // self.block * self.block_bytes)}

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import i_quants, k_quants
        from numba_kernels.parallel import over_rows

        kernel = f"dequantize_{self.name}"
        if hasattr(i_quants, kernel):
            over_rows(getattr(i_quants, kernel), [planes["blocks"]], [out], _tables(self.type), threads)
        elif hasattr(k_quants, kernel):
            over_rows(getattr(k_quants, kernel), [planes["blocks"]], [out], threads=threads)
        else:
            _with_gguf_py(self.type, planes["blocks"], out)


def _with_gguf_py(kind: GGMLQuantizationType, blocks: np.ndarray, out: np.ndarray) -> None:
    """Decodes a type that gguf-py knows and the kernels do not."""
    with np.errstate(all="ignore"):
        if len(out):
            out[:] = quants.dequantize(blocks, kind)


@cache
def _tables(kind: GGMLQuantizationType) -> tuple[np.ndarray, np.ndarray]:
    """An i-quant's grid, float32 [entries, 4 or 8], and what seven sign bits stand for, uint8 [128]."""
    traits: Any = quants._type_traits[kind]
    traits.init_grid()
    signs = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)
    return np.ascontiguousarray(traits.grid, np.float32).reshape(traits.grid_shape), signs


def _register() -> None:
    """Makes a class of every type in gguf-py's table of decoders that has no format yet."""
    known = {format.ggml_type for format in _REGISTRY.values()}
    for kind in quants._type_traits:
        block, size = GGML_QUANT_SIZES[kind]
        if kind.value not in known:
            summary = f"ggml: {kind.name}, {8 * size / block:.4g} bits a weight; read only"
            attributes = {"block": block, "block_bytes": size, "type": kind, "ggml_type": kind.value, "summary": summary}
            type(kind.name, (ReadOnly,), {"name": NAMES.get(kind.name, kind.name.lower()), **attributes})


_register()
