"""The disk's speed: measured on a file, remembered by device, never trusted blindly."""

import json
import os
import time
from pathlib import Path

import pytest

from oss_tools.machine import disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "oss-tools" / "disks.json"
    place.parent.mkdir(0o700, parents=True)
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(os.urandom(1 << 20) * 40)
    return path


def test_a_speed_is_measured_and_remembered(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = disk.known_speed(file)
    assert speed is not None
    assert 1e5 < speed < 1e12
    monkeypatch.setattr(disk, "read_speed", lambda file: pytest.fail("was measured again"))
    assert disk.known_speed(file) == speed


def test_an_old_speed_is_measured_again(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "read_speed", lambda file: 5e8)
    for when, expected in ((time.time() - 1e7, 5e8), (time.time() + 1e7, 5e8), (time.time() - 60, 7.0)):
        cache.write_text(json.dumps({str(file.stat().st_dev): [when, 7.0]}))
        assert disk.known_speed(file) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"1": 2}', '{"DEV": [0, -1.0]}', '{"DEV": "fast"}', '{"DEV": [1, 2, 3]}'])
def test_what_is_damaged_is_not_believed(file: Path, cache: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "read_speed", lambda file: 5e8)
    cache.write_text(text.replace("DEV", str(file.stat().st_dev)))
    assert disk.known_speed(file) == 5e8


def test_nothing_is_said_of_a_file_that_is_too_small(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(1000))
    assert disk.known_speed(tmp_path / "small") is None
    assert disk.known_speed(tmp_path / "missing") is None
    assert not cache.exists()
