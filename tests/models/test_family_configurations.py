"""Families built as Llama is, and GPT-2: what their configurations say."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import Architecture, architecture_of
from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import ATTENTION, QKV, ExpertsConfig
from oss_tools.models.fields import single
from oss_tools.models.gpt2 import Gpt2
from oss_tools.models.gpt2_config import Gpt2Config
from oss_tools.models.latent_config import LatentConfig
from oss_tools.models.latent_decoder import LatentDecoder
from oss_tools.models.stored import ROPE_FREQS, Stored
from tests.models.small_families import CONFIGS, model_of, small
from tests.models.test_nothing_lost import WITHOUT_SHRINKING, refusal, shapes
from tests.models.test_placements import canonical_values

FULL, SLIDING = "full_attention", "sliding_attention"


@st.composite
def decoders(draw: st.DrawFn) -> Decoder:
    """Any model that a family can be."""
    names = ("mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
    kind = architecture_of(draw(st.sampled_from(names)))
    assert issubclass(kind, Decoder)
    words: dict[str, Any] = shapes(draw) | {"tie_word_embeddings": draw(st.booleans()), "biases": kind.family.biased}
    layers, window = words["num_hidden_layers"], draw(st.integers(1, 5000))
    if draw(st.booleans()):
        slides = [draw(st.booleans()) for _ in range(layers)]
        every = kind.model_type in ("mistral", "mixtral", "qwen3_moe") or not any(slides)
        words["sliding_window"] = tuple(window if every or s else None for s in slides)
    if kind.model_type == "qwen3":
        words["biases"] = draw(st.sampled_from([(), ATTENTION]))
    if kind.model_type == "qwen2_moe":
        words["biases"] = draw(st.sampled_from([(), QKV]))
    if kind.family.experts:
        words |= {"num_local_experts": (experts := draw(st.integers(1, 40)))}
        words |= {"num_experts_per_tok": draw(st.integers(1, experts))}
        words["moe_intermediate_size"] = words["intermediate_size"]
        if kind.model_type != "mixtral":
            words["moe_intermediate_size"] = draw(st.integers(1, 300))
            words["norm_topk_prob"] = draw(st.booleans())
            words["mlp_only_layers"] = tuple(n for n in range(layers) if draw(st.integers(0, 5)) == 0)
        if kind.model_type == "qwen2_moe":
            words["shared_expert_intermediate_size"] = draw(st.integers(1, 300))
    return kind(kind.family.config(**words))


@st.composite
def latents(draw: st.DrawFn) -> LatentDecoder:
    """Any model that DeepSeek's families can be."""
    kind = architecture_of(draw(st.sampled_from(["deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite"])))
    assert issubclass(kind, LatentDecoder)
    groups, size = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    chosen = draw(st.integers(1, groups))
    rotated, inner = 2 * draw(st.integers(1, 40)), draw(st.integers(1, 300))
    words = shapes(draw) | {"head_dim": rotated, "qk_rope_head_dim": rotated, "moe_intermediate_size": inner}
    words["num_key_value_heads"] = words["num_attention_heads"]
    config = LatentConfig(
        **words,
        num_local_experts=groups * size,
        num_experts_per_tok=draw(st.integers(1, chosen * size)),
        shared_expert_intermediate_size=inner * draw(st.integers(0, 2)),
        norm_topk_prob=kind.family.score == "sigmoid" and draw(st.booleans()),
        mlp_only_layers=tuple(range(draw(st.integers(0, words["num_hidden_layers"])))),
        q_lora_rank=draw(st.integers(0, 100)),
        kv_lora_rank=draw(st.integers(1, 100)),
        qk_nope_head_dim=draw(st.integers(1, 100)),
        v_head_dim=draw(st.integers(1, 100)),
        n_group=groups if chosen < groups else 1,
        topk_group=chosen if chosen < groups else 1,
        routed_scaling_factor=draw(st.floats(0.5, 20).map(single)),
        rope_interleave=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )
    if config.rope.kind == "yarn" and draw(st.booleans()):
        concentration, ratio = draw(st.floats(0.1, 2).map(single)), draw(st.sampled_from([1.0, 0.8]))
        config = replace(config, mscale_all_dim=concentration, rope=replace(config.rope, attention_factor=ratio))
    return kind(config)


