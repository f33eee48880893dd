"""The rules of gates as YAML has them (configs/gates/*.yaml): limits on a record's figures, or on their change."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRecipe
from oss_tools.guesses import none_named
from oss_tools.report.metrics import METRICS, format_number, formatted, metric_of
from oss_tools.report.sheet import Model
from oss_tools.resources import resource

MAX_BYTES = 1 << 20  # of a gate's file


MAX_RULES = 1000


AGAINST = ("base", "baseline")


MISSING = ("fail", "skip")


DIFFERENCES = "differences"


FAMILIES = ("task", "suite", "perplexity", "findings")  # metrics with a name behind the dot


@dataclass(frozen=True)
class Rule:
    """One limit. All fields stand in the YAML file.

    Attributes:
        metric: a metric's name (docs/report.md lists them), or a pattern (`task.*`), which is a rule for each that there is.
        min, max: what is allowed, in the metric's own unit (shares in 0 … 1, seconds, bytes, nats).
        difference: "base" or "baseline": the limits are for the figure less that one's.
        ratio: "base" or "baseline": the limits are for the figure over that one's.
        candidates: patterns on the names and recipes of those the rule is for; by default all but the base.
        wanted: for the metric `differences`: patterns on the names of those that are meant, and do not count.
        strict: whether the figure decides, and not its interval.
        missing: "fail" or "skip", where a figure, or the one to compare it with, is not there.
        same_processor: whether the rule is skipped where the baseline was made on another processor.
        name: of the rule; by default its metric and limits in words.
        about: why, in a sentence.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    difference: str | None = None
    ratio: str | None = None
    candidates: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    strict: bool = False
    missing: str = "fail"
    same_processor: bool = False
    name: str = ""
    about: str = ""

    @property
    def against(self) -> str | None:
        return self.difference or self.ratio

    @property
    def title(self) -> str:
        return self.name or f"{self.subject} {self.limits}"

    @property
    def subject(self) -> str:
        """What is limited, in words."""
        if self.difference:
            return f"{self.metric} less the {self.difference}'s"
        return f"{self.metric} over the {self.ratio}'s" if self.ratio else self.metric

    @property
    def limits(self) -> str:
        """What is allowed, in words."""
        words = []
        for word, limit in (("at least", self.min), ("at most", self.max)):
            if limit is not None:
                factor, unit = self.unit
                plain = unit or metric_of(self.metric).unit in ("", "count")
                words.append(f"{word} {limit * factor:g}{unit}" if plain else f"{word} {self.written(limit)}")
        return " and ".join(words).replace(" -", " −")

    @property
    def unit(self) -> tuple[float, str]:
        """A factor and a unit in which values of what the rule limits are written; ("" has the metric's own writing)."""
        unit = metric_of(self.metric).unit
        if self.ratio:
            return 1.0, " ×"
        if unit == "percent":
            return (100.0, " points") if self.difference else (100.0, " %")
        return (1000.0, " ms") if unit == "ms" else (1.0, "")

    def written(self, value: float, with_unit: bool = True) -> str:
        """A value of what the rule limits."""
        factor, unit = self.unit
        if not unit:
            return formatted(self.metric, value)
        return format_number(factor * value) + unit * with_unit

    def is_for(self, model: Model) -> bool:
        if not self.candidates:
            return not model.is_base
        return any(fnmatchcase(name, pattern) for pattern in self.candidates for name in (model.name, model.recipe) if name)


@dataclass(frozen=True)
class Gate:
    """Rules, every one of which must hold."""

    name: str
    rules: tuple[Rule, ...]
    about: str = ""

    @property
    def wants_baseline(self) -> bool:
        return any(rule.against == "baseline" for rule in self.rules)


def gate_names() -> list[str]:
    """The gates that travel with the program."""
    return sorted(path.stem for path in resource("configs/gates").glob("*.yaml"))


