"""Rotary positions of every kind, in and out of every container; the frequencies are transformers'."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import Architecture
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.llama import Llama, LlamaConfig
from oss_tools.models.rope import Positions, Scaling, llama3_divisors
from oss_tools.models.rope_gguf import as_llama3
from oss_tools.models.rope_hf import read_rope
from oss_tools.models.stored import ROPE_FREQS, Stored

LLAMA = LlamaConfig(2, 256, 96, 4, 2, 64, 100, max_position_embeddings=8192, rope_theta=500000.0)
GPT_OSS = GptOssConfig(
    num_hidden_layers=2, num_local_experts=4, hidden_size=64, num_attention_heads=4, num_key_value_heads=2
)
LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WORDS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    {"type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "beta_fast": 16.0, "beta_slow": 2.0},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.5},
    {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.5},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "mscale": 0.707, "mscale_all_dim": 0.707},
    LLAMA_3 | {"factor": 8.0, "original_max_position_embeddings": 8192},
    LLAMA_3 | {"factor": 3.0, "low_freq_factor": 2.0, "high_freq_factor": 7.0, "original_max_position_embeddings": 600},
]


@pytest.mark.peers
@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_frequencies_and_scale_are_transformers(words: dict[str, Any], spelling: str) -> None:
    from transformers import LlamaConfig as Theirs
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = Llama(LLAMA).hf_config() | {spelling: words}
    theirs = LlamaRotaryEmbedding(Theirs(**{k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}))
    rope = Llama.from_config("hf", raw).rope()
    np.testing.assert_allclose(rope.frequencies, theirs.inv_freq.numpy(), rtol=2e-6)
    assert rope.scale == pytest.approx(theirs.attention_scaling, rel=1e-6)


@pytest.mark.peers
def test_an_original_context_beside_the_object_counts_more() -> None:
    """As some files have it; transformers takes it when it makes the frequencies."""
    from transformers import LlamaConfig as Theirs
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = Llama(LLAMA).hf_config() | {"original_max_position_embeddings": 333, "rope_scaling": WORDS[4]}
    theirs = LlamaRotaryEmbedding(Theirs(**raw | {"rope_scaling": dict(WORDS[4])}))
    np.testing.assert_allclose(Llama.from_config("hf", raw).rope().frequencies, theirs.inv_freq.numpy(), rtol=2e-6)


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("base", [Llama(LLAMA), GptOss(GPT_OSS)], ids=["llama", "gpt_oss"])
def test_gguf_and_back_computes_the_same(base: Architecture, words: dict[str, Any]) -> None:
    model = type(base).from_config("hf", base.hf_config() | {"rope_scaling": words})
    keys = model.container_config("gguf")
    again = through_gguf(model)
    assert again.computation() == model.computation()
    there = type(base).from_config("hf", again.hf_config())
    assert there.computation() == model.computation()
    assert "oss-tools.rope_scaling" in keys or words.get("rope_type") != "dynamic"


def through_gguf(model: Architecture) -> Any:
    return model.from_words(
        "gguf", model.container_config("gguf"), Stored(divisors=model.derived_tensors("gguf").get(ROPE_FREQS))
    )


def test_dynamic_positions_are_remarked() -> None:
    model = Llama.from_config("hf", Llama(LLAMA).hf_config() | {"rope_scaling": {"type": "dynamic", "factor": 4.0}})
    assert "plain rope up to 8192 positions" in model.remarks[0]
    assert model.context == 8192
    assert model.computation()["rope"] != Llama(LLAMA).computation()["rope"]
    assert "only oss-tools obeys" in " ".join(through_gguf(model).remarks)


# ---- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        ({}, Scaling()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, Scaling("linear", 4.0)),
        ({"rope.scaling.factor": 4.0}, Scaling("linear", 4.0)),
        ({"rope.scale_linear": 4.0}, Scaling("linear", 4.0)),
        ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, Scaling("linear", 4.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, Scaling()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, Scaling()),
        ({"rope.scaling.type": "yarn"}, Scaling()),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, Scaling("yarn", 4.0, 8192)),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            Scaling("yarn", 4.0, 64),
        ),
        ({"rope.scaling.attn_factor": 1.5}, Scaling(attention_factor=1.5)),
    ],
)
def test_gguf_says(keys: dict[str, Any], scaling: Scaling) -> None:
    """llama.cpp's defaults: the type is linear, a factor of 0 is none, the original context is the whole."""
    raw = Llama(LLAMA).container_config("gguf") | {f"llama.{key}": value for key, value in keys.items()}
    assert Llama.from_config("gguf", raw).config.rope == scaling


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope.scaling.type": "longrope"}, r"llama\.rope\.scaling\.type 'longrope' is not supported"),
        ({"rope.scaling.type": 7}, r"llama\.rope\.scaling\.type 7"),
        ({"rope.scaling.factor": "4"}, r"llama\.rope\.scaling\.factor is '4', expected a number"),
        ({"rope.scaling.factor": -4.0}, "outside"),
        ({"rope.freq_base": 0.0}, r"llama\.rope\.freq_base"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_attn_factor": 1.5},
            r"llama\.rope\.scaling\.yarn_attn_factor is 1\.5",
        ),
    ],
)
def test_gguf_refused(keys: dict[str, Any], message: str) -> None:
    raw = Llama(LLAMA).container_config("gguf") | {f"llama.{key}": value for key, value in keys.items()}
    with pytest.raises(BadCheckpoint, match=message):
        Llama.from_config("gguf", raw)


