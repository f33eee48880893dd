"""Finds what a name means among the checkpoints that were downloaded to this machine."""

from __future__ import annotations

import os
from pathlib import Path

from oss_tools.checkpoints.json_files import read_json
from oss_tools.download.addresses import shown
from oss_tools.download.contents import Say, checkpoint_in, checkpoint_of, snapshot
from oss_tools.download.layout import MANIFEST, MAX_MANIFEST, SNAPSHOTS, cache_folder, cached_names, cached_repository
from oss_tools.download.names import HUBS, REPO, Wanted, understand
from oss_tools.download.registry import published
from oss_tools.errors import BadCheckpoint, BadSource, Unreachable
from oss_tools.guesses import near_names


def checkpoint_named(
    text: str,
    cache: Path,
    endpoint: str,
    say: Say = lambda line: None,
    whole: bool = False,
    others: tuple[str, ...] = (),
) -> Path:
    """The checkpoint that a name means where no file or folder has it; or the `whole` download, complete or not.

    `others` are names that mean something to the caller.

    Raises BadSource that says what would fetch it, or what is spelt like it.
    """
    refuse_path(text)
    missing, near = f"{shown(text) if '://' in text else text}: no such file or folder", near_paths(Path(text))
    guess = f"; did you mean {near}?" if near else ""
    try:
        wanted = understand(text, "", endpoint)
    except BadSource as error:
        if ":" in text or REPO.fullmatch(text):
            raise
        known = [*others, *published(), *cached_names(cache)]
        near = " or ".join(near_names(text.replace(":", "-"), known)) or near
        guess = (
            f"; did you mean {near}?"
            if near
            else f", and not a model's name, which is owner/name or one of {', '.join(published())}"
        )
        raise BadSource(missing + guess) from error
    if wanted.address:
        raise BadSource(
            f"{shown(text)}: an address; `oss-tools download {shown(text)}` fetches it and prints the path that is a MODEL"
        )
    try:
        return find(wanted, cache, say=say, whole=whole)
    except BadSource as error:
        raise BadSource(f"{error}" if "://" in text else f"{missing}, and {error}{guess}") from None


def refuse_path(text: str) -> None:
    """Raises BadSource for what can only be meant as a path, and is not there."""
    if os.path.lexists(text) and not os.path.exists(text):
        raise BadSource(f"{text}: a link to {os.path.realpath(text)}, which is not there")
    endings = (".gguf", ".safetensors", ".json", ".yaml", "/")
    of_hub = "://" in text or text.startswith(HUBS)
    if text.startswith(("/", "./", "../", "~")) or (text.endswith(endings) and not of_hub):
        near = near_paths(Path(text))
        raise BadSource(f"{text}: no such file or folder{f'; did you mean {near}?' if near else ''}")


def find(wanted: Wanted, cache: Path, here: Path = Path(), say: Say = lambda line: None, whole: bool = False) -> Path:
    """The checkpoint of a repository that was downloaded to the cache, or by `download --to` to a folder in `here`; or the folder
    of the `whole` download, complete or not. `say` is told if another revision than main is taken.

    Raises BadSource if it is not there, is not complete, or if there are several to choose from.
    """
    repository = cached_repository(cache, wanted.repo)
    command = f"`{wanted.command}` fetches it"
    if (repository / SNAPSHOTS).is_dir():
        try:
            folder = snapshot(repository, wanted.revision, fallback=not wanted.named)
        except BadSource as error:
            raise BadSource(f"{error}; {command}") from None
        if whole:
            return folder
        return checkpoint_of(repository, wanted.revision, not wanted.named, wanted.quantization, say)
    beside = [] if wanted.named else _downloaded_to(wanted.repo, here)
    if len(beside) > 1:
        raise BadSource(f"{wanted.repo} was downloaded to {' and to '.join(map(str, beside))}; name one of these folders")
    if beside:
        return beside[0] if whole else checkpoint_in(beside[0], wanted.quantization)
    near = " or ".join(near_names(wanted.repo, cached_names(cache)))
    guess = f"; or did you mean {near}, which is there?" if near else ""
    raise BadSource(f"{wanted.repo} is not in {cache}: {command}{guess}")


def find_here(wanted: Wanted, say: Say = lambda line: None) -> Path | None:
    """As `find` in the hub's cache; None if it is not there and may be asked for. Raises Unreachable if HF_HUB_OFFLINE forbids
    that."""
    from oss_tools.download.library import constants

    try:
        return find(wanted, cache_folder(), say=say)
    except BadSource as error:
        if constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{error} (HF_HUB_OFFLINE is set; unset it to download)") from None
        return None


def _downloaded_to(repo: str, here: Path) -> list[Path]:
    """Folders in `here` whose manifest says that they were downloaded from a repository."""
    found = []
    for path in sorted(here.glob(f"*/{MANIFEST}")):
        try:
            if read_json(path, MAX_MANIFEST).get("source") == repo:
                found.append(path.parent)
        except BadCheckpoint:  # a manifest that cannot be read vouches for nothing
            continue
    return found


def near_paths(path: Path) -> str:
    """Files and folders beside a path that does not exist, and spelt like it; "" if there are none."""
    try:
        there = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    return " or ".join(str(path.parent / name) for name in near_names(path.name, there, 2, 0.8))
