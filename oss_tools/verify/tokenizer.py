"""Whether two tokenizers are one: their tables of tokens and merges, and what they make of texts.

The same tokenizer is spelled in many ways (a GGUF file names what tokenizer.json spells out), so how text is split is compared by
splitting texts. Tables tell of what no text may touch.
"""

from __future__ import annotations

from collections.abc import Iterator

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.engine.text import Text, token_text
from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, Said, in_words
from oss_tools.verify.splitting import PROBES, different_splitting, texts_of_tokens
from oss_tools.verify.vocabulary import (
    Table,
    different_flags,
    different_order,
    different_tokens,
    is_another,
    table_of,
    with_tokenizer,
)

BY_NAME = "ends an answer by its name only"


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
    found = list(different_tokens(ours, theirs))
    if is_another(ours, theirs):
        return Said(tuple(found))
    remarks: list[str] = []
    cannot_say = [c for c in (a, b) if c.container == "gguf"] if a.container != b.container else []
    found += different_flags(ours, theirs, cannot_say, remarks)
    found += different_order(ours, theirs)
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
        probes = [*PROBES, *texts_of_tokens(ours, theirs, texts[0])]
        probes = [probe for probe in probes if not any(token in probe for token in finer)]  # which are named already
        found += different_splitting(ours, theirs, *texts, probes, cannot_say, remarks)
    templated = "".join(text for m in (one, two) for text in by_name(m).values())
    for name in ("bos_token", "eos_token"):
        x, y = (token_text(m.tokenizer_config.get(name)) for m in (one, two))
        if x != y and name in templated:
            found.append(Difference("tokenizer", name, x and repr(x), y and repr(y)))
    return Said(tuple(found), tuple(remarks))


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