@st.composite
def gpt2s(draw: st.DrawFn) -> Gpt2:
    heads, size = draw(st.integers(1, 8)), draw(st.integers(1, 40))
    return Gpt2(
        Gpt2Config(
            draw(st.integers(1, 6)),
            heads * size,
            draw(st.integers(1, 300)),
            heads,
            draw(st.integers(1, 900)),
            draw(st.integers(1, 5000)),
            scale_attn_weights=draw(st.booleans()),
            scale_attn_by_inverse_layer_idx=draw(st.booleans()),
            tie_word_embeddings=draw(st.booleans()),
        )
    )


def read_again(model: Architecture, container: str) -> Architecture:
    """The model as it is read from what a container's configuration says, with the tensors that it has there."""
    raw = model.container_config(container) if container == "gguf" else model.hf_config()
    names = {p.stored for spec in model.tensors() if not spec.optional for p in model.placements(container, spec, True)}
    kind = architecture_of(raw.get("model_type") or raw["general.architecture"], raw if container == "gguf" else None)
    return kind.from_words(container, raw, Stored(frozenset(names), model.derived_tensors(container).get(ROPE_FREQS)))


REFUSALS = ("attention_factor", "have no experts, which llama.cpp demands", "it has a bias of", "rope_type")


@settings(deadline=None, max_examples=200, phases=WITHOUT_SHRINKING)
@given(st.one_of(decoders(), latents(), gpt2s()))
def test_nothing_is_lost(model: Architecture) -> None:
    """What is read is what was written, of the same model_type, or the writer refused and said why."""
    for container in model.containers:
        if refused := refusal(model, container):
            assert any(reason in refused for reason in REFUSALS), refused
            continue
        there = read_again(model, container)
        assert type(there) is type(model)
        assert there.computation() == model.computation()
        assert read_again(there, "hf").computation() == model.computation()


def test_every_field_counts() -> None:
    """A field that is added to a configuration is compared, or stands here with the reason."""
    reasons = {"hf": "the file itself", "rope_theta": "part of rope"}
    for config, model in (
        (ExpertsConfig, small("mixtral")),
        (LatentConfig, small("deepseek_v3")),
        (Gpt2Config, small("gpt2")),
    ):
        assert {field.name for field in fields(config)} - set(reasons) == set(model.computation())


@pytest.mark.parametrize(("layers", "total", "active"), [(61, 671_026_419_200, 36_625_618_432)])
def test_deepseek_v3_has_the_published_number_of_parameters(layers: int, total: int, active: int) -> None:
    """671 B, of which 37 B are active; without the layer that predicts further tokens."""
    sizes = {"num_hidden_layers": layers, "hidden_size": 7168, "intermediate_size": 18432, "vocab_size": 129280}
    heads = {"num_attention_heads": 128, "num_key_value_heads": 128}
    model = model_of({"model_type": "deepseek_v3", **sizes, **heads})
    assert sum(spec.size for spec in model.tensors()) == total
    assert model.active_parameters() == active


