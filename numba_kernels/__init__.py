"""Array kernels: arrays in, arrays out. Knows NumPy and Numba, and nothing of checkpoints, models or the CLI."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _cache_folder() -> Path:
    """Where compiled kernels are kept: in the user's cache, since the package's own folder may be read-only.

    One folder for each version of Numba and of the kernels: Numba compiles a kernel anew when its own file changes, but not
    when a file does from which it takes helpers in.
    """
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
    sources = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "codec").glob("*.py")):
        sources.update(file.read_bytes())
    return root / "oss-tools" / f"numba-{numba_version}-{sources.hexdigest()[:12]}"


# Numba reads this once, when it is imported.
os.environ.setdefault("NUMBA_CACHE_DIR", str(_cache_folder()))
