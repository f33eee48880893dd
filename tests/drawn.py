"""Models of freely drawn shapes: what hypothesis draws, and the random checkpoints that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from oss_tools.convert.recipe import Recipe, Rule, recipe_of_format
from oss_tools.convert.synth import Shape, plan_synthesis, synthesize

CONTEXT = 256
WIDTHS = st.one_of(st.integers(1, 150), st.sampled_from([32, 64, 96]))  # any, and what kernels are often made for
HIDDEN = st.one_of(st.integers(8, 150), st.sampled_from([32, 64, 96]))  # of a few values a norm can blow up what was rounded
HEAD_SIZES = st.one_of(st.integers(1, 70).map(lambda n: 2 * n), st.sampled_from([64, 128, 256, 300]))
YARN = {
    "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64,
    "truncate": False, "rope_theta": 150000.0,
}  # fmt: skip


@st.composite
def attention_shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Heads of any even size, any number of them that share keys and values."""
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 13))
    return {"num_attention_heads": kv_heads * group, "num_key_value_heads": kv_heads, "head_dim": draw(HEAD_SIZES)}


@st.composite
def llamas(draw: st.DrawFn) -> dict[str, Any]:
    """A llama's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": draw(st.integers(1, 3)),
        "hidden_size": draw(HIDDEN), "intermediate_size": draw(WIDTHS), "vocab_size": draw(st.integers(2, 700)),
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 2 * CONTEXT,
        "rope_theta": draw(st.sampled_from([100.0, 10000.0, 500000.0])), "rope_scaling": None,
        "tie_word_embeddings": draw(st.booleans()), "attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans()),
        **draw(attention_shapes()),
    }  # fmt: skip


@st.composite
def gpt_osses(draw: st.DrawFn) -> dict[str, Any]:
    """A gpt-oss's config.json."""
    experts = draw(st.integers(1, 9))
    layers = draw(st.integers(1, 3))
    return {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": layers,
        "hidden_size": draw(HIDDEN), "intermediate_size": draw(WIDTHS), "vocab_size": draw(st.integers(2, 700)),
        "num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts)),
        "sliding_window": draw(st.one_of(st.integers(1, 140), st.sampled_from([64, 65, 128]))), "rms_norm_eps": 1e-5,
        "layer_types": ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)],
        "max_position_embeddings": 2 * CONTEXT, "rope_theta": 150000.0,
        "rope_scaling": draw(st.sampled_from([None, YARN])), "swiglu_limit": draw(st.sampled_from([7.0, 0.5])),
        "tie_word_embeddings": draw(st.booleans()), "attention_bias": True, "hidden_act": "silu", "attention_dropout": 0.0,
        **draw(attention_shapes()),
    }  # fmt: skip


USUAL = {"hf": ("mxfp4", "int8", "bf16"), "gguf": ("mxfp4", "q8_0", "bf16")}
ALL = {
    "hf": (*USUAL["hf"], "int8_g32", "int8_g128", "f16", "f32"),
    "gguf": (*USUAL["gguf"], "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f16", "f32"),
}  # for which there are kernels
ALIKE = (("embedding",), ("output",), ("attention.[qv]",), ("attention.k",), ("attention.out",), ("mlp.gate", "mlp.up"),
         ("mlp.down",), ("experts.*",))  # fmt: skip


@st.composite
def recipes(draw: st.DrawFn, formats: tuple[str, ...]) -> Recipe:
    """One of the formats for each role, bf16 where rows do not divide into blocks. Gate and up are one matrix to the kernels."""
    chosen = [(roles, draw(st.sampled_from(formats))) for roles in ALIKE]
    rules = [Rule(name, role=role, otherwise=("bf16",)) for roles, name in chosen for role in roles]
    return Recipe("drawn", (Rule("bf16", role="router"), *rules))


def parts(most: int = 150) -> st.SearchStrategy[list[int]]:
    """A prompt in pieces, and tokens one by one: how many tokens each pass takes."""
    return st.lists(st.one_of(st.just(1), st.integers(1, most)), min_size=1, max_size=5)


def with_whole_blocks(config: dict[str, Any]) -> dict[str, Any]:
    """The same with widths that divide into blocks of 32."""
    return config | {name: -(-config[name] // 32) * 32 for name in ("hidden_size", "intermediate_size")}


def checkpoint(config: dict[str, Any], path: Path, recipe: Recipe | None = None, container: str = "hf") -> Path:
    """Random weights of that shape: all in bf16, or as the recipe has it."""
    shape = Shape("drawn", config, "bf16")
    return synthesize(plan_synthesis(shape, container, recipe or recipe_of_format("bf16")), path)
