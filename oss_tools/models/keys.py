"""Which keys of a configuration an architecture obeys, which mean nothing, and which would change what is computed.

Every key of a file falls under one of five heads, in this order: obeyed (the architecture reads it), neutral (it decides nothing
about logits), refused (a program that people run obeys it for this architecture), passed over (other architectures have it; those
programs do not obey it for this one, nor do we), unknown. The last two are remarks by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.models.fields import shown

# key -> the values with which it changes nothing, beside null; a list of such values changes nothing either
Harmless = Mapping[str, Collection[Any]]


@dataclass(frozen=True)
class Keys:
    """What one container's configuration may say of an architecture.

    Attributes:
        peer: the program that reads such configurations.
        obeyed: keys that the architecture reads.
        neutral: patterns of keys that decide nothing about logits.
        refused: keys that the peer obeys and we cannot, with the values that change nothing.
        passed_over: keys of other architectures, which the peer does not obey for this one, with the values that change nothing.
        prefix: only keys that begin so are looked at, and named in the tables without it.
    """

    peer: str
    obeyed: Collection[str]
    neutral: Collection[str] = ()
    refused: Harmless = field(default_factory=dict)
    passed_over: Harmless = field(default_factory=dict)
    prefix: str = ""


def check_keys(keys: Keys, raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """What a user should know about keys that are not obeyed, a sentence each. Raises BadCheckpoint for a refused one."""
    remarks = []
    for name, value in raw.items():
        key = name.removeprefix(keys.prefix)
        if not name.startswith(keys.prefix) or key in keys.obeyed or any(fnmatchcase(key, p) for p in keys.neutral):
            continue
        if key in keys.refused:
            if not _harmless(value, keys.refused[key]):
                only = " or ".join(map(shown, keys.refused[key]))
                raise BadCheckpoint(
                    f"{where}: {name} is {_short(value)}, which is not supported{f'; only {only} is' if only else ''}"
                )
        elif key in keys.passed_over:
            if not _harmless(value, keys.passed_over[key]):
                remarks += [f"{where}: {name} is {_short(value)}; {keys.peer} does not obey it here, nor do we"]
        else:
            remarks += [f"{where}: {name} is unknown and was passed over (it is {_short(value)})"]
    return tuple(remarks)


def one_value(value: Any, layers: Any, name: str, where: str) -> Any:
    """A key that may be an array, one value for each layer: that value, where all are equal. Raises BadCheckpoint."""
    if not isinstance(value, np.ndarray | list | tuple):
        return value
    values = np.asarray(value).tolist()
    if not values or any(v != values[0] for v in values):
        raise BadCheckpoint(f"{where}: {name} differs from layer to layer ({_short(values)}), which is not supported")
    if len(values) != layers:
        raise BadCheckpoint(f"{where}: {name} has {len(values)} values, for {shown(layers)} layers")
    return values[0]


def _harmless(value: Any, values: Collection[Any]) -> bool:
    if value is None or (isinstance(value, Collection) and not isinstance(value, np.ndarray) and not value):
        return True
    if isinstance(value, list | tuple | np.ndarray):
        return all(_harmless(v, values) for v in value)
    return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values)


def _short(value: Any) -> str:
    text = shown(value if not isinstance(value, np.ndarray) else value[:8].tolist())
    return text if len(text) <= 40 else f"{text[:40]}…"


# ---- what all architectures share -----------------------------------------------------------------------------------

# About training, files, tokens, outputs and how programs run.
_NEUTRAL_IN_CONFIG = """
    _* architectures auto_map model_type custom_pipelines license *name_or_path *version *.js_config
    torch_dtype dtype initializer_range *initializer* *_dropout *_pdrop *dropout* *_loss* *loss_coef*
    *token_id *_token_ids bad_words_ids forced_* suppress_tokens begin_suppress_tokens decoder_start_token_id
    use_cache output_* return_dict* torchscript gradient_checkpointing chunk_size_feed_forward use_bfloat16
    pretraining_tp tensor_parallel* pruned_heads tf_legacy_loss is_encoder_decoder is_decoder seq_length
    id2label label2id num_labels problem_type task_specific_params finetuning_task prefix max_sequence_length
    do_sample temperature top_k top_p typical_p min_p *_penalty *_cutoff *beam* early_stopping
    max_length min_length max_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    remove_invalid_values exponential_decay_length_penalty *assistant* target_lookbehind tokenizer_class
    quantization_config compression_config quantization attn_implementation use_flash_attn* _attn_implementation*
    unsloth_* tie_encoder_decoder add_cross_attention cross_attention_hidden_size model_max_length is_llama_config
"""
NEUTRAL_IN_CONFIG = tuple(_NEUTRAL_IN_CONFIG.split())

PASSED_OVER_IN_CONFIG: dict[str, Collection[Any]] = {  # of other architectures; the values that change nothing
    "attention_multiplier": (),
    "attn_logit_softcapping": (0,),
    "attention_chunk_size": (),
    "attn_temperature_tuning": (False, 0),
    "clip_qkv": (),
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "layernorm_epsilon": (),
    "layer_norm_eps": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "max_window_layers": (),
    "n_shared_experts": (0,),
    "no_bias": (True,),
    "no_rope_layers": (),
    "no_rope_layer_interval": (0,),
    "norm_topk_prob": (True,),
    "num_nextn_predict_layers": (0,),
    "parallel_residual": (False,),
    "position_embedding_type": ("rope", "rotary", "absolute"),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "qkv_bias": (),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "rotary_pct": (1,),
    "routed_scaling_factor": (1,),
    "router_jitter_noise": (0,),
    "scale_depth": (),
    "scale_emb": (1,),
    "scoring_func": ("softmax",),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}

ROPE_IN_CONFIG = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)

ROPE_IN_GGUF = (
    *("rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.yarn_attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)

NEUTRAL_IN_GGUF = (
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "pooling_type",
    "nextn_predict_layers",
    "n_deepstack_layers",
)

PASSED_OVER_IN_GGUF: dict[str, Collection[Any]] = {
    "activation_sparsity_scale": (),
    "attention.clamp_kqv": (0,),
    "attention.group_norm_epsilon": (),
    "attention.layer_norm_epsilon": (),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (1, 0),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (1, 0),
    "expert_gating_func": (),
    "expert_weights_norm": (),
    "expert_weights_scale": (1, 0),
    "final_logit_softcapping": (0,),
    "interleave_moe_layer_step": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (1, 0),
    "residual_scale": (1, 0),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_ext_factor": (1, 0, -1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
    "swiglu_clamp_exp": (0,),
    "swiglu_clamp_shexp": (0,),
    "use_parallel_residual": (False,),
}
