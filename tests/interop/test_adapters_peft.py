"""Adapters as PEFT makes them: what `merge` writes is what PEFT's own merge_and_unload() gives, in float32, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.models import open_checkpoint
from tests.adapters.written import merge

pytestmark = pytest.mark.peers

LLAMA = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "GptOss": LLAMA
    | {"head_dim": 16, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "Mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": LLAMA | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "GPT2": {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """bases(kind, **config) -> the folder of a small random model in float32, saved by transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("peft", reason="needs the extra `peers`")
    made: dict[str, Path] = {}

    def make(kind: str, **config: Any) -> Path:
        key = f"{kind} {config}"
        if key not in made:
            torch.manual_seed(7)
            keys = KINDS[kind] | config
            heads = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
            model = getattr(transformers, heads)(getattr(transformers, f"{kind}Config")(**keys)).float()
            with torch.no_grad():
                for parameter in model.parameters():  # biases and sinks too
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            made[key] = tmp_path_factory.mktemp("base") / kind
            model.save_pretrained(made[key])
        return made[key]

    return make


def trained(base: Path, folder: Path, **options: Any) -> Any:
    """A PEFT model on a base whose adapter is random; the adapter is saved in `folder`. In float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(len(str(sorted(options))))
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**settings | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "magnitude" in name else 0.05))
    model.save_pretrained(folder)
    return model.eval()


def assert_equal(ours: Path, theirs: Path, base: Path, changed: int) -> None:
    """Every tensor within float32's rounding of the other, and so many not as in the base."""
    moved = 0
    with open_checkpoint(ours) as a, open_checkpoint(theirs) as b, open_checkpoint(base) as c:
        assert list(a.entries) == list(b.entries)
        for name in a.entries:
            x, y = a.read_tensor(name).dequantize(), b.read_tensor(name).dequantize()
            np.testing.assert_allclose(x, y, atol=2e-6, rtol=2e-6, err_msg=name)
            moved += name not in c.entries or not np.array_equal(x, c.read_tensor(name).dequantize())
    assert moved == changed


def assert_as_peft(base: Path, tmp_path: Path, changed: int, **options: Any) -> None:
    model = trained(base, tmp_path / "adapter", **options)
    merge(base, tmp_path / "adapter", tmp_path / "ours")
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    assert_equal(tmp_path / "ours", tmp_path / "theirs", base, changed)


LINEAR = [
    ({"target_modules": ATTENTION}, 8),
    ({"target_modules": "all-linear"}, 14),
    ({"target_modules": ATTENTION, "use_rslora": True, "r": 9}, 8),
    ({"target_modules": [*ATTENTION, "down_proj"], "use_dora": True}, 10),
    ({"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\..*mlp.*": 7}}, 14),
    ({"target_modules": "all-linear", "alpha_pattern": {"model.layers.0.self_attn.v_proj": 32, "up_proj": 1}}, 14),
    ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, 4),
    ({"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}, 4),
    ({"target_modules": ["embed_tokens", "lm_head", "v_proj"]}, 4),
    ({"target_modules": ["embed_tokens"], "use_dora": True}, 1),
    ({"target_modules": ["k_proj"], "trainable_token_indices": [3, 95, 17]}, 3),
    ({"target_modules": ["k_proj"], "layers_to_transform": [1]}, 1),
]


@pytest.mark.parametrize(("options", "changed"), LINEAR)
def test_llama(bases, tmp_path: Path, options: dict[str, Any], changed: int) -> None:
    assert_as_peft(bases("Llama"), tmp_path, changed, **options)


@pytest.mark.parametrize(("bias", "changed"), [("all", 2 + 6), ("lora_only", 2 + 2)])
def test_trained_biases(bases, tmp_path: Path, bias: str, changed: int) -> None:
    assert_as_peft(bases("Qwen2"), tmp_path, changed, target_modules=["q_proj"], bias=bias)


def test_biases_of_lora_b(bases, tmp_path: Path) -> None:
    assert_as_peft(bases("Qwen2"), tmp_path, 4, target_modules=["v_proj"], lora_bias=True)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("fan", [False, True])
def test_gpt2s_transposed_layers(bases, tmp_path: Path, dora: bool, fan: bool) -> None:
    modules = ["c_attn", "c_fc", "h.0.attn.c_proj"]
    assert_as_peft(bases("GPT2"), tmp_path, 2 * 3 + 2 + 1, target_modules=modules, fan_in_fan_out=fan, use_dora=dora)


def test_gpt2s_layers_kept_whole(bases, tmp_path: Path) -> None:
    assert_as_peft(bases("GPT2"), tmp_path, 2 + 12, target_modules=["c_fc"], modules_to_save=["c_attn"])


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("stabilized", [False, True])
@pytest.mark.parametrize(
    ("modules", "parameters", "changed"),
    [
        (ATTENTION, None, 8),
        ([], EXPERTS, 4),
        ([], EXPERTS[:1], 2),
        ([], EXPERTS[1:], 2),
        (["q_proj"], ["1.mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"], 2 + 1 + 2 + 2),
    ],
)
def test_gpt_oss(
    bases, tmp_path: Path, modules: list[str], parameters: list[str] | None, changed: int, stabilized: bool
) -> None:
    options = {"target_modules": modules, "target_parameters": parameters, "use_rslora": stabilized}
    assert_as_peft(bases("GptOss"), tmp_path, changed, **options)


def test_gpt_oss_with_experts_kept_whole(bases, tmp_path: Path) -> None:
    assert_as_peft(bases("GptOss"), tmp_path, 2 + 12, target_modules=["v_proj"], modules_to_save=["experts", "router"])


def test_gpt_oss_with_a_rank_for_its_experts(bases, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"gate_up_proj": 3}, "alpha_pattern": {"mlp.experts.down_proj": 11}}
    assert_as_peft(bases("GptOss"), tmp_path, 6, target_modules=["v_proj"], target_parameters=EXPERTS, **patterns)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize(("parameters", "per_layer"), [(EXPERTS, 3), (EXPERTS[1:], 1), ([*EXPERTS, "mlp.gate.weight"], 4)])
