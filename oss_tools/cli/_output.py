"""How verbs print: tables and JSON to stdout, progress and remarks to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from oss_tools.cli._options import format_size

PLAIN_INTERVAL = 10.0  # seconds between progress lines where stderr is no terminal


def print_json(record: dict[str, Any]) -> None:
    """One JSON object to stdout."""
    print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    rows: Sequence[Sequence[Any]], headers: Sequence[str], *, title: str = "", right: Sequence[int] = ()
) -> None:
    """A table to stdout, after an empty line and its title. `right` are the columns that hold figures."""
    from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    if title:
        print(f"\n{title}")
    print(tabulate(rows, headers=headers, colalign=align if rows else None, disable_numparse=True))


def print_facts(facts: dict[str, Any]) -> None:
    """Names and values to stdout, one a line; None and empty values are left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")


def remark(text: str) -> None:
    """A line to stderr."""
    print(f"oss-tools: {text}", file=sys.stderr)


@contextmanager
def progress(totals: dict[str, int], *, quiet: bool = False) -> Iterator[Callable[[str, int], None]]:
    """Progress on stderr through stages of so many bytes each; yields a function to call with a stage and bytes just done.

    On a terminal a bar for each stage with rate and time left, elsewhere a plain line every ten seconds. The function may be
    called from threads.
    """
    if quiet:
        yield lambda stage, nbytes: None
    elif sys.stderr.isatty():
        with _bars(totals) as advance:
            yield advance
    else:
        yield _lines(totals)


@contextmanager
def _bars(totals: dict[str, int]) -> Iterator[Callable[[str, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {stage: bars.add_task(stage, total=total, start=False) for stage, total in totals.items()}

        def advance(stage: str, nbytes: int) -> None:
            bars.start_task(tasks[stage])
            bars.advance(tasks[stage], nbytes)

        yield advance


def _lines(totals: dict[str, int]) -> Callable[[str, int], None]:
    done = dict.fromkeys(totals, 0)
    begun: dict[str, float] = {}
    last = time.monotonic()

    def advance(stage: str, nbytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        start = begun.setdefault(stage, now)
        done[stage] += nbytes
        if now - last >= PLAIN_INTERVAL and now > start:
            last = now
            rate, total = done[stage] / (now - start), totals[stage]
            share = f"{100 * done[stage] // max(total, 1)} % of {format_size(total)}"
            print(f"{stage}: {share}, {format_size(rate)}/s, {(total - done[stage]) / rate:.0f} s left", file=sys.stderr)

    return advance


@contextmanager
def counted(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Progress on stderr of things that are counted; yields a function to call with a name, how many are done, and of how many.

    On a terminal a bar for each name with time left, elsewhere a plain line every ten seconds.
    """
    if quiet:
        yield lambda name, done, total: None
    elif sys.stderr.isatty():
        with _count_bars() as report:
            yield report
    else:
        yield _count_lines()


@contextmanager
def _count_bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report


def _count_lines() -> Callable[[str, int, int], None]:
    last = time.monotonic()

    def report(name: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            print(f"{name}: {done} of {total}", file=sys.stderr)

    return report
