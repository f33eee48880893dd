"""The training questions as batches of tokens: the same for the same seed."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from oss_tools.chat import harmony
from oss_tools.tiny import health, math, tool_use
from oss_tools.tiny.items import Item, Split

SHARES = {"math": 0.2, "health": 0.34, "tool_use": 0.46}  # of the questions
PADDING = 0  # a token id that no conversation holds
STRIDE = 32
LONGEST = 512  # tokens; longer conversations are left out


@dataclass(frozen=True)
class Batch:
    """Conversations of similar length, padded at the end.

    Attributes:
        tokens: int64 [conversations, length].
        said: bool [conversations, length]: the tokens that the model has to say.
    """

    tokens: np.ndarray
    said: np.ndarray


def items(seed: int, split: Split, pieces: Sequence[str] = ()) -> Iterator[Item]:
    """Questions of all suites, endless; `pieces` make up words, see `tool_use.items`."""
    rng = random.Random(seed)
    makers: dict[str, Callable[[random.Random, Split], Iterator[Item]]]
    makers = {"math": math.items, "health": health.items, "tool_use": partial(tool_use.items, pieces=pieces)}
    sources = {suite: make(random.Random(rng.getrandbits(64)), split) for suite, make in makers.items()}
    while True:
        yield next(sources[rng.choices(list(SHARES), list(SHARES.values()))[0]])


def texts(seed: int, count: int) -> Iterator[str]:
    """Rendered conversations of the training split, for the tokenizer."""
    for item in itertools.islice(items(seed, "train"), count):
        yield harmony.plain_text(harmony.render(item.conversation, complete=True))


def pieces(tokenizer: Tokenizer) -> list[str]:
    """The tokens of two and more small letters, of which words are made."""
    tokens = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(token for token in tokens if len(token) > 1 and token.isascii() and token.islower() and token.isalpha())


def batches(tokenizer: Tokenizer, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens each, of conversations whose lengths are nearly the same.

    There are few shapes of batch, each a multiple of STRIDE tokens and one more long.
    """
    waiting: dict[int, list[tuple[list[int], list[bool]]]] = defaultdict(list)
    for item in items(seed, "train", pieces(tokenizer)):
        encoded = encode(tokenizer, item)
        length = -(-(len(encoded[0]) - 1) // STRIDE) * STRIDE
        if length > LONGEST:
            continue
        waiting[length].append(encoded)
        if len(waiting[length]) == max(1, tokens // length):
            yield _padded(waiting.pop(length), length + 1)


def encode(tokenizer: Tokenizer, item: Item) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant has to say: its answer to the last message."""
    said = len(item.conversation.messages)
    while said and item.conversation.messages[said - 1].role == "assistant":
        said -= 1
    whole = harmony.render(item.conversation, complete=True)
    asked = replace(item.conversation, messages=item.conversation.messages[:said])
    start = len(harmony.render(asked)) - 2  # before `<|start|>assistant`, with which the answer begins
    prompt = tokenizer.encode(harmony.plain_text(whole[:start]), add_special_tokens=False).ids
    answer = tokenizer.encode(harmony.plain_text(whole[start:]), add_special_tokens=False).ids
    given = len(prompt) + 2  # `<|start|>assistant` is given too
    ids = prompt + answer
    return ids, [at >= given for at in range(len(ids))]


def _padded(group: list[tuple[list[int], list[bool]]], length: int) -> Batch:
    tokens = np.full((len(group), length), PADDING, np.int64)
    said = np.zeros((len(group), length), np.bool_)
    for row, (ids, spoken) in enumerate(group):
        tokens[row, : len(ids)], said[row, : len(ids)] = ids, spoken
    return Batch(tokens, said)
