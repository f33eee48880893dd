"""The commands of docs/guides/larger-than-memory.md, in its order."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from oss_tools.resources import resource

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "larger-than-memory.md"


def commands() -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in re.findall(r"^    \$ (.+)$", GUIDE.read_text(), re.MULTILINE)]


@pytest.mark.slow
def test_every_command_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    assert len(commands()) == 7
    root = str(resource("configs").parent)
    said = {}
    for words in commands():
        program = ["-m", "oss_tools", *words[1:]] if words[0] == "oss-tools" else words[1:]
        done = subprocess.run(
            [sys.executable, *program], cwd=tmp_path, capture_output=True, text=True, timeout=600, env=_environment(root)
        )
        assert done.returncode == 0, (words, done.stderr)
        said[words[1] if words[0] == "oss-tools" else words[2]] = done.stdout + done.stderr
    assert "mxfp4 with --memory 20GB" in said["fit"]
    assert re.search(r"in memory: .* of weights that stay, and \d+ of \d+ experts", said["generate"])
    for column in ("hits", "read/token", "waiting", "faults/token", "of disk"):
        assert column in said["bench"]
    assert re.search(r"^\s+32 .*%", said["oss_tools.measure.expert_cache"], re.MULTILINE)


def _environment(root: str) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": root}
