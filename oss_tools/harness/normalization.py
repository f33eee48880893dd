"""The text of a mathematical answer without what says nothing: wrappers, leading words, units."""

from __future__ import annotations

import re

from oss_tools.harness.latex import plain_latex

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ALONE = {"m", "g", "s", "h", "l", "n", "j", "k", "c", "f", "v", "w", "a"}  # units of one letter
WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathbb|emph|operatorname)\*?\s*\{"
)
OUTER = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
)
UNIT_COMMAND = re.compile(
    r"\\(?:text|textrm|mathrm|mbox|textit|mathit)\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d+\}?)?(?:\s*/\s*\\(?:text|mathrm)\{[^{}]*\})?$"
)
UNIT_WORDS = re.compile(
    r"^(?P<value>[-+]?[\d.,/ ]*\d(?:\s*%|\s*percent\b)?)(?P<gap>\s*-?\s*)(?P<unit>[A-Za-zµΩ][\wµΩ/^{}.\-' ()]*)$"
)  # "18 eggs per day", "5cm^2", "30-minute"
TRAILING = re.compile(r"(?:\\[,;:! ]|\^\s*\{?\s*\\circ\s*\}?\s*[CFK]?|~|\s)+$")  # spaces, degrees


def tidy(text: str) -> str:
    r"""The answer without dollar signs, markdown, \boxed and \text around it, closing full stop, and words that lead up to it."""
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])(?!\d+\*\*)", "^", plain_latex(text).strip())
    text = re.sub(r"\b(?:negative|minus)\s+(?=[\d.$\\])", "-", text, flags=re.IGNORECASE)
    before = None
    while before != text:
        before = text
        text = _without_wrapper(text.strip())
        text = re.sub(r"(?<!\\left)(?<!\\right)[.,;:!]$", "", text) if not re.search(r"\d!$", text) else text
        for opening, closing in OUTER:
            inside = text[len(opening) : len(text) - len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) > len(opening + closing)
                and opening not in inside
            ):
                text = inside
        text = re.sub(
            r"^(?:approximately|about|roughly|exactly|only|just|\\approx|\\sim)\s*(?=[-\d\\$(.])", "", text, flags=re.I
        )
    text = re.sub(r"\\(?:\$|pounds|euro)|[$€£¥₹]|^(?:USD|EUR|GBP|Rs\.?)\s*(?=\d)", "", text)
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def _without_wrapper(text: str) -> str:
    """What stands in one \\text{…} or \\boxed{…} that is all of the text."""
    found = re.match(WRAPPERS.pattern + r"|\\boxed\s*\{|\\fbox\s*\{", text)
    if found and _closing(text, found.end() - 1) == len(text) - 1:
        return text[found.end() : -1]
    return text


def _closing(text: str, opening: int) -> int:
    """Where the brace at `opening` is closed, or -1."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    return -1


def as_text(text: str) -> str:
    """For comparison as text: without spaces, wrappers and capitals; "(B)" is "b"."""
    text = WRAPPERS.sub("{", text)
    plain = re.sub(r"\\[,;:! ]|(?<!\d)\s|\s(?!\d)|[{}~$]|\\quad", "", text).lower()
    return plain[1:-1] if re.fullmatch(r"\([a-z]\)", plain) else plain.strip(".")


def without_unit(text: str) -> str:
    """A quantity without its unit, words like "million" as a factor; anything else as it is."""
    before = None
    while before != text:
        before = text
        text = TRAILING.sub("", text)
        stripped = TRAILING.sub("", UNIT_COMMAND.sub("", text))
        if stripped and stripped[-1] not in "+-*/^_=<>({[,|&\\" and not stripped.endswith(("\\frac", "\\sqrt")):
            text = _scaled(stripped, text[len(stripped) :])
    found = UNIT_WORDS.match(text)
    if not found:
        return text
    value, unit = found["value"].strip(), found["unit"]
    words = re.findall(r"[A-Za-zµΩ]+", unit)
    spaced = bool(found["gap"].strip(" ")) or found["gap"].startswith(" ")
    if any(len(word) == 1 and word.lower() not in ALONE for word in words[:1]) or (len(words[0]) == 1 and not spaced):
        return text
    return _scaled(value.replace("percent", "%"), unit)


def _scaled(value: str, unit: str) -> str:
    factor = next(
        (SCALES[word] for word in re.findall(r"[a-z]+", WRAPPERS.sub("", unit).lower())[:1] if word in SCALES), None
    )
    return f"({value})*{factor}" if factor else value
