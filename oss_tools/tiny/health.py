"""Health questions of the embedded model: plain facts with their sources, and the arithmetic of doses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.tiny.doses import PROBLEMS, Problem
from oss_tools.tiny.items import Item, Split, split_of

Form = Literal["choice", "short"]
FORMS: tuple[Form, ...] = ("choice", "short")
CHOICE_SHARE, SHORT_SHARE = 0.40, 0.22  # the rest are doses
EFFORTS: dict[Effort, int] = {"low": 15, "medium": 65, "high": 20}  # shares
LETTERS = "ABCD"


@dataclass(frozen=True)
class Fact:
    """One fact of a relation, in all its wordings."""

    id: str  # relation/subject
    kind: str  # hormones, vital_signs, …
    questions: tuple[str, ...]
    answer: str
    distractors: tuple[str, ...]  # wrong answers of the same sort, at least three
    statement: str  # the fact as one sentence
    source: str  # publisher and title


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact of health_facts.yaml, in its order."""
    text = resources.files("oss_tools.tiny").joinpath("health_facts.yaml").read_text(encoding="utf-8")
    relations = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)
    return tuple(fact for relation in relations for fact in _facts_of(relation))


def _facts_of(relation: dict[str, Any]) -> Iterator[Fact]:
    rows = [(str(row[0]), str(row[1]), row[2] if len(row) > 2 else {}) for row in relation["rows"]]
    pool = dict.fromkeys([answer for _, answer, _ in rows] + [str(option) for option in relation.get("options", [])])
    for subject, answer, more in rows:
        right = {answer, *(other for name, other, _ in rows if name == subject), *map(str, more.get("not", []))}
        wrong = [str(option) for option in more.get("options", pool)]
        yield Fact(
            id=f"{relation['relation']}/{subject.replace(' ', '_')}",
            kind=relation["kind"],
            questions=tuple(_sentence(wording.format(subject=subject)) for wording in relation["questions"]),
            answer=answer,
            distractors=tuple(option for option in wrong if option not in right),
            statement=_sentence(more.get("statement", relation["statement"]).format(subject=subject, answer=answer)),
            source=more.get("source", relation["source"]),
        )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def key_of(fact: Fact, wording: int, form: Form) -> str:
    """What decides the split of a fact's question: the fact, its wording and the form, whatever options are drawn."""
    return f"health/{fact.id}/{wording}/{form}"


@cache
def wordings(split: Split, form: Form) -> tuple[tuple[Fact, tuple[int, ...]], ...]:
    """The facts that have wordings in this split, each with the numbers of those wordings."""
    found = (
        (fact, tuple(n for n in range(len(fact.questions)) if split_of(key_of(fact, n, form)) == split)) for fact in facts()
    )
    return tuple((fact, numbers) for fact, numbers in found if numbers)


def items(rng: random.Random, split: Split) -> Iterator[Item]:
    """Endless random items of one split: choices, short answers and doses; the same for the same state of `rng`."""
    while True:
        drawn = rng.random()
        if drawn < CHOICE_SHARE:
            yield _fact_item(rng, split, "choice")
        elif drawn < CHOICE_SHARE + SHORT_SHARE:
            yield _fact_item(rng, split, "short")
        else:
            yield _dose_item(rng, split)


def _fact_item(rng: random.Random, split: Split, form: Form) -> Item:
    fact, numbers = rng.choice(wordings(split, form))
    number, effort = rng.choice(numbers), _effort(rng)
    question = fact.questions[number]
    if form == "short":
        prompt, analysis, answer = question, _recall(fact, effort), fact.answer
    else:
        options = [fact.answer, *rng.sample(fact.distractors, len(LETTERS) - 1)]
        rng.shuffle(options)
        answer = LETTERS[options.index(fact.answer)]
        lines = [question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))]
        prompt = "\n".join([*lines, "Answer with the letter."])
        analysis = _choose(fact, options, answer, effort)
    return _item(fact.kind, key_of(fact, number, form), prompt, analysis, answer, effort)


def _recall(fact: Fact, effort: Effort) -> str:
    if effort == "low":
        return fact.statement
    topic = f"This is about {fact.kind.replace('_', ' ')}. " if effort == "high" else ""
    return f"{topic}{fact.statement} So the answer is {fact.answer}."


def _choose(fact: Fact, options: list[str], letter: str, effort: Effort) -> str:
    """The fact comes first, then its letter: at once (low), option by option up to the right one (medium) or all (high)."""
    if effort == "low":
        return f"{fact.statement} So {fact.answer} is {letter}."
    seen = options if effort == "high" else options[: LETTERS.index(letter) + 1]
    topic = f"This is about {fact.kind.replace('_', ' ')}. " if effort == "high" else ""
    judged = "".join(
        f"{name}. {option}: {'yes' if option == fact.answer else 'no'}\n"
        for name, option in zip(LETTERS, seen, strict=False)
    )
    return f"{topic}{fact.statement}\n{judged}So {letter}."


def _effort(rng: random.Random) -> Effort:
    return rng.choices(list(EFFORTS), list(EFFORTS.values()))[0]


def _dose_item(rng: random.Random, split: Split) -> Item:
    make = rng.choice(PROBLEMS)
    while True:
        problem: Problem = make(rng)
        key = f"health/{problem.kind}/{problem.numbers}"
        if split_of(key) == split:
            effort = _effort(rng)
            return _item(problem.kind, key, problem.question, problem.analysis(effort), problem.answer, effort)


def _item(kind: str, key: str, prompt: str, analysis: str, answer: str, effort: Effort) -> Item:
    messages = (
        Message("user", prompt),
        Message("assistant", analysis, channel="analysis"),
        Message("assistant", answer, channel="final"),
    )
    return Item("health", kind, key, Conversation(messages, effort=effort), answer)
