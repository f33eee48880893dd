"""The verb `merge`: its plan, its report, its warnings, its refusals; how much memory it takes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from tests.adapters.written import PREFIX, lora, random_pair, write_gguf, write_peft

Q = "model.layers.0.self_attn.q_proj"


def run(*arguments: object, status: int = 0) -> tuple[str, str]:
    """(stdout, stderr)."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == status, (done.output, done.stderr)
    return done.stdout, done.stderr


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_peft(
        tmp_path / "adapter", lora(Q, *random_pair(64, 64, size=0.3)), base_model_name_or_path="some/llama-tiny"
    )


def test_a_plan_a_merge_and_its_report(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    plan, _ = run("merge", tiny_llama, adapter, tmp_path / "out", "--dry-run")
    assert "merge, quantize" in plan
    assert not (tmp_path / "out").exists()
    table, said = run("merge", tiny_llama, adapter, tmp_path / "out", "--report", tmp_path / "report.json", "-q")
    assert "What rounding left of the update" in table
    assert f"{Q}.weight" in table
    assert "20 tensors were not changed" in table
    assert "made for" not in said  # the folder bears the name of the adapter's base
    report = json.loads((tmp_path / "report.json").read_text())
    (tensor,) = report["tensors"]
    assert tensor["name"] == f"{Q}.weight"
    assert report["total"]["share"] == tensor["share"] == pytest.approx(1, abs=1e-2)
    assert tensor["error"]["relative_error"] < 2**-8
    assert report["adapters"] == [{"path": str(adapter), "scale": 1.0}]
    record = json.loads(run("merge", tiny_llama, adapter, tmp_path / "out", "--resume", "--json")[0])
    assert record["finished_before"]
    assert record["total"] == report["total"]
    run("verify", tmp_path / "out", tmp_path / "out", "-q")


def test_several_with_their_scales(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    a, b = random_pair(64, 64, seed=2)
    other = write_gguf(
        tmp_path / "b.gguf", "llama", {"blk.1.attn_output.weight.lora_a": a, "blk.1.attn_output.weight.lora_b": b}
    )
    options = ("--scale", "0.5", "--scale", "-1", "--format", "f32", "-q")
    run("merge", tiny_llama, adapter, other, tmp_path / "both.gguf", *options)
    run("merge", tiny_llama, adapter, tmp_path / "one", "--scale", "0.5", "--format", "f32", "-q")
    run("merge", tmp_path / "one", other, tmp_path / "two", "--scale", "-1", "-q")
    assert "equal" in run("verify", tmp_path / "both.gguf", tmp_path / "two", "-q")[0]
    _, said = run(
        "merge", tiny_llama, adapter, other, tmp_path / "x", "--scale", "1", "--scale", "2", "--scale", "3", status=2
    )
    assert "3 are given for 2 adapters" in said
    _, said = run("merge", tiny_llama, adapter, tmp_path / "x", "--scale", "nan", status=2)
    assert "--scale" in said


def test_warnings(tmp_path: Path, tiny_gpt_oss: Path) -> None:
    at = f"{PREFIX}model.layers.0.mlp.experts."
    a, b = random_pair(128, 64, rank=16, size=0.03)
    pair = {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b}
    faint = write_peft(tmp_path / "faint", pair, target_parameters=["mlp.experts.gate_up_proj"])
    _, said = run("merge", tiny_gpt_oss, faint, tmp_path / "out", "-q")
    assert "rounding left" in said
    assert "keeps more" in said
    renamed = write_peft(tmp_path / "renamed", pair, base_model_name_or_path="some/other-model")
    _, said = run("merge", tiny_gpt_oss, renamed, tmp_path / "again", "-q", "--recipe", "bf16")
    assert "was made for some/other-model; nothing says that" in said
    zero = write_peft(tmp_path / "zero", lora("model.layers.0.self_attn.q_proj", *(x * 0 for x in random_pair(128, 64))))
    assert "nothing was merged" in run("merge", tiny_gpt_oss, zero, tmp_path / "none", "-q")[1]


def test_refusals_are_one_line(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    for arguments in (
        (tiny_llama, tiny_llama, tmp_path / "out"),
        (adapter, adapter, tmp_path / "out"),
        (tiny_llama, adapter, adapter),
        (tiny_llama, adapter, adapter, "--overwrite"),
        (tiny_llama, adapter, adapter / "out"),
        (tiny_llama, adapter, tmp_path / "out.gguf", "--container", "hf"),
    ):
        _, said = run("merge", *arguments, status=2)
        assert len(said.strip().splitlines()) == 1
        assert said.startswith("oss-tools: ")
    assert (adapter / "adapter_model.safetensors").exists()
    assert "oss-tools merge" in run("inspect", adapter, status=2)[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_layers_of_the_20b_take_less_than_two_gib(tmp_path: Path) -> None:
    """Attention and experts at rank 16, into MXFP4 again; memory is that of the pieces, so all 24 layers take no more."""
    from oss_tools.measure.conversion import child

    shape = load_shape("gpt-oss-20b").with_layers(2)
    base = synthesize(plan_synthesis(shape, "hf", load_recipe("mxfp4")), tmp_path / "base")
    tensors = {}
    for layer in range(2):
        at = f"model.layers.{layer}."
        for module, out, columns in (("q_proj", 4096, 2880), ("o_proj", 2880, 4096)):
            tensors |= lora(f"{at}self_attn.{module}", *random_pair(out, columns, rank=16, size=0.02))
        for name, out in ((".base_layer", 5760), ("", 2880)):
            a, b = random_pair(out, 2880, rank=16 * 32, size=0.02)
            tensors |= {f"{PREFIX}{at}mlp.experts{name}.lora_{x}.weight": y for x, y in (("A", a), ("B", b))}
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write_peft(tmp_path / "adapter", tensors, r=16, target_parameters=parameters)
    command = [
        sys.executable,
        "-P",
        "-m",
        "oss_tools",
        "merge",
        str(base),
        str(adapter),
        str(tmp_path / "out"),
        "-q",
        "-j",
        "2",
    ]
    peak = child(command).peak_bytes
    print(f"{peak / 2**30:.2f} GiB")
    assert peak < 2 << 30
