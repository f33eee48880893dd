"""The headers of remote checkpoints, by range requests: a folder of sparse files that our own readers open.

Each file has its full length, and holes where its tensors would be: every size and offset is checked as in a real one, by
the same code, and a 65 GB checkpoint takes a few hundred kilobytes of transfer and of disk. Tensor data reads as zeros,
but for what is part of the configuration.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oss_tools.checkpoints.gguf_header import read_header
from oss_tools.checkpoints.safetensors import MAX_HEADER
from oss_tools.download.download import Plan
from oss_tools.download.layout import ORIGINAL
from oss_tools.download.transfer import RemoteFile
from oss_tools.download.web import Web
from oss_tools.errors import BadCheckpoint

FIRST = 16 << 10  # bytes of a safetensors file that are asked for at once: the headers of small shards are shorter
GROWTH = 256 << 10  # a GGUF header is read in pieces that begin with so many bytes and double
LARGEST = 4 << 20
SMALL = 64 << 20
MOST = 1 << 30  # bytes of all headers
READ = ("rope_freqs.weight",)  # small tensors of GGUF files that are part of the configuration
NEEDED = ("config.json", "model.safetensors.index.json")


@contextmanager
def mirrored(plan: Plan, web: Web) -> Iterator[Path]:
    """The path of a checkpoint that has the plan's headers and no data; gone when the context ends.

    Raises BadCheckpoint, Unreachable, BadSource.
    """
    with tempfile.TemporaryDirectory(prefix="oss-tools-headers-") as folder, _called(f"{folder}/model", plan.source.name):
        prefix = ORIGINAL if plan.container == "original" else ""
        tensors: list[Path] = []
        taken = 0
        for file in plan.files:
            if not file.path.startswith(prefix):
                continue
            path = Path(folder, "model", file.path.removeprefix(prefix))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name in NEEDED:
                path.write_bytes(_whole(file, web))
            elif path.suffix == ".safetensors":
                _mirror_safetensors(file, path, web)
            elif path.suffix == ".gguf":
                _mirror_gguf(file, path, web)
            elif path.name == "tokenizer.json":
                path.touch()
                os.truncate(path, file.size)  # its size is all that `fit` wants of it
            else:
                continue
            tensors += [path] if path.suffix in (".safetensors", ".gguf") else []
            taken += path.stat().st_blocks * 512
            if taken > MOST:
                raise BadCheckpoint(f"{plan.source.name}: its headers have more than {MOST >> 30} GiB; no model needs that")
        root = Path(folder, "model")
        if not tensors:
            raise BadCheckpoint(f"{plan.source.name}: has no files with tensors")
        yield sorted(tensors)[0] if plan.container == "gguf" else root


@contextmanager
def _called(folder: str, name: str) -> Iterator[None]:
    """Errors name the source, not the folder that stands for it here."""
    try:
        yield
    except BadCheckpoint as error:
        raise BadCheckpoint(str(error).replace(folder, name)) from None


def _whole(file: RemoteFile, web: Web) -> bytes:
    if file.size > SMALL:
        raise BadCheckpoint(f"{file.path}: {file.size} bytes, more than such a file has")
    return web.read(file.url, 0, file.size)[0] if file.size else b""


def _mirror_safetensors(file: RemoteFile, path: Path, web: Web) -> None:
    """The 8 bytes of the header's length, and the header."""
    data = web.read(file.url, 0, min(FIRST, file.size))[0] if file.size else b""
    end = min(8 + min(int.from_bytes(data[:8], "little"), MAX_HEADER), file.size)
    if end > len(data):
        data += web.read(file.url, len(data), end)[0]
    with path.open("wb") as out:
        out.write(data[:end])
        out.truncate(file.size)


def _mirror_gguf(file: RemoteFile, path: Path, web: Web) -> None:
    """As much from the beginning as the parser asks for."""
    have, step = 0, GROWTH

    def read(descriptor: int, count: int, offset: int) -> bytes:
        nonlocal have, step
        if offset >= have:
            data = web.read(file.url, have, min(have + step, file.size))[0]
            os.pwrite(descriptor, data, have)
            have, step = have + len(data), min(2 * step, LARGEST)
        return os.pread(descriptor, min(count, have - offset), offset)

    with path.open("w+b") as out:
        out.truncate(file.size)
        header = read_header(out.fileno(), path, read)
        for info in header.tensors:
            if info.name in READ and 0 < info.nbytes <= FIRST:
                os.pwrite(out.fileno(), web.read(file.url, info.offset, info.offset + info.nbytes)[0], info.offset)
