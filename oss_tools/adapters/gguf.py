"""Adapters as llama.cpp has them: a GGUF file of pairs `NAME.lora_a`, `NAME.lora_b`.

Source: llama.cpp, `convert_lora_to_gguf.py` and `src/llama-adapter.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from gguf.constants import Keys

from oss_tools.adapters.changes import Change, LowRank, Replacement
from oss_tools.adapters.fitting import fitted, fitted_table, misfit, rank_of
from oss_tools.adapters.places import Places
from oss_tools.adapters.tensors import AdapterFile, AdapterTensor, GgufAdapter
from oss_tools.errors import BadCheckpoint

LARGEST_ALPHA = 1e6


class GgufLora:
    """An open GGUF adapter.

    Attributes:
        path: the file.
        base: the name of the model that it was made for, or "".
        sha256: of the file.
        remarks: what a user should know about how it was read, a sentence each.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint."""
        self.path = path
        opened = GgufAdapter(path)
        self.file: AdapterFile = opened
        self._keys = opened.keys
        self.remarks: list[str] = []
        try:
            keys = self._keys
            kind = keys.get(Keys.Adapter.TYPE)
            if kind != "lora":
                raise BadCheckpoint(f"{path}: an adapter of the type {str(kind)[:40]}, which is not supported; lora is")
            if Keys.Adapter.ALORA_INVOCATION_TOKENS in keys:
                raise BadCheckpoint(f"{path}: works from certain tokens on (aLoRA), which no weights can say")
            self.alpha = keys.get(Keys.Adapter.LORA_ALPHA, 0.0)
            if not isinstance(self.alpha, float) or not math.isfinite(self.alpha) or abs(self.alpha) > LARGEST_ALPHA:
                raise BadCheckpoint(f"{path}: {Keys.Adapter.LORA_ALPHA} is {str(self.alpha)[:40]}, expected a number")
            name = keys.get("general.base_model.0.name")
            self.base = name if isinstance(name, str) and name.isprintable() else ""
            self._pairs: dict[str, dict[str, AdapterTensor]] = {}
            self._norms: dict[str, AdapterTensor] = {}
            self._sort_tensors()
            self.file.check_values()
            self.sha256 = self.file.sha256()
        except BaseException:
            self.close()
            raise

    def _sort_tensors(self) -> None:
        for name, tensor in self.file.tensors.items():
            stem, _, part = name.rpartition(".")
            if part in ("lora_a", "lora_b"):
                self._pairs.setdefault(stem, {})[part] = tensor
            elif name.endswith("_norm.weight"):
                self._norms[name] = tensor
            else:
                raise BadCheckpoint(f"{self.path}: tensor {name} is no part of a LoRA adapter (NAME.lora_a, NAME.lora_b)")
        for stem, pair in self._pairs.items():
            if len(pair) < 2:
                raise BadCheckpoint(f"{self.path}: {stem} has {next(iter(pair))} alone: the file is incomplete")
        if self._norms:
            self.remarks.append(
                f"{self.path}: brings norms ({len(self._norms)}), which are merged, though llama.cpp leaves them out"
            )

    def changes(self, places: Places, strength: float) -> Iterator[Change]:
        """All changes of a model's tensors. `places`: of a GGUF file. Raises BadCheckpoint for another model's adapter."""
        said, ours = self._keys.get(Keys.General.ARCHITECTURE), places.architecture.gguf_name
        if said != ours:
            raise BadCheckpoint(f"{self.path}: an adapter for the architecture {str(said)[:40]!r}, the base is {ours!r}")
        for name, tensor in self._norms.items():
            found = places.of(name)
            if not found or tensor.shape != found[0].placement.stored_shape:
                raise BadCheckpoint(
                    f"{self.path}: tensor {name} {list(tensor.shape)} is none of the base's: another model's adapter"
                )
            yield from (Replacement(place, tensor, transposed=False) for place in found)
        for stem, pair in self._pairs.items():
            a, b = pair["lora_a"], pair["lora_b"]
            found = places.of(stem)
            if not found:
                raise BadCheckpoint(f"{self.path}: {stem} is no weight of the base: another model's adapter")
            table = stem == "token_embd.weight"
            factors = fitted_table(found, a, b, by_token=True) if table else fitted(found, a, b)
            if factors is None or getattr(factors, "flipped", False):
                raise BadCheckpoint(misfit(f"{self.path}: {stem}", found, a, b))
            rank = rank_of(factors)
            scale = strength * (self.alpha / rank if self.alpha else 1.0)
            yield from (LowRank(place, factors, scale) for place in found)

    def close(self) -> None:
        self.file.close()
