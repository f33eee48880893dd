"""The benchmark runs and its record says what was held against what."""

from __future__ import annotations

import json

import pytest
from guarded import GuardedTeam

from numba_kernels.bench import speeds
from numba_kernels.bench.__main__ import main
from numba_kernels.simd import path


def test_record(capsys):
    main(["--quick", "--json", "--threads", "1", "--only", "overhead"])
    record = json.loads(capsys.readouterr().out)
    assert record["path"] == path()
    assert record["threads"] == 1
    results = {r["name"]: r for r in record["results"]}
    assert results["memory read"]["value"] > 0
    for name in ("dot-product peak", "multiply-add peak", "barrier between operations", "replay of one operation"):
        assert results[name]["value"] > 0


def test_table(capsys):
    main(["--quick", "--threads", "1", "--only", "rows"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("rms_norm and quantize × 512 tokens") for line in lines)


@pytest.mark.parametrize("pieces", [1024, 5, 1])
def test_attention_stays_within_its_scratch(monkeypatch, pieces):
    """More heads share keys than a tile of any path has rows; there is scratch for all pieces of work, or for a few."""
    make = speeds.attention.attention_scratch
    monkeypatch.setattr(speeds.attention, "attention_scratch", lambda wanted, size: make(pieces, size))
    monkeypatch.setattr(speeds, "HEADS", 26 * speeds.KV_HEADS)
    benchmark = speeds.Bench(1, quick=True)
    benchmark.team, plain = GuardedTeam(1), benchmark.team
    plain.close()
    benchmark.ceilings["multiply-add peak"] = 1.0
    for tokens in (1, 3):
        assert benchmark.attention(tokens, 1024).value > 0
    benchmark.team.close()
