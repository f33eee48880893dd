"""GPTQ of whole models: less divergence on text that was not calibrated on, ordinary files, the same bytes after a kill."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.calibrate import calibrate
from oss_tools.calibration.compensation import Compensation, rounded_steps
from oss_tools.calibration.texts import Sample
from oss_tools.cli.main import app
from oss_tools.convert.importance import load_importance
from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import Recipe, Rule, load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names, synthesize
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource
from oss_tools.tiny import data
from oss_tools.tiny.items import Split
from tests.convert.helpers import contents

TINY = resource("oss_tools/tiny/checkpoint")
SHAPES = [name for name in shape_names() if name.endswith("-tiny")]


def sample_of(sequences: list[np.ndarray]) -> Sample:
    return Sample(sequences, 64, ("drawn",), {"drawn": sum(map(len, sequences))}, 0)


def drawn(count: int = 6, length: int = 48, seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    return sample_of([random.integers(0, 250, length) for _ in range(count)])


def conversations(split: Split, tokens: int) -> Sample:
    """Of the embedded model's own questions; none of those in `test` is in `train`."""
    codec, found = Tokenizer.from_file(str(TINY / "tokenizer.json")), []
    for item in itertools.islice(data.items(3, split, data.pieces(codec)), 2000):
        found.append(np.array(data.encode(codec, item)[0], np.int64))
        if sum(map(len, found)) >= tokens:
            break
    return sample_of(found)


def matrices_in(format: str) -> Recipe:
    """All but the router, the embedding and the output."""
    kept = (Rule("keep", role=role) for role in ("router", "embedding", "output"))
    return Recipe(format, (*kept, Rule(format)))


def made(
    source: Path, destination: Path, container: str, recipe: Recipe, rounding: Compensation | None, **options: object
) -> Manifest:
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, container, recipe)
        return run(plan, destination, Options(jobs=2, rounding=rounding, **options))  # type: ignore[arg-type]


def log_probabilities(path: Path, sample: Sample) -> np.ndarray:
    """Of each next token, float64 [N, vocabulary]."""
    with open_checkpoint(path) as checkpoint, BreadthFirst(checkpoint, sample.sequences) as ops:
        logits = ops.logits(ops.forward()).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mxfp4", "q4_0", "iq4_nl"])
def test_it_diverges_less_than_importance_and_that_less_than_plain_rounding(format: str, tmp_path: Path) -> None:
    """The embedded model, calibrated on questions of its training, measured on others."""
    train, held_out = conversations("train", 20000), conversations("test", 6000)
    recipe, base = matrices_in(format), log_probabilities(TINY, held_out)
    plain = recipe.quantizing_by("floor" if format == "mxfp4" else "plain")
    with open_checkpoint(TINY) as checkpoint:
        calibrate(checkpoint, train, tmp_path / "importance.gguf")
        importance = load_importance(tmp_path / "importance.gguf", checkpoint)
    ways = {
        "plain": made(TINY, tmp_path / "plain.ready", "ready", plain, None),
        "importance": made(TINY, tmp_path / "importance.ready", "ready", recipe, None, importance=importance),
        "gptq": made(TINY, tmp_path / "gptq.ready", "ready", recipe, Compensation(train)),
    }
    found = {}
    for way in ways:
        ours = log_probabilities(tmp_path / f"{way}.ready", held_out)
        found[way] = float((np.exp(base) * (base - ours)).sum(-1).mean())
    assert found["gptq"] < found["importance"] < found["plain"], found
    assert found["gptq"] < 0.8 * found["plain"], found
    sizes = {(tmp_path / f"{way}.ready").stat().st_size for way in ways}
    assert len(sizes) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_family(shape: str, tmp_path: Path) -> None:
    """Outputs of every matrix that was rounded come no worse; what is written is what verification read back."""
    source = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / "model")
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, "ready", matrices_in("q4_0"))
        steps = {step.name for step in rounded_steps(plan)}
        manifest = run(plan, tmp_path / "out.ready", Options(jobs=2, rounding=Compensation(drawn())))
    known = {record.name: record.output for record in manifest.tensors if record.output}
    assert set(known) == steps
    assert all(error.after <= error.before for error in known.values())


