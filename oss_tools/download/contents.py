"""What lies in a folder of the hub's cache, or in any other: the checkpoint that a user means by it, if it is complete."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oss_tools.checkpoints.files import is_plain_name, read_text
from oss_tools.checkpoints.index import INDEX, SINGLE
from oss_tools.checkpoints.json_files import read_json
from oss_tools.download.layout import (
    HIDDEN,
    MANIFEST,
    MAX_MANIFEST,
    ORIGINAL,
    PREFIX,
    SNAPSHOTS,
    cached_names,
    is_snapshot,
    repository_name,
)
from oss_tools.download.quantizations import Model, listing, models_among, named, near_misses
from oss_tools.errors import BadCheckpoint, BadSource

SOURCE = re.compile(r"(https?://|file:/)?[\w./:%+~@-]{1,500}", re.ASCII)  # that needs no quotes in a shell
SHORTEST = 7  # hexadecimal digits of a commit that are enough
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")
LISTED = 20  # names in a message
Say = Callable[[str], None]


def opened(path: Path, say: Say = lambda line: None) -> Path:
    """The checkpoint that a path means: of a repository's folder in a hub's cache, of a folder whose GGUF models lie in folders
    of their own; any other path itself. `say` is told if another revision than main is taken. Raises BadSource."""
    if not path.is_dir():
        return path
    if repository := _repository_at(path):
        return checkpoint_of(repository, say=say)
    if names := [] if (path / "config.json").exists() else cached_names(path):
        raise BadSource(f"{path}: a hub's cache of {len(names)} repositories; name one: {', '.join(names[:LISTED])}")
    return checkpoint_in(path)


def folder_at(path: Path) -> Path:
    """The folder of a download that a path means, complete or not: of a repository's folder in a hub's cache its snapshot; any
    other path itself. Raises BadSource."""
    repository = _repository_at(path)
    return snapshot(repository) if repository else path


def _repository_at(path: Path) -> Path | None:
    """The folder of a repository in a hub's cache, given that or its snapshots; None of any other path."""
    found = path.absolute()
    if found.name == SNAPSHOTS and found.parent.name.startswith(PREFIX):
        return path.parent
    return path if found.name.startswith(PREFIX) and (path / SNAPSHOTS).is_dir() else None


# ---- the hub's cache ------------------------------------------------------------------------------------------------


def checkpoint_of(
    repository: Path, revision: str = "", fallback: bool = True, quantization: str = "", say: Say = lambda line: None
) -> Path:
    """The checkpoint of a repository in the hub's cache, at a revision as `snapshot` has it.

    Where another revision will do and that one is not complete (programs that look at a model's configuration only make such
    a snapshot of the newest), the only complete one is taken, and `say` is told so. Raises BadSource.
    """
    folder = snapshot(repository, revision, fallback)
    try:
        return checkpoint_in(folder, quantization)
    except BadSource as error:
        complete = _complete_ones(repository, folder, quantization) if fallback else {}
        if len(complete) > 1:
            names = ", ".join(f"{repository_name(repository)}@{commit[:12]}" for commit in complete)
            raise BadSource(f"{error}; complete are {names}") from None
        if not complete:
            raise
        ((commit, path),) = complete.items()
        say(f"{repository_name(repository)}: revision {folder.name[:12]} is not complete; {commit[:12]} is, and is taken")
        return path


def _complete_ones(repository: Path, besides: Path, quantization: str) -> dict[str, Path]:
    """The checkpoints of other snapshots, by commit."""
    found = {}
    for folder in sorted((repository / SNAPSHOTS).iterdir()):
        if folder.is_dir() and folder != besides:
            with suppress(BadSource, BadCheckpoint):  # not complete either
                found[folder.name] = checkpoint_in(folder, quantization)
    return found


def snapshot(repository: Path, revision: str = "", fallback: bool = True) -> Path:
    """The folder of a revision (a branch, a tag, a commit or its first seven digits) of a repository in the hub's cache.

    Args:
        repository: its folder.
        revision: "" for main.
        fallback: whether main will do where the revision is not there, and the only snapshot where main is not.

    Raises BadSource naming the revisions there are.
    """
    name = repository_name(repository)
    commits = sorted(p.name for p in (repository / SNAPSHOTS).iterdir() if p.is_dir())
    for wanted in (revision or "main", *(["main"] if fallback else [])):
        commit = _commit(repository, wanted)
        matching = [c for c in commits if c == commit or (len(commit) >= SHORTEST and c.startswith(commit))]
        if len(matching) == 1:
            return repository / SNAPSHOTS / matching[0]
    if fallback and len(commits) == 1:
        return repository / SNAPSHOTS / commits[0]
    there = ", ".join(f"{name}@{c[:12]}" for c in commits[:LISTED])
    if fallback and commits:
        raise BadSource(f"{repository}: has several revisions, and none is main; name one of {there}")
    has = f" (there are {there})" if commits else ""
    raise BadSource(f"{name}{f', revision {revision}' if revision else ''} is not in {repository.parent}{has}")


