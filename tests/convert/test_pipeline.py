"""Conversions: between all containers without loss, and to every format with its cost."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, Recipe, Rule, load_recipe, recipe_of_format, writable_formats
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.errors import BadRecipe, BadTensor
from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify
from tests.convert.helpers import EXTENSION, assert_equal, contents, convert

# ---- between containers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["mxfp4", "bf16"])
@pytest.mark.parametrize(
    "route",
    [
        ("gguf", "hf"),
        ("original", "hf"),
        ("original", "gguf", "hf"),
        ("gguf", "original", "hf"),
        ("hf",),
        ("ready", "hf"),
        ("gguf", "ready", "original", "ready", "hf"),
    ],
)
def test_gpt_oss_comes_back_byte_for_byte(synthetic, tmp_path: Path, recipe: str, route: tuple[str, ...]) -> None:
    first = source = synthetic("gpt-oss-tiny", recipe)
    for i, container in enumerate(route):
        target = tmp_path / f"{i}{EXTENSION[container]}"
        manifest = convert(source, target, container)
        assert all(t.proven_equal for t in manifest.tensors if t.format == "mxfp4" or t.action == "move")
        assert any(t.format == "mxfp4" for t in manifest.tensors) == (recipe == "mxfp4")
        assert_equal(first, target)
        source = target
    back = {k: v for k, v in contents(source).items() if k.endswith(".safetensors")}
    assert back == {k: v for k, v in contents(first).items() if k.endswith(".safetensors")}


def test_llama_comes_back_byte_for_byte_though_gguf_reorders_heads(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny")
    convert(source, tmp_path / "x.gguf", "gguf")
    assert_equal(source, tmp_path / "x.gguf")
    with open_checkpoint(tmp_path / "x.gguf") as made, open_checkpoint(source) as original:
        name = "model.layers.0.self_attn.q_proj.weight"
        stored = made.reader.read("blk.0.attn_q.weight", 0, 4, made.entries[name].spec.shape[1])
        assert not np.array_equal(stored.dequantize(), original.read(name, 0, 0, 4).dequantize())
    convert(tmp_path / "x.gguf", tmp_path / "back", "hf")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_shards_hold_what_one_file_holds(synthetic, tmp_path: Path) -> None:
    source = synthetic("gpt-oss-tiny", "mxfp4")
    convert(source, tmp_path / "shards", "hf", shard_size=100_000)
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    assert_equal(source, tmp_path / "shards")
    convert(tmp_path / "shards", tmp_path / "parts.gguf", "gguf", shard_size=100_000)
    parts = sorted(tmp_path.glob("parts-*-of-*.gguf"))
    assert len(parts) > 1
    assert_equal(source, parts[0])


# ---- to other formats -----------------------------------------------------------------------------------------------

SQNR_AT_LEAST = {
    "f32": 0,
    "q2_k": 7,
    "q3_k": 13,
    "q4_k": 19,
    "q5_k": 25,
    "mxfp4": 17,
    "nvfp4": 18,
    "q4_0": 17,
    "q4_1": 18,
    "iq4_nl": 18,
    "q5_0": 23,
    "q5_1": 24,
}


@pytest.mark.parametrize("format", writable_formats())
def test_every_format_can_be_written_and_its_error_is_what_the_values_say(synthetic, tmp_path: Path, format: str) -> None:
    source = synthetic("llama-tiny")
    if get_format(format).block == 256:
        shape = load_shape("llama-tiny")
        shape = replace(
            shape,
            config=shape.config | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64},
        )
        source = synthesize(plan_synthesis(shape, "hf", seed=3), tmp_path / "wide")
    container = "gguf" if get_format(format).ggml_type is not None and format != "nvfp4" else "hf"
    target = tmp_path / f"out{EXTENSION[container]}"
    recipe = recipe_of_format(format).falling_back(("bf16",))  # rows of 64 are no multiple of int8_g128's block
    manifest = convert(source, target, container, recipe)
    with open_checkpoint(source) as a, open_checkpoint(target) as b:
        assert {e.format.name for e in b.entries.values()} >= {format}
        for record in manifest.tensors:
            if record.error is None:
                continue
            original = a.read_tensor(record.name).dequantize().astype(np.float64)
            decoded = b.read_tensor(record.name).dequantize().astype(np.float64)
            relative = np.linalg.norm(decoded - original) / np.linalg.norm(original)
            assert record.error.relative_error == pytest.approx(relative, rel=1e-4)
            assert record.error.max_error == pytest.approx(np.abs(decoded - original).max(), rel=1e-4)
            assert record.error.sqnr_db is None or record.error.sqnr_db >= SQNR_AT_LEAST.get(format, 30)
    assert any(r.error for r in manifest.tensors) == (format not in ("bf16", "f32"))


def test_blocks_of_rows_do_not_depend_on_chunks(tmp_path: Path) -> None:
    """A matrix whose chunks hold fewer rows than it has, and whose last block is cut: as if it were rounded in one piece."""
    shape = load_shape("llama-tiny")
    shape = replace(shape, config=shape.config | {"num_hidden_layers": 1, "intermediate_size": 16500})
    source = synthesize(plan_synthesis(shape, "hf", seed=3), tmp_path / "bf16")
    blocks = recipe_of_format("fp8_block")
    convert(source, tmp_path / "rounded", "hf", blocks)
    synthesize(plan_synthesis(shape, "hf", blocks, seed=3), tmp_path / "drawn")
    with (
        open_checkpoint(source) as exact,
        open_checkpoint(tmp_path / "rounded") as rounded,
        open_checkpoint(tmp_path / "drawn") as drawn,
    ):
        for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"):
            whole = get_format("fp8_block").quantize(exact.read_tensor(name).dequantize())
            found = rounded.read_tensor(name)
            assert all(np.array_equal(whole.planes[plane], found.planes[plane]) for plane in whole.planes), name
            assert drawn.read_tensor(name).dequantize().std() == pytest.approx(whole.dequantize().std(), rel=0.02)
    convert(tmp_path / "rounded", tmp_path / "again", "hf")
    assert contents(tmp_path / "again") == contents(tmp_path / "rounded")


def test_bf16_experts_go_to_mxfp4_as_openai_ships_them(synthetic, tmp_path: Path) -> None:
    manifest = convert(synthetic("gpt-oss-tiny"), tmp_path / "out", "hf", load_recipe("mxfp4"))
    formats = {(r.role, r.format) for r in manifest.tensors}
    assert {f for role, f in formats if role.startswith("experts.")} == {"mxfp4"}
    assert {f for role, f in formats if not role.startswith("experts.")} == {"bf16"}
    assert Manifest.read(manifest_path(tmp_path / "out")) == manifest


def test_mxfp4_into_int8_by_32_and_back_keeps_every_value(synthetic, tmp_path: Path) -> None:
    source = synthetic("gpt-oss-tiny", "mxfp4")
    int8 = Recipe("int8", (Rule("int8_g32", role="experts.*"),))
    manifest = convert(source, tmp_path / "int8", "hf", int8)
    assert {r.action for r in manifest.tensors if r.format == "int8_g32"} == {"decode"}
    assert_equal(source, tmp_path / "int8")


def test_importance_lowers_the_error_of_the_columns_that_count(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny")
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(source) as checkpoint:
        original = checkpoint.read_tensor(name).dequantize()
    weights = np.ones(original.shape[1], np.float32)
    weights[::8] = 100
    errors = []
    for i, importance in enumerate((None, {name: weights})):
        convert(source, tmp_path / f"{i}.gguf", "gguf", recipe_of_format("q4_0"), importance=importance)
        with open_checkpoint(tmp_path / f"{i}.gguf") as checkpoint:
            delta = checkpoint.read_tensor(name).dequantize() - original
        errors.append(float((weights * delta**2).sum()))
    assert errors[1] < 0.95 * errors[0]


# ---- what a plan refuses or remarks ---------------------------------------------------------------------------------


def test_rows_that_are_no_multiple_of_the_block_are_an_error_that_names_tensor_and_axis(synthetic, tmp_path: Path) -> None:
    with open_checkpoint(synthetic("gpt-oss-tiny")) as checkpoint:
        with pytest.raises(BadTensor, match=r"gate_up_proj: axis 2 has 64 values, not a multiple of the 128"):
            make_plan(checkpoint, "hf", Recipe("r", (Rule("int8_g128", role="experts.*"),)))
        fallback = Recipe("r", (Rule("int8_g128", role="experts.*", otherwise=("int8_g32",)),))
        steps = {s.name: s for s in make_plan(checkpoint, "hf", fallback).steps}
        step = steps["model.layers.0.mlp.experts.down_proj"]
        assert step.target.format.name == "int8_g32"
        assert step.note == "int8_g128: 64 columns are no multiple of 128"


def test_a_container_that_cannot_hold_a_format_says_so(synthetic) -> None:
    with open_checkpoint(synthetic("llama-tiny")) as checkpoint:
        with pytest.raises(BadRecipe, match="container hf cannot hold q4_0"):
            make_plan(checkpoint, "hf", recipe_of_format("q4_0"))
        with pytest.raises(BadRecipe, match="no layout for llama"):
            make_plan(checkpoint, "original", KEEP_ALL)


def test_decoding_for_want_of_a_place_is_noted(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny", "q4_0", "gguf")
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, "hf", KEEP_ALL)
    step = next(s for s in plan.steps if s.name == "model.layers.0.mlp.up_proj.weight")
    assert (step.target.format.name, step.action) == ("f32", "decode")
    assert "hf has no q4_0" in step.note
    convert(source, tmp_path / "out", "hf")
    assert_equal(source, tmp_path / "out")


# ---- NaN and infinity -----------------------------------------------------------------------------------------------


def poisoned(source: Path, target: Path) -> Path:
    """A copy whose last tensor bytes are bf16 NaN and infinity: lm_head or the last matrix in the file."""
    shutil.copytree(source, target)
    with open_checkpoint(target) as checkpoint:
        layout = checkpoint.reader
        name = "model.layers.1.mlp.down_proj.weight"
        tensor = layout.read(name, 0, 1, checkpoint.entries[name].spec.shape[1]).planes["values"].tobytes()
    data = bytearray((target / "model.safetensors").read_bytes())
    at = data.find(tensor)
    assert at > 0
    data[at : at + 4] = b"\xc0\x7f\x80\xff"  # NaN, -infinity
    (target / "model.safetensors").write_bytes(data)
    return target


def test_nan_is_refused_by_name_or_clamped(synthetic, tmp_path: Path) -> None:
    source = poisoned(synthetic("llama-tiny"), tmp_path / "source")
    with pytest.raises(BadTensor, match=r"model\.layers\.1\.mlp\.down_proj\.weight: holds NaN or infinity"):
        convert(source, tmp_path / "out.gguf", "gguf", recipe_of_format("q8_0"))
    assert not (tmp_path / "out.gguf").exists()
    convert(source, tmp_path / "out.gguf", "gguf", recipe_of_format("q8_0"), on_nonfinite="clamp", overwrite=True)
    with open_checkpoint(tmp_path / "out.gguf") as checkpoint:
        values = checkpoint.read_tensor("model.layers.1.mlp.down_proj.weight").dequantize()
    assert np.isfinite(values).all()
    assert values[0, 0] == 0  # NaN became 0
    assert values[0, 1] == values.min() < 0  # -infinity the largest magnitude there is


# ---- verify ---------------------------------------------------------------------------------------------------------


def test_verify_names_what_differs_and_where(synthetic, tmp_path: Path) -> None:
    a = synthetic("gpt-oss-tiny")
    target = tmp_path / "b"
    shutil.copytree(a, target)
    name = "model.layers.1.mlp.experts.down_proj"
    with open_checkpoint(target) as checkpoint:
        row = checkpoint.reader.read(name, 130, 131, 64).planes["values"].tobytes()  # expert 2, input 2
    data = bytearray((target / "model.safetensors").read_bytes())
    at = data.find(row) + 2 * 5  # output 5
    data[at : at + 2] = b"\x00\x41"  # 8.0
    (target / "model.safetensors").write_bytes(data)
    with open_checkpoint(a) as x, open_checkpoint(target) as y:
        result = verify(x, y)
        assert [d.name for d in result.differences] == [name]
        (difference,) = result.differences
        assert difference.differing == 1
        assert difference.first is not None
        index, _, found = difference.first
        assert (index, found) == ((2, 5, 2), 8.0)
        assert verify(x, y, tolerance=10.0).equal
        assert not verify(x, y, tolerance=1e-6).equal


def test_verify_sees_other_architectures_and_configurations(synthetic) -> None:
    with open_checkpoint(synthetic("gpt-oss-tiny")) as x, open_checkpoint(synthetic("llama-tiny")) as y:
        (difference,) = verify(x, y).said
        assert (difference.name, difference.a, difference.b) == ("config.model_type", "gpt_oss", "llama")
