"""What a declared command started ends with it, however it hid; and it is not given the user's tokens."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from oss_tools.chat.tools import supervisor
from oss_tools.chat.tools.commands import load_commands
from oss_tools.chat.tools.supervised import run_supervised
from oss_tools.errors import BadRequest

ENVIRONMENT = {"PATH": os.environ["PATH"]}
PR_GET_CHILD_SUBREAPER = 37
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process group is ended")

# Each says the number of a process that would live on for a minute, then waits.
HIDDEN = {
    "a session of its own": "setsid sh -c 'echo $$; exec sleep 60' & wait",
    "a session of its own, in the background": "(setsid sh -c 'echo $$; exec sleep 60' >out 2>&1 </dev/null &); "
    "until [ -s out ]; do sleep 0.05; done; cat out; sleep 60",
    "a daemon": f"""{sys.executable} -c '
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)
for _ in range(3):
    if os.fork(): os._exit(0)
    os.setsid()
print(os.getpid(), flush=True)
os.closerange(0, 3); os.chdir("/")
time.sleep(60)'; sleep 60""",
    "one that stopped itself": "setsid sh -c 'echo $$; kill -STOP $$' & wait",
    "one without its environment": "setsid env -i /bin/sh -c 'echo $$; exec /bin/sleep 60' & wait",
    "one whose supervisor was killed": "setsid sh -c 'echo $$ | tee out; exec sleep 60' & "
    "until [ -s out ]; do sleep 0.05; done; kill -9 $PPID; sleep 60",
}


def alive(number: int) -> bool:
    """Whether a process runs: one that was killed has its number for a moment longer."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if psutil.Process(number).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.01)
    return True


@linux
@pytest.mark.parametrize("how", HIDDEN)
def test_what_hid_ends_when_the_time_is_up(tmp_path: Path, how: str) -> None:
    ended = run_supervised(["sh", "-c", HIDDEN[how]], timeout=4, environment=ENVIRONMENT, folder=tmp_path)
    assert ended.timed_out != ("supervisor" in how)
    assert ended.status == -signal.SIGKILL
    assert not alive(int(ended.output.split()[0]))


@linux
def test_what_was_left_behind_ends_with_the_command_and_does_not_hold_it_up(tmp_path: Path) -> None:
    command = "setsid sh -c 'sleep 300; echo late' & sleep 300 & echo $! done"
    ended = run_supervised(["sh", "-c", command], timeout=200, environment=ENVIRONMENT, folder=tmp_path)
    assert (ended.status, ended.timed_out) == (0, False)
    assert ended.output.endswith("done")
    assert not alive(int(ended.output.split()[0]))


@linux
def test_a_relay_that_hands_on_without_end_is_caught(tmp_path: Path) -> None:
    relay = """
import os, time
end = time.monotonic() + 45
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
open("survived", "w").close()
"""
    command = [sys.executable, "-c", relay]
    began = time.monotonic()
    run_supervised(["sh", "-c", '"$@" & sleep 1', "sh", *command], timeout=30, environment=ENVIRONMENT, folder=tmp_path)
    time.sleep(max(0.0, began + 5 - time.monotonic()))
    runs = [p for p in psutil.process_iter(["cmdline"]) if relay in (p.info["cmdline"] or [])]
    assert [p for p in runs if p.status() != psutil.STATUS_ZOMBIE] == []


@linux
def test_many_at_once_end_together(tmp_path: Path) -> None:
    command = "for i in $(seq 60); do setsid sh -c 'sleep 300 & sleep 300' & done; echo all"
    before = {p.pid for p in psutil.process_iter()}
    assert run_supervised(["sh", "-c", command], timeout=60, environment=ENVIRONMENT, folder=tmp_path).output == "all"
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and p.info["cmdline"] == ["sleep", "300"]]
    assert [p for p in left if alive(p.pid)] == []


@linux
def test_a_command_ends_with_the_program_that_runs_it(tmp_path: Path) -> None:
    code = """
import os
from oss_tools.chat.tools.supervised import run_supervised
run_supervised(["sh", "-c", "setsid sh -c 'echo $$ >number; mv number started; exec sleep 60' & wait"], timeout=60,
               environment={"PATH": os.environ["PATH"]})
