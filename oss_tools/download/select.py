"""Which files of a repository are fetched: what a checkpoint consists of, and never anything that runs code when opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from oss_tools.checkpoints.files import is_plain_name
from oss_tools.download.transfer import RemoteFile
from oss_tools.errors import BadSource

WANTED = re.compile(
    r".+\.(safetensors|gguf|json|jinja)|tokenizer\.model|(vocab|merges)\.txt|"
    r"(LICEN[CS]E|NOTICE|USAGE_POLICY|COPYING|README)[\w.-]*",
    re.IGNORECASE,
)
DANGEROUS = (
    ".bin",
    ".pt",
    ".pth",
    ".pickle",
    ".pkl",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".npy",
    ".npz",
    ".py",
    ".so",
    ".sh",
    ".exe",
)
TENSORS = (".safetensors", ".gguf")
CONTAINERS = ("hf", "original", "gguf")
ORIGINAL = "original/"
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
MAX_FILES = 10_000
MAX_DEPTH = 16


def check_paths(files: Sequence[RemoteFile]) -> None:
    """Raises BadSource if a path could leave the folder, or two files would lie in one place."""
    if len(files) > MAX_FILES:
        raise BadSource(f"the repository lists {len(files)} files, more than the {MAX_FILES} that are accepted")
    taken: set[str] = set()
    for file in files:
        parts = file.path.split("/")
        if len(parts) > MAX_DEPTH or not all(map(is_plain_name, parts)):
            raise BadSource(
                f"the repository lists a file named {file.path[:120]!r}, which leaves its folder; nothing is fetched"
            )
        taken.add(file.path)
    folders = {"/".join(path.split("/")[:i]) for path in taken for i in range(1, path.count("/") + 1)}
    if len(taken) < len(files) or taken & folders:
        twice = min(taken & folders, default="a file")
        raise BadSource(f"the repository lists {twice!r} twice; nothing is fetched")


def choose(
    files: Sequence[RemoteFile], container: str = "", include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[str, list[RemoteFile]]:
    """The container and the files to fetch, with their paths at the destination.

    Args:
        files: all of the repository.
        container: hf, original or gguf; "" takes the first of these that is there.
        include: patterns; if there are any, only files that match one (of those that may be fetched at all).
        exclude: patterns; files that match one are left out.

    Raises BadSource if nothing is left, or several GGUF models are.
    """
    check_paths(files)
    if include:
        found = _including(files, include)
        kind = container or next((k for k in CONTAINERS if _tensors(found, k)), "hf")
    else:
        kind = container or next((k for k in CONTAINERS if _tensors(files, k)), "")
        if not kind or not _tensors(files, kind):
            has = ", ".join(k for k in CONTAINERS if _tensors(files, k)) or "no .safetensors and no .gguf files"
            raise BadSource(f"the repository has no checkpoint{f' in container {kind}' if kind else ''}; it has {has}")
        found = _of_container(files, kind)
    found = [f for f in found if not any(_matches(f.path, pattern) for pattern in exclude)]
    if not found:
        raise BadSource("no file is left to fetch; check --include and --exclude")
    if kind == "gguf":
        _check_one_model(found)
    return kind, found


def _including(files: Sequence[RemoteFile], include: Sequence[str]) -> list[RemoteFile]:
    matching = [f for f in files if any(_matches(f.path, pattern) for pattern in include)]
    refused = [f.path for f in matching if f.path.lower().endswith(DANGEROUS)]
    found = [f for f in matching if f.path not in refused]
    if refused and not found:
        raise BadSource(f"{refused[0]}: files of this kind can run code when they are opened, and are never fetched")
    return found


def _of_container(files: Sequence[RemoteFile], kind: str) -> list[RemoteFile]:
    top = [f for f in files if "/" not in f.path and _is_wanted(f)]
    small = [f for f in top if not f.path.lower().endswith(TENSORS) and not f.path.endswith(".index.json")]
    if kind == "gguf":
        return [*_tensors(files, "gguf"), *small]
    if kind == "original":
        inside = [f for f in files if f.path.startswith(ORIGINAL) and f.path.count("/") == 1 and _is_wanted(f)]
        names = {f.path.removeprefix(ORIGINAL) for f in inside} | {"config.json"}
        beside = [replace(f, path=ORIGINAL + f.path) for f in small if f.path not in names]
        return [*inside, *beside]
    return [*_tensors(files, "hf"), *small, *(f for f in top if f.path.endswith(".safetensors.index.json"))]


def _tensors(files: Sequence[RemoteFile], kind: str) -> list[RemoteFile]:
    """The files that hold tensors in a container. `consolidated` files are a second copy in another layout."""
    if kind == "original":
        return [f for f in files if f.path.startswith(ORIGINAL) and f.path.endswith(".safetensors")]
    suffix = ".gguf" if kind == "gguf" else ".safetensors"
    top = [f for f in files if f.path.endswith(suffix) and ("/" not in f.path)]
    return [f for f in top if not f.path.startswith("consolidated")] or top


def _is_wanted(file: RemoteFile) -> bool:
    name = file.path.rpartition("/")[2]
    return bool(WANTED.fullmatch(name)) and not name.lower().endswith(DANGEROUS)


def _matches(path: str, pattern: str) -> bool:
    """As the hub's own patterns: `*` crosses folders, a trailing / means everything below."""
    return fnmatchcase(path, pattern + "*" if pattern.endswith("/") else pattern)


def _check_one_model(files: Sequence[RemoteFile]) -> None:
    models: dict[str, int] = {}
    for file in files:
        if file.path.endswith(".gguf"):
            name = PART.sub("*.gguf", file.path)
            models[name] = models.get(name, 0) + file.size
    if len(models) > 1:
        listed = ", ".join(f"{name} ({size / 1e9:.1f} GB)" for name, size in sorted(models.items())[:12])
        raise BadSource(f"the repository has {len(models)} GGUF models; name one with --include: {listed}")
