"""Hints to the system change nothing of what is written, and long writes are whole whatever the system takes at a time."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType

from oss_tools.checkpoints import gguf_writer, overlap
from oss_tools.checkpoints.files import read_at, write_at


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("most", [1 << 30, 5000])
def test_what_is_written_at_odd_places_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hints: bool, most: int
) -> None:
    if not hints:  # as where the system has neither
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
        monkeypatch.setattr(overlap, "_sync_file_range", lambda: None)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:most], at))
    data = np.random.default_rng(0).integers(0, 256, 700_001, np.uint8)
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for start, stop in ((300_000, 700_001), (0, 300_000)):
            write_at(descriptor, 12_345 + start, data[start:stop], path)
        assert np.array_equal(read_at(descriptor, 12_345, len(data), path), data)
    finally:
        os.close(descriptor)
    assert path.stat().st_size == 12_345 + len(data)


@pytest.mark.parametrize(
    "values",
    [["a", "", "é\n", "𝄞" * 40], [1, -5, (1 << 31) - 1, -(1 << 31)], [0.5, -1.0], [True, False], [["a"], ["b"]]],
    ids=["texts", "integers", "floats", "booleans", "lists"],
)
def test_lists_of_a_header_have_the_package_s_bytes(values: list) -> None:
    ours = gguf_writer._HeaderWriter(None, "llama")
    theirs = gguf.GGUFWriter(None, "llama")
    for typed in (True, False):
        expected = theirs._pack_val(values, GGUFValueType.ARRAY, typed)
        assert ours._pack_val(values, GGUFValueType.ARRAY, typed) == expected