def test_gguf_of_one_name_is_told_apart_by_its_keys() -> None:
    for model_type in ("llama", "mistral", "mixtral"):
        config = {**CONFIGS["mistral" if model_type == "llama" else model_type, "usual"], "model_type": model_type}
        keys = model_of(config).container_config("gguf")
        assert keys["general.architecture"] == "llama"
        assert architecture_of("llama", keys).model_type == model_type
    assert architecture_of("llama", {"llama.expert_count": 0}).model_type == "llama"  # another program's


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 7}, (7, 7, 7)),
        ("mistral", {"sliding_window": None}, ()),
        ("mixtral", {}, ()),
        ("qwen2", {"sliding_window": 7, "max_window_layers": 0}, ()),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}, (None, None, 7)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7}, ()),  # all layers are below the usual 28
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "layer_types": [SLIDING, FULL, SLIDING]}, (7, None, 7)),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}, (7, None, None)),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}, (7, 7, 7)),
    ],
)
def test_windows_are_those_of_transformers(
    model_type: str, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    config = {k: v for k, v in CONFIGS[model_type, "usual"].items() if k != "sliding_window"}
    model = model_of(config | changes)
    assert tuple(heads.window for heads in model.attention_layers()) == (windows or (None,) * 3)
    assert model.computation()["sliding_window"] == windows


def test_what_a_mistral_takes_without_a_word_is_said() -> None:
    config = {k: v for k, v in CONFIGS["mistral", "usual"].items() if k not in ("sliding_window", "num_key_value_heads")}
    model = model_of(config | {"num_attention_heads": 8, "max_position_embeddings": 8192})
    assert model.computation()["num_key_value_heads"] == 8
    assert model.computation()["sliding_window"] == (4096,) * 3
    assert model.remarks == ("config.json: sliding_window is missing; 4096 is taken, as transformers does",)


def test_heads_of_qwen3_without_a_word_have_128_values() -> None:
    config = {k: v for k, v in CONFIGS["qwen3", "usual"].items() if k != "head_dim"}
    assert model_of(config).computation()["head_dim"] == 128
    assert model_of({**config, "model_type": "qwen2"}).computation()["head_dim"] == 16


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mixtral", {"num_experts": 4}, "num_local_experts is 8, but num_experts is 4; remove the wrong one"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 of 8 experts: not a possible model"),
        ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all', expected a list of layers"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0, outside"),
        ("qwen2", {"layer_types": [SLIDING] * 3}, "layer_types has sliding_attention, but no sliding_window is in use"),
        ("qwen2", {"use_sliding_window": True, "layer_types": [FULL]}, "layer_types has 1 entries, for 3 layers"),
        ("qwen2", {"num_experts": 8}, "num_experts is 8, which is not supported; only 0 is"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0, outside"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu', which is not supported"),
        ("gpt2", {"n_ctx": 100}, "n_ctx is 100, but n_positions is 256"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True, which is not supported; only False is"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax', which is not supported; only 'sigmoid' is"),
        ("deepseek_v3", {"n_group": 3}, "2 of 3 groups of 8 experts: not a possible model"),
        ("deepseek_v3", {"topk_group": 1}, "1 groups do not have 3 experts to choose"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2, but all 4 heads share one latent"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "mlp_layer_types is .'dense'., expected dense or sparse for"),
        ("gpt2", {"n_head": 5}, "a width of 64 does not divide over 5 heads"),
    ],
)
def test_what_cannot_be_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        small(model_type, **changes)


def test_experts_widths_that_old_gguf_files_leave_out() -> None:
    """As llama.cpp takes them."""
    keys = small("qwen2_moe").container_config("gguf")
    keys = {key: value for key, value in keys.items() if "expert_feed" not in key and "expert_shared" not in key}
    found = architecture_of("qwen2moe", keys).from_words("gguf", keys, Stored()).computation()
    assert (found["moe_intermediate_size"], found["shared_expert_intermediate_size"]) == (96 // 3, 96)


def test_active_parameters_count_the_chosen_experts() -> None:
    model = small("qwen3_moe")
    layer = 64 * (4 * 32 + 2 * 2 * 32) + 4 * 32 * 64 + 2 * 32 + 2 * 64 + 6 * 64 + 3 * (3 * 48 * 64)
    assert model.active_parameters() == 3 * layer + 64 + 331 * 64


def test_qwen2_without_its_biases_is_not_written_as_gguf() -> None:
    model = architecture_of("qwen2")(replace(small("qwen2").config, biases=QKV[:1], hf={}))  # type: ignore[attr-defined, call-arg]
    with pytest.raises(BadCheckpoint, match=r"it has no bias of k_proj, v_proj, which llama\.cpp demands of qwen2"):
        model.container_config("gguf")
    assert canonical_values(model)
