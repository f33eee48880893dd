"""Records of `bench`, `eval` and `compare`, and the playground's cases, read and checked: what a stranger's file must not hold is
refused in a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.report import side_by_side
from oss_tools.report.comparison import KIND, Candidate, Comparison, from_json
from oss_tools.report.figures import Figure, How, candidate_figures, task_metric
from oss_tools.report.loading import load
from oss_tools.report.metrics import Interval
from oss_tools.report.shapes import BENCH, EVAL, Node, check
from oss_tools.report.sheet import Model, Sheet, by_size, sheet_of

SCHEMAS = {"bench": 1, "eval": 1, KIND: 1, side_by_side.KIND: side_by_side.SCHEMA}  # what this program reads
MAX_MODELS = 100  # in one report
MAX_TASKS = 500  # of one model
MAX_CELLS = 20_000  # of one candidate's weight errors
MAX_NAME = 200  # characters
USUAL_EFFORT = "medium"  # where `eval` was not told another


def load_sheets(files: Sequence[Path]) -> list[Sheet]:
    """The sheets of these records: one for each comparison and each case, one for all others together.

    Raises BadRequest, OSError.
    """
    sheets: list[Sheet] = []
    others: dict[str, Model] = {}
    environment: dict[str, dict[str, Any]] = {}
    for file in files:
        raw = load_json(file)
        try:
            if raw["kind"] == KIND:
                sheets.append(sheet_of(checked(from_json(raw))))
                continue
            if raw["kind"] == side_by_side.KIND:
                sheets.append(side_by_side.sheet_of_case(side_by_side.from_json(raw)))
                continue
            record, is_bench = Node(raw, "record"), raw["kind"] == "bench"
            check(record, BENCH if is_bench else EVAL)
            models = _bench(record) if is_bench else [_eval(record)]
        except (BadRequest, OverflowError) as error:
            raise BadRequest(f"{file}: {error}") from None
        for model in models:
            known = others.get(model.name)
            others[model.name] = Model(model.name, {**(known.figures if known else {}), **model.figures})
        environment |= {f"{name}, {file.name}": raw[name] for name in ("machine", "versions", "settings") if name in raw}
    if len(others) > MAX_MODELS:
        raise BadRequest(f"{len(others)} models are too many for one report; at most {MAX_MODELS}")
    if others:
        sheets.append(Sheet(f"{len(others)} model{'s' * (len(others) > 1)}", by_size(list(others.values())), environment))
    return sheets


def load_json(file: Path) -> dict[str, Any]:
    """A record's JSON, of a kind and schema that this program reads. Raises BadRequest, OSError."""
    raw = load(file)
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in SCHEMAS:
        raise BadRequest(
            f"{file}: no record of bench, eval or compare, and no case (the field `kind` is {str(kind)[:40]!r})"
        )
    schema = raw.get("schema")
    if schema != SCHEMAS[kind]:
        newer = isinstance(schema, int) and schema > SCHEMAS[kind]
        advice = "; a newer oss-tools reads it" if newer else "; make the record again"
        raise BadRequest(f"{file}: schema {str(schema)[:40]}, this program reads {SCHEMAS[kind]}{advice}")
    return raw


def checked(record: Comparison) -> Comparison:
    """The record, if its figures can be what they claim to be. Raises BadRequest."""
    if len(record.candidates) > MAX_MODELS:
        raise BadRequest(f"{len(record.candidates)} candidates are too many; at most {MAX_MODELS}")
    for number, candidate in enumerate(record.candidates):
        _check_candidate(candidate, f"record.candidates[{number}]")
    return record


def _check_candidate(c: Candidate, where: str) -> None:
    if not 0 < len(c.name) <= MAX_NAME:
        raise BadRequest(f"{where}.name: 1 to {MAX_NAME} characters are wanted, not {len(c.name)}")
    for name in ("size", "parameters", "bits_per_weight"):
        if getattr(c, name) < 0:
            raise BadRequest(f"{where}.{name}: {getattr(c, name)} is less than 0")
    if c.weight_error and len(c.weight_error.cells) > MAX_CELLS:
        raise BadRequest(f"{where}.weight_error.cells: {len(c.weight_error.cells)} are too many; at most {MAX_CELLS}")
    if len(c.tasks) > MAX_TASKS:
        raise BadRequest(f"{where}.tasks: {len(c.tasks)} are too many; at most {MAX_TASKS}")
    for number, task in enumerate(c.tasks):
        if not len(task.items) == len(task.item_ids) == task.n:
            lengths = f"{len(task.items)} items and {len(task.item_ids)} hashes"
            raise BadRequest(f"{where}.tasks[{number}]: {lengths} for n = {task.n}")
    for name, figure in candidate_figures(c, "", ""):
        low, high = figure.interval.bounds
        if low > high:
            raise BadRequest(f"{where}: the interval of {name} ends before it begins ({low:g} to {high:g})")


# --- bench


def _bench(record: Node) -> list[Model]:
    """A row for each model and program."""
    machine = _machine(record)
    models: list[Model] = []
    if not record["models"].raw:
        raise record["models"].wrong("a list of models")
    for entry in record["models"].each():
        name, size = _name(entry["model"]), entry["bytes"].positive()
        for program, contender in entry["contenders"].items():
            figures = {"size": Figure(Interval(size)), **dict(_contender(contender, machine))}
            models.append(Model(name if program == "oss-tools" else f"{name} ({program[:40]})", figures))
    return models


