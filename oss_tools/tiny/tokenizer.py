"""The embedded model's tokenizer: byte-level BPE with harmony's special tokens, trained on the model's own conversations."""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def train(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """The contents of tokenizer.json, with exactly `vocabulary` tokens.

    Digits are one token each. The pre-tokenizer is SmolLM2's, which GGUF files call `smollm`, so that programs that read
    them split text alike.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the texts make {tokenizer.get_vocab_size()} tokens, not {vocabulary}")
    content: dict[str, Any] = json.loads(tokenizer.to_str())
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
