"""Margins: by how much a decision was taken, in the base and in a candidate. Quantization shrinks margins before it moves scores.

A decision is a place in an answer where few things can come next: the letter of an option, a call or a final answer, which
function is called. Its margin is the logarithm of the probability of what the base chose there, less that of the likeliest
rival, in nats. Both models are given the prompt and what the base wrote up to that place, so the figures are paired.

Letters are found in the answers of any model, calls in harmony's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oss_tools.endpoints.client import Client
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.prompt_scores import DISPENSABLE, score
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import Text
from oss_tools.report.scores import Margins
from oss_tools.statistics.figures import Estimate
from oss_tools.statistics.paired import holm, paired_difference
from oss_tools.statistics.repeats import median_ratio, share_interval

OPTION, CALL, FUNCTION = "option", "call", "function"
ALL = "all"
LONGEST = 1 << 20  # positions that are sent to a server, whose context is not known
OFFERED = re.compile(r"^([A-Z])[.):] ", re.MULTILINE)
NAMED = re.compile(r"Answer: ?\**\(?([A-Z])(?![A-Za-z])")
ALONE = re.compile(r"\s?([A-Z])[.)]?\s*\Z")
FINAL = "<|channel|>final<|message|>"
HEADER = re.compile(
    r"(?P<final><\|channel\|>final)"
    r"|(?P<before> to=functions\.|<\|channel\|>commentary to=functions\.)(?P<name>[\w.-]+)(?P<after><\|channel\|>| ?<\|[a-z]+\|>)"
)
USUAL = ("<|channel|>commentary to=functions.", " <|constrain|>")  # around a function's name, where no answer shows it

Continuations = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Question:
    """What was asked, and what the base wrote.

    Attributes:
        prompt: tokens; asked: the question as text; functions: names of those offered.
        transcript: of the answer, special tokens by name.
    """

    prompt: tuple[int, ...]
    asked: str
    functions: tuple[str, ...]
    transcript: str


@dataclass(frozen=True)
class Decision:
    """A place where the base chose.

    Attributes:
        kind: OPTION, CALL or FUNCTION.
        prefix: tokens before it.
        taken: what it chose, as one of several texts; rivals: what it might have chosen.
    """

    kind: str
    prefix: tuple[int, ...]
    taken: Continuations
    rivals: tuple[Continuations, ...]


def questions_of(found: Mapping[str, Any]) -> list[Question]:
    """Of what `answers.answer` gave."""
    rows = zip(found["asked"], found["said"], strict=True)
    return [Question(tuple(a["tokens"]), said["prompt"], tuple(a["functions"]), a["transcript"]) for a, said in rows if a]


def decisions(text: Text, questions: Sequence[Question]) -> list[Decision]:
    """Every decision in these answers."""
    styles = [match for q in questions if (match := HEADER.search(q.transcript)) and match["name"]]
    style = (styles[0]["before"], styles[0]["after"]) if styles else USUAL
    return [decision for question in questions for decision in _decisions(text, question, style)]


def _decisions(text: Text, q: Question, style: tuple[str, str]) -> Iterator[Decision]:
    def tokens(written: str) -> tuple[int, ...]:
        return tuple(text.encode(written, special=False))

    header = HEADER.search(q.transcript)
    if header and q.functions and (header["final"] or header["name"] in q.functions):
        prefix = (*q.prompt, *tokens(q.transcript[: header.start()]))
        before, after = (header["before"], header["after"]) if header["name"] else style
        calls = {name: tokens(f"{before}{name}{after}") for name in q.functions}
        final = (tokens(FINAL),)
        if header["final"]:
            yield Decision(CALL, prefix, final, (tuple(calls.values()),))
        else:
            yield Decision(CALL, prefix, tuple(calls.values()), (final,))
            if len(calls) > 1:
                taken = calls.pop(header["name"])
                yield Decision(FUNCTION, prefix, (taken,), tuple((call,) for call in calls.values()))
    letters = sorted(set(OFFERED.findall(q.asked)))
    chosen = _letter(q.transcript) if len(letters) > 1 else None
    if chosen and chosen[1] in letters:
        at = chosen.start(1)
        blank = " " if q.transcript[at - 1 : at] == " " else ""  # which goes into the letter's token
        by_letter = {letter: tuple(text.encode_plain(blank + letter)) for letter in letters}
        taken = by_letter.pop(chosen[1])
        prefix = (*q.prompt, *tokens(q.transcript[: at - len(blank)]))
        yield Decision(OPTION, prefix, (taken,), tuple((rival,) for rival in by_letter.values()))


def _letter(transcript: str) -> re.Match[str] | None:
    """The letter that an answer chooses: the whole of it, or what stands behind its last "Answer:"."""
    begin = transcript.rfind(FINAL) + len(FINAL) if FINAL in transcript else 0
    end = transcript.find("<|", begin)
    end = len(transcript) if end < 0 else end
    named = list(NAMED.finditer(transcript, begin, end))
    return named[-1] if named else ALONE.match(transcript, begin, end)


Scoring = Callable[
    [list[tuple[list[int], int]]], Sequence[float]
]  # of (tokens, start): the log-probability of tokens[start:]


def measure(engine: Engine, found: Sequence[Decision]) -> np.ndarray:
    """The margin of each decision, in nats; NaN where it does not fit into the context."""
    return measured(lambda wanted: [s.logprobs.sum(dtype=np.float64) for s in engine.score(wanted)], found, engine.context)


def measure_remote(
    endpoint: Endpoint,
    text: Text,
    found: Sequence[Decision],
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """The same of a model behind an address, which has the base's tokenizer. Raises BadSource where it has not, or gives no
    log-probabilities of a prompt."""
    with Client(endpoint, dispensable=DISPENSABLE, say=say) as client:

        def scores(wanted: list[tuple[list[int], int]]) -> list[float]:
            return score(client, wanted, lambda token: text.decode([token], skip_special=False), progress)

        return measured(scores, found, LONGEST)


def measured(scoring: Scoring, found: Sequence[Decision], context: int) -> np.ndarray:
    """The margins by what says how likely tokens are, of decisions that fit into so many positions."""
    requests: list[tuple[list[int], int]] = []
    places: list[
        tuple[int, list[list[int]]]
    ] = []  # of each decision: the requests of each of its choices, the taken one first
    for number, decision in enumerate(found):
        longest = max(len(c) for choice in (decision.taken, *decision.rivals) for c in choice)
        if len(decision.prefix) + longest > context:
            continue
        rows = []
        for choice in (decision.taken, *decision.rivals):
            rows.append(list(range(len(requests), len(requests) + len(choice))))
            requests += [([*decision.prefix, *continuation], len(decision.prefix)) for continuation in choice]
        places.append((number, rows))
    order = sorted(range(len(requests)), key=lambda i: requests[i][0])  # what begins alike is computed once
    scores = dict(zip(order, scoring([requests[i] for i in order]), strict=True))
    margins = np.full(len(found), np.nan)
    for number, rows in places:
        taken, *rivals = (np.logaddexp.reduce([scores[i] for i in row]) for row in rows)
        margins[number] = taken - max(rivals)
    return margins


def summarized(
    found: Sequence[Decision], base: np.ndarray, others: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, list[Margins]]:
    """By candidate: the figures of all decisions and of each kind, p values corrected for their number (Holm)."""
    kinds = np.array([decision.kind for decision in found])
    there = np.isfinite(base)
    groups = {ALL: there, **{kind: there & (kinds == kind) for kind in (OPTION, CALL, FUNCTION)}}
    keys = [(name, kind) for name in others for kind, rows in groups.items() if rows.any()]
    tests = [
        paired_difference(base[groups[kind]].tolist(), others[name][groups[kind]].tolist(), seed=seed) for name, kind in keys
    ]
    result: dict[str, list[Margins]] = {name: [] for name in others}
    for (name, kind), test, p in zip(keys, tests, holm([test.p for test in tests]), strict=True):
        one, two = base[groups[kind]], others[name][groups[kind]]
        flips = int(((one >= 0) & (two < 0)).sum())
        result[name].append(
            Margins(
                kind, len(one), float(np.median(one)), float(np.median(two)), median_ratio(one, two, seed),
                share_interval(flips, len(one)), int((one < 1).sum()), int((two < 1).sum()),
                Estimate(test.value, None, test.low, test.high), test.p, p,
            )
        )  # fmt: skip
    return result
