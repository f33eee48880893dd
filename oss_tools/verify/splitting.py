"""What two tokenizers make of the same texts: tokens, and text again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oss_tools.engine.text import Text
from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, in_words
from oss_tools.verify.vocabulary import Table

SAMPLE = 400  # tokens of the vocabulary that are encoded as texts
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


def different_splitting(
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


def texts_of_tokens(a: Table, b: Table, text: Text) -> Iterator[str]:
    """Each added token between words, where both know it alike; texts of tokens that are made of other parts, and of tokens from
    all over the vocabulary."""
    for n in sorted({*a.added} & {*b.added})[:SAMPLE]:
        if a.added[n] == b.added[n] and a.tokens[n] == b.tokens[n]:
            yield f"one {a.tokens[n]} two{a.tokens[n]}three"
    plain = sorted(n for n in a.tokens if n not in a.added and a.tokens[n] == b.tokens.get(n))
    made_otherwise = [n for n in plain if a.parts.get(a.tokens[n]) != b.parts.get(a.tokens[n])]
    for n in [*made_otherwise[:: max(len(made_otherwise) // SAMPLE, 1)], *plain[:: max(len(plain) // SAMPLE, 1)]]:
        yield text.decode([n], skip_special=False)
