"""Array kernels: arrays in, arrays out. Knows NumPy and Numba, and nothing of checkpoints, models or the CLI."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from numba_kernels.cache_folder import fresh_folder, private_folder, user_cache


def _cache_folder() -> Path:
    """Where compiled kernels are kept: in the user's cache, since the package's own folder may be read-only.

    One folder for each version of Numba and of the kernels: Numba compiles a kernel anew when its own file changes, but not
    when a file does from which it takes helpers in. Where somebody else could write in it, kernels are compiled for this
    process alone, since loading one that somebody else has written would run his code.
    """
    try:
        numba_version = version("numba")
    except PackageNotFoundError:
        numba_version = "none"
    sources = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "codec").glob("*.py")):
        sources.update(file.read_bytes())
    root, name = user_cache(), f"numba-{numba_version}-{sources.hexdigest()[:12]}"
    kept = private_folder(root, "oss-tools", name) if root else None
    return kept or fresh_folder()


# Numba reads this once, when it is imported. Whoever sets it answers for the folder.
if not os.environ.get("NUMBA_CACHE_DIR"):
    os.environ["NUMBA_CACHE_DIR"] = str(_cache_folder())
