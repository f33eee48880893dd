"""A file that keeps the keys and values of a prompt, so that another process need not read the prompt again.

A safetensors file: `tokens` I32 [n]; `keys_and_values` [n, values of a position in all layers], as `Backend.read_cache` gives
them: BF16, F32 where the cache is, or U8, the bytes and scales of a cache in 8 bits. The header's metadata says of which model
they are, how they were computed, and the hash of both tensors. What a file claims is held against all of that before anything
of it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import PRIVATE, check_place, is_stream, replacing
from oss_tools.checkpoints.safetensors import RawTensor, SafetensorsFile, SafetensorsWriter
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom
from oss_tools.machine.memory import available_memory
from oss_tools.sizes import format_size

KIND = "oss-tools prompt cache 1"
TOKENS, VALUES = "tokens", "keys_and_values"
DTYPES = {"BF16": np.dtype(np.uint16), "F32": np.dtype(np.float32), "U8": np.dtype(np.uint8)}
PIECE = 64 << 20  # bytes that are read at a time, about


class PromptFile:
    """Where a prompt is kept.

    Attributes:
        path: the file, which need not be there yet.
        model: `sampled_digest` of the model.
        computed: how keys and values are computed: what makes them other values, in words.
    """

    def __init__(self, path: Path, model: str, computed: str) -> None:
        """Raises BadRequest for a place where no file can be, or a file of another model; BadCheckpoint for one that is damaged
        or something else. Reads the header alone."""
        self.path, self.model, self.computed = path, model, computed
        check_place(path)
        if is_stream(path):
            raise BadRequest(f"{path}: no regular file, which a prompt cache must be")
        if path.exists():
            with closing(SafetensorsFile(path)) as file:
                self._check(file)

    def read_into(self, engine: Engine) -> int:
        """Puts the kept keys and values into the engine's prefix cache, as far as its context reaches; returns their number.
        Raises what opening raises, and NoRoom."""
        if not self.path.exists():
            return 0
        with closing(SafetensorsFile(self.path)) as file:
            tokens, values = self._check(file)
            width, dtype = engine.backend.cache_row()
            if values.shape[1:] != (width,) or DTYPES[values.dtype] != dtype:
                raise BadCheckpoint(f"{self.path}: {values.dtype} {list(values.shape)} are no keys and values of this model")
            ids = file.read(tokens, 0, tokens.nbytes).view("<i4")
            if len(ids) and not 0 <= ids.min() <= ids.max() < engine.backend.vocabulary:
                raise BadCheckpoint(f"{self.path}: holds tokens that are not in the model's vocabulary")
            kept, each = min(len(ids), engine.context), width * dtype.itemsize
            if kept * each > available_memory():
                needed, free = format_size(kept * each), format_size(available_memory())
                raise NoRoom(
                    f"{self.path}: its {kept:,} tokens take {needed}, and {free} of memory are free; "
                    "lower --context, or leave out --prompt-cache"
                )
            engine.prefixes.budget = max(engine.prefixes.budget, kept * each)
            digest = hashlib.sha256(ids.data)
            step = max(PIECE // each, 1)
            for start in range(0, len(ids), step):
                stop = min(start + step, len(ids))
                block = file.read(values, start * each, stop * each).view(dtype).reshape(stop - start, width)
                digest.update(block.data)
                if not engine.backend.is_finite(block):
                    raise BadCheckpoint(f"{self.path}: its keys and values are no finite numbers; remove the file")
                engine.prefixes.insert(ids[: min(stop, kept)], start, block[: max(kept - start, 0)])
            if digest.hexdigest() != file.metadata.get("sha256"):
                raise BadCheckpoint(f"{self.path}: its content is not what was written; remove the file")
        return kept

    def write(self, engine: Engine, tokens: list[int]) -> int:
        """Keeps as many of a text's first tokens as the prefix cache has, in place of what the file held; returns how many. A
        file that has them already stays as it is. Raises NoRoom and BadRequest."""
        count, blocks = engine.prefixes.longest(tokens)
        ids = np.array(tokens[:count], "<i4")
        if not count or self._has(ids):
            return count
        width, dtype = engine.backend.cache_row()
        digest = hashlib.sha256(ids.data)
        for block in blocks:
            digest.update(np.ascontiguousarray(block).data)
        facts = {"format": KIND, "model": self.model, "computed": self.computed, "sha256": digest.hexdigest()}
        name = next(name for name, known in DTYPES.items() if known == dtype)
        with replacing(self.path, private=True) as fresh:
            layout = [(TOKENS, "I32", (count,)), (VALUES, name, (count, width))]
            with closing(SafetensorsWriter(fresh, layout, facts, PRIVATE)) as file:
                file.write(TOKENS, 0, ids)
                for start, block in _placed(blocks):
                    file.write(VALUES, start * width * dtype.itemsize, np.ascontiguousarray(block))
                file.sync()
        return count

    def _has(self, ids: np.ndarray) -> bool:
        """Whether the file keeps these tokens and perhaps more."""
        if not self.path.exists():
            return False
        with closing(SafetensorsFile(self.path)) as file:
            tokens, _ = self._check(file)
            return tokens.nbytes >= ids.nbytes and np.array_equal(file.read(tokens, 0, ids.nbytes).view("<i4"), ids)

    def _check(self, file: SafetensorsFile) -> tuple[RawTensor, RawTensor]:
        """The two tensors of a file that is of this model."""
        facts = file.metadata
        if facts.get("format") != KIND:
            raise BadCheckpoint(f"{self.path}: no prompt cache that this version wrote; name another file")
        if facts.get("model") != self.model:
            raise BadRequest(f"{self.path}: keeps a prompt of another model; name another file, or remove this one")
        if facts.get("computed") != self.computed:
            theirs = facts.get("computed", "")[:80]
            raise BadRequest(
                f"{self.path}: was computed with {theirs!r}, and this run computes with {self.computed!r}; name another file"
            )
        tokens, values = file.tensors.get(TOKENS), file.tensors.get(VALUES)
        fits = tokens and values and tokens.dtype == "I32" and values.dtype in DTYPES and len(file.tensors) == 2
        if not (tokens and values and fits and len(values.shape) == 2 and tokens.shape == values.shape[:1]):
            raise BadCheckpoint(f"{self.path}: does not hold the tensors of a prompt cache; remove the file")
        return tokens, values


def _placed(blocks: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Each block with the position of its first row."""
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)
