"""Texts that a user gives: to measure a model on, to calibrate with."""

from __future__ import annotations

from pathlib import Path

from oss_tools.errors import BadRequest


def read_words(path: Path, limit: int) -> str:
    """A user's file, or a pipe. Raises BadRequest if it is missing, larger than `limit` bytes, empty, or no UTF-8 text."""
    try:
        if path.stat().st_size > limit:
            raise BadRequest(f"{path}: larger than {limit >> 20} MiB; give a part of it")
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark before it
    except UnicodeDecodeError:
        raise BadRequest(f"{path}: no UTF-8 text") from None
    except OSError as error:
        raise BadRequest(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if not text.strip():
        raise BadRequest(f"{path}: is empty")
    return text
