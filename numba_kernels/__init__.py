"""Array kernels: arrays in, arrays out. Knows NumPy and Numba, and nothing of checkpoints, models or the CLI."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from numba_kernels.cache_folder import fresh_folder, private_folder, user_cache


def _cache_folder() -> Path | None:
    """Where compiled kernels are kept: in the user's cache, since the package's own folder may be read-only.

    One folder for each version of Numba and of the kernels: Numba compiles a kernel anew when its own file changes, but not
    when a file does from which it takes helpers in. None where somebody else could write in it or rename it, since loading a
    kernel that somebody else has written would run his code: they are compiled for this process alone then.
    """
    try:
        numba_version = version("numba")
    except PackageNotFoundError:
        numba_version = "none"
    sources = hashlib.sha256()
    for file in sorted(
        file for folder in ("codec", "hashes", "simd") for file in (Path(__file__).parent / folder).glob("*.py")
    ):
        sources.update(file.read_bytes())
    root, name = user_cache(), f"numba-{numba_version}-{sources.hexdigest()[:12]}"
    return private_folder(root, "oss-tools", name) if root else None


NOT_KEPT = ""  # why compiled kernels last no longer than this process, if so

# Numba reads this once, when it is imported. Whoever sets it answers for the folder.
if not os.environ.get("NUMBA_CACHE_DIR"):
    kept = _cache_folder()
    os.environ["NUMBA_CACHE_DIR"] = str(kept or fresh_folder())
    if not kept:
        NOT_KEPT = (
            f"{user_cache()} cannot be written, or not by this user alone" if user_cache() else "there is no home folder"
        )
