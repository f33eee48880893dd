"""Importance weights from both kinds of file, and what a bad one says."""

import pickle
import struct
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from oss_tools.checkpoints import container_names, writer_for
from oss_tools.convert import writing
from oss_tools.convert.importance import load_importance
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import Recipe, Rule, recipe_of_format
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import all_formats, get_format
from oss_tools.models import architecture_of, open_checkpoint
from tests.checkpoints.small_models import save
from tests.models.small_families import CONFIGS

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
OUT = "model.layers.1.self_attn.o_proj.weight"


def write_imatrix(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """A GGUF as llama-imatrix writes it."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_imatrix_means_are_taken_per_expert_scaled_to_one_and_taken_halfway(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    sums = np.random.default_rng(0).uniform(1, 9, (4, 64)).astype(np.float32)
    counts = np.array([[10.0], [20], [0], [5]], np.float32)
    sums[2] = 0  # an expert that was never chosen
    path = write_imatrix(
        tmp_path / "imatrix.gguf",
        {"blk.0.ffn_gate_exps.weight.in_sum2": sums, "blk.0.ffn_gate_exps.weight.counts": counts},
    )
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        weights = load_importance(path, checkpoint)
    assert set(weights) == {EXPERTS}
    assert weights.unreached == {EXPERTS: [2]}
    expected = sums / np.maximum(counts, 1)
    expected[2] = sums.sum(0) / counts.sum()  # what all others met
    moved = 0.1 + 0.9 * expected / expected.mean(1, keepdims=True)  # a tenth of the way to their mean
    np.testing.assert_allclose(weights[EXPERTS], moved, rtol=1e-6)


def test_imatrix_of_a_deepseek_and_of_a_gpt2(tmp_path: Path) -> None:
    """Each projection of a stack of experts by its own name; q, k and v have one; latents' heads, which lie apart, have none."""

    def both(name: str, matrices: int, columns: int) -> dict[str, np.ndarray]:
        counts = np.full((matrices, 1), 4, np.float32)
        return {f"{name}.in_sum2": np.ones((matrices, columns), np.float32), f"{name}.counts": counts}

    layer = "model.layers.1."
    for model_type, stored, expected in (
        (
            "deepseek_v3",
            both("blk.1.ffn_up_exps.weight", 8, 64)
            | both("blk.1.attn_k_b.weight", 4, 24)
            | both("blk.1.attn_v_b.weight", 4, 32),
            {f"{layer}mlp.experts.up_proj": (8, 64)},
        ),
        (
            "gpt2",
            both("blk.1.attn_qkv.weight", 1, 64),
            {f"{layer}self_attn.{letter}_proj.weight": (64,) for letter in "qkv"},
        ),
    ):
        model = architecture_of(model_type).from_config("hf", CONFIGS[model_type, "usual"])
        save(model, "hf", tmp_path / model_type)
        with open_checkpoint(tmp_path / model_type) as checkpoint:
            weights = load_importance(write_imatrix(tmp_path / f"{model_type}.gguf", stored), checkpoint)
        assert {name: array.shape for name, array in weights.items()} == expected


def test_safetensors_hold_weights_by_name(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    values = np.arange(1, 129, dtype=np.float32)
    numpy_files.save_file({OUT: values, "unrelated": values}, tmp_path / "weights.safetensors")
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        weights = load_importance(tmp_path / "weights.safetensors", checkpoint)
    assert set(weights) == {OUT}
    np.testing.assert_allclose(weights[OUT], values / values.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.full(64, np.nan), "negative, NaN or infinite"),
        (np.full(64, -1.0), "negative, NaN or infinite"),
        (np.ones(63), r"has shape \[1, 63\], expected \[64\] or \[4, 64\]"),
    ],
)
def test_impossible_weights_are_refused(tiny_gpt_oss: Path, tmp_path: Path, values: np.ndarray, complaint: str) -> None:
    name = "blk.0.ffn_up_exps.weight"
    path = write_imatrix(tmp_path / "imatrix.gguf", {f"{name}.in_sum2": values, f"{name}.counts": np.ones(1)})
    with open_checkpoint(tiny_gpt_oss) as checkpoint, pytest.raises(BadCheckpoint, match=complaint):
        load_importance(path, checkpoint)