def _commit(repository: Path, revision: str) -> str:
    reference = repository / "refs" / revision
    return read_text(reference, 1000).strip() if reference.is_file() else revision


# ---- a folder -------------------------------------------------------------------------------------------------------


def checkpoint_in(folder: Path, quantization: str = "") -> Path:
    """The checkpoint in a folder: the folder itself, its original/, or its GGUF model (of several the one that a quantization
    names). A folder without any is returned as it is. Raises BadSource for what a download has not finished."""
    if quantization:
        models = models_in(folder)
        return _one_of(folder, named(models, quantization), models, quantization)
    found = folder
    if not _has_tensors(folder):
        if models := models_in(folder):
            return _one_of(folder, models, models)
        found = folder / ORIGINAL if _has_tensors(folder / ORIGINAL) else folder
    _check_complete(folder, found)
    return found


def models_in(folder: Path) -> list[Model]:
    """The GGUF models of a folder, and of the folders in it. A link whose file is not there counts as no file."""
    found = [path for pattern in ("*.gguf", "*/*.gguf", "*/*/*.gguf") for path in folder.glob(pattern) if path.is_file()]
    return models_among({path.relative_to(folder).as_posix(): path.stat().st_size for path in found})


def _has_tensors(folder: Path) -> bool:
    return (folder / INDEX).exists() or any(folder.glob("*.safetensors"))


def _one_of(folder: Path, meant: list[Model], models: list[Model], quantization: str = "") -> Path:
    """The path of the only model that is meant."""
    if not meant:
        near = near_misses(models, quantization)
        guess = (
            f"did you mean {' or '.join(near)}?" if near else f"there are {listing(models)}" if models else "nor any other"
        )
        raise BadSource(f"{folder}: has no GGUF model {quantization!r}; {guess}")
    if len(meant) > 1:
        raise BadSource(f"{folder}: holds {len(meant)} GGUF models; name one of them: {listing(meant)}")
    if _is_download(folder) and (missing := meant[0].missing_parts):
        raise BadSource(f"{folder / meant[0].paths[0]}: {_incomplete(folder, missing)}")
    return folder / meant[0].paths[0]


def _check_complete(root: Path, folder: Path) -> None:
    """Raises BadSource if a download to `root` has not finished, as far as the checkpoint in `folder` is concerned."""
    if _is_download(root) and (missing := _missing(folder)):
        raise BadSource(f"{root}: {_incomplete(root, missing)}")


def _is_download(folder: Path) -> bool:
    """Whether a download made, or is making, a folder; what others lack is the reader's to say."""
    return is_snapshot(folder) or (folder / HIDDEN).is_dir() or (folder / MANIFEST).exists()


def _missing(folder: Path) -> list[str]:
    """What a checkpoint of safetensors files lacks to be opened."""
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not (folder / SINGLE).exists() and (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        return [*missing, *(name for name in sorted(names) if is_plain_name(name) and not (folder / name).exists())]
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(path.suffix in OTHER_WEIGHTS for path in folder.iterdir()):
        return []  # complete, though not in a container that is read
    return [*missing, *(path.name for path in files if not path.exists())] if files else [*missing, "all its tensors"]


def _incomplete(root: Path, missing: list[str]) -> str:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"the download is not complete, it lacks {missing[0]}{more}; `{_command(root)}` goes on with it"


def _command(root: Path) -> str:
    """What fetches the rest."""
    if is_snapshot(root):
        return f"oss-tools download {repository_name(root.absolute().parents[1])} --revision {root.absolute().name}"
    try:
        source = read_json(root / MANIFEST, MAX_MANIFEST).get("source")
    except BadCheckpoint:
        source = None
    if not isinstance(source, str) or not SOURCE.fullmatch(source):
        source = "SOURCE"  # what is to be pasted into a shell is no text of somebody else's
    return f"oss-tools download {source} --to {root}"
