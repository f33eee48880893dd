"""The record of a comparison: quality, speed and memory of several quantizations of one model, measured side by side.

One JSON object, `{"schema": 1, "kind": "comparison", …}`, whose fields are those of `Comparison` and of what it holds.
`read` checks every field's presence and type before anything is made of it; unknown fields are refused, so that a misspelt
or newer record is never half understood. Times are in seconds, sizes in bytes, divergences in nats; shares and scores
are in 0 … 1; intervals are of 95 %. None (null) stands where a figure was not measured or has no meaning.
"""

from __future__ import annotations

import functools
import math
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.report.loading import load, place, shown
from oss_tools.statistics.figures import Estimate, Ratio, Timing

SCHEMA = 1
KIND = "comparison"
MAX_LISTED = 300  # characters of names in a message
SIGNIFICANT = 0.05  # a corrected p value below this is evidence

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """The weight error of the tensors of one role in one layer (None: outside the layers).

    Attributes:
        format: the candidate's; several are joined with "+".
        relative_error: ‖candidate − base‖ / ‖base‖, over all values of these tensors.
        values: how many.
        worst_slice: the largest relative error of one expert's part; of tensors without experts, of the whole.
        worst_tensor: its tensor's name, with "[expert]" behind where it is an expert's.
        suspicious: whether it lies far beyond what this format costs elsewhere in the model; see `Finding`.
    """

    layer: int | None
    role: str
    format: str
    relative_error: float
    values: int
    worst_slice: float
    worst_tensor: str
    suspicious: bool = False


@dataclass(frozen=True)
class WeightError:
    """How far a candidate's weights are from the base's: over all values that both have, and by layer and role."""

    relative_error: float
    cells: list[Cell]


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ candidate) of the next token's distribution, in nats, over the scored positions."""

    mean: float
    stderr: float | None
    low: float | None
    high: float | None
    median: float
    p90: float
    p95: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True)
class DeltaP:
    """The change of the probability of the token that came, candidate less base, in −1 … 1.

    Attributes:
        percentiles: by name ("p1", "p5", … "p99.9").
    """

    mean: float
    stderr: float | None
    rms: float
    rms_stderr: float | None
    min: float
    max: float
    percentiles: dict[str, float]


@dataclass(frozen=True)
class Fidelity:
    """Predictions over a text, token by token. Of the base: perplexity only.

    Attributes:
        text: its name; the first of a candidate's list is running text.
        sha256: of its tokens.
        tokens, positions, chunks: read, scored, and independent pieces.
        exact: whether the divergence is over the whole vocabulary at every scored position.
        log_perplexity_ratio: ln(candidate's perplexity / base's), paired by chunk.
        same_top: share of positions at which both hold the same token likeliest.
        kld_bound: where the divergence is from a pack, which keeps a part of what the base said: how far its mean may be from the
            exact one; None where it is exact.
    """

    text: str
    sha256: str
    tokens: int
    positions: int
    chunks: int
    perplexity: Estimate
    exact: bool = True
    log_perplexity_ratio: Estimate | None = None
    kld: Divergence | None = None
    same_top: Estimate | None = None
    delta_p: DeltaP | None = None
    kld_bound: float | None = None


@dataclass(frozen=True)
class Difference:
    """Candidate's score less the base's, on the same items.

    Attributes:
        p: two-sided; p_corrected: the same after correction for all task differences in this record (Holm).
        method: the test and the interval, in words.
        gained, lost: items that the candidate does better and worse on.
    """

    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    method: str
    gained: int
    lost: int

    @property
    def significant(self) -> bool:
        """Whether this is evidence of a difference, and not only noise."""
        return self.p_corrected < SIGNIFICANT


@dataclass(frozen=True)
class TaskScore:
    """A task's score.

    Attributes:
        suite: "" for a task named by hand.
        metric: the one that stands for the task.
        items: outcomes in the documents' order (0 or 1 for right or wrong).
        item_ids: the documents' hashes, in that order.
        data_sha256: of all documents.
        difference: to the base; None for the base itself.
        repeats: answers to each item, of which an outcome is the mean.
        prompts: whose wording the questions have, where that is somebody else's ("gpt_oss/evals").
    """

    task: str
    suite: str
    metric: str
    higher_is_better: bool
    n: int
    score: Estimate
    items: list[float]
    item_ids: list[str]
    data_sha256: str
    difference: Difference | None = None
    repeats: int = 1
    prompts: str = ""


