"""A tokenizer for random weights: byte-level BPE with a handful of merges and the architecture's special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters

# The special tokens of gpt-oss at their ids in o200k_harmony (https://github.com/openai/harmony).
HARMONY = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
}
HARMONY_ROLES = ("<|startoftext|>", "<|return|>", "<|endoftext|>")  # beginning, end, padding
OTHERS = ("<s>", "</s>", "<unk>")
OTHERS_ROLES = ("<s>", "</s>", "</s>")
MERGES = (
    "Ġ t",
    "h e",
    "Ġt he",
    "i n",
    "Ġ a",
    "r e",
    "o n",
    "e r",
    "a n",
    "Ġa n",
    "Ġan d",
    "Ġ s",
    "Ġ o",
    "Ġo f",
    "e n",
    "in g",
)


@dataclass(frozen=True)
class ByteTokenizer:
    """The contents of tokenizer.json, tokenizer_config.json and generation_config.json, and the ids for config.json."""

    content: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any]
    ids: dict[str, int]


def byte_tokenizer(model_type: str, vocabulary: int) -> ByteTokenizer | None:
    """A tokenizer with exactly `vocabulary` ids, unused ones named after their number; None if there are too few for it."""
    pieces = byte_letters() + [merge.replace(" ", "") for merge in MERGES]
    special = _special_ids(model_type, vocabulary, len(pieces))
    if max(special.values()) >= vocabulary:
        return None
    tokens = {token_id: token for token, token_id in special.items()}
    free = (token_id for token_id in range(vocabulary) if token_id not in tokens)
    tokens |= {next(free): piece for piece in pieces}
    vocab = {tokens.get(token_id, f"<unused_{token_id}>"): token_id for token_id in range(vocabulary)}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, token_id) for token, token_id in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,  # special tokens too: the tokenizers library numbers others by itself
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }
    beginning, end, padding = HARMONY_ROLES if model_type == "gpt_oss" else OTHERS_ROLES
    ids = {"bos_token_id": special[beginning], "eos_token_id": special[end], "pad_token_id": special[padding]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": beginning,
        "eos_token": end,
        "pad_token": padding,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    return ByteTokenizer(content, config, {**ids, "do_sample": True}, ids)


def _special_ids(model_type: str, vocabulary: int, pieces: int) -> dict[str, int]:
    """Special tokens at their published ids where the vocabulary reaches so far, else behind the pieces."""
    if model_type == "gpt_oss" and vocabulary > max(HARMONY.values()):
        return HARMONY
    names = tuple(HARMONY) if model_type == "gpt_oss" else OTHERS
    return {name: pieces + i for i, name in enumerate(names)}


def _added(token: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags}
