"""A calibration: what the file holds, going on after an interruption, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.calibration import calibrate as module
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.calibrate import calibrate, check, cost_of
from oss_tools.calibration.texts import Sample
from oss_tools.calibration.visitor import Visitor
from oss_tools.cli.main import app
from oss_tools.convert.importance import load_importance
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names, synthesize
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom
from oss_tools.models import open_checkpoint

TINY = [name for name in shape_names() if name.endswith("-tiny")]


def drawn(count: int, length: int, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample([rng.integers(0, 250, length) for _ in range(count)], length, ("drawn",), {"drawn": count * length}, 0)


class Means(Visitor):
    """The inputs of every matrix, whole."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, int | None], np.ndarray] = {}

    def multiplies(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> None:
        for name in names:
            self.inputs[name, matrix] = x.copy()


@pytest.mark.parametrize("shape", TINY)
def test_the_file_holds_the_mean_squares_of_what_each_matrix_met(shape: str, tmp_path: Path) -> None:
    """Of every family: read back under the canonical names, by requantize's reader."""
    folder = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / "model")
    sample, seen = drawn(3, 50), Means()
    with open_checkpoint(folder) as checkpoint:
        done = calibrate(checkpoint, sample, tmp_path / "out.gguf")
        found = load_importance(tmp_path / "out.gguf", checkpoint)
        with BreadthFirst(checkpoint, sample.sequences, seen) as ops:
            ops.visit_output(ops.forward())
        matrices = {n for n, e in checkpoint.entries.items() if not e.spec.is_vector and e.spec.role != "positions"}
        tied = "lm_head.weight" not in checkpoint.entries
        assert set(found) == (matrices if tied else matrices - {"model.embed_tokens.weight"})
    for name, weights in found.items():
        for matrix in range(len(weights) if weights.ndim == 2 else 1):
            inputs = seen.inputs[name, matrix if weights.ndim == 2 else None]
            if len(inputs):
                means = np.square(inputs.astype(np.float64)).mean(0)
                row = weights[matrix] if weights.ndim == 2 else weights
                np.testing.assert_allclose(row, 0.1 + 0.9 * means / means.mean(), rtol=1e-4)
    assert found.unreached == {name: m for name, m in done.unreached.items() if name in found}