@pytest.mark.parametrize("container", ["hf", pytest.param("ready", marks=pytest.mark.slow)])
def test_experts_share_the_scale_of_their_tensor(container: str, tmp_path: Path) -> None:
    """NVFP4 has one scale for all experts of a tensor, whose largest values differ: each comes back as it was rounded."""
    out = tmp_path / ("out.ready" if container == "ready" else "out")
    manifest = made(TINY, out, container, matrices_in("nvfp4"), Compensation(drawn()))
    experts = [record for record in manifest.tensors if record.role.startswith("experts.") and record.output]
    assert experts
    for record in experts:
        assert record.error is not None
        assert record.error.relative_error < 0.2, record
        assert record.output is not None
        assert record.output.after <= record.output.before


@pytest.mark.parametrize("container", ["gguf", "ready"])
def test_what_is_in_the_target_format_already_keeps_its_bytes(container: str, tiny_gpt_oss: Path, tmp_path: Path) -> None:
    """Published experts in MXFP4; the attention is rounded around them."""
    recipe = Recipe("around", (Rule("mxfp4", role="experts.*"), Rule("q5_1", role="attention.*")))
    manifest = made(tiny_gpt_oss, tmp_path / f"out.{container}", container, recipe, Compensation(drawn()))
    experts = [record for record in manifest.tensors if record.role in ("experts.gate_up", "experts.down")]
    assert experts
    assert all(record.proven_equal and record.output is None for record in experts)
    assert any(record.output for record in manifest.tensors if record.role == "attention.out")


