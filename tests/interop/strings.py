"""Strings of many scripts, code, digits, blanks and special tokens: the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Sequence

BLOCKS = (  # first and last code point of letters that are assigned
    *(
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xC0, 0xFF),
        (0x100, 0x17F),
        (0x391, 0x3A1),
        (0x3B1, 0x3C9),
        (0x410, 0x44F),
        (0x531, 0x556),
    ),
    *((0x5D0, 0x5EA), (0x621, 0x63A), (0x905, 0x939), (0x93E, 0x94D), (0x995, 0x9A8), (0xE01, 0xE30), (0x10D0, 0x10F0)),
    *((0x1200, 0x1248), (0x1E00, 0x1EFF), (0x1F00, 0x1F15), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5)),
    *((0xAC00, 0xD7A3), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x20000, 0x200FF), (0x300, 0x30F), (0xFF10, 0xFF5A)),
)
DIGITS = "0123456789٠١٢३४५²³½Ⅷ①"
BLANKS = (" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u2003", "\u3000", "\u200b", "\x0b", "\x85")
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«»…—–‘’“”€£¥×÷≤≥→∑√∞■★♥、。！？（）「」"
WORDS = (
    *(
        "the",
        "The",
        "THE",
        "I'm",
        "we'LL",
        "don't",
        "l'été",
        "naïve",
        "Straße",
        "CamelCase",
        "HTTPServer",
        "snake_case",
        "x1y2",
    ),
    *(
        "Привет",
        "мир",
        "Ελλάδα",
        "ħello",
        "你好",
        "世界",
        "日本語",
        "テスト",
        "한국어",
        "नमस्ते",
        "สวัสดี",
        "שלום",
        "مرحبا",
        "ქართული",
        "አማርኛ",
    ),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "✅",
        "e\u0301",
        "ﬁ",
        "Å",
        "①②",
        "𝔘𝔫",
        "<b>",
        "</b>",
        "http://a.b/c?d=1&e=2#f",
        "a@b.de",
        "3.14159",
        "1,234,567",
    ),
    *(
        "def f(x):",
        "    return x**2",
        "if (a != b) {",
        "}",
        "// why",
        "/* no */",
        "#include <x.h>",
        "std::vector<int>",
        "λ x → x",
        "SELECT *",
    ),
    *(
        "'s",
        "'S",
        "'ll",
        "''",
        "\\n",
        "\\u00e9",
        "0x1F",
        "1e-9",
        "--flag",
        "a=b;",
        "[1, 2]",
        '{"k": "v"}',
        "$x^2$",
        "___",
        "...",
        "!!!",
    ),
)


def strings(count: int, special: Sequence[str], seed: int = 0) -> list[str]:
    """`count` strings; one in eight has special tokens of the vocabulary in it."""
    choose = random.Random(seed)

    def letters() -> str:
        first, last = choose.choice(BLOCKS)
        return "".join(chr(choose.randint(first, last)) for _ in range(choose.randint(1, 8)))

    kinds = (
        letters,
        lambda: choose.choice(WORDS),
        lambda: choose.choice(BLANKS),
        lambda: " ",
        lambda: "".join(choose.choices(DIGITS[: choose.choice((10, len(DIGITS)))], k=choose.randint(1, 9))),
        lambda: "".join(choose.choices(SIGNS, k=choose.randint(1, 5))),
        lambda: chr(choose.choice([choose.randint(1, 0x7F), choose.randint(0xA0, 0x2FF), choose.randint(0x2010, 0x2027)])),
    )
    found = []
    for number in range(count):
        pieces = [choose.choice(kinds)() for _ in range(choose.randint(1, 12))]
        if special and number % 8 == 0:
            pieces.insert(choose.randint(0, len(pieces)), choose.choice(special))
        found.append("".join(pieces))
    return found
