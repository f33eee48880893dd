"""Every key of a configuration is obeyed, means nothing, is refused, or is named: from config.json and from GGUF."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.keys import Keys, check_keys
from oss_tools.models.llama import Llama
from tests.models.test_config import GPT_OSS_20B, LLAMA

LLAMA_GGUF = Llama(LLAMA).container_config("gguf")
GPT_OSS_GGUF = GPT_OSS_20B.container_config("gguf")


def test_the_five_heads() -> None:
    keys = Keys("its program", {"a"}, ("n_*",), {"r": (0, "off")}, {"p": (False,)})
    harmless = {"a": 1, "n_x": [], "r": 0, "p": False}
    assert check_keys(keys, harmless, "file") == ()
    assert check_keys(keys, {"r": None, "p": []}, "file") == ()
    assert check_keys(keys, {"p": True}, "file") == ("file: p is True; its program does not obey it here, nor do we",)
    assert check_keys(keys, {"u": 7}, "file") == ("file: u is unknown and was passed over (it is 7)",)
    for value in (1, "on", False, [0, 1]):
        with pytest.raises(BadCheckpoint, match=r"file: r is .*; only 0 or 'off' is"):
            check_keys(keys, {"r": value}, "file")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"attention.sliding_window": 8}, "llama.attention.sliding_window is 8"),
        ({"attention.scale": 0.5}, "llama.attention.scale"),
        ({"logit_scale": 2.0}, "llama.logit_scale"),
        ({"residual_scale": 0.3}, "llama.residual_scale"),
        ({"attention.clamp_kqv": 0.1}, "llama.attention.clamp_kqv"),
        ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "llama.rope.scaling.yarn_log_multiplier"),
        ({"brand_new": True}, "llama.brand_new is unknown"),
    ],
)
def test_gguf_keys_that_llama_cpp_passes_over_are_named(keys: dict[str, Any], named: str) -> None:
    model = Llama.from_config("gguf", LLAMA_GGUF | {f"llama.{key}": value for key, value in keys.items()})
    assert len(model.remarks) == 1
    assert named in model.remarks[0]
    assert model.computation() == Llama(LLAMA).computation()


@pytest.mark.parametrize(
    ("arch", "keys", "message"),
    [
        ("llama", {"attention.causal": False}, r"llama\.attention\.causal is False"),
        ("llama", {"expert_count": 8}, r"llama\.expert_count is 8, which is not supported; only 0 is"),
        ("llama", {"attention.value_length": 8}, r"llama\.attention\.value_length is 8, but heads have 16 values"),
        ("llama", {"rope.dimension_count": 8}, r"llama\.rope\.dimension_count is 8, but heads have 16 values"),
        (
            "llama",
            {"attention.head_count_kv": np.array([2, 1])},
            r"llama\.attention\.head_count_kv differs from layer to layer",
        ),
        (
            "llama",
            {"feed_forward_length": [96, 64]},
            r"llama\.feed_forward_length differs from layer to layer \(\[96, 64\]\)",
        ),
        ("llama", {"feed_forward_length": [96, 96, 96]}, r"llama\.feed_forward_length has 3 values, for 2 layers"),
        ("llama", {"feed_forward_length": []}, r"llama\.feed_forward_length"),
        ("llama", {"block_count": "2"}, r"llama\.block_count is '2', expected an integer"),
        ("gpt-oss", {"rope.freq_base_swa": 10000.0}, r"gpt-oss\.rope\.freq_base_swa is 10000\.0"),
        (
            "gpt-oss",
            {"attention.sliding_window_pattern": [True]},
            r"sliding_window_pattern is \[True\], expected a truth value",
        ),
        ("gpt-oss", {"attention.sliding_window": 0}, r"gpt-oss\.attention\.sliding_window is 0, outside"),
    ],
)
def test_gguf_keys_that_are_refused_by_name(arch: str, keys: dict[str, Any], message: str) -> None:
    family, raw = {"llama": (Llama, LLAMA_GGUF), "gpt-oss": (GptOss, GPT_OSS_GGUF)}[arch]
    with pytest.raises(BadCheckpoint, match=message):
        family.from_config("gguf", raw | {f"{arch}.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("family", [Llama, GptOss])
def test_a_key_that_is_missing_is_named_as_gguf_names_it(family: type) -> None:
    raw = {Llama: LLAMA_GGUF, GptOss: GPT_OSS_GGUF}[family]
    prefix = f"{family.gguf_name}."
    for key in (
        "block_count",
        "embedding_length",
        "attention.head_count",
        "context_length",
        "attention.layer_norm_rms_epsilon",
    ):
        with pytest.raises(BadCheckpoint, match=f"{prefix}{key} is missing".replace(".", r"\.")):
            family.from_config("gguf", {k: v for k, v in raw.items() if k != prefix + key})


def test_arrays_of_equal_values_are_that_value() -> None:
    arrays = {"llama.attention.head_count_kv": np.array([2, 2], np.int32), "llama.feed_forward_length": [96, 96]}
    assert Llama.from_config("gguf", LLAMA_GGUF | arrays).config == Llama.from_config("gguf", LLAMA_GGUF).config


def test_llama_cpps_defaults() -> None:
    optional = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
    raw = {k: v for k, v in LLAMA_GGUF.items() if k.removeprefix("llama.") not in (*optional, "rope.freq_base")}
    config = Llama.from_config("gguf", raw).config
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (4, 16, 10000.0)


@pytest.mark.parametrize(
    ("key", "value", "harmless"),
    [
        ("sliding_window", 4096, None),
        ("use_sliding_window", True, False),
        ("attn_logit_softcapping", 50.0, 0),
        ("residual_multiplier", 0.22, 1.0),
        ("embedding_multiplier", 12.0, 1),
        ("no_rope_layers", [1, 0], []),
        ("layer_types", ["full_attention", "sliding_attention"], ["full_attention", "full_attention"]),
        ("rope_interleaved", True, False),
        ("something_new", 3, None),
    ],
)
def test_config_json_keys_are_named_where_they_would_matter(key: str, value: Any, harmless: Any) -> None:
    raw = Llama(LLAMA).hf_config()
    remarks = Llama.from_config("hf", raw | {key: value}).remarks
    assert len(remarks) == 1
    assert f"config.json: {key} is " in remarks[0]
    if key != "something_new":
        assert Llama.from_config("hf", raw | {key: harmless}).remarks == ()


def test_unknown_keys_of_openais_config_json_are_named() -> None:
    raw = GPT_OSS_20B.container_config("original")
    assert "rope_flavour is unknown" in GptOss.from_config("original", raw | {"rope_flavour": 1}).remarks[0]


@pytest.mark.peers
@pytest.mark.parametrize("family", ["Llama", "GptOss"])
def test_what_transformers_writes_is_read_without_a_remark(family: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")()
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    model = {"Llama": Llama, "GptOss": GptOss}[family].from_config(
        "hf", raw | {"torch_dtype": "bfloat16", "_name_or_path": "x"}
    )
    assert model.remarks == ()


def test_published_configurations_are_read_without_a_remark() -> None:
    """Keys of SmolLM2's, Llama 3.2's and Unsloth's config.json."""
    more = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"dtype": "q4"},
        "pretraining_tp": 1,
        "eos_token_id": [128001, 128008, 128009],
        "bos_token_id": 128000,
        "unsloth_fixed": True,
        "initializer_range": 0.02,
        "transformers_version": "4.45.0",
    }
    assert Llama.from_config("hf", Llama(LLAMA).hf_config() | more).remarks == ()
    assert GptOss.from_config("hf", GptOss(GptOssConfig()).hf_config() | {"router_aux_loss_coef": 0.9}).remarks == ()
