"""Progress while kernels are compiled: nothing where it takes a moment, lines or a bar where it takes longer."""

from __future__ import annotations

import io
import sys
import time

import pytest

from oss_tools.cli import _output
from oss_tools.cli._output import Compiling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compile_three(seconds: float, quiet: bool = False) -> None:
    with Compiling(quiet) as on_compile:
        for done in range(3):
            on_compile(done, 3, f"kernel_{done}")
            time.sleep(seconds)
        on_compile(3, 3, "")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_output, "COMPILING_PATIENCE", 0.1)


def test_from_the_cache_nothing_is_said(patience: None, capsys: pytest.CaptureFixture[str]) -> None:
    compile_three(0.0)
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_lines_elsewhere(patience: None, capsys: pytest.CaptureFixture[str]) -> None:
    compile_three(0.2)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "oss-tools: compiling kernels for this machine, which is done once"
    assert last.startswith("oss-tools: compiled 3 kernels in ")
    compile_three(0.2, quiet=True)
    assert capsys.readouterr().err == ""


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
    compile_three(0.3)
    shown = terminal.getvalue()
    assert "2/3" in shown
    assert "kernel_2" in shown
    assert shown.rstrip().endswith("they are kept for the next time")


def test_an_interrupt_ends_the_bar(patience: None, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted() -> None:
        with Compiling() as on_compile:
            on_compile(0, 3, "kernel_0")
            time.sleep(0.3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor is back
