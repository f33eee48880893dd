"""Configurations: published sizes, what each container says, and absurd fields."""

from dataclasses import replace

import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.models.base import architecture_of, architectures
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.gpt_oss_words import PATTERN_KEY, WINDOW_KEY
from oss_tools.models.llama import Llama, LlamaConfig
from oss_tools.models.stored import Stored

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
FULL, SLIDING = "full_attention", "sliding_attention"


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


def test_the_published_original_configuration_is_the_published_folders() -> None:
    """openai/gpt-oss-20b: `original/config.json` and `config.json` are of one model."""
    original = {
        "num_hidden_layers": 24,
        "num_experts": 32,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "swiglu_limit": 7.0,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling_factor": 32.0,
        "rope_ntk_alpha": 1,
        "rope_ntk_beta": 32,
    }
    folder = {
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "swiglu_limit": 7.0,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
        "initial_context_length": 4096,
        "max_position_embeddings": 131072,
        "rope_theta": 150000,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "layer_types": [SLIDING, FULL] * 12,
    }
    a, b = GptOss.from_config("original", original), GptOss.from_config("hf", folder)
    assert a.computation() == b.computation() == GPT_OSS_20B.computation()
    assert a.remarks == b.remarks == ()
    assert a.container_config("original") == original


def test_the_configuration_read_is_the_one_written() -> None:
    raw = {**GPT_OSS_20B.hf_config(), "eos_token_id": 200002, "quantization_config": {"quant_method": "mxfp4"}}
    again = GptOss.from_config("hf", raw).hf_config()
    assert again == {key: value for key, value in raw.items() if key != "quantization_config"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", 1e-6),
        ("tie_word_embeddings", True),
        ("layer_types", (FULL, SLIDING) * 12),
        ("max_position_embeddings", 4096),
        ("biases", ("q_proj", "k_proj", "v_proj")),
    ],
)
def test_what_the_original_layout_cannot_say_is_refused(key: str, value: object) -> None:
    model = GptOss(replace(GPT_OSS_20B.config, **{key: value}))
    name = "sliding_window" if key == "layer_types" else key
    with pytest.raises(BadCheckpoint, match=f"container original cannot hold this model: {name} is"):
        model.container_config("original")


def test_windows_in_the_words_of_every_container() -> None:
    """llama.cpp takes a list of truth values as each layer's; a window as wide as the context hides nothing; 0 in OpenAI's
    program means none."""
    layers = GPT_OSS_20B.config.num_hidden_layers
    all_full = GptOss(replace(GPT_OSS_20B.config, layer_types=(FULL,) * layers))
    assert all_full.container_config("original")["sliding_window"] == 0
    assert all_full.container_config("gguf")[WINDOW_KEY] == 131072
    cut = GptOss(replace(GPT_OSS_20B.config, num_hidden_layers=3, layer_types=(FULL, SLIDING, FULL)))
    assert cut.container_config("gguf")[PATTERN_KEY] == [False, True, False]
    assert PATTERN_KEY not in GPT_OSS_20B.container_config("gguf")
    raw = cut.container_config("gguf")
    for period, windows in ((0, (128, 128, 128)), (1, (None,) * 3), (3, (128, 128, None))):
        assert GptOss.from_config("gguf", raw | {PATTERN_KEY: period}).config.windows == windows


def test_a_model_without_scaling_says_so_to_transformers() -> None:
    """Without a word transformers takes YaRN with factor 32 for gpt-oss."""
    raw = {k: v for k, v in GPT_OSS_20B.container_config("gguf").items() if ".rope.scaling" not in k}
    model = GptOss.from_config("gguf", raw)
    assert model.hf_config()["rope_scaling"] == {"rope_type": "default"}
    assert model.computation()["rope"] != GPT_OSS_20B.computation()["rope"]
    for words in ({"rope_scaling": None}, {}):
        silent = {k: v for k, v in GPT_OSS_20B.hf_config().items() if k != "rope_scaling"} | words
        assert GptOss.from_config("hf", silent).computation() == GPT_OSS_20B.computation()


