"""Array kernels: arrays in, arrays out. Knows NumPy and Numba, and nothing of checkpoints, models or the CLI."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _cache_folder() -> Path:
    """Where compiled kernels are kept: in the user's cache, since the package's own folder may be read-only."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home folder, as in some containers
        home = Path(tempfile.gettempdir()) / f"oss-tools-{os.getuid()}"
    if sys.platform == "darwin":
        root = home / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    try:
        numba_version = version("numba")
    except PackageNotFoundError:
        numba_version = "none"
    return root / "oss-tools" / f"numba-{numba_version}"


# Numba reads this once, when it is imported.
os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_folder()))
