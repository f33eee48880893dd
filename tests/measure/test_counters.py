"""What is counted beside the times, and how it becomes figures of a record."""

import mmap
import os
from pathlib import Path

import pytest

from oss_tools.cli.bench import print_record
from oss_tools.measure.counters import between, counters, figures


def test_figures_of_a_token() -> None:
    rounds = [
        {"major_faults": 20, "hits": 30, "misses": 10, "bytes_read": 4e8, "wait_seconds": 0.1, "read_seconds": 0.3},
        {"major_faults": 0, "hits": 20, "misses": 20, "bytes_read": 8e8, "wait_seconds": 0.5, "read_seconds": 0.6},
    ]
    found = figures(rounds, [1.0, 2.0], [1e9, 5e8], tokens=10)
    assert found["major_faults_per_token"] == 1
    streaming = found["streaming"]
    assert streaming["hit_rate"] == (0.75 + 0.5) / 2
    assert streaming["bytes_read_per_token"] == 6e7
    assert streaming["wait_share"] == pytest.approx((0.1 + 0.25) / 2)
    assert streaming["share_of_bound"]["range"] == [0.4, 0.8]  # 4e8 bytes in a second of 1e9; 4e8 a second of 5e8
    assert figures([{"major_faults": 3}], [1.0], [], 3) == {"major_faults_per_token": 1}


def test_only_what_grows_is_taken_from_the_backend() -> None:
    before = counters({"streaming": {"hits": 3, "misses": 1, "slots": 9, "bytes_read": 5}})
    after = {**before, "hits": 7, "bytes_read": 25}
    assert "slots" not in before
    assert between(before, after) == {"major_faults": 0, "hits": 4, "misses": 0, "bytes_read": 20}
    assert set(counters()) == {"major_faults"}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to drop a file's pages")
def test_a_page_that_comes_from_the_disk_is_a_major_fault(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = counters()
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            assert sum(memory[::4096]) >= 0
        added = between(before, counters())["major_faults"]
    if not added:
        pytest.skip("this file system keeps pages in memory")
    assert added > 0


def test_bench_prints_columns_of_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    case = {"case": "tg8", "tokens_per_second": 4.0, "tokens_per_second_range": [3.0, 5.0], "step_seconds_p50": 0.2}
    case |= {"step_seconds_p95": 0.3, "major_faults_per_token": 0.5}
    streaming = {"hit_rate": 0.62, "bytes_read_per_token": 482e6, "wait_share": 0.31, "share_of_bound": {"median": 0.88}}
    facts = {"kernels": "numba avx2", "threads": 2, "bytes_per_token": 2e9}
    facts["streaming"] = {"resident_bytes": 1e9, "slots": 400, "expert_bytes": 13e6, "streamed_bytes": 10e9}
    ours = {"results": [case | {"streaming": streaming}], "facts": facts, "load_seconds": 1.0, "peak_bytes": 8e9}
    theirs = {"results": [case], "facts": {}, "load_seconds": 1.0, "peak_bytes": 8e9}
    record = {"settings": {"peers": []}, "machine": {"cpu": "x", "cores": 2}}
    record["models"] = [{"model": "m", "contenders": {"oss-tools": ours, "llama.cpp": theirs}}]
    print_record(record, markdown=False)
    shown = capsys.readouterr().out
    for part in ("hits", "62%", "482 MB", "31%", "88%", "0.5", "400 experts of 13 MB kept"):
        assert part in shown
