"""Configurations: through every container and back, published sizes, and absurd fields."""

import itertools
from dataclasses import replace

import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import architecture_of, architectures
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.llama import Llama, LlamaConfig, rope_factors

GPT_OSS_20B = GptOss(GptOssConfig())
GPT_OSS_120B = GptOss(GptOssConfig(num_hidden_layers=36, num_local_experts=128))
LLAMA = LlamaConfig(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=100,
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model", "total", "active"), [(GPT_OSS_20B, 20_914_757_184, 3.61e9), (GPT_OSS_120B, 116_829_156_672, 5.13e9)]
)
def test_gpt_oss_has_the_published_number_of_parameters(model: GptOss, total: int, active: float) -> None:
    assert sum(spec.size for spec in model.tensors()) == total
    assert model.active_parameters() == pytest.approx(active, rel=2e-3)


def test_llama_has_the_published_number_of_parameters() -> None:
    llama_3_2_1b = LlamaConfig(
        num_hidden_layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
        tie_word_embeddings=True,
    )
    model = Llama(llama_3_2_1b)
    assert sum(spec.size for spec in model.tensors() if not spec.optional) == 1_235_814_400
    assert model.active_parameters() == 1_235_814_400


def test_gpt_oss_names_in_the_original_layout() -> None:
    stored = {p.stored: p.stored_shape for s in GPT_OSS_20B.tensors() for p in GPT_OSS_20B.placements("original", s, False)}
    last = {name.removeprefix("block.23."): shape for name, shape in stored.items() if name.startswith("block.23.")}
    assert last == {
        "attn.norm.scale": (2880,),
        "attn.qkv.weight": (5120, 2880),
        "attn.qkv.bias": (5120,),
        "attn.out.weight": (2880, 4096),
        "attn.out.bias": (2880,),
        "attn.sinks": (64,),
        "mlp.norm.scale": (2880,),
        "mlp.gate.weight": (32, 2880),
        "mlp.gate.bias": (32,),
        "mlp.mlp1_weight": (32, 5760, 2880),
        "mlp.mlp1_bias": (32, 5760),
        "mlp.mlp2_weight": (32, 2880, 2880),
        "mlp.mlp2_bias": (32, 2880),
    }
    assert {name for name in stored if not name.startswith("block.")} == {
        "embedding.weight",
        "norm.scale",
        "unembedding.weight",
    }


@pytest.mark.parametrize("factor", [1.0, 32.0])
@pytest.mark.parametrize("container", ["hf", "original", "gguf"])
def test_gpt_oss_configurations_go_through_every_container(container: str, factor: float) -> None:
    context = 4096 * int(factor)
    config = replace(
        GPT_OSS_20B.config, num_hidden_layers=3, sliding_window=77, rope_factor=factor, max_position_embeddings=context
    )
    model = GptOss(config)
    raw = model.hf_config() if container == "hf" else model.container_config(container)
    again = GptOss.from_config(container, raw)
    assert again.config == config
    assert GptOss.from_config("hf", again.hf_config()).config == config


def test_the_configuration_read_is_the_one_written() -> None:
    raw = {**GPT_OSS_20B.hf_config(), "eos_token_id": 200002, "quantization_config": {"quant_method": "mxfp4"}}
    again = GptOss.from_config("hf", raw).hf_config()
    assert again == {key: value for key, value in raw.items() if key != "quantization_config"}


@pytest.mark.parametrize(("key", "value"), [("rms_norm_eps", 1e-6), ("tie_word_embeddings", True)])
def test_what_the_original_layout_cannot_say_is_refused(key: str, value: object) -> None:
    model = GptOss(replace(GPT_OSS_20B.config, **{key: value}))
    with pytest.raises(BadCheckpoint, match=key):
        model.container_config("original")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_scaling": LLAMA3_SCALING, "rope_theta": 5e5},
        {"head_dim": 24},
    ],
)
def test_llama_configurations_go_through_hugging_face(changes: dict) -> None:
    config = replace(LLAMA, **changes)
    assert Llama.from_config("hf", Llama(config).hf_config()).config == config


def test_llama_configurations_go_through_gguf() -> None:
    raw = Llama(LLAMA).container_config("gguf")
    assert Llama.from_config("gguf", raw).config == LLAMA


def test_rope_factors_lie_between_one_and_the_factor() -> None:
    factors = rope_factors(replace(LLAMA, head_dim=128, rope_scaling=LLAMA3_SCALING, rope_theta=5e5))
    assert factors.shape == (64,)
    assert factors[0] == 1
    assert factors[-1] == 8
    assert all(a <= b for a, b in itertools.pairwise(factors))


GPT_OSS_RAW = GPT_OSS_20B.hf_config()
LLAMA_RAW = Llama(LLAMA).hf_config()


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (GPT_OSS_RAW, {"hidden_size": "2880"}, "hidden_size is '2880', expected an integer"),
        (GPT_OSS_RAW, {"hidden_size": True}, "hidden_size"),
        (GPT_OSS_RAW, {"num_hidden_layers": 10**9}, "outside"),
        (GPT_OSS_RAW, {"num_hidden_layers": 0}, "outside"),
        (GPT_OSS_RAW, {"num_key_value_heads": 7}, "not a possible model"),
        (GPT_OSS_RAW, {"num_experts_per_tok": 33}, "not a possible model"),
        (GPT_OSS_RAW, {"vocab_size": None}, "vocab_size"),
        (GPT_OSS_RAW, {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        (GPT_OSS_RAW, {"rope_scaling": [1]}, "rope_scaling"),
        (GPT_OSS_RAW, {"rope_scaling": {**GPT_OSS_RAW["rope_scaling"], "factor": "x"}}, "rope_factor"),
        (GPT_OSS_RAW, {"rope_scaling": {**GPT_OSS_RAW["rope_scaling"], "truncate": True}}, "truncate"),
        (GPT_OSS_RAW, {"layer_types": ["full_attention"] * 24}, "layer_types"),
        (GPT_OSS_RAW, {"swiglu_limit": []}, "swiglu_limit"),
        (LLAMA_RAW, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        (LLAMA_RAW, {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (LLAMA_RAW, {"rope_scaling": 7}, "rope_scaling"),
        (LLAMA_RAW, {"hidden_act": "gelu"}, "gelu"),
        (LLAMA_RAW, {"num_key_value_heads": 3}, "do not divide"),
        (LLAMA_RAW, {"head_dim": -1}, "head_dim"),
    ],
)
def test_absurd_configurations_are_refused(raw: dict, changes: dict, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        architecture_of(raw["model_type"]).from_config("hf", {**raw, **changes})


def test_unknown_architectures_are_named_with_those_there_are() -> None:
    assert {"gpt_oss", "llama"} <= set(architectures())
    with pytest.raises(BadCheckpoint, match=r"'gpt2' is not supported; supported: gpt_oss"):
        architecture_of("gpt2")