def _contender(contender: Node, machine: str) -> Iterator[tuple[str, Figure]]:
    yield "load_seconds", Figure(Interval(contender["load_seconds"].number()), machine)
    yield "peak_memory", Figure(Interval(contender["peak_bytes"].positive()))
    seen: set[str] = set()
    for result in contender["results"].each():
        kind, case = result["kind"].text(), result["case"].text()
        suffix = f"@{case}" if kind in seen else ""  # the first case of each kind stands for the model
        seen.add(kind)
        on = f"{machine}, {case}"
        rate = result["tokens_per_second"].positive()
        rates = _range(result.get("tokens_per_second_range"), rate)
        if kind == "prompt":
            yield f"prompt_tokens_per_second{suffix}", Figure(rates, on)
            yield f"time_to_first_token{suffix}", Figure(Interval(result["time_to_first_token"].positive()), on)
        else:
            yield f"tokens_per_second{suffix}", Figure(rates, on)
            yield f"time_per_token{suffix}", Figure(Interval(result["step_seconds_p50"].positive()), on)
        if ratio := result.get("ratio"):
            name = f"peer_ratio@{case}" if kind == "prompt" else f"peer_ratio{suffix}"
            yield name, Figure(_range(ratio.get("range"), ratio["median"].positive()))


def _range(pair: Node | None, value: float) -> Interval:
    """The median of repeats lies between the least and the largest of n with probability 1 − 2^(1 − n): 94 % for five."""
    bounds = [bound.number() for bound in pair.each()] if pair else []
    if len(bounds) != 2 or not bounds[0] <= value <= bounds[1] or bounds[0] == bounds[1]:
        return Interval(value)
    return Interval(value, *bounds)


def _machine(record: Node) -> str:
    machine = record.get("machine")
    cpu = machine.get("cpu") if machine else None
    return cpu.text() if cpu else ""


def _name(node: Node) -> str:
    name = node.text()
    if not 0 < len(name) <= MAX_NAME:
        raise BadRequest(f"{node.where}: 1 to {MAX_NAME} characters are wanted, not {len(name)}")
    return name


# --- eval


def _eval(record: Node) -> Model:
    model = record["model"]
    figures: dict[str, Figure] = {}
    if size := model.get("nbytes"):
        figures["size"] = Figure(Interval(size.positive()))
    tasks = list(record["tasks"].items())
    if len(tasks) > MAX_TASKS:
        raise BadRequest(f"record.tasks: {len(tasks)} are too many; at most {MAX_TASKS}")
    for name, task in tasks:
        metric = task["metric"].text()
        if score := task["scores"].get(metric):
            better = score.get("higher_is_better")
            figures[task_metric(name[:MAX_NAME], better is None or better.raw is not False)] = _task(task, score, metric)
    _tell_how(record, figures)
    if divergence := record.get("divergence"):
        figures |= dict(_divergence(divergence))
    return Model(_name(model["name"]), figures)


def _tell_how(record: Node, figures: dict[str, Figure]) -> None:
    """Adds how each task's questions were asked, where the record says whose words they have."""
    settings = record.get("settings")
    effort, limit = (settings.get(name) if settings else None for name in ("effort", "limit"))
    for name, task in record["tasks"].items():
        prompts, repeats, n = (task.get(field) for field in ("prompts", "repeats", "n"))
        for metric in (task_metric(name[:MAX_NAME], True), task_metric(name[:MAX_NAME], False)):
            if metric in figures and prompts:
                how = How(
                    effort.text() if effort else USUAL_EFFORT,
                    prompts.text(),
                    int(repeats.positive()) if repeats else 1,
                    int(n.number()) if n else 0,
                    limit is None,
                )
                figures[metric] = replace(figures[metric], how=how)


def _task(task: Node, score: Node, metric: str) -> Figure:
    value, low, high = score["score"].number(), score.get("low"), score.get("high")
    interval = Interval(value, low.number(), high.number()) if low and high else Interval(value)
    low_bound, high_bound = interval.bounds
    if low_bound > high_bound:
        raise BadRequest(f"{score.where}: the interval ends before it begins")
    items: tuple[float, ...] = ()
    ids: tuple[str, ...] = ()
    rows = task["items"].get(metric)
    if rows and isinstance(rows.raw, list) and all(isinstance(v, int | float) for v in rows.raw):
        items = tuple(row.number() for row in rows.each())
        ids = tuple(row.text() for row in task["items"]["sha256"].each())
        if len(items) != len(ids):
            raise BadRequest(f"{rows.where}: {len(items)} outcomes for {len(ids)} documents")
    return Figure(interval, task["data_sha256"].text(), items, ids)


def _divergence(node: Node) -> Iterator[tuple[str, Figure]]:
    """From a base, over the texts of the suite."""
    kld = node["kld"]
    yield "kld.mean", Figure(_with_error(kld))
    for name in ("median", "p90", "p95", "p99", "p99.9", "max"):
        if figure := kld.get(name):
            yield f"kld.{name.replace('99.9', '99_9')}", Figure(Interval(figure.number()))
    yield "same_top", Figure(_with_error(node["same_top"]))


def _with_error(node: Node) -> Interval:
    mean, stderr = node["mean"].number(), node.get("stderr")
    return Interval(mean, mean - 1.96 * stderr.number(), mean + 1.96 * stderr.number()) if stderr else Interval(mean)
