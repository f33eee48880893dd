"""Places that cannot be written to are told before there is anything to write."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from oss_tools.cli._places import require_writable
from oss_tools.errors import BadRequest


def test_a_place_that_can_be_written_to_stays_as_it_is(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", "--output")
    require_writable(tmp_path, "--output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "this place is read-only; name another"),
        (errno.EACCES, "this place is read-only; name another"),
        (errno.ENOSPC, r"this place cannot be written to \(no space left on device\); name another"),
    ],
)
def test_what_is_wrong_is_one_line(number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(BadRequest, match=f"--output {tmp_path}/new: {message}"):
        require_writable(tmp_path / "new", "--output")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(BadRequest, match=f"--output {tmp_path}/a/b: {tmp_path}/a is a file, not a folder"):
        require_writable(tmp_path / "a" / "b", "--output")
