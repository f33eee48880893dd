"""Of a process's resident memory, what the files of shared libraries have of it."""

import mmap
import sys
from pathlib import Path

import pytest

from oss_tools.machine.memory import library_bytes

SIZE = 8 << 20
ONE_FILE = 1 << 20  # what else may change meanwhile


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says which files lie in memory")
@pytest.mark.parametrize(
    ("name", "counts"),
    [("lib model.so", True), ("libmodel.so.1.2", True), ("model.safetensors", False), ("model.so.json", False)],
)
def test_only_libraries_that_are_read_count(tmp_path: Path, name: str, counts: bool) -> None:
    file = tmp_path / name
    file.write_bytes(bytes(SIZE))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        before = library_bytes()
        for at in range(0, SIZE, mmap.PAGESIZE):
            assert mapped[at] == 0
        assert (library_bytes() - before > SIZE - ONE_FILE) == counts
        for at in range(0, SIZE, mmap.PAGESIZE):
            mapped[at] = 1  # a copy, which is the process's own
        assert abs(library_bytes() - before) < ONE_FILE
