"""What is said of a process that ended before it answered."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from oss_tools.measure.worker import how_it_ended


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(7)", "ended with status 7"),
        ("import os; os.kill(os.getpid(), 4)", "ended by SIGILL: its library has an instruction"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM"),
    ],
)
def test_the_cause_is_named(code: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert said in how_it_ended(done.returncode)


def test_a_signal_without_a_name() -> None:
    assert how_it_ended(-signal.NSIG) == f"the process was ended by signal {signal.NSIG}"
