"""Whether two tokenizers are one: their tables of tokens and merges, and what they make of texts.

The same tokenizer is spelled in many ways (a GGUF file names what tokenizer.json spells out), so how text is split is compared by
splitting texts. Tables tell of what no text may touch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.engine import o200k
from oss_tools.engine.text import Text, token_text
from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, Said, in_words

NAMED_TOKENS = 12  # of a vocabulary that differs, before they are counted only
ANOTHER = 0.01  # the share of tokens that differ from which on it is another vocabulary: ids then mean different things
SAMPLE = 400  # tokens of the vocabulary that are encoded as texts
BY_NAME = "ends an answer by its name only"
SPACING_FLAGS = ("lstrip", "rstrip", "single_word")  # of added tokens, which GGUF cannot say

PROBES = (
    "",
    "a",
    " a",
    "  two  spaces,   three ",
    "\n\n\ttabs\r\nand\nlines \n \n",
    "AFTER 3 gales, Her Majesty's ship... they'll say we'd've gone; DON'T, O'Neill's",
    "17 + 4.5 = 21.5; 1234567890 12,345.67 0x1F 3rd ½ ²³ ٣٤",
    "if (x[i] != y) { return foo_bar->baz(\"q\", 'r'); } // #!/usr/bin/env\n",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "«ça» naïve café Ångström ŒUVRE ß İstanbul — “quotes” ‘single’ …",
    "e\u0301 \u00e9 \ufb01 \u2126 \u212b",  # in composed and decomposed form
    "漢字とかな交じり文。한국어 ไทยไม่มีช่องว่าง",
    "Привет, мир! שלום עולם مرحبا بالعالم नमस्ते दुनिया",
    "👍🏽 👨‍👩‍👧 🇩🇪 \u200b\u00a0\u3000 \ufeff",
    "\x00\x01\x7f \ufffd \U0010ffff",
    "<0x41> ▁ Ġ <unk> <s></s> <|im_start|>user<|end|> [INST] <|unknown|>",
)


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


def compare_tokenizers(a: Checkpoint, one: Metadata, b: Checkpoint, two: Metadata) -> Said:
    """The differences of two tokenizers. `one` and `two` are the checkpoints' metadata.

    Raises BadCheckpoint for a damaged one; MissingPackage where the vocabulary of gpt-oss is wanted and not installed.
    """
    if one.tokenizer is None and two.tokenizer is None:
        return Said()
    one, two = with_tokenizer(one), with_tokenizer(two)
    if one.tokenizer is None or two.tokenizer is None:
        words = [f"{len(table_of(m).tokens):,} tokens" if m.tokenizer is not None else None for m in (one, two)]
        return Said((Difference("tokenizer", "tokenizer", *words),))
    texts = Text(one), Text(two)  # which refuse what is damaged
    ours, theirs = table_of(one), table_of(two)
    found = list(_vocabulary(ours, theirs))
    if _is_another(ours, theirs):
        return Said(tuple(found))
    remarks: list[str] = []
    cannot_say = [c for c in (a, b) if c.container == "gguf"] if a.container != b.container else []
    found += _flags(ours, theirs, cannot_say, remarks)
    found += _order(ours, theirs)
    found += _ends(ours, theirs, *texts)
    found += _end_tokens(
        *(
            _stops(m, t, text, a.container == b.container)
            for m, t, text in zip((one, two), (ours, theirs), texts, strict=True)
        )
    )
    if not any(difference.what == ours.order_name for difference in found):
        both = ours.added.keys() & theirs.added.keys()
        finer = {ours.tokens[n] for n in both if ours.added[n] != theirs.added[n]}
        probes = [*PROBES, *_from_vocabulary(ours, theirs, texts[0])]
        probes = [probe for probe in probes if not any(token in probe for token in finer)]  # which are named already
        found += _splitting(ours, theirs, *texts, probes, cannot_say, remarks)
    templated = "".join(text for m in (one, two) for text in by_name(m).values())
    for name in ("bos_token", "eos_token"):
        x, y = (token_text(m.tokenizer_config.get(name)) for m in (one, two))
        if x != y and name in templated:
            found.append(Difference("tokenizer", name, x and repr(x), y and repr(y)))
    return Said(tuple(found), tuple(remarks))


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
    return (len(a.tokens), len(b.tokens)) if _is_another(a, b) else None


def _is_another(a: Table, b: Table) -> bool:
    return len(_differing(a, b)) > max(ANOTHER * len(a.tokens), NAMED_TOKENS)


def _vocabulary(a: Table, b: Table) -> Iterator[Difference]:
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


def _flags(a: Table, b: Table, cannot_say: Sequence[Checkpoint], remarks: list[str]) -> Iterator[Difference]:
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


def _order(a: Table, b: Table) -> Iterator[Difference]:
    if a.order == b.order:
        return
    pairs = zip(a.order, b.order, strict=False)
    at = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a.order), len(b.order)))
    words = (
        f"{len(t.order):,}, number {at} {in_words(t.order[at])}" if at < len(t.order) else f"{len(t.order):,}"
        for t in (a, b)
    )
    yield Difference("tokenizer", a.order_name, *words)


def _ends(a: Table, b: Table, one: Text, two: Text) -> Iterator[Difference]:
    """Tokens that are put before and after a text."""
    for what, x, y in zip(
        ("tokens before a text", "tokens after a text"), _put_around(a, one), _put_around(b, two), strict=True
    ):
        if x != y:
            yield Difference("tokenizer", what, *(in_words(tokens) if tokens else None for tokens in (x, y)))


def _stops(metadata: Metadata, table: Table, text: Text, declared: bool) -> dict[str, str]:
    """The tokens that end an answer, and how. Some are known by their names, whatever the files say; that the files say so too is
    compared only where the container can list them (`declared`: GGUF has a key for some)."""
    listed = metadata.generation_config.get("eos_token_id", metadata.config.get("eos_token_id"))
    own = set(listed if isinstance(listed, list) else [listed]) if declared else text.stop_tokens
    known = [n for n in sorted(text.stop_tokens) if n in table.tokens]
    return {table.tokens[n]: "ends an answer" if n in own else BY_NAME for n in known}


def _end_tokens(ours: dict[str, str], theirs: dict[str, str]) -> Iterator[Difference]:
    """Where `theirs` lists a token that `ours` knows by its name, nothing is lost: GGUF files that become folders do."""
    for token in sorted({*ours, *theirs}):
        if ours.get(token) != theirs.get(token) and not (token in theirs and ours.get(token) == BY_NAME):
            yield Difference("tokenizer", f"end token {token}", ours.get(token), theirs.get(token))


def _put_around(table: Table, text: Text) -> tuple[list[str], list[str]]:
    whole, bare = text.encode("a"), text.encode("a", special=False)
    for before in range(len(whole) - len(bare) + 1):
        if whole[before : before + len(bare)] == bare:
            names = [table.tokens.get(n, str(n)) for n in whole]
            return names[:before], names[before + len(bare) :]
    return [table.tokens.get(n, str(n)) for n in whole], []


def _splitting(
    a: Table,
    b: Table,
    one: Text,
    two: Text,
    probes: Sequence[str],
    cannot_say: Sequence[Checkpoint],
    remarks: list[str],
) -> Iterator[Difference]:
    """The first text that becomes other tokens, or other text again. Tokens are compared by their texts, so that ids that changed
    places count once, as tokens.

    GGUF says of SentencePiece's kind that a space goes before a text, and llama.cpp then puts one before every text and behind
    every special token; tokenizer.json has finer ways. What differs in that alone is a remark.
    """
    told = not (cannot_say and a.spaced)
    for probe in probes:
        difference = _first_part(a, b, one, two, probe)
        if difference is None:
            continue
        finer = probe[:1] in ("", " ") or any(b.tokens.get(n, "\0") in probe for n in a.added)
        if not told and finer:
            remarks.append(
                f"{cannot_say[0].path} puts a space before texts and behind special tokens where the other has finer rules: "
                f"{difference.what} is {difference.a} and {difference.b}"
            )
            told = True
        elif not (finer and cannot_say and a.spaced):
            yield difference
            return


def _first_part(a: Table, b: Table, one: Text, two: Text, probe: str) -> Difference | None:
    """How a text is encoded or decoded differently, if it is."""
    ids = one.encode(probe, special=False), two.encode(probe, special=False)
    x, y = ([t.tokens.get(n, str(n)) for n in found] for t, found in zip((a, b), ids, strict=True))
    if x != y:
        return Difference("tokenizer", f"splitting of {in_words(probe)}", in_words(x), in_words(y))
    said = one.decode(ids[0]), two.decode(ids[1])
    if said[0] != said[1]:
        return Difference("tokenizer", f"decoding of {in_words(probe)}", *map(in_words, said))
    return None


def _from_vocabulary(a: Table, b: Table, text: Text) -> Iterator[str]:
    """Each added token between words, where both know it alike; texts of tokens that are made of other parts, and of tokens from
    all over the vocabulary."""
    for n in sorted({*a.added} & {*b.added})[:SAMPLE]:
        if a.added[n] == b.added[n] and a.tokens[n] == b.tokens[n]:
            yield f"one {a.tokens[n]} two{a.tokens[n]}three"
    plain = sorted(n for n in a.tokens if n not in a.added and a.tokens[n] == b.tokens.get(n))
    made_otherwise = [n for n in plain if a.parts.get(a.tokens[n]) != b.parts.get(a.tokens[n])]
    for n in [*made_otherwise[:: max(len(made_otherwise) // SAMPLE, 1)], *plain[:: max(len(plain) // SAMPLE, 1)]]:
        yield text.decode([n], skip_special=False)
