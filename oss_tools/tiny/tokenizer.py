"""The embedded model's tokenizer: byte-level BPE with harmony's special tokens, trained on the model's own conversations."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

# Named after https://github.com/openai/harmony; here they come first
SPECIAL = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
SPACE = "Ġ"  # as byte-level BPE writes it
SPACED = 640  # tokens that begin with a space


def train(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """The contents of tokenizer.json, with exactly `vocabulary` tokens.

    Digits are one token each. The pre-tokenizer is SmolLM2's, which GGUF files call `smollm`, so that programs that read
    them split text alike. A space joins a word only after all other merges, so that a word has the same tokens after a space
    as after a quotation mark, but for the first: what is copied from a request into JSON is copied token by token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    names = re.compile("|".join(map(re.escape, SPECIAL)))
    parts = [part for text in texts for part in names.split(text) if part]
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.Split(" ", "isolated"), letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - SPACED,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(parts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    spaced: Counter[str] = Counter()
    for encoded in tokenizer.encode_batch(parts, add_special_tokens=False):
        spaced.update(after for space, after in pairwise(encoded.tokens) if space == SPACE)
    words = sorted((w for w in spaced if not w.isdigit() and w != SPACE), key=lambda w: (-spaced[w], w))[:SPACED]
    for word in words:
        content["model"]["vocab"][SPACE + word] = len(content["model"]["vocab"])
        content["model"]["merges"].append([SPACE, word])
    if len(content["model"]["vocab"]) != vocabulary:
        raise ValueError(f"the texts make {len(content['model']['vocab'])} tokens, not {vocabulary}")
    return content


def files(tokenizer: dict[str, Any], template: str) -> dict[str, str]:
    """The files of a Hugging Face checkpoint that concern text, by name."""
    ids = {name: i for i, name in enumerate(SPECIAL)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 6436,
    }
    generation = {
        "bos_token_id": ids["<|startoftext|>"],
        "eos_token_id": [ids["<|return|>"], ids["<|call|>"], ids["<|endoftext|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": False,
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "generation_config.json": json.dumps(generation, indent=2),
        "chat_template.jinja": template,
    }
