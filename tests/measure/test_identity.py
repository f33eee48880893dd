"""Hashes of models, remembered as long as the files are what they were."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from oss_tools.measure import identity
from oss_tools.measure.identity import file_sha256, model_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "oss-tools" / "hashes.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


def test_a_file_is_hashed_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256(b"weights").hexdigest()
    assert file_sha256(model) == expected
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert file_sha256(model) == expected
    assert [*json.loads(cache.read_text())] == [str(model.resolve())]


def test_another_content_is_another_hash(model: Path) -> None:
    before = file_sha256(model)
    times = (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    model.write_bytes(b"WEIGHTS")
    os.utime(model, ns=times)  # the same size and time of change, as a copy may have
    assert file_sha256(model) != before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4, 5, "zz"]}'])
def test_a_damaged_memory_is_no_harm(model: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert file_sha256(model) == hashlib.sha256(b"weights").hexdigest()
    assert str(model.resolve()) in json.loads(cache.read_text())


def test_a_folder_that_cannot_be_written_is_no_harm(model: Path, cache: Path) -> None:
    cache.parent.parent.write_text("a file where the folder should be")
    assert file_sha256(model) == hashlib.sha256(b"weights").hexdigest()


def test_the_memory_is_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_REMEMBERED", 3)
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(b"%d" % i)
        file_sha256(tmp_path / f"{i}")
    assert [Path(p).name for p in json.loads(cache.read_text())] == ["2", "3", "4"]


def test_a_model_is_its_files_in_order_of_names(tmp_path: Path, cache: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    both = model_sha256([two, one], remember=False)
    assert not cache.exists()
    assert model_sha256([one, two]) == both
    two.write_bytes(b"3")
    assert model_sha256([one, two]) != both