def test_stacked_experts(bases, tmp_path: Path, kind: str, parameters: list[str], per_layer: int) -> None:
    options = {"target_modules": ["q_proj"], "target_parameters": parameters}
    assert_as_peft(bases(kind), tmp_path, 2 * (per_layer + 1), **options)


@pytest.mark.parametrize(
    ("kind", "module", "projections"),
    [
        ("Mixtral", "block_sparse_moe", ("w1", "w3", "w2")),
        ("Qwen3Moe", "mlp", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_experts_one_by_one(bases, tmp_path: Path, kind: str, module: str, projections: tuple[str, ...]) -> None:
    """As transformers 4 and PEFT before it saved them; PEFT of today stacks them when it loads them."""
    import json

    import torch
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    base, folder = bases(kind), tmp_path / "adapter"
    trained(base, folder, target_modules=["q_proj"])
    inner = {"Mixtral": 128, "Qwen3Moe": 32}[kind]
    tensors, generator = {}, torch.Generator().manual_seed(3)
    for layer in range(2):
        for expert in range(4):
            for projection in projections:
                wide = projection in ("w2", "down_proj")
                columns, out = (inner, 64) if wide else (64, inner)
                at = f"base_model.model.model.layers.{layer}.{module}.experts.{expert}.{projection}."
                tensors[f"{at}lora_A.weight"] = torch.randn(4, columns, generator=generator)
                tensors[f"{at}lora_B.weight"] = torch.randn(out, 4, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(projections)}))
    merge(base, folder, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(tmp_path / "theirs")
    assert_equal(tmp_path / "ours", tmp_path / "theirs", base, 6)


def test_several_adapters_with_scales(bases, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = bases("Llama")
    options: tuple[dict[str, Any], ...] = (
        {"target_modules": ATTENTION},
        {"target_modules": ["q_proj", "up_proj"], "r": 2},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["embed_tokens", "lm_head"]},
    )
    for number, chosen in enumerate(options):
        trained(base, tmp_path / str(number), **chosen)
    folders, scales = [tmp_path / str(number) for number in range(4)], [0.5, -1.25, 2.0, 0.75]
    merge(base, folders, tmp_path / "ours", scales=scales)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folders[0], "0")
    for number in (1, 2, 3):
        model.load_adapter(folders[number], str(number))
    for module in model.modules():
        for number, scale in enumerate(scales):
            if hasattr(module, "set_scale"):
                module.set_scale(str(number), scale)
    model.base_model.set_adapter(["0", "1", "2", "3"])
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    assert_equal(tmp_path / "ours", tmp_path / "theirs", base, 12)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    ],
)
def test_tied_embeddings_say_what_the_adapter_says(bases, tmp_path: Path, options: dict[str, Any]) -> None:
    """PEFT's merge changes both ends of a tie, whatever the adapter was of; what counts is what it computed in training."""
    import torch
    from transformers import AutoModelForCausalLM

    base = bases("Llama", tie_word_embeddings=True)
    model = trained(base, tmp_path / "adapter", **options)
    merge(base, tmp_path / "adapter", tmp_path / "ours")
    tokens = torch.arange(20)[None] % 96
    with torch.no_grad():
        theirs = model(tokens).logits
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
