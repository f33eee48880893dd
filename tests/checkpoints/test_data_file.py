"""However a file is read, past the system's cache or through it, its bytes are the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from oss_tools.checkpoints import data_file
from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.files import write_at
from oss_tools.errors import BadCheckpoint
from oss_tools.machine.direct import PAGE, cached_share

SIZE = 3 * (1 << 20) + 777


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)


@pytest.fixture
def opened(tmp_path: Path, content: np.ndarray) -> Iterator[tuple[int, Path]]:
    path = tmp_path / "data"
    path.write_bytes(content.tobytes())
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor, path
    os.close(descriptor)


STRETCHES = [
    (0, SIZE),
    (0, 1 << 20),
    (PAGE, 50 * PAGE),
    (12_345, 700_001),
    (16, 1 << 19),
    (SIZE - 300_001, 300_001),
    (SIZE - 5, 5),
    (7, 0),
]


@pytest.mark.parametrize("share", [0.0, 1.0, None], ids=["uncached", "cached", "as it is"])
@pytest.mark.parametrize("refused", [None, "open", "read"])
@pytest.mark.parametrize("way", ["read_once", "read_back", "plain"])
def test_bytes_of_every_way(
    opened: tuple[int, Path], content: np.ndarray, way: str, refused: str | None, share: float | None, monkeypatch
) -> None:
    descriptor, path = opened
    if share is not None:
        monkeypatch.setattr(data_file, "cached_share", lambda *_: share)
    if refused == "open":
        monkeypatch.setattr("oss_tools.machine.direct._reopened", lambda _: -1)
    file = DataFile(descriptor, path)
    if way != "plain":
        getattr(file, way)()
    if refused == "read" and file._direct:
        direct, read = file._direct._direct, os.preadv

        def refusing(where: int, buffers: list[memoryview], offset: int) -> int:
            if where == direct:
                raise OSError(22, "Invalid argument")
            return read(where, buffers, offset)

        monkeypatch.setattr(os, "preadv", refusing)
    for offset, nbytes in STRETCHES:
        found = file.read(offset, nbytes)
        assert np.array_equal(found, content[offset : offset + nbytes])
        assert found.ctypes.data % 16 == 0
        assert found.flags.writeable


@pytest.mark.parametrize("way", ["read_once", "read_back"])
def test_what_was_just_written_is_read(opened: tuple[int, Path], content: np.ndarray, way: str) -> None:
    descriptor, path = opened
    file = DataFile(descriptor, path)
    getattr(file, way)()
    file.read(0, SIZE)
    for start in (0, 200_001, 2 << 20):
        fresh = content[::-1][start : start + 900_000]
        write_at(descriptor, start, fresh, path)
        assert np.array_equal(file.read(start, len(fresh)), fresh)


@pytest.mark.parametrize("way", ["read_once", "read_back"])
def test_a_file_that_is_cut_while_it_is_read_is_told(opened: tuple[int, Path], way: str, monkeypatch) -> None:
    descriptor, path = opened
    monkeypatch.setattr(data_file, "cached_share", lambda *_: 0.0)
    file = DataFile(descriptor, path)
    getattr(file, way)()
    file.read(0, SIZE)
    os.ftruncate(descriptor, 1_000_000)
    with pytest.raises(BadCheckpoint, match="ended at byte 1000000 while being read"):
        file.read(500_000, 1_000_000)
    with pytest.raises(BadCheckpoint, match="while being read"):
        file.read(2_000_000, 500_000)


def test_old_stretches_leave_the_cache_and_late_ones_stay(opened: tuple[int, Path], monkeypatch) -> None:
    descriptor, path = opened
    gone: list[tuple[int, int]] = []
    monkeypatch.setattr(data_file, "BEHIND", 1 << 20)
    monkeypatch.setattr(data_file, "let_go", lambda _, offset, nbytes: gone.append((offset, nbytes)))
    file = DataFile(descriptor, path)
    file.read_back()
    for start in range(0, 5 << 19, 1 << 19):
        file.read(start, 1 << 19)
    assert gone == [(start, 1 << 19) for start in range(0, 3 << 19, 1 << 19)]


def test_the_share_in_the_cache(opened: tuple[int, Path]) -> None:
    descriptor, _ = opened
    assert 0 <= cached_share(descriptor, 0, SIZE) <= 1
    assert cached_share(descriptor, PAGE, 0) == 1
    assert cached_share(descriptor, 5, 100) == 1  # no page begins there: nothing is known
    assert cached_share(descriptor, PAGE * 10_000, PAGE) == 1  # behind the end