def test_a_file_of_another_kind_or_for_another_model_is_refused(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    model = write_imatrix(tmp_path / "model.gguf", {"x": np.ones(32)}, kind="model")
    stranger = write_imatrix(tmp_path / "other.gguf", {"blk.9.y.in_sum2": np.ones(32), "blk.9.y.counts": np.ones(1)})
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        with pytest.raises(BadCheckpoint, match=r"not an importance matrix: general\.type is 'model'"):
            load_importance(model, checkpoint)
        with pytest.raises(BadCheckpoint, match=r"of another model: 'blk\.9\.y' is none of the tensors of"):
            load_importance(stranger, checkpoint)
        with pytest.raises(BadCheckpoint, match="cannot be opened"):
            load_importance(tmp_path / "missing.gguf", checkpoint)


def write_binary(path: Path, entries: dict[str, tuple[int, np.ndarray]], tail: bytes = b"") -> Path:
    """An importance matrix in llama.cpp's older form: per entry its name, calls and sums, then chunks and the data set's name."""
    content = struct.pack("<i", len(entries))
    for name, (calls, sums) in entries.items():
        content += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size)
        content += np.ascontiguousarray(sums, "<f4").tobytes()
    path.write_bytes(content + tail)
    return path


@pytest.mark.parametrize(
    "tail", [b"", struct.pack("<ii", 7, 4) + b"wiki"], ids=["of January 2024", "with chunks and data set"]
)
@pytest.mark.parametrize("name", ["imatrix.dat", "imatrix.gguf", "imatrix"])
def test_the_older_binary_form_holds_what_gguf_holds_whatever_its_name(
    tiny_gpt_oss: Path, tmp_path: Path, name: str, tail: bytes
) -> None:
    chance = np.random.default_rng(1)
    experts, out = chance.uniform(1, 9, (4, 64)).astype(np.float32), chance.uniform(1, 9, 128).astype(np.float32)
    of_experts, of_out = "blk.0.ffn_down_exps.weight", "blk.1.attn_output.weight"
    sums = {f"{of_experts}.in_sum2": experts * 6, f"{of_experts}.counts": np.full(4, 6.0)}
    sums |= {f"{of_out}.in_sum2": out * 6, f"{of_out}.counts": np.full(1, 6.0)}
    new = write_imatrix(tmp_path / "new.gguf", sums)
    (tmp_path / "old").mkdir()
    old = write_binary(tmp_path / "old" / name, {of_experts: (3, experts * 3), of_out: (3, out * 3)}, tail)
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        expected, found = load_importance(new, checkpoint), load_importance(old, checkpoint)
    assert set(found) == set(expected) == {"model.layers.0.mlp.experts.down_proj", OUT}
    for tensor in expected:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=1e-6)


