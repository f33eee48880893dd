"""How tensors lie in files. One reader and one writer per container; a new file here is a new container."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TypeVar

from oss_tools.checkpoints.base import Contents, Metadata, Reader, StoredTensor, Writer
from oss_tools.checkpoints.strange import explain
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.guesses import none_named
from oss_tools.rooms import modules_of

__all__ = ["Contents", "Metadata", "Reader", "StoredTensor", "Writer", "container_names", "open_container", "writer_for"]

Class = TypeVar("Class", type[Reader], type[Writer])


def _subclasses(base: Class) -> dict[str, Class]:
    """The containers' classes by container name."""
    modules_of(__name__)  # each may define a Reader and a Writer
    found: dict[str, Class] = {}
    pending = [base]
    while pending:
        for cls in pending.pop().__subclasses__():
            pending.append(cls)
            if not inspect.isabstract(cls):
                found[cls.container] = cls
    return found


def container_names() -> list[str]:
    """The containers that can be written."""
    return sorted(_subclasses(Writer))


def open_container(path: Path) -> Reader:
    """Opens a checkpoint folder or file with the reader that recognizes it. Raises BadCheckpoint if there is none."""
    if not path.exists():
        raise BadCheckpoint(f"{path}: no such file or folder")
    readers = _subclasses(Reader)
    for name in sorted(readers):
        if readers[name].recognizes(path):
            return readers[name](path)
    if known := explain(path):
        raise BadCheckpoint(f"{path}: {known}")
    raise BadCheckpoint(
        f"{path}: not a checkpoint: expected a folder with config.json and .safetensors files, a .safetensors file, "
        "a .gguf or a .ready file"
    )


def writer_for(container: str) -> type[Writer]:
    """The writer's class. Raises BadRecipe with the names there are."""
    writers = _subclasses(Writer)
    if container not in writers:
        raise BadRecipe(none_named("container", container, sorted(writers)))
    return writers[container]
