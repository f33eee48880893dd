"""`oss-tools compare` from end to end on random weights: the record, resuming, one more format, a copy, a damaged layer."""

import json
import shutil

import pytest
from damage import change, shifted_scales
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.models import make, recipe_called
from oss_tools.errors import BadRequest, BadSource
from oss_tools.report.comparison import read

SMALL = ["--suites", "", "--chunks", "2", "--repeat", "6", "--prompt", "16", "--gen", "4", "-t", "1"]


def compare(*arguments, status=0):
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


def parts(folder):
    return {file.name: file.stat().st_mtime_ns for file in (folder / "parts").iterdir()}


def test_what_cannot_be_compared_is_one_line(tiny_gpt_oss, tiny_llama, tmp_path):
    done = compare(tiny_gpt_oss, tiny_llama, *SMALL, "-o", tmp_path, status=2)
    assert "another tokenizer" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert "two models" in compare("--base", tiny_gpt_oss, tiny_gpt_oss, *SMALL, "-o", tmp_path, status=2).output


def test_the_embedded_model_is_asked_the_same_by_its_name(monkeypatch, tmp_path):
    taken = []

    def take(*arguments, **_):
        taken.append(arguments)
        raise BadRequest("enough")

    monkeypatch.setattr("oss_tools.compare.pipeline.compare_formats", take)
    monkeypatch.setattr("oss_tools.compare.pipeline.compare_checkpoints", take)
    compare("-o", tmp_path, status=2)
    compare("tiny", "-o", tmp_path, status=2)
    compare("tiny", tmp_path, "-o", tmp_path, status=2)
    compare(tmp_path, "-o", tmp_path, status=2)
    assert taken[0] == taken[1]
    assert taken[0][2].limit == taken[2][1].limit == 100
    assert taken[3][2].limit is None


@pytest.mark.slow
def test_one_more_format_measures_only_that(tiny_gpt_oss, tmp_path):
    compare(tiny_gpt_oss, "--formats", "bf16,q8_0", *SMALL, "-o", tmp_path, "-q")
    before = parts(tmp_path)
    first = read(tmp_path / "comparison.json")
    done = compare(tiny_gpt_oss, "--formats", "bf16,q8_0,q4_0", *SMALL, "-o", tmp_path)
    after = parts(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 4  # conversion, weights, predictions, times
    assert "weights of q8_0" not in done.output
    assert "about" in done.output
    second = read(tmp_path / "comparison.json")
    assert second.candidates[:2] == first.candidates
    q8, q4 = second.others
    assert 0 < q8.fidelity[0].kld.mean < q4.fidelity[0].kld.mean
    assert q8.weight_error.relative_error < q4.weight_error.relative_error
    assert q4.size < q8.size < second.reference.size
    assert q4.latency.ratio_time_per_token.low is not None
    assert q4.peak_bytes > 0


@pytest.mark.slow
def test_a_copy_is_equal_and_a_damaged_layer_is_refused(tiny_gpt_oss, tmp_path):
    base = make(tiny_gpt_oss, recipe_called("mxfp4"), tmp_path / "base")
    copy, damaged = tmp_path / "copy", tmp_path / "damaged"
    shutil.copytree(base, copy)
    shutil.copytree(base, damaged)
    for name, edit in shifted_scales("model.layers.1.mlp.experts.down_proj").items():
        change(damaged, name, edit)
    done = compare(
        base, copy, damaged, *SMALL, "--repeat", "0", "-o", tmp_path / "out", "--gate", "default", "--json", status=1
    )
    record = read(tmp_path / "out" / "comparison.json")
    same, wrong = record.others
    assert same.fidelity[0].kld.max == 0
    assert same.fidelity[0].same_top.value == 1
    assert same.weight_error.relative_error == 0
    assert same.findings == []
    assert [(f.kind, f.layer, f.role) for f in wrong.findings] == [("weights", 1, "experts.down")]
    printed = json.loads(done.stdout)
    failed = [o for o in printed["verdict"]["outcomes"] if o["status"] == "fail"]
    assert {o["candidate"] for o in failed} == {"damaged"}
    assert any("model.layers.1.mlp.experts.down_proj" in line for o in failed for line in o["details"])


def test_what_lies_beside_models_is_passed_over(tiny_llama, tmp_path):
    make(tiny_llama, recipe_called("q8_0"), tmp_path)  # with its manifest
    make(tiny_llama, recipe_called("bf16"), tmp_path)
    (tmp_path / "README.md").write_text("# Quantizations")
    (tmp_path / "sizes.json").write_text("{}")
    few = [*SMALL, "--repeat", "0", "--chunks", "1"]
    done = compare(*sorted(tmp_path.iterdir()), *few, "-o", tmp_path.parent / "beside")
    assert "README.md, q8_0.gguf.manifest.json, sizes.json: not a model, ignored" in done.output
    assert {c.name for c in read(tmp_path.parent / "beside" / "comparison.json").candidates} == {"bf16", "q8_0.gguf"}
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    assert "broken.gguf" in compare(*sorted(tmp_path.iterdir()), *few, "-o", tmp_path / "o", status=2).output


def test_nothing_is_made_where_something_is_missing(tiny_llama, tmp_path, monkeypatch):
    def offline(hub, config, split, message):
        raise BadSource(message.format(f"{hub} cannot be had"))

    monkeypatch.setattr("oss_tools.harness.data.from_hub", offline)
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([tiny_llama, "--suites", "tool_use"], "has no chat template"),
        ([tiny_llama, "--suites", "math", "--tier", "full", "--data", tmp_path / "nowhere"], "--data"),
        ([tiny_llama, "--suite", "nosuch"], "no suite named"),
        ([tiny_llama, "--formats", "bf16,nosuch"], "nosuch"),
        ([tiny_llama, "--suites", "", "--backend", "nosuch"], "no backend named"),
    ):
        done = compare(*arguments, "--repeat", "0", "-o", out, status=2)
        assert message in done.output
        assert not (out / "models").exists()
        assert not (out / "parts").exists()
    done = compare(tiny_llama, "--suites", "", "-o", tmp_path / "file" / "out", status=2)
    assert "is a file, not a folder" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_full_disk_is_said_before_anything_is_made(tiny_llama, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("oss_tools.convert.output.shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    done = compare(tiny_llama, "--formats", "bf16,q8_0", *SMALL, "-o", tmp_path / "out", status=3)
    assert "are free" in done.output
    assert not (tmp_path / "out" / "models").exists()