def test_a_swiglu_limit_goes_through_gguf_and_is_remarked() -> None:
    model = GptOss(replace(GPT_OSS_20B.config, swiglu_limit=5.5))
    keys = model.container_config("gguf")
    assert keys["oss-tools.swiglu_limit"] == 5.5
    again = GptOss.from_config("gguf", keys)
    assert again.config.swiglu_limit == 5.5
    assert again.remarks == model.container_remarks("gguf")
    assert "swiglu_limit 5.5" in again.remarks[0]
    assert "others compute with 7.0" in again.remarks[0]
    assert not any(key.startswith("oss-tools.") for key in GPT_OSS_20B.container_config("gguf"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"oss-tools.swiglu_limit": "no"}, "expected JSON"),
        ({"oss-tools.swiglu_limit": -1.0}, "swiglu_limit"),
        ({"oss-tools.not_yet": 1}, "does not know"),
        ({"oss-tools.rope_scaling": '{"rope_type": "linear", "factor": 2.0}'}, "contradict|stand for"),
        ({"oss-tools.rope_scaling": "{"}, "expected JSON"),
    ],
)
def test_keys_of_our_own_are_checked(keys: dict, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        GptOss.from_config("gguf", GPT_OSS_20B.container_config("gguf") | keys)


Q_BIASES = frozenset(f"model.layers.{n}.self_attn.q_proj.bias" for n in range(2))


def test_biases_are_those_of_the_files_unless_the_configuration_denies_them() -> None:
    raw = Llama(LLAMA).hf_config()
    said = Llama.from_words("hf", raw | {"attention_bias": True}, Stored(Q_BIASES))
    assert said.config.biases == ("q_proj",)
    assert "k_proj, self_attn.v_proj, self_attn.o_proj" in said.remarks[0]
    assert {spec.name for spec in said.tensors()} > Q_BIASES
    with pytest.raises(BadCheckpoint, match=r"attention_bias is not true, yet the files hold self_attn\.q_proj\.bias"):
        Llama.from_words("hf", raw, Stored(Q_BIASES))
    with pytest.raises(BadCheckpoint, match="attention_bias is not true"):
        GptOss.from_words("hf", GPT_OSS_20B.hf_config() | {"attention_bias": False}, Stored(Q_BIASES))
    gguf = Llama.from_words("gguf", Llama(LLAMA).container_config("gguf"), Stored(frozenset({"blk.0.attn_v.bias"})))
    assert gguf.config.biases == ("v_proj",)
    assert gguf.hf_config()["attention_bias"] is True


def test_gpt_oss_without_attention_biases_has_no_place_in_gguf() -> None:
    """llama.cpp does not load it."""
    model = GptOss(replace(GPT_OSS_20B.config, biases=()))
    with pytest.raises(BadCheckpoint, match=r"no bias of q_proj.*llama\.cpp demands"):
        model.container_config("gguf")
    assert GptOss.from_config("hf", model.hf_config()).config == model.config


def test_a_tied_head_that_is_stored_is_not_tied() -> None:
    """transformers does not tie it either, if it differs from the embedding."""
    raw = Llama(LLAMA).hf_config() | {"tie_word_embeddings": True}
    assert Llama.from_words("hf", raw, Stored(frozenset())).config.tie_word_embeddings
    both = frozenset({"lm_head.weight", "model.embed_tokens.weight"})
    assert not Llama.from_words("hf", raw, Stored(both)).config.tie_word_embeddings


def test_what_transformers_would_take_is_taken_and_said() -> None:
    """The values are the defaults of LlamaConfig and GptOssConfig in transformers 5.23."""
    raw = {k: v for k, v in Llama(LLAMA).hf_config().items() if k not in ("rms_norm_eps", "head_dim", "num_key_value_heads")}
    model = Llama.from_config("hf", raw)
    assert (model.config.rms_norm_eps, model.config.head_dim, model.config.num_key_value_heads) == (1e-6, 16, 4)
    assert model.remarks == ("config.json: rms_norm_eps is missing; 1e-06 is taken, as transformers does",)
    kept = {k: v for k, v in GPT_OSS_20B.hf_config().items() if k not in ("rms_norm_eps", "head_dim", "sliding_window")}
    gpt_oss = GptOss.from_config("hf", kept)
    assert gpt_oss.computation() == GPT_OSS_20B.computation()
    assert [text.split(" is missing")[0] for text in gpt_oss.remarks] == [
        "config.json: rms_norm_eps",
        "config.json: sliding_window",
    ]
    assert GptOss.from_config("hf", kept | {"head_dim": None, "num_attention_heads": 32}).config.head_dim == 90


GPT_OSS_RAW = GPT_OSS_20B.hf_config()
LLAMA_RAW = Llama(LLAMA).hf_config()


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (GPT_OSS_RAW, {"hidden_size": "2880"}, "hidden_size is '2880', expected an integer"),
        (GPT_OSS_RAW, {"hidden_size": True}, "hidden_size"),
        (GPT_OSS_RAW, {"num_hidden_layers": 10**9}, "outside"),
        (GPT_OSS_RAW, {"num_hidden_layers": 0}, "outside"),
        (GPT_OSS_RAW, {"num_key_value_heads": 7}, "64 query heads do not divide over 7"),
        (GPT_OSS_RAW, {"num_experts_per_tok": 33, "experts_per_token": 33}, "33 of 32 experts: not a possible model"),
        (
            {key: value for key, value in GPT_OSS_RAW.items() if key != "num_experts_per_tok"},
            {"experts_per_token": 2},
            "num_experts_per_tok is 4, but experts_per_token is 2",
        ),
        (GPT_OSS_RAW, {"num_experts": 64}, "num_local_experts is 32, but num_experts is 64"),
        (GPT_OSS_RAW, {"vocab_size": None}, "vocab_size"),
        (GPT_OSS_RAW, {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        (GPT_OSS_RAW, {"rope_scaling": [1]}, "rope_scaling"),
        (GPT_OSS_RAW, {"rope_scaling": {**GPT_OSS_RAW["rope_scaling"], "factor": "x"}}, "rope_scaling: factor is 'x'"),
        (GPT_OSS_RAW, {"rope_scaling": {**GPT_OSS_RAW["rope_scaling"], "truncate": 1}}, "truncate is 1, expected true"),
        (GPT_OSS_RAW, {"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        (GPT_OSS_RAW, {"rope_theta": 1.0}, "rope_theta is 1: YaRN needs one above 1"),
        (GPT_OSS_RAW, {"layer_types": [FULL] * 23}, "layer_types has 23 entries, for 24 layers"),
        (GPT_OSS_RAW, {"layer_types": ["chunked_attention"] * 24}, "layer_types"),
        (GPT_OSS_RAW, {"sliding_window": None}, "sliding_window is null, but layer_types has sliding_attention"),
        (GPT_OSS_RAW, {"swiglu_limit": []}, "swiglu_limit"),
        (GPT_OSS_RAW, {"swiglu_alpha": 1.5}, "swiglu_alpha is 1.5, which is not supported; only 1.702"),
        (LLAMA_RAW, {"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "mrope"),
        (LLAMA_RAW, {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
        (LLAMA_RAW, {"rope_scaling": 7}, "rope_scaling"),
        (LLAMA_RAW, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "of their own for 'full_attention'"),
        (LLAMA_RAW, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA_RAW, {"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not supported; only 'silu' or 'swish' is"),
        (LLAMA_RAW, {"num_local_experts": 8}, "num_local_experts is 8"),
        (LLAMA_RAW, {"num_key_value_heads": 3}, "do not divide"),
        (LLAMA_RAW, {"head_dim": -1}, "head_dim"),
        (LLAMA_RAW, {"head_dim": 15}, "must be even"),
        (LLAMA_RAW, {"head_dim": None, "num_attention_heads": 6}, "hidden_size 64 does not divide over 6 heads"),
        (LLAMA_RAW, {"attention_bias": "yes"}, "attention_bias is 'yes', expected true or false"),
    ],
)
def test_absurd_configurations_are_refused(raw: dict, changes: dict, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        architecture_of(raw["model_type"]).from_config("hf", {**raw, **changes})


def test_of_two_names_of_the_experts_per_token_transformers_one_counts() -> None:
    """transformers' configuration has no `experts_per_token`: published files only repeat OpenAI's word."""
    model = architecture_of("gpt_oss").from_config("hf", {**GPT_OSS_RAW, "num_experts_per_tok": 3})
    assert model.computation()["num_experts_per_tok"] == 3
    assert [text for text in model.remarks if "experts_per_token is 4, num_experts_per_tok 3" in text]


def test_unknown_architectures_are_named_with_those_there_are() -> None:
    assert {"gpt_oss", "llama"} <= set(architectures())
    with pytest.raises(BadCheckpoint, match=r"'gemma' is not supported; supported: deepseek_v2, deepseek_v3"):
        architecture_of("gemma")
