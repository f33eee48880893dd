"""Adapters that are damaged, hostile, of another model or of another kind: one line that says what, and what to do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.adapters.peft_config import Patterns
from oss_tools.errors import BadCheckpoint, BadRequest, BadTensor, OssToolsError
from tests.adapters.written import PREFIX, lora, merge, random_pair, write_gguf, write_peft

Q = "model.layers.0.self_attn.q_proj"
A, B = random_pair(64, 64)
V = {"blk.1.attn_v.weight.lora_a": A, "blk.1.attn_v.weight.lora_b": B[:32]}


def refused(base: Path, adapter: Path, tmp_path: Path, error: type[OssToolsError] = BadCheckpoint, **options: Any) -> str:
    with pytest.raises(error) as caught:
        merge(base, adapter, tmp_path / "out", **options)
    assert not list(tmp_path.glob("out*"))
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "of the type IA3, which is not supported"),
        ({"peft_type": "LOHA"}, "of the type LOHA"),
        ({"peft_type": ["LORA"]}, "not supported"),
        ({"peft_type": None}, "no peft_type"),
        ({"peft_type": None, "fine_tune_type": "lora"}, "mlx_lm.fuse"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"layer_replication": [[0, 2]]}, "another model"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_something_new": True}, "use_something_new is not known"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 0}, "r is '0', expected a rank"),
        ({"r": 10**12}, "expected a rank"),
        ({"r": True}, "expected a rank"),
        ({"r": None}, "expected a rank"),
        ({"lora_alpha": 1e300}, "expected a number"),
        ({"lora_alpha": "8"}, "expected a number"),
        ({"use_dora": "yes"}, "expected true or false"),
        ({"use_dora": True}, "use_dora is set, but"),
        ({"r": 16}, "has rank 4, adapter_config.json says 16"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank 4, adapter_config.json says 2"),
        ({"rank_pattern": {"q_proj": 2.5}}, "expected a rank"),
        ({"rank_pattern": ["q_proj"]}, "no mapping"),
        ({"alpha_pattern": {"((a*)*)*b": 2}}, "might search without end"),
        ({"alpha_pattern": {".*.*.*.*q": 2}}, "might search without end"),
        ({"alpha_pattern": {"(q": 2}}, "no regular expression"),
        ({"alpha_pattern": {f"x{i}|": 2 for i in range(100)}}, "100 regular expressions"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head', whose weights are not there"),
        ({"modules_to_save": 5}, "no list"),
        ({"trainable_token_indices": {"embed_tokens": [-1]}}, "no lists of tokens"),
    ],
)
def test_configurations(tiny_llama: Path, tmp_path: Path, config: dict[str, Any], said: str) -> None:
    assert said in refused(tiny_llama, write_peft(tmp_path / "adapter", lora(Q, A, B), **config), tmp_path)


def test_nan_in_a_configuration(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter", lora(Q, A, B))
    config = folder / "adapter_config.json"
    for text in ("NaN", "Infinity", "1e999"):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 4}).replace("}", f', "lora_alpha": {text}}}'))
        assert "expected a number" in refused(tiny_llama, folder, tmp_path)
    config.write_text("[1]")
    assert "adapter_config.json" in refused(tiny_llama, folder, tmp_path)
    config.unlink()
    assert "adapter_config.json is missing" in refused(tiny_llama, folder, tmp_path)


def test_patterns_end_soon_whatever_they_are() -> None:
    """The slowest that are taken, on a long name."""
    patterns = Patterns({".*a.*b": 1, "(?:x|y).*?": 2, "layers.0": 3}, "here", whole=False)
    began = time.process_time()
    assert patterns.of((".".join(["a" * 60] * 8),), 7) == 7
    assert time.process_time() - began < 30
    assert patterns.of(("model.layers.0",), 7) == 3
    assert patterns.of(("model.x1", "model.layers.0"), 7) == 2


# ---- files ----------------------------------------------------------------------------------------------------------


def test_pickles_are_never_opened_and_the_line_says_how_to_convert_them(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter", lora(Q, A, B))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    text = refused(tiny_llama, folder, tmp_path)
    assert "never opened" in text
    assert "save_file" in text


def test_that_line_converts_them(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `peers`")
    import shlex
    import subprocess
    import sys

    from oss_tools.adapters.peft import CONVERT

    folder = write_peft(tmp_path / "adapter", lora(Q, A, B))
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(x) for name, x in lora(Q, A, B).items()}, folder / "adapter_model.bin")
    words = shlex.split(CONVERT)
    subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True, capture_output=True)
    merge(tiny_llama, folder, tmp_path / "out")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("part", [0, 1])
def test_values_that_no_adapter_has(tiny_llama: Path, tmp_path: Path, bad: float, part: int) -> None:
    pair = [A.copy(), B.copy()]
    pair[part][1, 2] = bad
    text = refused(tiny_llama, write_peft(tmp_path / "adapter", lora(Q, *pair)), tmp_path)
    assert "the adapter is damaged" in text
    if part and np.isnan(bad):
        adapter = write_gguf(tmp_path / "a.gguf", "llama", V | {"blk.1.attn_v.weight.lora_b": pair[1][:32]})
        assert "NaN or infinity" in refused(tiny_llama, adapter, tmp_path)


def test_values_whose_products_are_beyond_float32(tiny_llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "adapter", lora(Q, A * np.float32(1e25), B * np.float32(1e25)))
    text = refused(tiny_llama, adapter, tmp_path, BadTensor)
    assert "beyond float32" in text


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{PREFIX}{Q}.lora_A.weight": A}, "without its lora_B"),
        ({f"{PREFIX}{Q}.lora_B.weight": B}, "without its lora_A"),
        (lora(Q, A, B) | {f"{PREFIX}{Q}.lora_magnitude_vector": A[0]}, "use_dora is not set, but"),
        (lora(Q, A, B[:32]), "shapes [4, 64] and [32, 4], the base's weight is [64, 64]: this is another model's adapter"),
        (lora(Q, A[:, :32], B), "another model's adapter"),
        (lora(Q, A.T, B.T), "another model's adapter"),
        (lora(Q, A[0], B), "another model's adapter"),
        (lora("model.layers.7.self_attn.q_proj", A, B), "belongs to nothing in a llama: another model's adapter"),
        (lora("transformer.h.0.attn.c_attn", A, B), "belongs to nothing in a llama"),
        (lora("vision_tower.layers.0.self_attn.q_proj", A, B), "belongs to nothing in a llama"),
        ({f"{PREFIX}score.weight": A}, "belongs to nothing"),
        ({f"{PREFIX}{Q}.hada_w1_a": A}, "of LoHa"),
        ({f"{PREFIX}{Q}.lora_E": A}, "of AdaLoRA"),
        ({f"{PREFIX}{Q}.ia3_l.weight": A}, "of IA3"),
        ({f"{Q}.lora_a": A, f"{Q}.lora_b": B}, "mlx-lm"),
        ({"lora_unet_down.lora_down.weight": A}, "kohya"),
        (lora(Q, A, B) | {f"{PREFIX}{Q}.lora_A.other.weight": A}, "several adapters"),
        (
            {f"{PREFIX}{Q}.lora_{x}.{name}.weight": y for name in ("one", "two") for x, y in (("A", A), ("B", B))},
            "several adapters",
        ),
        (lora(Q, A, B) | {f"{PREFIX}{Q}.lora_B.bias": B[:, 0]}, "the base has none there"),
        (lora(Q, A, B) | {f"{PREFIX}{Q}.bias": B[:, 0]}, "belongs to nothing"),
        ({f"{PREFIX}lm_head.weight": np.zeros((520, 64))}, "another number of tokens"),
        ({f"{PREFIX}lm_head.weight": np.zeros((512, 32))}, "this is another model's adapter"),
        ({f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": np.zeros((2, 64))}, "belongs to nothing"),
    ],
)
def test_tensors(tiny_llama: Path, tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    assert said in refused(tiny_llama, write_peft(tmp_path / "adapter", tensors), tmp_path)


def test_tokens_beyond_the_table(tiny_llama: Path, tmp_path: Path) -> None:
    delta = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": np.zeros((2, 64))}
    for tokens in ([1, 512], [1], [1, 2, 3]):
        adapter = write_peft(tmp_path / "adapter", delta, trainable_token_indices=tokens)
        assert "the base's table is [512, 64]" in refused(tiny_llama, adapter, tmp_path)


def test_several_adapters_that_contradict_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    whole = {f"{PREFIX}model.norm.weight": np.ones(64)}
    adapters = [write_peft(tmp_path / name, whole) for name in ("a", "b")]
    with pytest.raises(BadCheckpoint, match=r"brings its own model.norm.weight, which an adapter before it changes"):
        merge(tiny_llama, adapters, tmp_path / "out")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_scales(tiny_llama: Path, tmp_path: Path, scale: float) -> None:
    assert "--scale" in refused(tiny_llama, write_peft(tmp_path / "a", lora(Q, A, B)), tmp_path, BadRequest, scales=[scale])


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x02x", b"PK\x03\x04", (2**63).to_bytes(8, "little") + b"{}"])
def test_damaged_files(tiny_llama: Path, tmp_path: Path, content: bytes) -> None:
    folder = write_peft(tmp_path / "adapter", lora(Q, A, B))
    (folder / "adapter_model.safetensors").write_bytes(content)
    refused(tiny_llama, folder, tmp_path)


def test_integers_and_empty_tensors(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter", lora(Q, A, B))
    for dtype, shape, nbytes, said in (("I64", [4, 64], 2048, "dtype I64"), ("F32", [0], 0, "ZeRO-3")):
        entry = {f"{PREFIX}{Q}.lora_A.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}
        header = json.dumps(entry).encode()
        data = len(header).to_bytes(8, "little") + header + bytes(nbytes)
        (folder / "adapter_model.safetensors").write_bytes(data)
        assert said in refused(tiny_llama, folder, tmp_path)


def test_folders_that_are_no_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    assert "no such file" in refused(tiny_llama, tmp_path / "nowhere", tmp_path)
    assert "are not there" in refused(tiny_llama, tiny_llama, tmp_path)
    write_peft(tmp_path / "run" / "checkpoint-40", lora(Q, A, B))
    assert "give one of them: checkpoint-40" in refused(tiny_llama, tmp_path / "run", tmp_path)


# ---- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "tensors", "keys", "said"),
    [
        ("llama", V, {"type": "model"}, "holds no adapter but a model"),
        ("llama", V, {"kind": "lokr"}, "of the type lokr"),
        ("llama", V, {"tokens": [1, 2]}, "aLoRA"),
        ("llama", V, {"alpha": float("nan")}, "expected a number"),
        ("gpt-oss", V, {}, "for the architecture 'gpt-oss', the base is 'llama'"),
        ("llama", {"blk.1.attn_v.weight.lora_a": A}, {}, "incomplete"),
        ("llama", V | {"blk.1.attn_v.weight": A}, {}, "no part of a LoRA adapter"),
        ("llama", V | {"blk.1.attn_v.weight.lora_b": B}, {}, "another model's adapter"),
        ("llama", {"blk.9.attn_v.weight.lora_a": A, "blk.9.attn_v.weight.lora_b": B}, {}, "another model's adapter"),
    ],
)
def test_gguf(
    tiny_llama: Path, tmp_path: Path, architecture: str, tensors: dict[str, np.ndarray], keys: dict[str, Any], said: str
) -> None:
    assert said in refused(tiny_llama, write_gguf(tmp_path / "a.gguf", architecture, tensors, **keys), tmp_path)


# ---- the base's name ------------------------------------------------------------------------------------------------


def test_the_name_of_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "abc"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(tiny_llama)
    for name in ("meta-llama/Llama-3.1-8B", "unsloth/Meta-Llama-3.1-8B-unsloth-bnb-4bit", "/home/me/models/x", ""):
        adapter = write_peft(tmp_path / "adapter", lora(Q, A, B), base_model_name_or_path=name)
        merge(cached, adapter, tmp_path / "made", any_base=False, overwrite=True)
    adapter = write_peft(tmp_path / "adapter", lora(Q, A, B), base_model_name_or_path="meta-llama/Llama-3.1-8B-Instruct")
    text = refused(cached, adapter, tmp_path, BadRequest, any_base=False)
    assert "was made for meta-llama/Llama-3.1-8B-Instruct, the base is meta-llama/Llama-3.1-8B; --any-base" in text
    merge(cached, adapter, tmp_path / "made", any_base=True, overwrite=True)