def test_a_binary_matrix_that_is_cut_off_or_of_another_model_is_refused(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_output.weight"
    whole = write_binary(tmp_path / "whole.dat", {name: (1, np.ones(128)), "blk.1.attn_output.weight": (1, np.ones(128))})
    content = whole.read_bytes()
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        for length in (20, 40, 300, len(content) - 1):
            (tmp_path / "cut.dat").write_bytes(content[:length])
            with pytest.raises(BadCheckpoint, match=r"cut\.dat: an importance matrix that is cut off"):
                load_importance(tmp_path / "cut.dat", checkpoint)
        for entries, said in (
            ({name: (1, np.ones(96))}, r"has shape \[1, 96\], expected \[128\].*is it of another model\?"),
            ({"blk.70.attn_output.weight": (1, np.ones(128))}, "of another model: 'blk.70.attn_output.weight' is none of"),
            (
                {"output.weight.weight": (1, np.ones(128))},
                "holds no weights for any tensor .*it names 'output.weight.weight'",
            ),
        ):
            with pytest.raises(BadCheckpoint, match=said):
                load_importance(write_binary(tmp_path / "other.dat", entries), checkpoint)
        huge = struct.pack("<ii", 1, len(name)) + name.encode() + struct.pack("<ii", 1, 2**31 - 1)
        (tmp_path / "huge.dat").write_bytes(huge)
        with pytest.raises(BadCheckpoint, match="cut off"):
            load_importance(tmp_path / "huge.dat", checkpoint)


def test_any_other_file_is_called_what_it_is(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    files = {
        "empty.dat": (b"", "empty, not an importance matrix"),
        "notes.txt": (b"the importance of being earnest\n" * 40, "text, not an importance matrix"),
        "matrix.gguf": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        "matrix.pkl": (pickle.dumps({"a": 1}), "a Python pickle, which is never opened here"),
        "matrix.dat": (bytes(range(256)) * 4, "of no known kind, not an importance matrix"),
        "page.dat": (b"<!DOCTYPE html><html>", "a web page"),
    }
    with zipfile.ZipFile(tmp_path / "torch.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    files["torch.pt"] = ((tmp_path / "torch.pt").read_bytes(), "a zip archive")
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        for name, (content, said) in files.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadCheckpoint, match=f"{name}: {said}") as refused:
                load_importance(tmp_path / name, checkpoint)
            assert "\n" not in str(refused.value)
        with pytest.raises(BadCheckpoint, match="a folder; --importance wants a file"):
            load_importance(tmp_path, checkpoint)
        with pytest.raises(BadCheckpoint, match="a model's weights, not an importance matrix"):
            load_importance(tiny_gpt_oss / "model.safetensors", checkpoint)


def test_a_gguf_matrix_is_known_under_the_older_forms_name(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    sums = {"blk.1.attn_output.weight.in_sum2": np.arange(1, 129), "blk.1.attn_output.weight.counts": np.ones(1)}
    path = write_imatrix(tmp_path / "imatrix.dat", sums)
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        weights = load_importance(path, checkpoint)
    np.testing.assert_allclose(weights[OUT], 0.1 + 0.9 * np.arange(1, 129) / 64.5, rtol=1e-6)


def test_a_binary_matrix_that_counts_rows_for_values_is_called_damaged(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    """As a converter of GGUF matrices wrote them: https://github.com/ikawrakow/ik_llama.cpp/issues/2385."""
    name, values = b"blk.0.attn_output.weight", np.ones(128, "<f4").tobytes()
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, 1) + values
    (tmp_path / "imatrix.dat").write_bytes(struct.pack("<i", 2) + entry + entry)
    with (
        open_checkpoint(tiny_gpt_oss) as checkpoint,
        pytest.raises(BadCheckpoint, match="damaged: entry 1 of the importance"),
    ):
        load_importance(tmp_path / "imatrix.dat", checkpoint)


SEARCHING = sorted(name for name, form in all_formats().items() if "search" in form.rules)


@pytest.mark.parametrize("name", SEARCHING)
def test_every_search_obeys_importance(name: str) -> None:
    """Each row's weighted error is at most that of the search without weights, and clearly less in all; a factor of all weights
    changes nothing; columns that do not count may have any error."""
    chance, form = np.random.default_rng(5), get_format(name)
    values = (0.02 * chance.standard_t(4, size=(40, 512))).astype(np.float32)
    weights = (chance.gamma(0.3, size=512) + 1e-4).astype(np.float32)

    def errors(importance: np.ndarray | None, counted: np.ndarray) -> np.ndarray:
        rounded = form.quantize(values, rule="search", importance=importance).dequantize()
        return ((rounded - values) ** 2 * counted).sum(1)

    plain, weighted = errors(None, weights), errors(weights, weights)
    assert (weighted <= plain * 1.0001).all()
    assert weighted.sum() < 0.97 * plain.sum()
    np.testing.assert_array_equal(errors(weights * np.float32(2**-12), weights), weighted)
    half = np.where(np.arange(512) % 2, weights, 0).astype(np.float32)
    assert errors(half, half).sum() <= errors(None, half).sum()


@pytest.mark.parametrize("name", [name for name in SEARCHING if get_format(name).block <= 64])
def test_each_expert_is_rounded_by_its_own_weights_in_every_chunk(
    name: str, tiny_gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what its format makes of each matrix, whole, with that matrix's weights."""
    monkeypatch.setattr(writing, "ROUNDED_BYTES", 4 * 64 * 8)  # eight rows
    form, chance = get_format(name), np.random.default_rng(6)
    role = "experts.down"
    container = next(c for c in container_names() if c != "ready" and writer_for(c).holds(form, role, "gpt_oss"))
    experts = "model.layers.1.mlp.experts.down_proj"
    target = tmp_path / f"out{writer_for(container).extension}"
    recipe = Recipe("test", (Rule(name, role=role), Rule("bf16")))
    bf16 = tmp_path / "bf16"
    with open_checkpoint(tiny_gpt_oss) as source:
        run(make_plan(source, "hf", recipe_of_format("bf16")), bf16, Options())
    with open_checkpoint(bf16) as source:
        count, rows, columns = source.entries[experts].spec.matrices
        weights = chance.gamma(0.3, size=(count, columns)).astype(np.float32)
        run(make_plan(source, container, recipe), target, Options(importance={experts: weights}))
        values = source.read_tensor(experts).dequantize()
    amax = float(np.abs(values).max())
    with open_checkpoint(target) as written:
        assert written.entries[experts].format == form
        for expert in range(count):
            wanted = form.quantize(values[expert], importance=weights[expert], amax=amax)
            found = written.read(experts, expert, 0, rows)
            for plane, array in wanted.planes.items():
                np.testing.assert_array_equal(found.planes[plane], array)
