"""The measurement of quality: bases are the same function in another form, rows are kept, gone on with and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.measure import quality, quality_bases, quality_record
from oss_tools.measure.divergence import Passages, predict
from oss_tools.measure.quality_bases import as_experts, off_the_grid, write_folder
from oss_tools.measure.quality_shown import figure, table
from oss_tools.measure.quality_ways import Row, rows
from oss_tools.models import Checkpoint, open_checkpoint


def logits(checkpoint: Checkpoint, passages: Passages) -> np.ndarray:
    return predict(checkpoint, passages).logits(slice(0, len(passages)))


def test_the_bases_are_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, so that rounding the re-expressed weights to bfloat16 does not hide a mistake."""
    monkeypatch.setattr(quality_bases, "ROUTED", 64)
    tied = load_shape("llama-tiny")  # as SmolLM2's embedding is
    tied = replace(tied, config=tied.config | {"tie_word_embeddings": True})
    synthesize(plan_synthesis(tied, "hf"), tmp_path / "llama")
    passages = Passages.of(np.random.default_rng(0).integers(1, 200, 300), size=100, context=10)
    with open_checkpoint(tmp_path / "llama") as source:
        write_folder(tmp_path / "moved", source.architecture, source.metadata(), off_the_grid(source), "f32")
        wanted = logits(source, passages)
        with open_checkpoint(tmp_path / "moved") as moved:
            name = "model.layers.0.mlp.down_proj.weight"
            before, after = (c.read_tensor(name).dequantize() for c in (source, moved))
            assert (np.abs(after - before) > 0.1 * np.abs(before)).mean() > 0.2  # the weights are others
            assert np.allclose(logits(moved, passages), wanted, atol=1e-4 * np.abs(wanted).max())
            architecture, values = as_experts(moved)
            metadata = replace(moved.metadata(), config=architecture.hf_config())
            write_folder(tmp_path / "experts", architecture, metadata, values, "f32")
    with open_checkpoint(tmp_path / "experts") as experts:
        assert np.allclose(logits(experts, passages), wanted, atol=1e-4 * np.abs(wanted).max())
        router = experts.read_tensor("model.layers.0.mlp.router.weight").dequantize()
        assert (router[0] == router[3]).all()
        assert (router[0] == -router[4]).all()


@pytest.mark.slow
def test_rows_are_kept_gone_on_with_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["tiny", "--folder", str(tmp_path), "--only", "q4_0/plain", "--only", "q4_0/search"]
    assert quality.main([*arguments, "--passages", "2"]) == 0
    file = tmp_path / "rows-tiny" / "q4_0--plain.json"
    two = json.loads(file.read_text())["passages"]
    assert quality.main([*arguments, "--passages", "3"]) == 0
    three = json.loads(file.read_text())["passages"]
    assert len(two) == 2
    assert len(three) == 3
    assert {n: three[n] for n in two} == two
    monkeypatch.setattr(quality.Measurement, "measure", None)  # nothing is left to do
    assert quality.main([*arguments, "--passages", "3"]) == 0
    record = quality_record.record("tiny", tmp_path)
    plain, search = record["rows"]["q4_0/plain"], record["rows"]["q4_0/search"]
    assert plain["bits"] == search["bits"] == pytest.approx(5.6, abs=0.1)
    assert 0 < search["kld"]["value"] < plain["kld"]["value"] < 1
    assert plain["scored"] == 3 * 448
    test = record["paired"]["q4_0/search - q4_0/plain"]
    assert test["ratio"] == pytest.approx(search["kld"]["value"] / plain["kld"]["value"])
    assert test["value"] < 0


def test_the_first_passages_are_spread_over_the_text() -> None:
    order = quality.spread(51)
    assert sorted(order) == list(range(51))
    assert sorted(np.diff(sorted(order[:12])))[0] > 1
    assert max(order[:12]) > 40
    assert min(order[:12]) < 10


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in rows()]
    assert len(set(names)) == len(names)
    assert "mxfp4/gptq" in names
    assert Row("q4_0", "llama.cpp, importance").wants_importance
    assert not Row("q4_0", "gptq").wants_importance


def a_record() -> dict[str, Any]:
    def row(format: str, way: str, bits: float, kld: float) -> dict[str, Any]:
        return {"format": format, "way": way, "bits": bits, "kld": {"value": kld, "low": kld - 0.01, "high": kld + 0.01}}

    found = [row("q4_0", "plain", 4.5, 0.2), row("q4_0", "gptq", 4.5, 0.1), row("q8_0", "plain", 8.5, 0.001)]
    return {"base": {"name": "a <base>"}, "rows": {f"{r['format']}/{r['way']}": r for r in found}}


def test_the_table_has_a_line_for_each_format_by_size() -> None:
    lines = table(a_record()).splitlines()
    assert lines[0] == "| format | bits | plain | gptq |"
    assert lines[2:] == [
        "| q4_0 | 4.50 | 0.2000 ± 0.0100 | 0.1000 ± 0.0100 |",
        "| q8_0 | 8.50 | 0.0010 ± 0.0100 |  |",
    ]


def test_the_figure_has_a_mark_for_each_row_lower_for_less_divergence() -> None:
    drawn = ElementTree.fromstring(figure([a_record(), a_record()]))
    panels = drawn.findall("{*}g")
    assert len(panels) == 2
    marks = {
        mark.findtext("{*}title", "").partition(":")[0]: (float(mark.get("cx", 0)), float(mark.get("cy", 0)))
        for mark in panels[0].findall("{*}circle")
        if mark.find("{*}title") is not None
    }
    assert set(marks) == {"q4_0, plain", "q4_0, gptq", "q8_0, plain"}
    assert marks["q4_0, plain"][1] < marks["q4_0, gptq"][1] < marks["q8_0, plain"][1]
    assert marks["q4_0, plain"][0] == marks["q4_0, gptq"][0] < marks["q8_0, plain"][0]
