"""Drawn configurations through every container: what is read is what was written, or the writer refused and named the field."""

from dataclasses import fields
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import Architecture
from oss_tools.models.fields import single
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.llama import Llama, LlamaConfig
from oss_tools.models.rope import Scaling
from oss_tools.models.stored import ROPE_FREQS, Stored

FULL, SLIDING = "full_attention", "sliding_attention"
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # it takes minutes, and a configuration is short
HEADS = st.sampled_from([(4, 4), (4, 2), (6, 3), (8, 1), (3, 3)])
THETAS = st.floats(100, 1e7).map(single)
FACTORS = st.floats(1.01, 64).map(single)


@st.composite
def scalings(draw: st.DrawFn) -> Scaling:
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3"]))
    if kind == "default":
        return Scaling()
    if kind in ("linear", "dynamic"):
        return Scaling(kind, draw(FACTORS))
    factor, context = draw(FACTORS), draw(st.integers(64, 1 << 17))
    if kind == "llama3":
        low, high = draw(st.floats(0.5, 2).map(single)), draw(st.floats(2.5, 9).map(single))
        return Scaling(kind, factor, context, low_freq_factor=low, high_freq_factor=high)
    return Scaling(
        kind,
        factor,
        context,
        beta_fast=draw(st.sampled_from([32.0, 16.0, 24.5])),
        beta_slow=draw(st.sampled_from([1.0, 2.0])),
        truncate=draw(st.booleans()),
        attention_factor=draw(st.none() | st.floats(0.5, 2).map(single)),
    )


def shapes(draw: st.DrawFn) -> dict[str, Any]:
    heads, keys = draw(HEADS)
    return {
        "num_hidden_layers": draw(st.integers(1, 6)),
        "hidden_size": draw(st.integers(1, 300)),
        "intermediate_size": draw(st.integers(1, 300)),
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": 2 * draw(st.integers(2, 80)),
        "vocab_size": draw(st.integers(1, 1000)),
        "rms_norm_eps": draw(st.floats(1e-12, 1e-2).map(single)),
        "max_position_embeddings": draw(st.integers(1, 1 << 20)),
        "rope_theta": draw(THETAS),
        "rope": draw(scalings()),
    }


@st.composite
def llamas(draw: st.DrawFn) -> Llama:
    return Llama(LlamaConfig(**shapes(draw), tie_word_embeddings=draw(st.booleans())))


@st.composite
def gpt_osses(draw: st.DrawFn) -> GptOss:
    shape, experts = shapes(draw), draw(st.integers(1, 40))
    layers = shape["num_hidden_layers"]
    types = draw(st.just(()) | st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers).map(tuple))
    config = GptOssConfig(
        **shape,
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        sliding_window=draw(st.integers(1, 4096)),
        layer_types=types,
        swiglu_limit=draw(st.sampled_from([7.0, 5.0]) | st.floats(0, 100).map(single)),
    )
    return GptOss(config)


def again(model: Architecture, container: str) -> Architecture:
    """The model as it is read from a container's configuration and the tensors that follow from it."""
    raw = model.container_config(container) if container != "hf" else model.hf_config()
    head = {"gguf": "output.weight", "hf": "lm_head.weight"}.get(container)
    tied = model.computation()["tie_word_embeddings"]
    biases = {f"model.layers.0.self_attn.{letter}_proj.bias" for letter in "qkvo"}
    names = {
        "model.embed_tokens.weight",
        *([] if tied or not head else [head]),
        *(biases if isinstance(model, GptOss) else []),
    }
    return model.from_words(container, raw, Stored(frozenset(names), model.derived_tensors(container).get(ROPE_FREQS)))


def refusal(model: Architecture, container: str) -> str:
    """Why a container cannot hold a model; empty if it can."""
    try:
        model.container_config(container)
    except BadCheckpoint as error:
        return str(error)
    return ""


@settings(deadline=None, max_examples=150, phases=WITHOUT_SHRINKING)
@given(st.one_of(llamas(), gpt_osses()))
def test_nothing_is_lost(model: Architecture) -> None:
    said = model.computation()
    for container in model.containers:
        if refused := refusal(model, container):
            assert "cannot hold this model" in refused
            assert container == "original" or "attention_factor" in refused
            assert any(name in refused for name in (*said, "rope_type"))
            continue
        there = again(model, container)
        assert there.computation() == said
        assert again(there, "hf").computation() == said


def test_every_field_counts() -> None:
    """A field that is added to a configuration is compared, or stands here with the reason."""
    reasons = {"hf": "the file itself", "rope_theta": "part of rope", "layer_types": "part of sliding_window"}
    for family, config in ((Llama, LlamaConfig), (GptOss, GptOssConfig)):
        example = {Llama: Llama(LlamaConfig(1, 2, 2, 1, 1, 2, 2)), GptOss: GptOss(GptOssConfig())}[family]
        assert {field.name for field in fields(config)} - set(reasons) == set(example.computation())
