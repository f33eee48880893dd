"""Copies of checkpoints in which one thing is changed that no tensor tells."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def copy_with(source: Path, target: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a folder, whose JSON `file` was edited in place."""
    shutil.copytree(source, target)
    path = target / file
    content = json.loads(path.read_text()) if path.exists() else {}
    edit(content)
    path.write_text(json.dumps(content))
    return target


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the field at this path."""

    def edit(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


def swap_tokens(one: str, other: str) -> Callable[[dict[str, Any]], None]:
    """An edit of tokenizer.json: two tokens change places."""

    def edit(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab[one], vocab[other] = vocab[other], vocab[one]

    return edit


def swap_merges(one: int, other: int) -> Callable[[dict[str, Any]], None]:
    """An edit of tokenizer.json: two merges change places."""

    def edit(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        merges[one], merges[other] = merges[other], merges[one]

    return edit
