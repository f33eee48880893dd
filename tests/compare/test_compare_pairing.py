"""What differs beside tensors is found before anything is measured, stands in the record, and no gate passes it."""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.models import make, recipe_called
from oss_tools.compare.pairing import pair
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadCheckpoint, BadRequest
from oss_tools.measure import fidelity
from oss_tools.report.comparison import read
from oss_tools.report.gates import judge
from oss_tools.report.rules import load_gate, parse_gate
from oss_tools.report.sheet import sheet_of
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
NOTHING = ["--suites", "", "--chunks", "1", "--repeat", "0", "-t", "1", "-q"]


def changed(source: Path, target: Path, file: str, edit) -> Path:
    """A copy of a folder, whose JSON `file` was edited in place."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text()) if (target / file).exists() else {}
    edit(content)
    (target / file).write_text(json.dumps(content))
    return target


def swap_letters(content):
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


SABOTAGE = {
    "window": ("config.json", lambda c: c.update(sliding_window=c["sliding_window"] // 2), "config.sliding_window*"),
    "top-k": ("config.json", lambda c: c.update(num_experts_per_tok=1, experts_per_token=1), "config.num_experts_per_tok"),
    "eps": ("config.json", lambda c: c.update(rms_norm_eps=1e-3), "config.rms_norm_eps"),
    "yarn": ("config.json", lambda c: c["rope_scaling"].update(factor=4.0), "config.rope*"),
    "limit": ("config.json", lambda c: c.update(swiglu_limit=3.0), "config.swiglu_limit"),
    "tokens": ("tokenizer.json", swap_letters, "tokenizer.token *"),
}


def compare(*arguments, status):
    done = CliRunner().invoke(app, ["compare", *map(str, arguments), *NOTHING])
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture(scope="module")
def sabotaged(tiny_gpt_oss, tmp_path_factory):
    """The record of copies of a model in each of which one thing is changed; the same tensors, byte by byte."""
    folder = tmp_path_factory.mktemp("sabotage")
    paths = [changed(tiny_gpt_oss, folder / name, file, edit) for name, (file, edit, _) in SABOTAGE.items()]
    (shutil.copytree(tiny_gpt_oss, folder / "template") / "chat_template.jinja").write_text("{{ messages[0].content }}")
    shutil.copytree(tiny_gpt_oss, folder / "copy")
    printed = compare(
        tiny_gpt_oss, *paths, folder / "template", folder / "copy", "-o", folder / "out", "--gate", "default", status=1
    )
    return printed, read(folder / "out" / "comparison.json")


@pytest.mark.parametrize("name", [*SABOTAGE, "template"])
def test_one_changed_thing_fails_the_default_gate_by_its_name(sabotaged, name):
    printed, record = sabotaged
    wanted = SABOTAGE[name][2] if name in SABOTAGE else "template.default"
    candidate = next(c for c in record.others if c.name == name)
    assert candidate.weight_error.relative_error == 0
    assert all(fnmatchcase(d.name, wanted) for d in candidate.differences)
    assert [f.subject for f in candidate.findings] == [d.name for d in candidate.differences]
    assert len(candidate.differences) == (2 if name == "tokens" else 1)
    failed = [o for o in judge(load_gate("default"), sheet_of(record)).failed if o.candidate == name]
    assert "differences" in {o.metric for o in failed}
    message = candidate.differences[0].message
    assert any(message in o.details for o in failed)
    assert f"! {name}: {message}" in printed


def test_a_copy_has_no_differences(sabotaged):
    _, record = sabotaged
    copy = next(c for c in record.others if c.name == "copy")
    assert copy.differences == []
    assert copy.findings == []
    assert not [o for o in judge(load_gate("default"), sheet_of(record)).failed if o.candidate == "copy"]


def test_a_gate_that_says_nothing_of_it_fails_too_and_one_may_want_it(sabotaged):
    _, record = sabotaged
    silent = parse_gate({"rules": [{"metric": "size", "min": 0}]}, "here", "silent")
    failed = {o.candidate for o in judge(silent, sheet_of(record)).failed}
    assert failed == {*SABOTAGE, "template"}
    rule = {"metric": "differences", "max": 0, "wanted": ["config.sliding_window*", "template.*"]}
    wanting = parse_gate({"rules": [rule]}, "here", "wanting")
    assert {o.candidate for o in judge(wanting, sheet_of(record)).failed} == {*SABOTAGE} - {"window"}


def test_an_end_token_that_is_no_longer_listed_is_found(tmp_path):
    """<|call|> still ends an answer here, by its name; in other programs it does not."""
    vocab = {t["content"]: t["id"] for t in json.loads((TINY / "tokenizer.json").read_text())["added_tokens"]}
    other = changed(TINY, tmp_path / "b", "generation_config.json", lambda c: c["eos_token_id"].remove(vocab["<|call|>"]))
    (difference,) = pair(TINY, other).differences
    assert difference.name == "tokenizer.end token <|call|>"
    assert difference.b == "ends an answer by its name only"


def test_what_is_another_model_is_refused(tiny_gpt_oss, tiny_llama, tmp_path):
    with pytest.raises(BadRequest, match="another tokenizer"):
        pair(tiny_gpt_oss, tiny_llama)
    bare = shutil.copytree(tiny_gpt_oss, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"bare: has no tokenizer"):
        pair(tiny_gpt_oss, bare)


# ---- rows without a token -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tiny_llama, tmp_path_factory):
    """A llama in float32."""
    return make(tiny_llama, recipe_called("f32"), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def padded(plain, tmp_path_factory):
    """A copy with 64 rows more in embedding and output, which no token has; they are not zero."""
    target = tmp_path_factory.mktemp("padded") / "padded"
    changed(plain, target, "config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 64))
    tensors = load_file(target / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], tensors[name][:64]])
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("first", ["plain", "padded"])
def test_rows_of_padding_do_not_count(plain, padded, tmp_path, first):
    pair_of = (plain, padded) if first == "plain" else (padded, plain)
    printed = compare(*pair_of, "-o", tmp_path, status=0)
    (candidate,) = read(tmp_path / "comparison.json").others
    assert candidate.differences == []
    assert candidate.findings == []
    assert "64 rows of padding" in candidate.remarks[0]
    assert candidate.remarks[0] in printed
    assert candidate.weight_error.relative_error == 0
    assert candidate.fidelity[0].kld.max == pytest.approx(0, abs=1e-12)
    assert candidate.fidelity[0].same_top.value == 1


def test_a_base_with_rows_of_padding_is_held_against_by_the_tokens_of_both(plain, padded):
    with Engine.load(plain) as one, Engine.load(padded) as two:
        tokens = [int(i) for i in np.random.default_rng(0).integers(0, 250, 64)]
        for base, other in ((one, two), (two, one)):
            (chunk,) = fidelity.compare_engines(base, other, tokens)
            assert chunk.kld.max() == pytest.approx(0, abs=1e-12)
            np.testing.assert_allclose(chunk.nll, chunk.base_nll)


def test_a_token_without_a_row_is_no_padding(plain, padded, tmp_path):
    def add(content):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        rows = json.loads((plain / "config.json").read_text())["vocab_size"]
        content["added_tokens"].append({"id": rows + 3, "content": "<|new|>", "special": True, **flags})

    with pytest.raises(BadRequest, match="have no row"):
        pair(plain, changed(padded, tmp_path / "b", "tokenizer.json", add))
