"""A case: two quantizations' answers to one conversation, with what each token cost. The playground of `serve` makes it.

One JSON object, `{"schema": 1, "kind": "side-by-side", …}`. Divergences are KL(own ‖ other) of the next token's distribution, in
nats, at every token of an answer; probabilities are natural logarithms. The first answer's model is the base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.report.figures import Figure
from oss_tools.report.metrics import Interval, format_number
from oss_tools.report.shapes import Node, Shape, check
from oss_tools.report.sheet import Model, Sheet

KIND = "side-by-side"
SCHEMA = 1
MOST_TOKENS = 100_000  # of an answer
MAX_NAME = 200  # characters
LARGEST = 1e6  # nats; the logits of one token are no further apart
STEPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # nats, where levels of colour begin

ANSWER: dict[str, Shape] = {
    "model": "text",
    "finish": "text",
    "time_to_first_token": "number",
    "seconds": "number",
    "tokens": ["number"],
    "texts": ["text"],
    "channels": ["text?"],
    "kld": ["number"],
    "logprob": ["number"],
    "other_logprob": ["number"],
    "same_top": ["flag"],
    "other_top": [["scalar"]],
}
SHAPE: dict[str, Shape] = {
    "created?": "text",
    "messages": [{"role": "text", "*": "any"}],
    "sampling": {"*": "scalar"},
    "parted": "number?",
    "answers": [ANSWER],
    "machine?": {"cpu?": "text?", "*": "scalar"},
    "versions?": {"*": "text?"},
}
PER_TOKEN = ("texts", "channels", "kld", "logprob", "other_logprob", "same_top", "other_top")


@dataclass(frozen=True)
class Said:
    """One model's answer, token by token.

    Attributes:
        channels: of each token; None for marks and headers.
        kld: KL(this model ‖ the other).
        logprob, other_logprob: of the token, by this model and by the other.
        same_top: whether both held the same token likeliest.
        other_top: what the other held likeliest.
    """

    model: str
    finish: str
    time_to_first_token: float
    seconds: float
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    channels: tuple[str | None, ...]
    kld: tuple[float, ...]
    logprob: tuple[float, ...]
    other_logprob: tuple[float, ...]
    same_top: tuple[bool, ...]
    other_top: tuple[str, ...]

    @property
    def rate(self) -> float | None:
        """Tokens per second behind the first."""
        spent = self.seconds - self.time_to_first_token
        return (len(self.tokens) - 1) / spent if len(self.tokens) > 1 and spent > 0 else None

    @property
    def sums(self) -> list[tuple[str, str]]:
        """What is written under an answer."""
        n = len(self.tokens)
        rate = [("tokens per second", format_number(self.rate))] if self.rate else []
        return [
            ("KL divergence, sum", f"{format_number(math.fsum(self.kld))} nats"),
            ("per token", format_number(math.fsum(self.kld) / n)),
            ("largest", format_number(max(self.kld))),
            ("same likeliest token", f"{100 * sum(self.same_top) / n:.1f} %"),
            ("tokens", str(n)),
            ("first token", f"{format_number(1000 * self.time_to_first_token)} ms"),
            *rate,
        ]

    def runs(self) -> Iterator[tuple[str, list[tuple[int, str, int, str]]]]:
        """Tokens of one channel ("" for marks) together: (place, text, level of colour, what is to be said of it)."""
        run: list[tuple[int, str, int, str]] = []
        for place, channel in enumerate(self.channels):
            if place and channel != self.channels[place - 1]:
                yield self.channels[place - 1] or "", run
                run = []
            shares = (f"{100 * math.exp(min(p, 0.0)):.3g} %" for p in (self.logprob[place], self.other_logprob[place]))
            about = f"KL {format_number(self.kld[place])}; {' here, '.join(shares)} by the other"
            run.append((place, self.texts[place], sum(self.kld[place] >= step for step in STEPS), about))
        yield self.channels[-1] or "", run


@dataclass(frozen=True)
class Case:
    """Both answers, the base's first, and what they answer.

    Attributes:
        parted: the first token at which they differ; None if they are the same.
    """

    question: str
    sampling: dict[str, Any]
    parted: int | None
    answers: tuple[Said, Said]
    created: str
    machine: dict[str, Any]
    versions: dict[str, Any]

    @property
    def sentence(self) -> str:
        """Where the answers part, in words."""
        one, two = self.answers
        if self.parted is None:
            return f"Both give the same {len(one.tokens)} tokens."
        said = [repr(a.texts[self.parted]) if self.parted < len(a.texts) else "nothing more" for a in self.answers]
        begin = f"The same {self.parted} tokens, then" if self.parted else "From the first token on,"
        return f"{begin} {one.model} says {said[0]} and {two.model} {said[1]}."


def from_json(raw: dict[str, Any]) -> Case:
    """The case, checked. Raises BadRequest that names the place."""
    record = Node(raw, "record")
    check(record, SHAPE)
    answers = [_said(answer) for answer in record["answers"].each()]
    if len(answers) != 2:
        raise BadRequest(f"record.answers: two are wanted, not {len(answers)}")
    one, two = answers
    if one.model == two.model:
        raise BadRequest("record.answers: both are of one model")
    found = parted(one.tokens, two.tokens)
    if raw["parted"] != found:
        raise BadRequest(f"record.parted: the answers part at {found}, not at {raw['parted']!r}")
    asked = [m.get("content") for m in raw["messages"] if m.get("role") == "user"]
    question = asked[-1] if asked and isinstance(asked[-1], str) else ""
    surroundings = (dict(raw.get(name) or {}) for name in ("machine", "versions"))
    return Case(question, dict(raw["sampling"]), found, (one, two), str(raw.get("created", "")), *surroundings)


def parted(one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """The first place at which two answers differ: where the shorter ends, if it is the longer one's beginning; None if they are
    the same."""
    if one == two:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _said(answer: Node) -> Said:
    raw, name = answer.raw, answer["model"].text()
    if not 0 < len(name) <= MAX_NAME:
        raise BadRequest(f"{answer.where}.model: 1 to {MAX_NAME} characters are wanted, not {len(name)}")
    count = len(raw["tokens"])
    if not 0 < count <= MOST_TOKENS:
        raise BadRequest(f"{answer.where}.tokens: 1 to {MOST_TOKENS} are wanted, not {count}")
    for field in PER_TOKEN:
        if len(raw[field]) != count:
            raise BadRequest(f"{answer.where}.{field}: {len(raw[field])} values for {count} tokens")
    if not all(0 <= value <= LARGEST for value in raw["kld"]):
        raise BadRequest(f"{answer.where}.kld: a divergence is 0 or more, and {LARGEST:g} at most")
    for field in ("logprob", "other_logprob"):
        if not all(value <= 1e-6 for value in raw[field]):
            raise BadRequest(f"{answer.where}.{field}: the logarithm of a probability is 0 at most")
    if not all(top and isinstance(top[0], str) for top in raw["other_top"]):
        raise BadRequest(f"{answer.where}.other_top: a text and its probability are wanted")
    lists = {field: tuple(raw[field]) for field in ("tokens", *PER_TOKEN)}
    lists["other_top"] = tuple(top[0] for top in raw["other_top"])
    return Said(name, raw["finish"], float(raw["time_to_first_token"]), float(raw["seconds"]), **lists)


def sheet_of_case(case: Case) -> Sheet:
    """The figures of a case: the other model's divergence from the base over the base's answer. Speeds of models that answered at
    the same time are none."""
    base, _ = case.answers
    on = hashlib.sha256(repr((case.question, base.tokens)).encode()).hexdigest()
    models = []
    for said in case.answers:
        figures = {}
        if said is not base:
            figures["kld.mean"] = Figure(Interval(math.fsum(base.kld) / len(base.kld)), on)
            figures["kld.max"] = Figure(Interval(max(base.kld)), on)
            figures["same_top"] = Figure(Interval(sum(base.same_top) / len(base.same_top)), on)
        models.append(Model(said.model, figures, is_base=said is base))
    environment = {"run": {"created": case.created}, "machine": case.machine, "settings": case.sampling}
    title = " ".join(case.question.split()) or "a conversation"
    shown = title if len(title) <= 80 else f"{title[:79]}…"
    return Sheet(f"Side by side: {shown}", models, {**environment, "versions": case.versions}, case=case)
