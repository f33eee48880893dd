"""From `compare` to the gate's verdict: damaged quantizations of the embedded model are refused, honest ones never."""

import shutil

import pytest
from damage import change, shifted_scales, swapped_experts, swapped_gate_and_up
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.latency import Settings as Timing
from oss_tools.compare.models import make, recipe_called
from oss_tools.compare.pipeline import Settings, compare_formats
from oss_tools.report.gates import judge
from oss_tools.report.rules import load_gate
from oss_tools.report.sheet import sheet_of
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
GATE_UP, DOWN = (f"model.layers.1.mlp.experts.{part}_proj" for part in ("gate_up", "down"))
DAMAGE = {
    "scales-off-by-one": shifted_scales(GATE_UP) | shifted_scales(DOWN),
    "gate-and-up-swapped": swapped_gate_and_up(GATE_UP, 2),
    "experts-exchanged": swapped_experts(GATE_UP, 0, 3) | swapped_experts(DOWN, 0, 3),
}
NAMED = {
    "scales-off-by-one": {GATE_UP, DOWN},
    "gate-and-up-swapped": {f"{GATE_UP}[2]"},
    "experts-exchanged": {GATE_UP, DOWN},
}
SEEDS = range(1, 21)


def oss_tools(*arguments, status):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.stdout


@pytest.mark.slow
def test_the_default_gate_refuses_sabotage_and_says_where(tmp_path):
    honest = make(TINY, recipe_called("mxfp4"), tmp_path)
    folders = [shutil.copytree(honest, tmp_path / name) for name in DAMAGE]
    for folder in folders:
        for tensor, edit in DAMAGE[folder.name].items():
            change(folder, tensor, edit)
    few = ("--limit", 20, "--chunks", 6, "--repeat", 0, "-t", 1, "-q", "-o", tmp_path)
    oss_tools("compare", TINY, honest, *folders, *few, status=0)
    printed = oss_tools("report", tmp_path / "comparison.json", "--gate", "default", status=1)
    print(printed)
    lines = printed.splitlines()
    failed = {line.split(": ")[1] for line in lines if line.startswith("FAILED")}
    assert failed == set(DAMAGE)  # and not mxfp4
    assert lines[0] == "tiny: 5 quantizations"
    for name, tensors in NAMED.items():
        at = next(
            i for i, line in enumerate(lines) if line.startswith(f"FAILED  nothing is wrong with the weights: {name}:")
        )
        details = lines[at + 1 : at + 1 + len(tensors)]
        assert {line.split(": relative error")[0].strip() for line in details} == tensors


@pytest.mark.slow
def test_the_default_gate_lets_an_honest_int8_pass_whatever_is_asked(tmp_path):
    """The seed draws the questions and the chunks of text."""
    asked, verdicts = set(), []
    for seed in SEEDS:
        few = Settings(limit=20, chunks=4, max_tokens=320, seed=seed, timing=Timing(repeat=0, threads=1))
        record = compare_formats(TINY, ("bf16", "int8"), few, tmp_path)
        asked |= {(*task.item_ids,) for task in record.reference.tasks} | {f.sha256 for f in record.reference.fidelity}
        verdicts.append(judge(load_gate("default"), sheet_of(record)))
    print("\n".join(outcome.message for verdict in verdicts for outcome in verdict.failed))
    assert sum(verdict.passed for verdict in verdicts) == len(SEEDS)
    assert len(asked) == len(SEEDS) * 5  # three tasks, two texts, and no two draws alike
