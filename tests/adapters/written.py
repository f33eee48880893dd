"""Adapters written for tests, and `merge` without its command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from oss_tools.adapters.merge import open_adapter, prepare
from oss_tools.checkpoints.safetensors import SafetensorsWriter
from oss_tools.convert.manifest import Manifest
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.recipe import KEEP_ALL, Recipe
from oss_tools.models import open_checkpoint

Tensors = Mapping[str, np.ndarray]
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "", "task_type": "CAUSAL_LM"}
PREFIX = "base_model.model."


def write_safetensors(path: Path, tensors: Tensors) -> None:
    writer = SafetensorsWriter(path, [(name, "F32", values.shape) for name, values in tensors.items()])
    for name, values in tensors.items():
        writer.write(name, 0, np.ascontiguousarray(values, np.float32))
    writer.close()


def write_peft(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A PEFT adapter of rank 4 and alpha 8, unless `config` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_gguf(path: Path, architecture: str, tensors: Tensors, alpha: float = 8.0, **keys: Any) -> Path:
    """An adapter as llama.cpp's convert_lora_to_gguf.py writes it."""
    writer = GGUFWriter(path, architecture)
    writer.add_type(keys.get("type", "adapter"))
    writer.add_string("adapter.type", keys.get("kind", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    if "tokens" in keys:
        writer.add_array("adapter.alora.invocation_tokens", keys["tokens"])
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_pair(out: int, columns: int, rank: int = 4, seed: int = 0, size: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """A [rank, columns] and B [out, rank], float32."""
    rng = np.random.default_rng(seed)
    shapes = ((rank, columns), (out, rank))
    a, b = ((rng.standard_normal(shape) * size).astype(np.float32) for shape in shapes)
    return a, b


def lora(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """The two tensors under PEFT's names."""
    return {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}


def merge(
    base: Path,
    adapters: Path | Sequence[Path],
    target: Path,
    recipe: Recipe = KEEP_ALL,
    scales: Sequence[float] | None = None,
    container: str = "hf",
    any_base: bool = True,
    **options: Any,
) -> Manifest:
    """What `merge` does."""
    opened = []
    try:
        for path in [adapters] if isinstance(adapters, Path) else adapters:
            opened.append(open_adapter(path))  # noqa: PERF401
        with open_checkpoint(base) as checkpoint:
            merged = prepare(checkpoint, opened, scales or [1.0] * len(opened), any_base=any_base)
            return run(merged.plan(container, recipe), target, Options(**{"jobs": 2} | options))
    finally:
        for adapter in opened:
            adapter.close()
