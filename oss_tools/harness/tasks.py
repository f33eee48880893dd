"""Makes lm-eval's task objects of names, from our own folder, or from lm-eval's list where a name is not ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.yaml_files import check_yaml
from oss_tools.errors import BadRecipe, BadSource, MissingPackage, OssToolsError, how_to_install
from oss_tools.harness.suites import task_files
from oss_tools.harness.texts import file_task


def require_lm_eval() -> None:
    """Raises MissingPackage without lm-eval; keeps its remarks to itself and to warnings that matter."""
    import oss_tools.download.library  # noqa: F401  # which lm-eval imports, and which may not be: that is a line there

    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingPackage(f"evaluating needs lm-eval: {how_to_install('eval')}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_tasks(
    names: Sequence[str],
    data: Path | None = None,
    texts: Sequence[Path] = (),
    say: Callable[[str], None] = lambda line: None,
    may_miss: Container[str] = (),
) -> dict[str, Any]:
    """What `lm_eval.evaluator.evaluate` takes: tasks, groups, group_map.

    Args:
        names: of our tasks, of lm-eval's tasks, groups and tags, or paths of task YAML files.
        data: the folder given with --data.
        texts: files of which tasks like `text_smoke` are made.
        say: is told when lm-eval's own list is scanned, which takes some seconds, and which tasks are left out.
        may_miss: names that are left out where their data are missing, unless all are.

    Raises BadRecipe for an unknown name or a task that cannot be made, BadSource for missing data.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    own = task_files()
    foreign = [name for name in names if name not in own and not name.endswith(".yaml")]
    if foreign:
        say(f"{', '.join(foreign)}: looking through lm-eval's own tasks")
    for name in names:
        if name not in own and name.endswith(".yaml"):
            check_yaml(Path(name), BadRecipe)
    specs = [*dict.fromkeys(names), *map(file_task, texts)]
    folders = sorted({file.parent for name, file in own.items() if name in names})
    metadata = {"data": str(data)} if data is not None else {}
    manager = TaskManager(include_path=[*folders], include_defaults=bool(foreign), metadata=metadata)
    known = {*own, *manager.all_tasks}
    if unknown := [name for name in foreign if name not in known]:
        raise BadRecipe(
            f"no task named {', '.join(unknown)}; `oss-tools eval --list` shows ours, `lm-eval ls tasks` lm-eval's"
        )
    found: dict[str, Any] = {}
    missing: dict[str, BadSource] = {}
    for name in [name for name in dict.fromkeys(names) if name in may_miss]:
        specs.remove(name)
        try:
            _merge(found, _made(manager, [name]))
        except BadSource as error:
            missing[name] = error
    if missing and not found and not specs:
        raise next(iter(missing.values()))
    for name, reason in missing.items():
        say(f"{name} is left out: {str(reason).removeprefix(f'{name}: ')}")
    return _merge(found, _made(manager, specs)) if specs else found


def _merge(found: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Tasks, groups and group_map of both."""
    for kind, entries in more.items():
        found.setdefault(kind, {}).update(entries)
    return found


def _made(manager: Any, specs: Sequence[Any]) -> dict[str, Any]:
    try:
        return dict(manager.load(list(specs)))
    except OssToolsError:
        raise
    except Exception as error:  # a task is a program, which may fail in any way
        about = ", ".join(str(spec) for spec in specs if isinstance(spec, str))
        raise BadRecipe(f"{about}: a task cannot be made: {type(error).__name__}: {error}") from error