"""
    started = tmp_path / "started"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ}) as engine:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        number = int(started.read_text())
        engine.kill()
    assert not alive(number)


@linux
def test_the_calling_program_does_not_become_a_reaper() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as unrelated:
        run_supervised(["sh", "-c", "setsid sleep 60 & true"], timeout=30, environment=ENVIRONMENT)
        found = ctypes.c_int(-1)
        ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
        assert found.value == 0
        assert unrelated.poll() is None
        unrelated.communicate(b"\n")
    assert unrelated.returncode == 0


def test_statuses_signals_and_input_are_the_command_s_own(tmp_path: Path) -> None:
    def run(*command: str, given: str = "") -> Any:
        return run_supervised(command, given, timeout=30, environment=ENVIRONMENT, folder=tmp_path)

    assert run("cat", given="Zürich").output == "Zürich"
    assert run("sh", "-c", "pwd; exit 7").status == 7
    assert run("pwd").output == str(tmp_path.resolve())
    assert run("sh", "-c", "kill -TERM $$").status == -signal.SIGTERM
    closed = run("sh", "-c", "yes | head -1; trap")  # SIGPIPE is as a shell has it
    assert (closed.status, closed.output) == (0, "y")
    (tmp_path / "text").write_text("no program")
    for name in ("/no/such/program", str(tmp_path / "text"), str(tmp_path)):
        with pytest.raises(OSError, match=name):
            run(name)


def test_the_output_is_cut_and_the_writer_ended() -> None:
    ended = run_supervised(["sh", "-c", "yes & yes"], timeout=60, environment=ENVIRONMENT, limit=1000)
    assert ended.output.endswith("cut after 1000 characters")
    assert not ended.timed_out


def test_nothing_of_the_caller_s_is_passed_on(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w+") as secret:
        os.set_inheritable(secret.fileno(), False)
        listing = "import os; print(sorted(int(n) for n in os.listdir('/dev/fd')))"
        ended = run_supervised([sys.executable, "-c", listing], timeout=30, environment=ENVIRONMENT)
    assert set(map(int, ended.output.strip("[]").split(","))) <= {0, 1, 2, 3}  # 3 is the listing itself


# --- the environment


def variables(folder: Path, **fields: Any) -> dict[str, str]:
    """What a declared command sees."""
    entry = {"name": "t", "command": ["env", "-0"], **fields}
    (folder / "tools.yaml").write_text(yaml.safe_dump({"tools": [entry]}))
    said = load_commands(folder / "tools.yaml")[0].run({})
    return dict(pair.split("=", 1) for pair in said.split("\0") if pair)


def test_tokens_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "https_proxy",
        "LD_PRELOAD",
        "PYTHONPATH",
    ]
    for name in tokens:
        monkeypatch.setenv(name, "")
    for name in tokens[:5]:
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("LC_TIME", "de_CH.UTF-8")
    monkeypatch.setenv("WEATHER_KEY", "sunny")
    monkeypatch.delenv("MISSING_KEY", raising=False)
    seen = variables(tmp_path)
    assert not set(tokens) & set(seen)
    assert "hunter2" not in " ".join(seen.values())
    assert (seen["PATH"], seen["LC_TIME"]) == (os.environ["PATH"], "de_CH.UTF-8")
    assert "WEATHER_KEY" not in seen
    seen = variables(tmp_path, environment=["WEATHER_KEY", "MISSING_KEY"])
    assert seen["WEATHER_KEY"] == "sunny"
    assert not (set(tokens) | {"MISSING_KEY"}) & set(seen)


@pytest.mark.parametrize("names", ["HF_TOKEN", ["A=b"], ["A B"], [7], {"A": "b"}, [""]])
def test_variables_are_named_without_values(tmp_path: Path, names: object) -> None:
    with pytest.raises(BadRequest, match="`environment` must be a list of names"):
        variables(tmp_path, environment=names)


def test_the_supervisor_imports_nothing_of_ours() -> None:
    """It is a script in isolated mode, whose start each call waits for."""
    heavy = "import sys; sys.argv = ['', '-1']; import supervisor; print([m for m in sys.modules if m.split('.')[0] in "
    heavy += "('oss_tools', 'numpy', 'subprocess', 'ctypes', 'asyncio')])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", heavy],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(supervisor.__file__).parent)},
    )
    assert done.stdout.strip() == "[]"


def test_without_subreapers_the_process_group_ends(tmp_path: Path) -> None:
    """As on macOS: the same supervisor, told that this is another system."""
    code = f"""
import os, socket, sys
sys.platform = "darwin"
if hasattr(os, "waitid"):
    del os.waitid
sys.path.insert(0, {str(Path(supervisor.__file__).parent)!r})
import supervisor
supervisor.main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
"""
    ours, theirs = socket.socketpair()
    command = ["sh", "-c", "sleep 300 & echo $! >number; exit 3"]
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno()), *command],
            cwd=tmp_path,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        assert process.wait(60) == 0
        assert ours.recv(100) == b"started\nended 3\n"
    assert not alive(int((tmp_path / "number").read_text()))
