r"""Finds the answer in what a model wrote: \boxed{…}, "#### 18", "The answer is …", a letter of a multiple-choice question.

Markers are tried from the most to the least explicit, and the last one of a kind counts, since models correct themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from oss_tools.harness.equivalence import equivalent
from oss_tools.harness.normalization import tidy

LONGEST = 20_000  # characters that are looked at, from the end
MOST_MARKS = 100  # of one kind that are looked at, from the end
LONGEST_ANSWER = 2000  # characters
NUMBER = re.compile(
    r"(?<![\w.^{/])[-−]?[$€£]?\s?(?>(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?(?:[eE][-+]?\d+)?)"
    r"(?![A-Za-z](?![A-Za-z]))\s?\\?%?"
)
MATH = re.compile(  # up to 500 characters, as unclosed ones are looked for in vain
    r"\$\$(.{1,500}?)\$\$|\$((?!\s?\d[\d,.]*\s)[^$]{1,500}?)\$(?!\d)|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
PHRASE = re.compile(
    r"(?:\b(?:final|correct|right)?\s*\banswer\b\s*(?:to\s[^.\n]{1,80}?\s)?(?:is|was|:|=|\*\*|would be|should be|must be)+"
    r"|(?:^|\n)\W{0,3}(?:final\s+)?answer\W{0,3}\s*[:=])\s*(?:simply|just|therefore|thus|then|equal to|as follows)?\s*:?",
    re.IGNORECASE,
)
NEXT_QUESTION = re.compile(r"^\W{0,3}(?:question|problem|exercise|q)\s{0,3}\d{0,4}\s{0,3}:", re.IGNORECASE | re.MULTILINE)
SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\bapprox)(?<!\bno)[.!?](?=\s|$|\*|\")|\n", re.IGNORECASE)


def extract_answer(text: str) -> str | None:
    """The final answer to a mathematical question, or None if nothing like one is there.

    Tried in turn: the last \\boxed, the last "####", the last "answer is", and then the last line's last formula or number.
    """
    text = _before_next_question(text[-LONGEST:])
    for find in (last_boxed, _after_hashes, _after_phrase, _in_last_line, _last_number):
        found = find(text)
        if found is not None and found.strip():
            return found.strip()
    return None


def _before_next_question(text: str) -> str:
    """The text without what follows an explicit answer as a question that the model asks itself: one that was shown examples goes
    on in their manner (https://github.com/sgl-project/sglang/pull/29933)."""
    for match in islice(NEXT_QUESTION.finditer(text), MOST_MARKS):
        before = text[: match.start()]
        if any((find(before) or "").strip() for find in (last_boxed, _after_hashes, _after_phrase)):
            return before
    return text


def is_correct(text: str, reference: str) -> bool:
    """Whether a model's text ends in the answer of the key. A sentence with a single number counts as that number."""
    answer = extract_answer(text)
    if answer is None:
        return False
    if equivalent(answer, reference):
        return True
    numbers, words = NUMBER.findall(tidy(answer)), _without_commands(answer)
    if (
        len(numbers) != 1
        or not re.search(r"[A-Za-z]{2}", words)
        or re.search(r"\b(?:not|never)\b|n[’']t\b", words, re.IGNORECASE)
    ):
        return False
    return equivalent(numbers[0], reference)


def _without_commands(text: str) -> str:
    return re.sub(r"\\[A-Za-z]+", "", text)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{…} or \fbox{…} that is closed and not empty; `\boxed 5` counts as well."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox|framebox)\s*", text))[-MOST_MARKS:]):
        if text[found.end() : found.end() + 1] == "{":
            inside = _group(text, found.end())
        else:
            bare = re.match(r"[^\s$\\{}]+", text[found.end() :])
            inside = bare.group().rstrip(".,;") if bare else None
        if inside and inside.strip():
            return last_boxed(inside) or inside
    return None


