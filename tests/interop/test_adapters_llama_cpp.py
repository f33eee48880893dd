"""Adapters of llama.cpp: a model merged with one computes what llama.cpp computes with the model and the adapter beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.convert.recipe import load_recipe, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.models import open_checkpoint
from tests.adapters.written import lora, merge, random_pair, write_gguf, write_peft
from tests.convert.helpers import convert
from tests.interop.peers import llama_cpp_logits, mean_kld, transformers_logits

pytestmark = pytest.mark.peers

TOKENS = [3, 17, 1, 40, 22, 9, 9, 63, 30, 5, 12, 48]
HEADS, KEYS, HIDDEN = 4, 2, 64  # of llama-tiny and gpt-oss-tiny


def with_adapter(model: Path, adapter: Path, scale: float) -> np.ndarray:
    """llama.cpp's logits of a model beside which an adapter is loaded: float32 [tokens, vocabulary]."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
    options: dict[str, Any] = {"n_ctx": 512, "logits_all": True, "verbose": False, "n_threads": 2}
    loaded = llama_cpp.Llama(str(model), lora_path=str(adapter), lora_scale=scale, **options)
    loaded.eval(TOKENS)
    return np.array(loaded.scores[: len(TOKENS)])


def drawn(shape: str, tmp_path: Path) -> Path:
    """A random model in float32."""
    return synthesize(plan_synthesis(load_shape(shape), "hf", recipe_of_format("f32"), seed=5), tmp_path / shape)


def turned(b: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which llama.cpp turns pairs of them, as its converter puts them."""
    return b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def assert_same(base: Path, adapter: Path, folder: Path, tmp_path: Path) -> None:
    """llama.cpp with the adapter beside the base; our merge of the GGUF adapter, and of the same one as a PEFT folder."""
    convert(base, tmp_path / "base.gguf", "gguf")
    theirs = with_adapter(tmp_path / "base.gguf", adapter, 0.5)
    merge(tmp_path / "base.gguf", adapter, tmp_path / "merged.gguf", scales=[0.5], container="gguf")
    merge(base, folder, tmp_path / "merged", scales=[0.5])
    unmerged = llama_cpp_logits(tmp_path / "base.gguf", TOKENS)
    assert np.abs(theirs - unmerged).max() > 0.1
    np.testing.assert_allclose(llama_cpp_logits(tmp_path / "merged.gguf", TOKENS), theirs, atol=2e-3)
    with open_checkpoint(tmp_path / "merged.gguf") as a, open_checkpoint(tmp_path / "merged") as b:
        for name in b.entries:
            np.testing.assert_array_equal(a.read_tensor(name).dequantize(), b.read_tensor(name).dequantize(), err_msg=name)


def test_llama(tmp_path: Path) -> None:
    shapes = {
        "self_attn.q_proj": ("attn_q", 64, 64),
        "self_attn.k_proj": ("attn_k", 32, 64),
        "self_attn.v_proj": ("attn_v", 32, 64),
        "mlp.down_proj": ("ffn_down", 64, 128),
    }
    ours, theirs = {}, {}
    for seed, (module, (name, out, columns)) in enumerate(shapes.items()):
        a, b = random_pair(out, columns, seed=seed, size=0.3)
        ours |= lora(f"model.layers.1.{module}", a, b)
        stored = {"attn_q": turned(b, HEADS), "attn_k": turned(b, KEYS)}.get(name, b)
        theirs |= {f"blk.1.{name}.weight.lora_a": a, f"blk.1.{name}.weight.lora_b": stored}
    a, b = random_pair(512, HIDDEN, seed=9, size=0.3)
    ours |= lora("lm_head", a, b)
    theirs |= {"output.weight.lora_a": a, "output.weight.lora_b": b}
    a, b = random_pair(HIDDEN, 512, seed=10, size=0.3)  # an embedding's: A [rank, tokens], B [width, rank]
    ours |= {f"base_model.model.model.embed_tokens.lora_embedding_{part}": x for part, x in (("A", a), ("B", b))}
    theirs |= {"token_embd.weight.lora_a": a.T, "token_embd.weight.lora_b": b}
    adapter = write_gguf(tmp_path / "adapter.gguf", "llama", theirs)
    assert_same(drawn("llama-tiny", tmp_path), adapter, write_peft(tmp_path / "peft", ours), tmp_path)


def test_gpt_oss_with_its_experts(tmp_path: Path) -> None:
    experts, inner, rank = 4, 64, 4
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((experts, rank, HIDDEN)) * 0.3, rng.standard_normal((experts, 2 * inner, rank)) * 0.3
    down_a, down_b = rng.standard_normal((experts, rank, inner)) * 0.3, rng.standard_normal((experts, HIDDEN, rank)) * 0.3
    at = "base_model.model.model.layers.0.mlp.experts."
    ours = {
        f"{at}base_layer.lora_A.weight": a.reshape(-1, HIDDEN),
        f"{at}base_layer.lora_B.weight": b.transpose(1, 2, 0).reshape(2 * inner, -1),
        f"{at}lora_A.weight": down_a.reshape(-1, inner),
        f"{at}lora_B.weight": down_b.transpose(1, 2, 0).reshape(HIDDEN, -1),
    }
    theirs = {
        "blk.0.ffn_gate_exps.weight": (a, b[:, ::2]),
        "blk.0.ffn_up_exps.weight": (a, b[:, 1::2]),
        "blk.0.ffn_down_exps.weight": (down_a, down_b),
    }
    pairs = {f"{name}.lora_{part}": x for name, pair in theirs.items() for part, x in zip("ab", pair, strict=True)}
    adapter = write_gguf(tmp_path / "adapter.gguf", "gpt-oss", pairs)
    folder = write_peft(tmp_path / "peft", ours, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    assert_same(drawn("gpt-oss-tiny", tmp_path), adapter, folder, tmp_path)


def test_merged_into_mxfp4_it_loads_in_transformers_and_llama_cpp(tmp_path: Path) -> None:
    base = drawn("gpt-oss-tiny", tmp_path)
    a, b = random_pair(HIDDEN, 64, rank=16, seed=1, size=0.5)
    pair = {f"base_model.model.model.layers.1.mlp.experts.lora_{x}.weight": y for x, y in (("A", a), ("B", b))}
    folder = write_peft(tmp_path / "peft", pair, target_parameters=["mlp.experts.down_proj"])
    manifest = merge(base, folder, tmp_path / "mxfp4", load_recipe("mxfp4"))
    (record,) = [t for t in manifest.tensors if t.kept]
    assert (record.format, record.action, record.name) == (
        "mxfp4",
        "merge, quantize",
        "model.layers.1.mlp.experts.down_proj",
    )
    convert(tmp_path / "mxfp4", tmp_path / "mxfp4.gguf", "gguf")
    merge(base, folder, tmp_path / "exact")
    theirs, exact = transformers_logits(tmp_path / "mxfp4", TOKENS), transformers_logits(tmp_path / "exact", TOKENS)
    found = llama_cpp_logits(tmp_path / "mxfp4.gguf", TOKENS)
    assert mean_kld(theirs, found) < 1e-2  # activations are 8-bit there
    assert mean_kld(exact, theirs) < mean_kld(exact, transformers_logits(base, TOKENS))
