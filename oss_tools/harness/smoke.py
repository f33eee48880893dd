"""How the answers of the smoke tests are scored. Every score is of one answer, 0 or 1; one that does not apply is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from oss_tools.harness.answers import UNTOLD, Call, details_of
from oss_tools.harness.extraction import extract_choice

Doc = Mapping[str, Any]
Scores = dict[str, float]
NUMBER = re.compile(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?")
MOST_WORDS = 20  # in which a short answer may be wrapped


def last_number(text: str) -> float | None:
    """The last number in a text, with or without thousands separators."""
    found = NUMBER.findall(text.replace("−", "-"))
    return float(found[-1].replace(",", "")) if found else None


def score_math(doc: Doc, results: Sequence[str]) -> Scores:
    """The last number of the answer is the right one."""
    return {"correct": float(last_number(results[0]) == last_number(doc["answer"]))}


def score_health(doc: Doc, results: Sequence[str]) -> Scores:
    """The right letter; the right number and unit; or the right words."""
    text, answer = results[0], doc["answer"]
    if re.fullmatch("[A-D]", answer):
        return {"correct": float(extract_choice(text, "ABCD") == answer)}
    if re.match(r"[-\d]", answer):
        return {"correct": float(same_quantity(text, answer))}
    return {"correct": float(says(text, answer))}


def same_quantity(text: str, answer: str) -> bool:
    """Whether the last number is the answer's, and the unit after it, where one is named, too."""
    unit = plain(NUMBER.sub("", answer))
    told = plain(NUMBER.split(text)[-1])
    return last_number(text) == last_number(answer) and (not told or not unit or told.startswith(unit))


def says(text: str, answer: str) -> bool:
    """Whether a short text is the answer, or holds its words in a row."""
    words = plain(text)
    return len(words.split()) <= MOST_WORDS and f" {plain(answer)} " in f" {words} "


def plain(text: str) -> str:
    """Lower case, letters and digits only, without articles."""
    return " ".join(word for word in re.findall(r"[^\W_]+", text.casefold()) if word not in ("a", "an", "the"))


def score_tool_use(doc: Doc, results: Sequence[str]) -> Scores:
    """Whether the right thing was done, and what of it was right.

    right_function, right_arguments: where a call is wanted; right_abstention: where none is; valid_json: where one was made;
    well_formed: nothing is wrong with the answer's format.
    """
    details, wanted = details_of(results[0]), doc["call"]
    scores = {"well_formed": float(not set(details.problems) - {UNTOLD})}
    if details.calls:
        scores["valid_json"] = float(all(call.arguments is not None for call in details.calls))
    if wanted is None:
        right = not details.calls and says_result(results[0], doc["answer"], doc["kind"])
        return {
            "correct": float(right),
            "right_abstention": float(not details.calls and "no_final" not in details.problems),
        } | scores
    function = len(details.calls) == 1 and details.calls[0].name == wanted["name"]
    arguments = function and same_arguments(details.calls[0], wanted["arguments"])
    found = {"correct": arguments, "right_function": function, "right_arguments": arguments}
    return {name: float(value) for name, value in found.items()} | scores


def says_result(text: str, answer: str, kind: str) -> bool:
    """Without a call: any text where no tool fits, the tool's result where it has answered."""
    return bool(text.strip()) if kind == "abstain" else f" {plain(answer)} " in f" {plain(text)} "


def same_arguments(call: Call, wanted: Mapping[str, Any]) -> bool:
    return call.arguments is not None and same_value(call.arguments, wanted)


def same_value(one: Any, other: Any) -> bool:
    """Equality of JSON values: 2 is 2.0, true is not 1, blanks around texts do not count."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    return (type(one) in (int, float) and type(other) in (int, float) and one == other) or one is other is None