@dataclass(frozen=True)
class Latency:
    """Times of one request at a time; all candidates took turns (A B A B) in processes of their own.

    Attributes:
        prompt_tokens, generated_tokens: of each round.
        time_to_first_token: seconds from the prompt's tokens to the choice of the first new one.
        time_per_token: seconds of a step of generation (a round's mean).
        tokens_per_second: generated; prompt_tokens_per_second: read.
        ratio_*: to the base, round by round; above 1 is slower for times. None for the base itself.
        per_reference: the time of a round's fastest steps (its tenth percentile) over that of the record's reference kernel
            beside it, which makes records of different moments of one machine comparable.
    """

    prompt_tokens: int
    generated_tokens: int
    time_to_first_token: Timing
    time_per_token: Timing
    tokens_per_second: Timing
    prompt_tokens_per_second: Timing
    per_reference: Timing | None = None
    ratio_time_to_first_token: Ratio | None = None
    ratio_time_per_token: Ratio | None = None


@dataclass(frozen=True)
class OverTheWire:
    """What was measured of a model behind an address while it answered the questions: network, queue and other people's load are
    in the times, which stand for no hardware.

    Attributes:
        seconds: of a request; tokens_per_second: of an answer; medians over requests.
        prompt_tokens, tokens: in all; truncated: answers that ended at their limit.
        dollars: at the price that the user named; None without one.
    """

    seconds: Timing
    tokens_per_second: Timing | None
    prompt_tokens: int
    tokens: int
    truncated: int
    dollars: float | None = None


@dataclass(frozen=True)
class Margins:
    """By how much decisions were taken: the logarithm of the probability of what the base chose less that of the likeliest rival,
    in nats, after the prompt and what the base had written until then.

    Attributes:
        kind: "all", "option" (a letter), "call" (a call or a final answer), "function" (which one).
        n: decisions.
        base_median, median: margins of the base and of the candidate.
        ratio: of these medians, the candidate's over the base's.
        flips: share of decisions that the candidate would take otherwise.
        base_hanging, hanging: decisions that hang by less than a nat.
        shift: mean of candidate's margin less base's, paired; p: two-sided, corrected for the number of tests in p_corrected.
    """

    kind: str
    n: int
    base_median: float
    median: float
    ratio: Estimate
    flips: Estimate
    base_hanging: int
    hanging: int
    shift: Estimate
    p: float
    p_corrected: float

    @property
    def significant(self) -> bool:
        """Whether margins moved, by evidence."""
        return self.p_corrected < SIGNIFICANT


@dataclass(frozen=True)
class DriftPoint:
    """The divergence of one run from another where so many tokens stand before what is predicted.

    Attributes:
        depth: tokens of context; positions: predictions; windows: independent places of the text.
        kld: mean KL divergence, nats; same_top: share of positions at which both hold the same token likeliest.
    """

    depth: int
    positions: int
    windows: int
    kld: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class Drift:
    """The divergence by depth.

    Attributes:
        kind: what differs: "depth" (the checkpoint), "cache" (the format of the KV cache), "backends" (the program).
        reference, subject: the base and the candidate, or how the candidate was run twice.
    """

    kind: str
    reference: str
    subject: str
    points: list[DriftPoint]


@dataclass(frozen=True)
class Change:
    """An item whose answer the candidate changed.

    Attributes:
        prompt: as the model saw it; answer, base_answer: the text that was scored, or the call.
        score, base_score: of the task's metric.
    """

    task: str
    item_id: str
    prompt: str
    base_answer: str
    answer: str
    base_score: float
    score: float


@dataclass(frozen=True)
class Finding:
    """Something wrong with a candidate that the figures show.

    Attributes:
        kind: "weights" (a tensor or expert far from the base, where others of its format are near), "task" (a score that
            fell, with evidence), or "config", "tokenizer", "template" (what `Candidate.differences` has).
        subject: a tensor's, a task's or a difference's name.
        message: one line with the figures.
        layer, role: of the tensor.
    """

    kind: str
    subject: str
    message: str
    layer: int | None = None
    role: str = ""


@dataclass(frozen=True)
class ModelDifference:
    """What a candidate says otherwise than the base beside tensors, and no number format explains.

    Attributes:
        part: "config", "tokenizer" or "template".
        what: the field, token or template.
        base, candidate: what each says, in words; None where it says nothing.
    """

    part: str
    what: str
    base: str | None
    candidate: str | None

    @property
    def name(self) -> str:
        return f"{self.part}.{self.what}"

    @property
    def message(self) -> str:
        """In a line."""
        if self.candidate is None:
            return f"{self.part}: {self.what} is missing; the base has {self.base}"
        if self.base is None:
            return f"{self.part}: {self.what} is {self.candidate}, which the base has not"
        return f"{self.part}: {self.what} is {self.candidate}, the base's is {self.base}"


