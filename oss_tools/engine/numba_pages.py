"""Pages of the kernels' KV cache: their geometry for a layer and a format, and the kernels that copy them."""

from __future__ import annotations

from numba_kernels.cpu.copies import copy_ops
from numba_kernels.cpu.kv_pages import Pages
from numba_kernels.cpu.latent import LatentPages, copy_latents_ops
from numba_kernels.cpu.op import Op
from oss_tools.errors import BadRequest
from oss_tools.models.operations import Heads, Latent

POSITIONS = 64  # of a page


def copies_for(heads: Heads | Latent, element: str) -> tuple[Op, Op, Op]:
    """What reads the rows of positions, what writes them, and what copies positions from page to page."""
    *rows, pages = copy_ops(element)
    reading, writing = copy_latents_ops(element) if isinstance(heads, Latent) else rows
    return reading, writing, pages


def pages_for(heads: Heads | Latent, element: str) -> Pages | LatentPages:
    """The geometry of a layer's pages. Raises ValueError for a shape that the kernels lack, BadRequest for latents in 8 bits."""
    if isinstance(heads, Latent):
        if element == "q8":
            raise BadRequest("--kv-cache q8: this model caches latents (MLA), which the kernels keep in bf16 or f32")
        return LatentPages(heads.rank, heads.rope, POSITIONS, element)
    return Pages(heads.keys, heads.size, POSITIONS, element)


def pages_of(positions: int) -> int:
    return -(-positions // POSITIONS)
