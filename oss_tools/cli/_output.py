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
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr over `total` bytes, with rate and time left; yields a function to call with bytes done.

    Where stderr is no terminal, a plain line every ten seconds. The function may be called from threads.
    """
    if quiet:
        yield lambda nbytes: None
    elif sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


def _lines(title: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done, last
        done += nbytes
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate if rate else 0
            share = f"{100 * done // total if total else 100} %"
            print(f"{title}: {share} of {format_size(total)}, {format_size(rate)}/s, {left:.0f} s left", file=sys.stderr)

    return advance