def test_the_file_is_one_of_llama_imatrix(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    """Its keys, its names, one count for each expert: what gguf's own reader finds."""
    sample = drawn(2, 40)
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        calibrate(checkpoint, sample, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["drawn"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 40,
    }
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert list(tensors) == sorted(tensors, key=lambda name: (name.rsplit(".", 1)[0], name.endswith("counts")))
    assert tensors["blk.0.attn_q.weight.in_sum2"].shape == (1, 64)
    assert tensors["blk.0.attn_q.weight.counts"].tolist() == [[80]]
    assert tensors["blk.0.ffn_down_exps.weight.in_sum2"].shape == (4, 64)
    counts = tensors["blk.0.ffn_gate_exps.weight.counts"]
    assert counts.shape == (4, 1)
    assert counts.sum() == 80 * 2  # two experts for each token
    np.testing.assert_array_equal(tensors["blk.0.ffn_gate_exps.weight.in_sum2"], tensors["blk.0.ffn_up_exps.weight.in_sum2"])
    assert "output.weight.counts" in tensors


class Killed(BaseException):
    """Stands for a process that ends."""


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_run_goes_on_where_it_was_killed_to_the_same_bytes(
    tiny_gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    sample, reports = drawn(3, 30), []
    write = module.Kept.write

    def killed(self: Any, position: Any) -> None:
        write(self, position)
        reports.append(position.number)
        if len(reports) == after:
            raise Killed

    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        calibrate(checkpoint, sample, tmp_path / "whole.gguf")
        monkeypatch.setattr(module.Kept, "write", killed)
        with pytest.raises(Killed):
            calibrate(checkpoint, sample, tmp_path / "out.gguf", pause=0)
        assert not (tmp_path / "out.gguf").exists()
        with pytest.raises(BadRequest, match=r"an interrupted run's; go on with --resume"):
            calibrate(checkpoint, sample, tmp_path / "out.gguf")
        with pytest.raises(BadRequest, match=r"differs in the text, --tokens or --sequence"):
            calibrate(checkpoint, drawn(3, 30, seed=1), tmp_path / "out.gguf", resume=True)
        done = calibrate(checkpoint, sample, tmp_path / "out.gguf", resume=True, pause=0)
    assert 0 < done.resumed <= 1
    assert len({*reports}) == len(reports)  # nothing was done twice
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "out.gguf.partial").exists()


def test_a_damaged_state_is_told_and_can_be_thrown_away(
    tiny_gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = drawn(1, 20)
    with open_checkpoint(tiny_gpt_oss) as checkpoint:

        def fails(*_: Any) -> bytes:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(module.imatrix, "gguf_bytes", fails)
            with pytest.raises(Killed):
                calibrate(checkpoint, sample, tmp_path / "out.gguf", pause=0)
        partial = tmp_path / "out.gguf.partial"
        (hidden,) = partial.glob("hidden-*")
        hidden.write_bytes(hidden.read_bytes()[:-4])
        with pytest.raises(BadCheckpoint, match=r"hidden-\d+\.f32: is damaged"):
            calibrate(checkpoint, sample, tmp_path / "out.gguf", resume=True)
        (partial / "state.json").write_text("[]")
        with pytest.raises(BadCheckpoint, match=r"state\.json: is damaged"):
            calibrate(checkpoint, sample, tmp_path / "out.gguf", resume=True)
        calibrate(checkpoint, sample, tmp_path / "out.gguf", overwrite=True)
    assert (tmp_path / "out.gguf").exists()


def test_what_cannot_be_done_is_refused_before_it_is_begun(
    tiny_gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = drawn(1, 20)
    (tmp_path / "there.gguf").write_text("")
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        with pytest.raises(BadRequest, match="exists; choose another name, or --overwrite"):
            check(checkpoint, sample, tmp_path / "there.gguf", resume=False, overwrite=False)
        monkeypatch.setattr(module, "available_memory", lambda: 1000)
        with pytest.raises(NoRoom, match="give fewer --tokens"):
            check(checkpoint, sample, tmp_path / "new.gguf", resume=False, overwrite=False)


@pytest.mark.parametrize("shape", TINY)
def test_all_multiplications_are_reported(shape: str, tmp_path: Path) -> None:
    folder = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / "model")
    sample, work = drawn(2, 33), []
    with open_checkpoint(folder) as checkpoint:
        with BreadthFirst(checkpoint, sample.sequences, progress=work.append) as ops:
            ops.forward()
        assert sum(work) == cost_of(checkpoint, sample.tokens).multiplications


def test_the_command(tmp_path: Path) -> None:
    """On the embedded model: a plan, a run, its record, the plan of requantize that names experts which were not reached."""
    text = tmp_path / "text.txt"
    text.write_text("Fish swim upstream. " * 40)
    run = CliRunner().invoke
    given = ["calibrate", "tiny", str(tmp_path / "out.gguf"), "--text", str(text), "--tokens", "32", "--sequence", "32"]
    planned = run(app, [*given, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert not (tmp_path / "out.gguf").exists()
    done = run(app, [*given, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["tokens"], record["sequences"], record["sources"]) == (32, 1, {"text.txt": 32})
    assert record["unreached"]
    target = [str(tmp_path / "q.gguf"), "--format", "q4_0", "--importance", str(tmp_path / "out.gguf")]
    plan = run(app, ["requantize", "tiny", *target, "--dry-run", "--json"])
    rounded = json.loads(plan.stdout)["importance_of_their_layer"]
    assert rounded == {name: experts for name, experts in record["unreached"].items() if "experts" in name}
    name, experts = next(iter(rounded.items()))
    assert "its text never reached" in plan.stderr
    assert f"{name}: {', '.join(map(str, experts))}" in plan.stderr
    again = run(app, given)
    assert again.exit_code == 2
    assert "exists; choose another name, or --overwrite" in again.stderr
