"""How `compare` shows what it does and what it found."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from oss_tools.cli._output import PLAIN_INTERVAL
from oss_tools.escapes import in_a_line

if TYPE_CHECKING:
    from oss_tools.compare.advice import Advice
    from oss_tools.compare.schedule import Now
    from oss_tools.report.comparison import Comparison
    from oss_tools.report.gates import Verdict


def print_comparison(record: Comparison, file: Path, verdict: Verdict | None, published: tuple[str, ...]) -> None:
    """The table, what is wrong, the gate's word, and how to go on."""
    import shutil

    from oss_tools.report.published import with_published
    from oss_tools.report.sheet import sheet_of
    from oss_tools.report.table import text

    print(text(with_published(sheet_of(record), published), max(shutil.get_terminal_size((120, 24)).columns, 80)))
    print(_about(record))
    if verdict:
        print()
        for outcome in verdict.failed:
            lines = [f"FAILED {outcome.rule.title}: {outcome.message}", *(f"  {line}" for line in outcome.details)]
            print(*map(in_a_line, lines), sep="\n")
        print(verdict.summary)
    print(f"\nrecord: {file}; `oss-tools report {file}` makes a page of it")


def print_advice(advice: Advice) -> None:
    """The recommendation, why, what speaks against it, and why not the others."""
    print()
    print(f"take {in_a_line(advice.chosen)}:" if advice.chosen else "nothing that was compared fits:")
    marks = [("+", advice.reasons), ("-", advice.against), (" ", tuple(f"{name} {why}" for name, why in advice.passed_over))]
    for mark, lines in marks:
        for line in lines:
            print(f"  {mark} {in_a_line(line)}")


def _about(record: Comparison) -> str:
    """What the figures were measured on."""
    machine = record.environment.machine
    texts = [f"{f.positions:,} tokens of {f.text}" for f in record.reference.fidelity]
    over = f"predictions over {' and '.join(texts)}, whole vocabulary; " if texts else ""
    asked = ", ".join(f"{task.n} of {task.task}" for task in record.reference.tasks)
    return f"\n{over}{f'questions: {asked}; ' if asked else ''}{machine['cpu']}, {machine['cores']} cores"


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Callable[[Now], None]]:
    """Progress on stderr: what is being done, the how manieth step it is, about how long the rest takes."""
    if quiet:
        yield lambda now: None
    elif sys.stderr.isatty():
        from oss_tools.cli._bars import spinner

        with spinner() as say:
            yield lambda now: say(describe(now))
        return
    else:
        yield _lines()


def _lines() -> Callable[[Now], None]:
    """A plain line for each step, and one now and then within it."""
    last: tuple[int, float] = (0, 0.0)

    def report(now: Now) -> None:
        nonlocal last
        if now.number != last[0] or time.monotonic() - last[1] >= PLAIN_INTERVAL:
            last = (now.number, time.monotonic())
            print(in_a_line(describe(now)), file=sys.stderr)

    return report


def describe(now: Now) -> str:
    """(7/23) predictions of q8_0, 40 %, about 1:30 left"""
    share = f", {100 * now.done // now.of} %" if now.of else ""
    left = "" if now.left is None else f", about {int(now.left) // 60}:{int(now.left) % 60:02} left"
    return f"({now.number}/{now.total}) {now.what}{share}{left}"
