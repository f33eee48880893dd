"""Whether a model fits into a GPU's memory: its weights, and the keys and values of a sequence of the whole context."""

from __future__ import annotations

from numba_kernels.cuda.attention import PAGE
from numba_kernels.cuda.device import Device
from oss_tools.engine.backend import Options
from oss_tools.engine.cuda_cache import cached_values, ring_pages
from oss_tools.engine.cuda_inputs import CHUNK
from oss_tools.errors import NoRoom
from oss_tools.models import Architecture
from oss_tools.sizes import format_size

WORK_BYTES = 900_000_000  # the CUDA context, activations of a chunk, logits


def position_bytes(architecture: Architecture, options: Options) -> int:
    """Of one position of the context: its keys and values in all layers that keep every position."""
    return sum(_value_bytes(options) * cached_values(h) for h in architecture.attention_layers() if h.window is None)


def require_room(device: Device, architecture: Architecture, options: Options, weights: int) -> None:
    """Raises NoRoom with the numbers if weights of so many bytes and the cache do not fit into the device's free memory."""
    free, total = device.memory()
    cache = sum(
        _value_bytes(options) * cached_values(h) * PAGE * ring_pages(h.window, options.context, CHUNK)
        for h in architecture.attention_layers()
    )
    if weights + cache + WORK_BYTES > free:
        raise NoRoom(
            f"{device.name}: the model needs {format_size(weights + cache + WORK_BYTES)} of its memory (weights "
            f"{format_size(weights)}, KV cache of {options.context} tokens {format_size(cache)}, the rest "
            f"{format_size(WORK_BYTES)}), {format_size(free)} of {format_size(total)} are free; take a smaller --context, "
            f"requantize to fewer bits, or use --device cpu"
        )


def _value_bytes(options: Options) -> int:
    """Of a value in the KV cache."""
    return 4 if options.activations == "f32" else 2
