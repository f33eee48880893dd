"""oss-tools as a command within the tests' own process: what it prints and its exit status, without the time that a program's
start takes. Tests of what a process does (signals, terminals, imports, the environment) start one."""

from __future__ import annotations

import subprocess
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from oss_tools.cli.main import app


def oss_tools(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command, with `cwd` as the current folder."""
    words = [*map(str, arguments)]
    with chdir(cwd or Path.cwd()):
        done = CliRunner().invoke(app, words)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