KILLED = """
import sys
from pathlib import Path
from oss_tools.calibration.rounded import Rounded
from oss_tools.models import open_checkpoint
from tests.calibration.test_compensation import Compensation, drawn, load_recipe, made

source, target, container, last = sys.argv[1:]
write, writes = Rounded.write, 0

def until_the_last(self, *arguments):
    global writes
    writes += 1
    if writes > int(last):
        print("here", flush=True)
        sys.stdin.read()
    write(self, *arguments)

Rounded.write = until_the_last
made(Path(source), Path(target), container, load_recipe("mxfp4"), Compensation(drawn(), pause=0.0), resume=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_killed_it_goes_on_to_the_same_bytes(container: str, tmp_path: Path) -> None:
    source = synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf", load_recipe("bf16")), tmp_path / "model")
    name = {"hf": "", "gguf": ".gguf"}[container]
    whole, target = tmp_path / f"whole{name}", tmp_path / f"killed{name}"
    recipe = load_recipe("mxfp4")
    expected = made(source, whole, container, recipe, Compensation(drawn()))
    folders = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    for last in (1, 3):
        command = [sys.executable, "-c", KILLED, str(source), str(target), container, str(last)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert process.stdout
        assert process.stdout.readline() == b"here\n", process.communicate()[1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not target.exists()
    with pytest.raises(BadRecipe, match="differs in --damping"):
        made(source, target, container, recipe, Compensation(drawn(), 0.2), resume=True)
    with pytest.raises(BadRecipe, match="differs in --method, --damping, the text"):
        made(source, target, container, recipe, None, resume=True)
    found = made(source, target, container, recipe, Compensation(drawn()), resume=True)
    assert found.tensors == expected.tensors
    if container == "hf":
        assert contents(target) == contents(whole)
    else:
        assert target.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_source_that_changed_since_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """What was rounded before is held against the source as it is now."""
    from oss_tools.calibration.rounded import Rounded

    with open_checkpoint(tiny_llama) as checkpoint:
        plan = make_plan(checkpoint, "ready", matrices_in("q4_0"))
        ours = Compensation(drawn())
        ours.prepare(plan, tmp_path / "rounded", (), Options(jobs=1), lambda *_: None)
        number = next(i for i, step in enumerate(plan.steps) if step.name.endswith("q_proj.weight"))
        store = Rounded(tmp_path / "rounded")
        file = store.folder / f"{number}-0" / "facts.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "0" * 64}))
        with pytest.raises(BadRecipe, match=r"has changed since: model.layers.0.self_attn.q_proj.weight"):
            Compensation(drawn()).prepare(plan, tmp_path / "rounded", (), Options(jobs=1), lambda *_: None)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("facts.json", b"[]"),
        ("facts.json", b"{}"),
        ("facts.json", b'{"rows": "x"}'),
        ("facts.json", b'{"rows": -1, "source": "", "before": 0, "after": 0, "outputs": 0, "tokens": 1, "alone": false}'),
        ("blocks.bin", b"\x01"),
        ("scales.bin", None),
    ],
)
def test_what_was_rounded_and_is_damaged_is_said_in_a_line(file: str, content: bytes | None, tmp_path: Path) -> None:
    from oss_tools.calibration.rounded import Facts, Rounded

    tensor = get_format("mxfp4").quantize(np.ones((4, 64), np.float32))
    store = Rounded(tmp_path)
    store.write(7, 0, tensor, Facts("0" * 64, 0.0, 0.0, 0.0, 1, False))
    part = store.read(7, 0, tensor.format, 64, 1, 3)
    assert part.shape == (2, 64)
    assert {name: plane.tolist() for name, plane in part.planes.items()} == {
        name: plane[1:3].tolist() for name, plane in tensor.planes.items()
    }
    damaged = tmp_path / "7-0" / file
    assert damaged.exists()
    damaged.write_bytes(content) if content is not None else damaged.unlink()
    with pytest.raises(BadCheckpoint, match=r"7-0: damaged \(.*\); --overwrite starts anew"):
        store.read(7, 0, tensor.format, 64, 1, 3)


def test_experts_that_no_token_reached_are_rounded_too(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    """Eight tokens for all experts: some meet none. The report says how many were rounded by themselves."""
    source = synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf", load_recipe("bf16")), tmp_path / "model")
    manifest = made(source, tmp_path / "out.ready", "ready", matrices_in("q4_0"), Compensation(drawn(1, 2)))
    outputs = [record.output for record in manifest.tensors if record.role == "experts.down"]
    assert all(error is not None for error in outputs)
    assert any(error.unmet for error in outputs if error)
    assert manifest_path(tmp_path / "out.ready").exists()


def cli(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["requantize", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_verb(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is 12 plus 30? 42. Iron is found in lentils, and vitamin C in oranges.\n" * 80)
    common = [
        "tiny",
        str(tmp_path / "out.gguf"),
        "--format",
        "q4_0",
        "--text",
        str(text),
        "--tokens",
        "512",
        "--json",
        "--quiet",
    ]
    status, out, _ = cli(*common, "--method", "gptq", "--dry-run")
    assert status == 0
    assert {"method", "tokens", "matrices", "seconds", "memory_bytes", "scratch_bytes"} == set(json.loads(out)["rounding"])
    assert not (tmp_path / "out.gguf").exists()
    status, out, err = cli(*common, "--method", "gptq")
    assert status == 0, err
    record = json.loads(out)
    assert {row["name"] for row in record["outputs"]} >= {"model.layers.0.self_attn.q_proj.weight", "lm_head.weight"}
    assert all(row["after"] <= row["before"] for row in record["outputs"])
    status, _, err = cli(*common, "--method", "gptq", "--resume")
    assert (status, "is finished already" in err) == (0, True)
    status, _, err = cli(*common, "--method", "gptq", "--resume", "--damping", "0.3")
    assert (status, "differs in --damping" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "q4_0", "--method", "awq"], "is not one of round, gptq"),
        (["--format", "q4_0", "--tokens", "100"], "--tokens goes with --method gptq"),
        (["--format", "bf16", "--method", "gptq", "--text", "TEXT"], "rounds no matrix to a format that it knows"),
        (["--format", "q4_0", "--method", "gptq", "--text", "TEXT", "--sequence", "99999999"], "the model was made for"),
        (["--format", "q4_0", "--method", "gptq", "--text", "no-such-file"], "no-such-file"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three " * 100)
    arguments = [str(text) if a == "TEXT" else a for a in arguments]
    status, _, err = cli("tiny", str(tmp_path / "out.gguf"), *arguments)
    assert status == 2
    assert said in err
    assert not (tmp_path / "out.gguf").exists()


def test_help_names_the_defaults_that_are_taken() -> None:
    from typing import get_args

    from oss_tools.calibration.gptq import DAMPING
    from oss_tools.calibration.texts import SEQUENCE, TOKENS
    from oss_tools.cli import _gptq

    for option, default in ((_gptq.Damping, DAMPING), (_gptq.Tokens, TOKENS), (_gptq.SequenceLength, SEQUENCE)):
        assert f"[default: {default}]" in get_args(option)[1].help
