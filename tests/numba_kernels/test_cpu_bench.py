"""The benchmark runs and its record says what was held against what."""

from __future__ import annotations

import json

from numba_kernels import bench
from numba_kernels.simd import path


def test_record(capsys):
    bench.main(["--quick", "--json", "--threads", "1", "--only", "overhead"])
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == path()
    assert record["threads"] == 1
    results = {r["name"]: r for r in record["results"]}
    assert results["memory read"]["value"] > 0
    assert results["dot-product peak"]["value"] > results["multiply-add peak"]["value"]
    assert 0 < results["barrier between operations"]["value"] < results["replay of one operation"]["value"]


def test_table(capsys):
    bench.main(["--quick", "--threads", "1", "--only", "rows"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("rms_norm and quantize × 512 tokens") for line in lines)