@dataclass(frozen=True)
class Candidate:
    """One checkpoint and what was measured of it. The base is one too.

    Attributes:
        name: unique in the record.
        recipe: the number format or recipe that made it; "" for a checkpoint that was there.
        formats: values by number format.
        path: where it lay; sha256: of its files; size: of its files, in bytes.
        parameters: values of all its tensors.
        bits_per_weight: 8 × tensor bytes / parameters.
        load_seconds, peak_bytes: of a process that loads it and answers; peak_bytes is resident memory.
        weight_bytes: of the weights in memory.
        weight_error: to the base; None for the base.
        differences: from the base, of configuration, tokenizer and chat template; None for the base, and in records of
            programs that did not look.
        remarks: what its figures are to be read with, a sentence each.
        margins: of the base's decisions, all and by kind; none for the base.
        drift: by depth, KV-cache format and backend, as far as it was asked for.
        wire: of a model behind an address, whose container is "endpoint", path that address and name, and size 0.
    """

    name: str
    recipe: str
    formats: dict[str, int]
    container: str
    path: str
    sha256: str
    size: int
    parameters: int
    bits_per_weight: float
    weight_error: WeightError | None = None
    fidelity: list[Fidelity] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    latency: Latency | None = None
    load_seconds: Timing | None = None
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    changes: list[Change] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    differences: list[ModelDifference] | None = None
    remarks: list[str] = field(default_factory=list)
    wire: OverTheWire | None = None
    margins: list[Margins] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)

    def task(self, name: str) -> TaskScore | None:
        return next((t for t in self.tasks if t.task == name), None)


@dataclass(frozen=True)
class Environment:
    """Where and how the figures were made.

    Attributes:
        machine: cpu, cores, memory_bytes, system; versions: of Python, this program and packages.
        settings: suites, tier, limit, device, threads, seed, chunk, repeat, ….
        created: UTC, ISO 8601; seconds: of work, that of cached parts included.
        reference_kernel: what it is; reference_seconds: its time, round by round.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    created: str
    seconds: float
    reference_kernel: str = ""
    reference_seconds: Timing | None = None


@dataclass(frozen=True)
class Comparison:
    """The record. `model` is the name of what is quantized, `base` the name of the candidate that is the reference."""

    model: str
    base: str
    environment: Environment
    candidates: list[Candidate]

    def __post_init__(self) -> None:
        names = [c.name for c in self.candidates]
        if len(set(names)) != len(names):
            raise BadRequest(f"candidates share a name: {', '.join(names)[:MAX_LISTED]}")
        if self.base not in names:
            raise BadRequest(f"the base {shown(self.base)} is not among the candidates {', '.join(names)[:MAX_LISTED]}")

    @property
    def reference(self) -> Candidate:
        """The base."""
        return next(c for c in self.candidates if c.name == self.base)

    @property
    def others(self) -> list[Candidate]:
        return [c for c in self.candidates if c.name != self.base]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "kind": KIND, **asdict(self)}

    def write(self, path: Path) -> None:
        text = json_text(self.to_json(), indent=1, allow_nan=False)
        replace_file(path, text + "\n")


def read(path: Path) -> Comparison:
    """The record in a file. Raises BadRequest, in a line that names the file and the field."""
    try:
        raw = load(path)
    except OSError as error:
        raise BadRequest(f"{path}: no readable JSON: {error.strerror}") from None
    try:
        return from_json(raw)
    except BadRequest as error:
        raise BadRequest(f"{path}: {error}") from None


def from_json(raw: Any) -> Comparison:
    """The record that JSON values hold. Raises BadRequest."""
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise BadRequest("not the record of a comparison (its field `kind` says so)")
    if raw.get("schema") != SCHEMA:
        raise BadRequest(f"schema {shown(raw.get('schema'))}; this program reads {SCHEMA}")
    return build(Comparison, {k: v for k, v in raw.items() if k not in ("schema", "kind")}, "record")


def build(kind: type[T], raw: Any, where: str) -> T:
    """A value of a dataclass from JSON values, checked field by field. Raises BadRequest that names the field."""
    if not isinstance(raw, dict):
        raise BadRequest(f"{where}: an object is wanted, not {shown(raw)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - set(hints)):
        raise BadRequest(f"{where}: unknown field {shown(unknown[0])}")
    given = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name in raw:
            given[entry.name] = _checked(hints[entry.name], raw[entry.name], place(where, entry.name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise BadRequest(f"{where}: the field {entry.name!r} is missing")
    return kind(**given)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """A dataclass's types by field; they are evaluated once, a record has thousands of objects."""
    return typing.get_type_hints(kind)


def _checked(hint: Any, raw: Any, where: str) -> Any:
    """`raw`, if it is what the type hint says; objects and lists within it are built anew."""
    if hint is Any:
        return raw
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if raw is None else _checked(next(a for a in arguments if a is not type(None)), raw, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, raw, where)
    if origin is list and isinstance(raw, list):
        return [_checked(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(raw)]
    if origin is dict and isinstance(raw, dict):
        return {str(key): _checked(arguments[1], value, place(where, key)) for key, value in raw.items()}
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
        return float(raw)
    if hint in (int, str, bool) and type(raw) is hint:
        return raw
    raise BadRequest(f"{where}: {getattr(hint, '__name__', hint)} is wanted, not {shown(raw)}")
