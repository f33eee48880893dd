"""Progress while kernels are compiled: nothing where it takes a moment, lines or a bar where it takes longer."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import pytest

from oss_tools.cli import _output
from oss_tools.cli._output import Compiling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def until(reached: Callable[[], bool]) -> None:
    """Waits, for a minute at most, as a busy machine may take its time."""
    deadline = time.monotonic() + 60
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reached()


def compile_three(quiet: bool = False, shown: Callable[[int], bool] = lambda done: True) -> Compiling:
    """Each kernel takes until what it is to show has been shown."""
    with Compiling(quiet) as on_compile:
        for done in range(3):
            on_compile(done, 3, f"kernel_{done}")
            until(lambda: quiet or on_compile._shown)
            until(lambda done=done: shown(done))  # type: ignore[misc]
        on_compile(3, 3, "")
    return on_compile


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_output, "COMPILING_PATIENCE", 0.0)


def test_from_the_cache_nothing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_output, "COMPILING_PATIENCE", 1000)
    with Compiling() as on_compile:
        for done in range(4):
            on_compile(done, 3, f"kernel_{done}")
    assert on_compile._timer is None or on_compile._timer.finished.is_set()  # and nothing will be
    assert capsys.readouterr().err == ""


def test_lines_elsewhere(patience: None, capsys: pytest.CaptureFixture[str]) -> None:
    compile_three()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "oss-tools: compiling kernels for this machine, which is done once"
    assert last.startswith("oss-tools: compiled 3 kernels in ")
    compile_three(quiet=True)
    assert capsys.readouterr().err == ""


def test_kernels_that_are_not_kept_are_said_to_be_so(
    patience: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba_kernels.NOT_KEPT", "/shared cannot be written, or not by this user alone")
    compile_three()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "oss-tools: compiling kernels for this machine"
    assert last.endswith(
        "not kept: /shared cannot be written, or not by this user alone; NUMBA_CACHE_DIR names another folder"
    )


def test_what_comes_from_the_cache_is_not_counted(patience: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Compiling() as on_compile:
        on_compile(7, 9, "kernel_7")
        time.sleep(0.2)
        on_compile(9, 9, "")
    assert capsys.readouterr().err.splitlines()[-1].startswith("oss-tools: compiled 1 kernels in ")


def test_a_bar_on_a_terminal(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    compile_three(shown=lambda done: f"{done}/3" in terminal.getvalue() and f"kernel_{done}" in terminal.getvalue())
    shown = terminal.getvalue()
    assert shown.rstrip().endswith("they are kept for the next time")


def test_an_interrupt_ends_the_bar(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted() -> None:
        with Compiling() as on_compile:
            on_compile(0, 3, "kernel_0")
            until(lambda: "kernel_0" in terminal.getvalue())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is back
