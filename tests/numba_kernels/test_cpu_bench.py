"""The benchmark runs and its record says what was held against what."""

from __future__ import annotations

import json

import numpy as np

from numba_kernels import bench
from numba_kernels.simd import path


def test_record(capsys):
    bench.main(["--quick", "--json", "--threads", "1", "--only", "overhead"])
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == path()
    assert record["threads"] == 1
    results = {r["name"]: r for r in record["results"]}
    assert results["memory read"]["value"] > 0
    for name in ("dot-product peak", "multiply-add peak", "barrier between operations", "replay of one operation"):
        assert results[name]["value"] > 0


def test_table(capsys):
    bench.main(["--quick", "--threads", "1", "--only", "rows"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("rms_norm and quantize × 512 tokens") for line in lines)


def test_attention_stays_within_its_scratch(monkeypatch):
    """More heads share keys than a tile of any path has rows."""
    behind = []
    make = bench.attention.attention_scratch

    def guarded(pieces, head_dim):
        made = []
        for array in make(pieces, head_dim):
            whole = np.full(2 * array.size, 7, array.dtype)
            whole[: array.size] = 0
            behind.append(whole[array.size :])
            made.append(whole[: array.size])
        return made

    monkeypatch.setattr(bench.attention, "attention_scratch", guarded)
    monkeypatch.setattr(bench, "HEADS", 26 * bench.KV_HEADS)
    benchmark = bench.Bench(1, quick=True)
    benchmark.ceilings["multiply-add peak"] = 1.0
    for tokens in (1, 3):
        assert benchmark.attention(tokens, 1024).value > 0
    benchmark.team.close()
    assert len(behind) == 4
    assert all((array == 7).all() for array in behind)
