"""Code that a model writes, shut in: what it may do, and what it may not."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from oss_tools.chat.tools import confined
from oss_tools.chat.tools.python import FRESH, PythonTool
from oss_tools.errors import Unsupported
from tests.chat.landlock import skip_without_landlock

skip_without_landlock()
TOOL = PythonTool(clock=120, memory=512 << 20)


def run(code: str) -> str:
    return TOOL.call({"code": code})


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(47 + 38)", "85"),
        ("x = 2\nx ** 10", "1024"),
        ("None", ""),
        ("open('notes.txt', 'w').write('abc'); import os; os.listdir()", "['notes.txt']"),
        ("import threading as t; w = t.Thread(target=print, args=('there',)); w.start(); w.join()", "there"),
        ("import asyncio\nasync def five(): return 5\nasyncio.run(five())", "5"),
        ("import sys; print('no'); sys.exit(3)", "no"),
    ],
)
def test_what_code_may_do(code: str, output: str) -> None:
    assert run(code) == output


def test_a_name_of_an_earlier_call_is_explained() -> None:
    """gpt-oss is told of a notebook that keeps names."""
    assert run("y = 1") == ""
    assert run("y + 1").endswith(f"NameError: name 'y' is not defined\n{FRESH}")


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
        "import os; os.setuid(0 if os.getuid() else 1)",
        "x = bytearray(1 << 30)",
        "open('big', 'wb').write(bytes(32 << 20))",
        "1 / 0",
        "print(",
    ],
)
def test_what_code_may_not_do(code: str) -> None:
    assert "Error" in run(code).splitlines()[-1]


def test_files_outside_of_its_folder_are_safe(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("as it was")
    before = kept.stat()
    for change in (
        f"open({str(kept)!r}, 'w')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.chmod({str(kept)!r}, 0o777)",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.utime({str(kept)!r}, (0, 0))",
        f"import os; os.rename({str(kept)!r}, 'mine')",
        f"import os; os.symlink('x', {str(tmp_path / 'link')!r})",
        f"open({str(tmp_path / 'new')!r}, 'w')",
    ):
        assert "Error" in run(change).splitlines()[-1], change
    after = kept.stat()
    assert (kept.read_text(), after.st_mode, after.st_mtime_ns) == ("as it was", before.st_mode, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["kept.txt"]


@pytest.mark.parametrize(
    ("code", "limits"), [("while True: pass", {"_seconds": 1}), ("import time; time.sleep(300)", {"_clock": 0.5})]
)
def test_time_is_limited(code: str, limits: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(TOOL, name, value)
    assert run(code).endswith("error: stopped, its time or its output was used up")


def test_output_is_limited() -> None:
    assert len(run("while True: print('a' * 1000)")) < 5000


def test_a_system_that_cannot_shut_it_in_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = tmp_path / "confined.py"
    stand_in.write_text("print('Landlock: not there'); raise SystemExit(96)")
    monkeypatch.setattr("oss_tools.chat.tools.confined.__file__", str(stand_in))
    with pytest.raises(Unsupported, match="Landlock: not there"):
        PythonTool()


def test_it_runs_with_this_interpreter() -> None:
    assert run("import sys; sys.version_info[:2]") == str(sys.version_info[:2])


def test_packages_are_those_of_the_environment_and_not_of_what_points_elsewhere(tmp_path: Path) -> None:
    """A virtual environment with a module of its own and a `.pth` file, which an editable install is."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    packages = next(home.glob("lib/python*/site-packages"))
    (packages / "its_own.py").write_text("place = 'here'\n")
    project = tmp_path / "project"
    project.mkdir()
    (project / "elsewhere.py").write_text("secret = 1\n")
    (packages / "project.pth").write_text(f"{project}\n")
    code = """
from oss_tools.chat.tools.python import PythonTool
tool = PythonTool(clock=120)
print(tool.call({"code": "import its_own; its_own.place"}), tool.call({"code": "import elsewhere"}).splitlines()[-1])
"""
    root = Path(confined.__file__).parents[3]
    command = [home / "bin" / "python", "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=300)
    # PermissionError where Python has listed the folder before it was shut in
    assert re.fullmatch(r"'here' (ModuleNotFoundError|PermissionError): .*\n", done.stdout), done.stdout + done.stderr


def test_event_loops_threads_and_databases_work() -> None:
    code = """
import asyncio, sqlite3, tempfile
from concurrent.futures import ThreadPoolExecutor
async def both(): return await asyncio.gather(asyncio.to_thread(sum, [1, 2]), asyncio.sleep(0.01, 4))
print(asyncio.run(both()))
with ThreadPoolExecutor(4) as pool: print(list(pool.map(abs, [-1, -2])))
with sqlite3.connect("a.db") as base: print(base.execute("select 1 + 1").fetchone())
with tempfile.NamedTemporaryFile() as file: print(file.write(b"abc"))
"""
    assert run(code).splitlines() == ["[3, 4]", "[1, 2]", "(2,)", "3"]


def test_numpy_works() -> None:
    pytest.importorskip("numpy")
    assert run("import numpy as np; a = np.random.rand(9, 9); float((a @ np.linalg.inv(a)).trace().round(6))") == "9.0"


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64")])
def test_other_systems_and_machines_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(Unsupported, match=f"{system} on {machine}"):
        PythonTool()
