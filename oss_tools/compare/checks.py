"""What can be known before a comparison's first hour of work: tasks, their data, templates, room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oss_tools.chat.chat_template import chat_template, has_chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.compare.models import plan_of
from oss_tools.convert.output import check_room
from oss_tools.convert.recipe import Recipe
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint
from oss_tools.harness.prompts import needs_chat
from oss_tools.harness.suites import SuiteTask
from oss_tools.harness.tasks import load_tasks
from oss_tools.models import open_checkpoint

GREETING = Conversation(messages=(Message("user", "Hello"),))


def scored_tasks(found: Sequence[tuple[str, SuiteTask]], say: Callable[[str], None]) -> list[tuple[str, SuiteTask]]:
    """(suite, task) of those that this program scores by itself. `say` is told which are left out."""
    if graded := [task.task for _, task in found if task.needs_grader]:
        say(f"{', '.join(graded)}: left out, as they are graded by a model; `oss-tools eval` asks one")
    if played := [task.task for _, task in found if task.needs_user]:
        say(f"{', '.join(played)}: left out, as a model plays the user in them; `oss-tools eval` asks one")
    return [(suite, task) for suite, task in found if not (task.needs_grader or task.needs_user)]


def made_tasks(
    tasks: Sequence[SuiteTask], data: Path | None, say: Callable[[str], None]
) -> tuple[dict[str, int], list[str]]:
    """Makes all tasks and reads their questions: by name, how many, of those whose data are there; and the names of those whose
    questions are conversations. `say` is told which are left out.

    Raises BadRecipe, BadSource if all data are missing, MissingPackage.
    """
    if not tasks:
        return {}, []
    names = [task.task for task in tasks]
    made: dict[str, Any] = load_tasks(names, data, say=say, may_miss=names)["tasks"]
    counts = {name: len(task.eval_docs) for name, task in made.items()}
    return counts, [name for name, task in made.items() if any(needs_chat(doc) for doc in task.eval_docs)]


def require_speech(path: Path, conversations: Sequence[str]) -> None:
    """Renders a word with a checkpoint's chat template. Raises BadCheckpoint if that fails, or if there is no template and there
    are tasks (`conversations`) that need one."""
    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata()
    if has_chat_template(metadata):
        try:
            chat_template(metadata, Text(metadata)).encode(GREETING)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{path}: {error}") from None
    elif conversations:
        raise BadCheckpoint(
            f"{path}: has no chat template, and {', '.join(conversations)} are conversations; choose other --suites"
        )


def require_room(source: Path, recipes: Sequence[Recipe], folder: Path) -> None:
    """Raises NoRoom unless all that is still to be made of `source` fits on the disk; BadRecipe for what cannot be made."""
    total = 0
    with open_checkpoint(source) as checkpoint:
        for recipe in recipes:
            plan, target = plan_of(checkpoint, recipe, folder)
            total += 0 if target.exists() else plan.target_bytes
    check_room(folder, total)
