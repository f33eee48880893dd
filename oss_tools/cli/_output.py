"""How verbs print: tables and JSON to stdout, progress and remarks to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING, Any

from oss_tools.escapes import in_a_line, json_text, one_line
from oss_tools.sizes import format_size
from oss_tools.tables import print_facts as print_facts
from oss_tools.tables import print_table as print_table

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata
    from oss_tools.models import Checkpoint

PLAIN_INTERVAL = 10.0  # seconds between progress lines where stderr is no terminal
COMPILING_PATIENCE = 1.0  # seconds before compiling is worth a word


def print_json(record: dict[str, Any]) -> None:
    """One JSON object to stdout."""
    print(json_text(record, indent=2, allow_nan=False))


def remark(text: str) -> None:
    """A line to stderr."""
    print(f"oss-tools: {one_line(text)}", file=sys.stderr)


def remark_unless(quiet: bool) -> Callable[[str], None]:
    """What says a line to stderr, or nothing."""
    return (lambda text: None) if quiet else remark


def remark_reading(*read: Checkpoint | Metadata) -> None:
    """Says on stderr what a user should know about how checkpoints, or their tokenizers and templates, were read; each once."""
    for text in dict.fromkeys(text for one in read for text in one.remarks):
        remark(text)


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
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from oss_tools.cli._bars import Bars, Name

    bars = Bars(Name(), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    tasks = {stage: bars.add_task(stage, total=total, start=False) for stage, total in totals.items()}

    def advance(stage: str, nbytes: int) -> None:
        bars.start()  # with the first bytes; again it does nothing
        bars.start_task(tasks[stage])
        bars.advance(tasks[stage], nbytes)

    try:
        yield advance
    finally:
        bars.stop()


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
            print(
                f"{in_a_line(stage)}: {share}, {format_size(rate)}/s, {(total - done[stage]) / rate:.0f} s left",
                file=sys.stderr,
            )

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
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    from oss_tools.cli._bars import Bars, Name

    with Bars(Name(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bars:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report


def _count_lines() -> Callable[[str, int, int], None]:
    last = time.monotonic()
    begun: dict[str, tuple[float, int]] = {}  # when each was first told of, and how many were done then

    def report(name: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        start, first = begun.setdefault(name, (now, done))
        if now - last >= PLAIN_INTERVAL:
            last = now
            left = f", {(total - done) * (now - start) / (done - first):.0f} s left" if done > first else ""
            print(f"{in_a_line(name)}: {done} of {total}{left}", file=sys.stderr)

    return report


class Compiling:
    """Progress through kernels that are being compiled, on stderr: called as each begins with how many are ready, how many there
    are, and its name, and once after the last. It is not called where all come from the cache.

    If it takes longer than a moment, a bar on a terminal, elsewhere a line at the beginning, and a line at the end.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._lock = Lock()
        self._began = 0.0
        self._state = (0, 1, "")
        self._compiled = 0
        self._timer: Timer | None = None
        self._shown, self._ended = False, quiet
        self._bar: Any = None

    def __enter__(self) -> Compiling:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stop()

    def __call__(self, done: int, total: int, name: str) -> None:
        with self._lock:
            if self._ended:
                return
            self._state = (done, total, name)
            self._compiled += done < total
            if self._timer is None:
                self._began = time.monotonic()
                self._timer = Timer(COMPILING_PATIENCE, self._show)
                self._timer.daemon = True
                self._timer.start()
            self._update()
            if done == total:
                self._stop()
                if self._shown:
                    import numba_kernels

                    seconds = time.monotonic() - self._began
                    after = "they are kept for the next time"
                    if reason := numba_kernels.NOT_KEPT:
                        after = f"they are not kept: {reason}; NUMBA_CACHE_DIR names another folder"
                    remark(f"compiled {self._compiled} kernels in {seconds:.0f} s; {after}")

    def _show(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._shown = True
            import numba_kernels

            remark("compiling kernels for this machine" + ("" if numba_kernels.NOT_KEPT else ", which is done once"))
            if sys.stderr.isatty():
                from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

                from oss_tools.cli._bars import Bars, Name

                columns = (SpinnerColumn(), TextColumn("compile"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                self._bar = Bars(*columns, Name(), transient=True)
                self._bar.add_task("")
                self._update()
                self._bar.start()

    def _update(self) -> None:
        if self._bar:
            done, total, name = self._state
            self._bar.update(0, completed=done, total=total, description=name)

    def _stop(self) -> None:
        self._ended = True
        if self._timer:
            self._timer.cancel()
        if self._bar:
            self._bar.stop()
