"""The program's own commands, killed from outside (SIGKILL) wherever they stand, and gone on with: the same bytes as without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

AT_ONCE = """
from oss_tools.calibration import calibrate, compensation
calibrate.calibrate.__kwdefaults__["pause"] = 0.0
compensation.Compensation.__init__.__defaults__ = (*compensation.Compensation.__init__.__defaults__[:-1], 0.0)
from oss_tools.cli.main import main
main()
"""  # the state is written after each operation, not once a minute
TOKENS = "12288"
PATIENCE = 900  # seconds


def started(*arguments: str) -> subprocess.Popen[bytes]:
    folders = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def finished(*arguments: str) -> None:
    process = started(*arguments)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said.decode()


def operation(state: Path) -> int:
    """The number of the last operation whose result is kept; 0 before the first."""
    try:
        return int(json.loads(state.read_bytes())["number"])
    except FileNotFoundError:
        return 0


def killed_behind(number: int, state: Path, *arguments: str) -> int:
    """Kills a command once it has kept the result of an operation beyond a number. Returns the number of the last one kept."""
    process, end = started(*arguments), time.monotonic() + PATIENCE
    while operation(state) <= number:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return operation(state)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["requantize", "calibrate"])
def test_killed_it_goes_on_to_the_same_bytes(verb: str, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.gguf", tmp_path / "killed.gguf"
    if verb == "requantize":
        options, kept = ["--format", "q4_0", "--method", "gptq"], Path("rounded/pass/state.json")
    else:
        options, kept = [], Path("state.json")
    state = tmp_path / "killed.gguf.partial" / kept
    common = [*options, "--tokens", TOKENS]
    finished(verb, "tiny", str(whole), *common)
    at = killed_behind(0, state, verb, "tiny", str(target), *common)
    assert not target.exists()
    later = killed_behind(at + 3, state, verb, "tiny", str(target), *common, "--resume")
    assert later > at > 0
    assert not target.exists()
    finished(verb, "tiny", str(target), *common, "--resume")
    assert target.read_bytes() == whole.read_bytes()
    assert not state.exists()
