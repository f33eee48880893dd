"""Stored tensors that an architecture does not know: left out where a model of its kind computes nothing with them, else refused.

Left out are heads for other tasks, other modalities' parts, buffers, and what a training run keeps. Whatever might be a part of
the computation (a bias, a norm, an adapter) is refused by name: leaving it out would make another model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

ADAPTERS = re.compile(
    r"(^|[._])(lora|lokr|loha|hada|oft|boft|ia3|vera|dora)(_|\.|$)|adapter|base_layer|modules_to_save|"
    r"(prompt|prefix)_(encoder|embed|tuning)",
    re.IGNORECASE,
)
BUFFERS = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|(cos|sin)_cached|masked_bias|(causal_|attention_|attn_)?mask|position_ids|token_type_ids|"
    r"num_batches_tracked|tokens_per_expert)$"
)
HEADS = re.compile(
    r"^(model\.)?(?!lm_head)(score|classifier|cls|qa_outputs|pooler|\w+_head|reward\w*|value\w*|critic\w*|summary|regression\w*)\."
)
OTHER_PARTS = re.compile(  # of other modalities, and what drafts several tokens at once
    r"^(model\.)?(vision\w*|visual\w*|image\w*|audio\w*|speech\w*|video\w*|multi_?modal\w*|mm\w*|v|a|mtp\w*|medusa\w*|eagle\w*)\."
)
TRAINING = re.compile(
    r"^(optimizer\w*|optim|state|exp_avg\w*|ema\w*|lr_scheduler|scheduler|grad_scaler|scaler|global_step|step|epoch|rng\w*|loss\w*)(\.|$)"
)

ADAPTER = "belongs to an adapter (LoRA or the like) that is not merged; merge it with PEFT's merge_and_unload()"


@dataclass(frozen=True)
class Strangers:
    """What became of unknown tensors: the names of those left out, and the first that is refused, with the reason."""

    left_out: list[str]
    refused: list[tuple[str, str]]


def sort_out(names: Collection[str], others: Mapping[str, str], kind: str) -> Strangers:
    """Sorts unknown tensors of a model of this kind. `others` are those whose dtype is no weight's: name -> dtype."""
    left_out, refused = [], []
    for name in [*names, *others]:
        if ADAPTERS.search(name):
            refused.append((name, ADAPTER))
        elif name in others or any(known.search(name) for known in (BUFFERS, HEADS, OTHER_PARTS, TRAINING)):
            left_out.append(name)
        else:
            refused.append((name, f"is not part of a {kind} model, and leaving it out might change what is computed"))
    return Strangers(left_out, refused)


def named(names: list[str], most: int = 3) -> str:
    """Tensors as a sentence names them: the first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