def _group(text: str, opening: int) -> str | None:
    depth = 0
    for position in range(opening, min(len(text), opening + LONGEST_ANSWER)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[opening + 1 : position]
    return None


def _after_hashes(text: str) -> str | None:
    """GSM8K's own mark; a Markdown heading of words is none."""
    found = [mark.strip() for mark in re.findall(r"(?:^|\n|\s)####\s*([^\n]+)", text)]
    marked = [mark for mark in found if re.match(r"[-+−$€£*\\(\[{.\d]", mark) and re.search(r"\d", mark)]
    return marked[-1] if marked else None


def _after_phrase(text: str) -> str | None:
    for found in reversed(list(PHRASE.finditer(text))[-MOST_MARKS:]):
        rest = text[found.end() :].lstrip(" \t*_:")
        rest = rest.lstrip() if re.match(r"\s*(?:\$\$|\\\[)", rest) else rest
        if rest.startswith("\n") and not rest.strip():
            continue
        answer = _first_statement(rest.lstrip())
        if answer:
            return answer
    return None


def _first_statement(text: str) -> str:
    """The formula that a text begins with, or its first sentence."""
    formula = MATH.match(text)
    if formula:
        return next(group for group in formula.groups() if group is not None)
    end = SENTENCE_END.search(text)
    sentence = text[: end.start()] if end else text
    formulas = [group for found in MATH.finditer(sentence) for group in found.groups() if group is not None]
    plain = tidy(MATH.sub("", sentence))
    if len(formulas) == 1 and not re.search(r"\d", plain):
        return formulas[0]
    return sentence.strip(" *_")


def _in_last_line(text: str) -> str | None:
    """The last formula of the last line, behind its last equals sign; without one, the last bold number."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    formulas = [
        group
        for found in MATH.finditer(text if re.fullmatch(r"\s*(?:\$\$|\\\])\s*", last) else last)
        for group in found.groups()
        if group
    ]
    if formulas:
        return re.split(r"(?<![<>!\\])=", formulas[-1])[-1]
    bold = [part for part in re.findall(r"\*\*([^*]+)\*\*", last) if re.search(r"\d", part)]
    return bold[-1] if bold else None


def _last_number(text: str) -> str | None:
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def extract_choice(text: str, choices: Mapping[str, str] | Sequence[str] = "ABCD") -> str | None:
    """The letter that a model chose, or None.

    Args:
        choices: the letters, or letter → text of the choice, which is recognized where no letter is given.
    """
    letters = "".join(choices)
    text = text[-LONGEST:].strip()
    closed = r"(?:[)\]}*_]*\s*(?:$|[).:,\n]))"  # a small letter needs it, since "a" is an article as well
    opened = r"[(\[{*_\s]*(?:\\text(?:bf|rm)?\{|\\mathrm\{|\\mathbf\{)?\(?"
    one = rf"{opened}(?:([{letters}])(?![\w'’])|([{letters.lower()}])(?={closed}))"
    for statement in filter(None, (last_boxed(text), _after_phrase(text))):
        found = re.match(rf"(?:(?i:the|is|option|choice|answer)\s+)*{one}", statement.strip())
        named = found[1] or found[2] if found else _named_choice(statement, choices)
        if named:
            return named.upper()
    for pattern in (
        rf"^{one}\W*$",
        rf"^{one}[)\]*]*\s*[).:\-,]",
        rf"\b(?i:option|choice)\s+{one}",
        rf"(?:^|\n)\s*{one}[)\]*.\s]*$",
    ):
        hits = list(re.finditer(pattern, text))
        if hits:
            return str(hits[-1][1] or hits[-1][2]).upper()
    return _named_choice(text, choices)


def _named_choice(text: str, choices: Mapping[str, str] | Sequence[str]) -> str | None:
    """The one choice whose text is the statement."""
    if not isinstance(choices, Mapping):
        return None
    said = _letters_only(text)
    hits = [letter for letter, words in choices.items() if _letters_only(words) and said == _letters_only(words)]
    return hits[0] if len(hits) == 1 else None


def _letters_only(text: str) -> str:
    return re.sub(r"\W+", " ", _without_commands(text).lower()).strip()


def extract_label(text: str, labels: Sequence[str]) -> str | None:
    """The label (yes, no, maybe) that a model chose: in the box, after "answer is", at the beginning, or the last of the text."""
    text = text[-LONGEST:].strip()
    any_label = rf"\b({'|'.join(map(re.escape, labels))})\b"
    for statement in filter(None, (last_boxed(text), _after_phrase(text))):
        found = re.search(any_label, statement, re.IGNORECASE)
        if found:
            return found[1].lower()
    first = re.match(rf"\W*{any_label}", text, re.IGNORECASE)
    hits = re.findall(any_label, text, re.IGNORECASE)
    return first[1].lower() if first else hits[-1].lower() if hits else None
