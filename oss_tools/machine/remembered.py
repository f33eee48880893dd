"""What is remembered from one run to the next: small JSON files in the user's cache folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from numba_kernels.cache_folder import private_folder, user_cache


def read(name: str, limit: int) -> dict[str, Any]:
    """The object that a file holds; empty if it cannot be read, is damaged or is larger than `limit` bytes."""
    place = _place(name)
    try:
        if place is None or place.stat().st_size > limit:
            return {}
        found = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write(name: str, known: dict[str, Any]) -> None:
    """Keeps an object; where the cache folder cannot be written, the next run finds out again."""
    place = _place(name)
    try:
        if place is None:
            return
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(file.name, place)
    except OSError:
        return


def _place(name: str) -> Path | None:
    """The file; None where somebody else could write in it, whose word would be taken for ours."""
    root = user_cache()
    folder = private_folder(root, "oss-tools") if root else None
    return folder / name if folder else None
