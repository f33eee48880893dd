"""The record of a comparison: quality, speed and memory of several quantizations of one model, measured side by side.

One JSON object, `{"schema": 1, "kind": "comparison", …}`, whose fields are those of `Comparison` and of what it holds.
`read` checks every field's presence and type before anything is made of it; unknown fields are refused, so that a misspelt
or newer record is never half understood. Times are in seconds, sizes in bytes, divergences in nats; shares and scores
are in 0 … 1; intervals are of 95 %. None (null) stands where a figure was not measured or has no meaning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.report.fidelity import Drift, Fidelity, WeightError
from oss_tools.report.loading import build, load, shown
from oss_tools.report.scores import Change, Margins, TaskScore
from oss_tools.statistics.figures import Ratio, Timing

SCHEMA = 1
KIND = "comparison"
MAX_LISTED = 300  # characters of names in a message


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
        load_seconds, peak_bytes, library_bytes: of a process that loads it and answers; peak_bytes is resident memory,
            library_bytes what of it are files of programs and shared libraries.
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
    library_bytes: int | None = None
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