def test_bounds_that_llama_cpp_passes_over_are_obeyed_and_said() -> None:
    words = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0}
    model = Llama.from_config("hf", Llama(LLAMA).hf_config() | {"rope_scaling": words})
    assert model.container_remarks("gguf") == (
        "metadata: llama.rope.scaling.yarn_beta_fast is 16: obeyed here; llama.cpp passes over it and takes 32",
    )


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([2.0, 4.0, 8.0, 16.0, 32.0]),
    st.sampled_from([256, 512, 1024, 2048, 4096, 8192, 16384, 32768]),
    st.sampled_from([64, 80, 128]),
    st.sampled_from([10000.0, 500000.0]),
)
def test_llama3_is_found_again_in_its_divisors(factor: float, context: int, size: int, theta: float) -> None:
    scaling = Scaling("llama3", factor, context)
    divisors = llama3_divisors(size, theta, scaling)
    found = as_llama3(size, theta, divisors)
    assert found is not None
    np.testing.assert_allclose(llama3_divisors(size, theta, found), divisors, rtol=1e-5)


def test_llama3_with_other_bounds_is_found_too() -> None:
    scaling = Scaling("llama3", 6.0, 1234, low_freq_factor=1.0, high_freq_factor=5.5)
    assert as_llama3(128, 500000.0, llama3_divisors(128, 500000.0, scaling)) == scaling


@pytest.mark.peers
def test_divisors_of_llama_cpps_converter_are_those_of_the_folder() -> None:
    """The converter computes in float32 (conversion/llama.py, generate_extra_tensors); what it writes is read as it is."""
    import math

    import torch

    words = WORDS[12]
    freqs = 1.0 / (500000.0 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    written = []
    for freq in freqs:
        wavelength = 2 * math.pi / freq
        if wavelength < 8192 / 4:
            written.append(1)
        elif wavelength > 8192:
            written.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            written.append(1 / ((1 - smooth) / 8.0 + smooth))
    divisors = torch.tensor(written, dtype=torch.float32).numpy()
    folder = Llama.from_config("hf", Llama(LLAMA).hf_config() | {"rope_scaling": words})
    file = Llama.from_words("gguf", folder.container_config("gguf"), Stored(divisors=divisors))
    assert file.computation() == folder.computation()
    assert file.hf_config()["rope_scaling"] == words
    np.testing.assert_array_equal(file.derived_tensors("gguf")["rope_freqs.weight"], divisors)


def test_divisors_that_no_config_json_can_state_are_computed_with_and_not_written_there() -> None:
    divisors = np.linspace(1, 3, 32, dtype=np.float32) ** 2
    model = Llama.from_words("gguf", Llama(LLAMA).container_config("gguf"), Stored(divisors=divisors))
    np.testing.assert_allclose(model.rope().frequencies, Llama(LLAMA).rope().frequencies / divisors, rtol=1e-6)
    assert through_gguf(model).computation() == model.computation()
    with pytest.raises(BadCheckpoint, match=r"container hf cannot hold this model.*rope_freqs"):
        model.container_config("hf")
    other = Llama.from_words("gguf", Llama(LLAMA).container_config("gguf"), Stored(divisors=divisors[::-1].copy()))
    assert other.computation() != model.computation()


@pytest.mark.parametrize("divisors", [np.ones(31, np.float32), np.zeros(32, np.float32), np.full(32, np.nan, np.float32)])
def test_absurd_divisors_are_refused(divisors: np.ndarray) -> None:
    with pytest.raises(BadCheckpoint, match=r"rope_freqs\.weight: 32 positive numbers"):
        Llama.from_words("gguf", Llama(LLAMA).container_config("gguf"), Stored(divisors=divisors))


# ---- comparing ------------------------------------------------------------------------------------------------------


def test_positions_are_compared_by_their_effect() -> None:
    yarn = Scaling("yarn", 32.0, 4096, truncate=False)
    positions = Positions(150000.0, 64, yarn)
    assert positions == Positions(150000.0, 64, replace(yarn, attention_factor=yarn.scale))
    for other in (
        replace(yarn, truncate=True),
        replace(yarn, factor=31.9),
        replace(yarn, original_context=4000),
        replace(yarn, attention_factor=1.3),
        Scaling("linear", 32.0),
        Scaling(),
    ):
        assert positions != Positions(150000.0, 64, other), other
    assert positions != Positions(150001.0, 64, yarn)
    assert Positions(1e4, 8, Scaling("linear", 4.0)) == Positions(1e4, 8, Scaling(divisors=(4.0,) * 4))
    assert str(positions) == "theta 150000, yarn, factor 32, original context 4096, beta 32 and 1, not truncated"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 2.0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "extrapolation_factor": 0.5}, "extrapolation_factor"),
        ({"rope_type": "default", "factor": 2.0}, "factor"),
    ],
)
def test_words_that_transformers_does_not_obey_are_named(words: dict[str, Any], named: str) -> None:
    _, _, remarks = read_rope({"rope_scaling": words}, 10000.0, 2048)
    assert remarks[0].startswith(f"config.json: rope_scaling: {named} is ")
