"""Suites: named lists of tasks in tiers, one YAML file each in configs/suites/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRecipe
from oss_tools.guesses import none_named
from oss_tools.resources import resource

TIERS = ("smoke", "full")


@dataclass(frozen=True)
class SuiteTask:
    """A task as a suite lists it. All fields stand in the YAML file.

    Attributes:
        task: the name of its YAML file in evals/*/, or of a task in lm-eval's own list.
        metric: the one that stands for the task in tables and comparisons.
        size: documents.
        licence: of the data, as SPDX has it, or in words.
        source: where the data come from.
        about: what is asked, in a line.
        needs_grader: another model grades the answers.
        needs_user: another model plays the user.
    """

    task: str
    metric: str
    size: int
    licence: str
    source: str
    about: str
    needs_grader: bool = False
    needs_user: bool = False


@dataclass(frozen=True)
class Suite:
    """Tasks by tier (smoke: data in the repository; full: public sets)."""

    name: str
    about: str
    tiers: dict[str, tuple[SuiteTask, ...]]


def suite_names() -> list[str]:
    return sorted(file.stem for file in resource("configs/suites").glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """The suite of this name. Raises BadRecipe, with the names there are or with what is wrong in the file."""
    file = resource("configs/suites") / f"{name}.yaml"
    if name not in suite_names():
        raise BadRecipe(none_named("suite", name, suite_names()))
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        tiers = {tier: tuple(_task(fields) for fields in rows) for tier, rows in content["tiers"].items()}
        about = content["about"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BadRecipe(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    if unknown := set(tiers) - set(TIERS):
        raise BadRecipe(f"{file}: tiers are {' and '.join(TIERS)}, not {', '.join(sorted(map(str, unknown)))}")
    return Suite(name, about, tiers)


def _task(fields: dict[str, Any]) -> SuiteTask:
    return SuiteTask(**fields)


def chosen_tasks(suites: list[str], tier: str) -> list[SuiteTask]:
    """The tasks of these suites in this tier. Raises BadRecipe for unknown names or a tier without tasks."""
    tasks = [task for name in suites for task in load_suite(name).tiers.get(tier, ())]
    if not tasks:
        raise BadRecipe(f"the suites {', '.join(suites)} have no tasks in the tier {tier!r}")
    return tasks


def task_files() -> dict[str, Path]:
    """Our own tasks: name → YAML file. A file is a task unless its name begins with an underscore (it is then for including)."""
    return {file.stem: file for file in sorted(resource("evals").glob("*/[!_]*.yaml"))}
