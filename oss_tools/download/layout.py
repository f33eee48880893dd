"""Where downloads lie: the hub's cache as huggingface_hub lays it out, and folders of the user's.

The cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A repository has a folder `models--OWNER--NAME` in it,
with `blobs/` (content, named by checksum), `snapshots/COMMIT/` (links to blobs) and `refs/` (files that hold a branch's commit).
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

PREFIX = "models--"
SNAPSHOTS = "snapshots"
COMMIT = re.compile(r"[0-9a-f]{40}")
MANIFEST = "oss-tools-download.json"  # what was downloaded to a folder, with checksums
MAX_MANIFEST = 16 << 20  # bytes
HIDDEN = ".oss-tools-download"  # in a folder of the user's: incomplete files
OURS = re.compile(r"oss-tools-download\.json|\.oss-tools-.*", re.DOTALL)  # names that are ours alone, in small letters
ORIGINAL = "original/"  # of OpenAI's repositories: the checkpoint in OpenAI's own layout


def is_ours(path: str) -> bool:
    """Whether a file of that path would lie where a download keeps its manifest or incomplete files, in whatever case."""
    return any(OURS.fullmatch(folded(part)) for part in path.split("/"))


def folded(path: str) -> str:
    """What two paths share that are one file on disks which do not tell case apart, or forms of Unicode (macOS, Windows)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFD", path).casefold())


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, or HF_HOME/hub, or huggingface/hub in XDG_CACHE_HOME."""
    from oss_tools.download.library import constants

    return Path(os.path.expanduser(constants.HF_HUB_CACHE))


def cached_repository(cache: Path, repo: str) -> Path:
    """The folder of a repository, `owner/name`, in a cache."""
    return cache / (PREFIX + repo.replace("/", "--"))


def cached_names(cache: Path) -> list[str]:
    """The repositories of a cache, `owner/name`."""
    return [repository_name(folder) for folder in sorted(cache.glob(f"{PREFIX}*"))] if cache.is_dir() else []


def repository_name(folder: Path) -> str:
    """`owner/name` of a repository's folder in a cache."""
    return folder.name.removeprefix(PREFIX).replace("--", "/", 1)


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a repository's at one commit, in a hub's cache."""
    found = folder.absolute()
    named_so = bool(COMMIT.fullmatch(found.name)) and found.parent.name == SNAPSHOTS
    return named_so and found.parents[1].name.startswith(PREFIX)


def name_of(path: Path) -> str:
    """How to call a checkpoint in a table: its file's or folder's name; of a snapshot in the hub's cache the repository's."""
    found = Path(os.path.abspath(path))
    return repository_name(found.parents[1]) if is_snapshot(found) else found.name
