"""A tokenizer as tables of tokens and merges, and how two such tables differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, in_words

NAMED_TOKENS = 12  # of a vocabulary that differs, before they are counted only
ANOTHER = 0.01  # the share of tokens that differ from which on it is another vocabulary: ids then mean different things
SPACING_FLAGS = ("lstrip", "rstrip", "single_word")  # of added tokens, which GGUF cannot say


@dataclass(frozen=True)
class Table:
    """A tokenizer as tables.

    Attributes:
        tokens: text by id, added tokens included.
        added: flags by id of the tokens that are found in a text before it is split.
        order: what decides how pieces are joined, with the name that says what it is.
        parts: of each token that merges make, its possible left parts.
        spaced: whether it marks spaces as SentencePiece does, and may put one before a text.
    """

    tokens: dict[int, str]
    added: dict[int, dict[str, bool]]
    order_name: str
    order: Sequence[Any]
    parts: dict[str, frozenset[str]]
    spaced: bool = False


def with_tokenizer(metadata: Metadata) -> Metadata:
    """The same, with the published tokenizer where it is a gpt-oss that comes without. Raises MissingPackage."""
    if metadata.tokenizer is None and o200k.belongs_to(metadata.config):
        return replace(metadata, tokenizer=o200k.tokenizer_json())
    return metadata


def table_of(metadata: Metadata) -> Table:
    """The tables of a checkpoint's tokenizer; empty ones where it has none."""
    content = metadata.tokenizer or {}
    model = content.get("model")
    model = model if isinstance(model, Mapping) else {}
    vocab = model.get("vocab")
    if isinstance(vocab, Mapping):
        tokens = {number: token for token, number in vocab.items() if isinstance(number, int)}
    else:
        entries = vocab if isinstance(vocab, list) else []
        tokens = {n: str(entry[0]) for n, entry in enumerate(entries) if isinstance(entry, list) and entry}
    added = {}
    for entry in content.get("added_tokens") or []:
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            tokens[entry["id"]] = str(entry.get("content"))
            added[entry["id"]] = {flag: bool(entry.get(flag)) for flag in ("special", *SPACING_FLAGS)}
    return Table(tokens, added, *_order_of(model), spaced=bool(model.get("byte_fallback")))


def _order_of(model: Mapping[str, Any]) -> tuple[str, Sequence[Any], dict[str, frozenset[str]]]:
    """Scores; of a BPE the tokens in the order in which merges make them, and of which left parts each is made.

    A merge's rank is that of the token that it makes, whichever pair makes it: GGUF keeps a score for each token of
    SentencePiece's kind, and of a tiktoken vocabulary some programs write one pair for a token, others every pair.
    """
    merges = model.get("merges")
    if not isinstance(merges, list):
        vocab = model.get("vocab")
        return "scores", [entry[1:] for entry in vocab if isinstance(entry, list)] if isinstance(vocab, list) else [], {}
    made: dict[str, set[str]] = {}
    for merge in merges:
        left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[-1])
        made.setdefault(left + right, set()).add(left)
    return "merges", list(made), {token: frozenset(lefts) for token, lefts in made.items()}


def _differing(a: Table, b: Table) -> list[int]:
    """Ids that stand for different tokens, or for one in one table only."""
    return sorted(n for n in {*a.tokens, *b.tokens} if a.tokens.get(n) != b.tokens.get(n))


def another_vocabulary(one: Metadata, two: Metadata) -> tuple[int, int] | None:
    """The numbers of tokens, where so many differ that ids of one mean nothing to the other; else None."""
    a, b = table_of(one), table_of(two)
    return (len(a.tokens), len(b.tokens)) if is_another(a, b) else None


def is_another(a: Table, b: Table) -> bool:
    """Whether so many tokens differ that these are two vocabularies."""
    return len(_differing(a, b)) > max(ANOTHER * len(a.tokens), NAMED_TOKENS)


def different_tokens(a: Table, b: Table) -> Iterator[Difference]:
    """Each id that stands for different tokens, or how many there are."""
    differing = _differing(a, b)
    if len(differing) <= NAMED_TOKENS:
        for n in differing:
            x, y = a.tokens.get(n), b.tokens.get(n)
            words = (None if t is None else in_words(t) for t in (x, y))
            yield Difference("tokenizer", f"token {n}", *words)
        return
    first = differing[0]
    total = len({*a.tokens, *b.tokens})
    x, y = (f"{len(t.tokens):,} tokens, token {first} {in_words(t.tokens.get(first))}" for t in (a, b))
    yield Difference("tokenizer", f"vocabulary ({len(differing):,} of {total:,} tokens)", x, y)


def different_flags(a: Table, b: Table, cannot_say: Sequence[Checkpoint], remarks: list[str]) -> Iterator[Difference]:
    """Added tokens whose flags differ, by id; what a container cannot say becomes a remark."""
    differing: list[tuple[int, str, str]] = []
    for n in sorted({*a.added, *b.added}):
        x, y = _kind(a, n, bool(cannot_say)), _kind(b, n, bool(cannot_say))
        if x != y:
            differing.append((n, x, y))
        elif a.added.get(n) != b.added.get(n):
            token = in_words(a.tokens[n])
            remarks.append(
                f"the added token {token} takes spaces or whole words only, which {cannot_say[0].path} cannot say"
            )
    for n, x, y in differing[:NAMED_TOKENS]:
        yield Difference("tokenizer", f"kind of token {n} ({in_words(a.tokens.get(n, b.tokens.get(n)))})", x, y)
    if (more := len(differing) - NAMED_TOKENS) > 0:
        yield Difference("tokenizer", f"kind of {more:,} more tokens", *differing[NAMED_TOKENS][1:])


def _kind(table: Table, n: int, plain: bool) -> str:
    """What a token is, in words. `plain`: without what GGUF cannot say."""
    flags = table.added.get(n)
    if flags is None:
        return "no added token"
    kind = "special" if flags["special"] else "added, not special"
    return kind if plain else ", ".join([kind, *(flag for flag in SPACING_FLAGS if flags[flag])])


def different_order(a: Table, b: Table) -> Iterator[Difference]:
    """Where merges or scores differ first."""
    if a.order == b.order:
        return
    pairs = zip(a.order, b.order, strict=False)
    at = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a.order), len(b.order)))
    words = (
        f"{len(t.order):,}, number {at} {in_words(t.order[at])}" if at < len(t.order) else f"{len(t.order):,}"
        for t in (a, b)
    )
    yield Difference("tokenizer", a.order_name, *words)