def load_gate(name: str | Path) -> Gate:
    """A gate by its name or by the path of a YAML file. Raises BadRecipe, which names file, rule and field."""
    from oss_tools.checkpoints.yaml_files import read_yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in gate_names():
            raise BadRecipe(f"{none_named('gate', str(name), gate_names())}; or give a .yaml file")
        path = resource("configs/gates") / f"{name}.yaml"
    return parse_gate(read_yaml(path, BadRecipe, MAX_BYTES), str(path), path.stem)


def parse_gate(content: Any, where: str, name: str) -> Gate:
    """A gate from what YAML gave. Raises BadRecipe."""
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list) or not content["rules"]:
        raise BadRecipe(f"{where}: a gate is a mapping with a list `rules`, which has at least one")
    if unknown := sorted(set(map(str, content)) - {"about", "rules"}):
        raise BadRecipe(f"{where}: unknown field {unknown[0]!r}; known: about, rules")
    if len(content["rules"]) > MAX_RULES:
        raise BadRecipe(f"{where}: {len(content['rules'])} rules are too many; at most {MAX_RULES}")
    rules = tuple(_parse_rule(rule, f"{where}: rule {number}") for number, rule in enumerate(content["rules"], 1))
    return Gate(name, rules, str(content.get("about") or ""))


def _parse_rule(content: Any, where: str) -> Rule:
    known = [entry.name for entry in fields(Rule)]
    if not isinstance(content, dict):
        raise BadRecipe(f"{where}: a rule is a mapping of {', '.join(known)}")
    if content.get("name"):
        where = f"{where} ({str(content['name'])[:60]})"
    if unknown := sorted(set(map(str, content)) - set(known)):
        raise BadRecipe(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    given = {name: value for name, value in content.items() if value is not None}
    for name, value in given.items():
        given[name] = _field(name, value, f"{where}: {name}")
    if "metric" not in given:
        raise BadRecipe(f"{where}: the field 'metric' is missing")
    rule = Rule(**given)
    if rule.min is None and rule.max is None:
        raise BadRecipe(f"{where}: min, max or both are wanted")
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        raise BadRecipe(f"{where}: min {rule.min:g} is more than max {rule.max:g}")
    if rule.wanted and rule.metric != DIFFERENCES:
        raise BadRecipe(f"{where}: wanted is for the metric {DIFFERENCES} only")
    if rule.difference and rule.ratio:
        raise BadRecipe(f"{where}: either difference or ratio, not both")
    return rule


def _field(name: str, value: Any, where: str) -> Any:
    """A field's value, checked."""
    if name in ("min", "max"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadRecipe(f"{where}: a finite number is wanted, not {str(value)[:40]!r}")
        return float(value)
    if name in ("strict", "same_processor"):
        if not isinstance(value, bool):
            raise BadRecipe(f"{where}: true or false is wanted, not {str(value)[:40]!r}")
        return value
    if name in ("candidates", "wanted"):
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise BadRecipe(f"{where}: a name, or a list of names, is wanted")
        return tuple(patterns)
    if not isinstance(value, str):
        raise BadRecipe(f"{where}: text is wanted, not {str(value)[:40]!r}")
    allowed = {"difference": AGAINST, "ratio": AGAINST, "missing": MISSING}.get(name)
    if allowed and value not in allowed:
        raise BadRecipe(f"{where}: {' or '.join(allowed)} is wanted, not {value[:40]!r}")
    if name == "metric" and not _is_metric(value):
        raise BadRecipe(f"{where}: {none_named('metric', value, METRICS)}")
    return value


def _is_metric(pattern: str) -> bool:
    """Whether a pattern can be a metric's name."""
    plain = pattern.partition("@")[0]
    family, dot, rest = plain.partition(".")
    if dot and rest and family in FAMILIES:
        return True
    return any(fnmatchcase(name, plain) for name in METRICS if name not in ("task", "suite"))
