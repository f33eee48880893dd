"""Which program this is, to the last line of its source."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numba_kernels
import oss_tools
from oss_tools.resources import resource


@cache
def program() -> str:
    """The version and a hash of the program's own files, so that a changed kernel or task leaves no part of an earlier state."""
    folders = {module.__name__: Path(str(module.__file__)).parent for module in (oss_tools, numba_kernels)}
    digest = hashlib.sha256()
    for name, folder in {**folders, "evals": resource("evals")}.items():
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
            digest.update(f"{name}/{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    return f"{oss_tools.__version__} {digest.hexdigest()}"
