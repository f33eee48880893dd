"""Sliding windows as families' config.json say them, one rule for each way of transformers.

A rule reads and writes the window of every layer: (), or for each layer a number of positions or None. A key is visible when
query − key < window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models.fields import shown

SLIDING, FULL = "sliding_attention", "full_attention"
SIZES = (1, 1 << 30)
Layers = tuple[int | None, ...]


@dataclass(frozen=True)
class Windows:
    """How a family says its windows.

    Attributes:
        keys: the keys of config.json that it obeys.
        read: config.json's content, the number of layers and where that stands -> the window of each layer.
        write: the window of each layer -> keys of config.json.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int, str], Layers]
    write: Callable[[Layers], dict[str, Any]]


def layers_of(types: Any, window: int | None, layers: int, where: str) -> Layers:
    """From a type for each layer and the window of those that slide. Raises BadCheckpoint."""
    if not isinstance(types, list | tuple) or any(kind not in (SLIDING, FULL) for kind in types):
        raise BadCheckpoint(f"{where}: layer_types is {shown(types)}, expected a list of {SLIDING} and {FULL}")
    if len(types) != layers:
        raise BadCheckpoint(f"{where}: layer_types has {len(types)} entries, for {layers} layers")
    if window is None and SLIDING in types:
        raise BadCheckpoint(f"{where}: layer_types has {SLIDING}, but no sliding_window is in use; say how wide, or {FULL}")
    return tuple(window if kind == SLIDING else None for kind in types) if SLIDING in types else ()


def types_of(windows: Layers, layers: int) -> list[str]:
    """The type of each layer."""
    return [SLIDING if window else FULL for window in windows or (None,) * layers]


def width(windows: Layers) -> int | None:
    """The window of the layers that slide; None where none does."""
    return next((window for window in windows if window), None)


def _size(raw: Mapping[str, Any], default: int | None, where: str) -> int | None:
    """`sliding_window`; the default where it is absent, None where it is null."""
    if raw.get("sliding_window", default) is None:
        return None
    size: int = check.field({"sliding_window": default} | dict(raw), "sliding_window", int, where, *SIZES)
    return size


# ---- Mistral, Mixtral: every layer ----------------------------------------------------------------------------------


def every_layer(default: int | None) -> Windows:
    """`sliding_window` holds for all layers; the default is taken where the key is absent."""

    def read(raw: Mapping[str, Any], layers: int, where: str) -> Layers:
        size = _size(raw, default, where)
        return () if size is None else (size,) * layers

    return Windows(("sliding_window",), read, lambda windows: {"sliding_window": width(windows)})


# ---- Qwen -----------------------------------------------------------------------------------------------------------

QWEN_SIZE, QWEN_FULL_LAYERS = 4096, 28  # what transformers takes where config.json says nothing


def _qwen(in_use: Callable[[int, int], bool] | None, types: bool) -> Windows:
    """`sliding_window` counts if `use_sliding_window` does.

    Args:
        in_use: whether a layer slides, by its number and `max_window_layers`, where no `layer_types` say; None for all.
        types: whether `layer_types` are obeyed.
    """

    def read(raw: Mapping[str, Any], layers: int, where: str) -> Layers:
        size = _size(raw, QWEN_SIZE, where) if check.flag(raw, "use_sliding_window", False, where) else None
        if types and raw.get("layer_types") is not None:
            return layers_of(raw["layer_types"], size, layers, where)
        if in_use is None or size is None:
            return () if size is None else (size,) * layers
        kept = check.field({"max_window_layers": QWEN_FULL_LAYERS} | dict(raw), "max_window_layers", int, where, 0, SIZES[1])
        windows = tuple(size if in_use(layer, kept) else None for layer in range(layers))
        return windows if any(windows) else ()

    def write(windows: Layers) -> dict[str, Any]:
        words: dict[str, Any] = {"use_sliding_window": bool(windows), "sliding_window": width(windows)}
        return words | ({"layer_types": types_of(windows, len(windows))} if types and windows else {})

    return Windows(("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"), read, write)


UPPER_LAYERS = _qwen(lambda layer, kept: layer >= kept, types=True)  # Qwen2, Qwen3
EVEN_LAYERS = _qwen(lambda layer, kept: layer % 2 == 0 and layer < kept, types=True)  # Qwen2-MoE
ALL_LAYERS = _qwen(None, types=False)  # Qwen3-MoE
