"""tau2's tasks, from a checkout of its repository: data alone are read here, nothing of it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oss_tools.errors import BadSource
from oss_tools.harness.data import Documents, Splits
from oss_tools.harness.tau2.play import GREETING

LARGEST = 256 << 20  # bytes of a file
SPLIT = "base"  # that figures are published of
WANTED = "with --data give a checkout of https://github.com/sierra-research/tau2-bench"


def splits(*, domain: str, config_source: str, **where: Any) -> Splits:
    """The tasks of a domain: retail, airline, telecom."""
    source = Path(config_source)
    return _Tau2(source.stem, folder=source.parent, data=where.get("data"), config=domain)


class _Tau2(Splits):
    def _find(self, split: str) -> Documents:
        folder = self.data and self.data / "data" / "tau2" / "domains" / str(self.config)
        if folder is None or not (folder / "tasks.json").exists():
            raise BadSource(f"{self.task}: no data; {WANTED}, which has data/tau2/domains/{self.config}/tasks.json")
        rows = _read(folder / "tasks.json")
        tasks = rows.get("tasks") if isinstance(rows, dict) else rows
        chosen = _read(folder / "split_tasks.json").get(SPLIT) if (folder / "split_tasks.json").exists() else None
        found = Documents()
        for number, task in enumerate(tasks if isinstance(tasks, list) else [None], 1):
            where = f"{folder / 'tasks.json'}: task {number}"
            if not isinstance(task, dict) or not isinstance(task.get("id"), str) or "user_scenario" not in task:
                raise BadSource(f"{where}: is none of tau2's; it has an id and a user_scenario; {WANTED}")
            if (task.get("initial_state") or {}).get("message_history"):
                raise BadSource(f"{where}: begins in the midst of a conversation, which is not played here")
            if chosen is None or task["id"] in chosen:
                found.append(self._document(task))
        if not found:
            raise BadSource(f"{folder / 'tasks.json'}: has no tasks of the split {SPLIT!r}; {WANTED}")
        return found

    def _document(self, task: dict[str, Any]) -> dict[str, Any]:
        begins = [{"role": "assistant", "content": GREETING}]
        return {"id": task["id"], "domain": str(self.config), "task": task, "conversation": {"messages": begins}}


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > LARGEST:
            raise BadSource(f"{file}: larger than {LARGEST >> 20} MiB; {WANTED}")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadSource(f"{file}: {error}; {WANTED}") from None
