"""Downloads that are interrupted: killed, cut off, held up, out of room; each goes on where it was."""

import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Fault, Hub

from tests.download.conftest import Run
from tests.download.small_repository import REPO, files, published, tensors_of

KILLED = """
import sys
from oss_tools.download import transfer
transfer.SEGMENT = 100_000
sys.argv = ["oss-tools", "download", "openai/gpt-oss-20b", "--to", "here", "--quiet", "--connections", "4"]
from oss_tools.cli.main import main
main()
"""


@pytest.mark.slow
def test_resumes_after_sigkill_at_twenty_random_points(hub: Hub, environment: dict, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.allow(0)
    rng = random.Random(20)

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", KILLED], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)

    def sent() -> int:
        return sum(r.sent for r in hub.bodies())

    kills = 0
    while kills < 20:
        before = sent()
        until = before + rng.randrange(1, 80_000)
        hub.allow(hub.served + until - before)  # there it stops, however fast it is
        child = start()
        while sent() < until and child.poll() is None:
            time.sleep(0.002)
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(rng.random() * 0.02)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert sent() > before
        kills += 1
    hub.allow(math.inf)
    last = start()
    assert last.wait() == 0, last.stderr and last.stderr.read()
    assert tensors_of(tmp_path / "here") == published(content)
    assert sorted(p.name for p in (tmp_path / "here").iterdir() if p.name.startswith(".")) == []
    total = sum(f.size for n, f in hub.repos[REPO].items() if "/" not in n)
    assert sent() < 1.8 * total  # each kill costs what was on its way, no more


def test_a_connection_that_drops_goes_on_where_it_was(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [Fault("model-00001", "cut", times=3, after=400_000)]
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert tensors_of(tmp_path / "here") == published(content)
    assert sum(r.sent for r in hub.bodies("model-00001")) < 2_300_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_without_ranges_serves_as_well(ranges: bool, hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.ranges = ranges
    hub.faults = [Fault("model-00002", "cut", after=300_000)]
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert tensors_of(tmp_path / "here") == published(content)


def test_a_slow_server_that_pauses_is_waited_for_and_resumed(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = {**files(), "model-00001-of-00002.safetensors": b"x" * 60_000}
    hub.add(REPO, content)
    hub.rate = 10_000  # a piece of 16 kB every 1.6 s, and the client waits one second
    done = run("download", REPO, "--to", "here", "--include", "model-00001*", env={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert done.returncode == 0, done.stderr
    assert "trying again" in done.stderr
    assert (tmp_path / "here" / "model-00001-of-00002.safetensors").read_bytes() == b"x" * 60_000


def test_rate_limits_and_overload_are_waited_out(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.faults = [
        Fault("/revision/", "status", status=503),
        Fault("/tree/", "status", status=429, headers={"Retry-After": "1"}),
        Fault("model-00001", "status", status=429, headers={"Retry-After": "1"}, server="hub"),
        Fault("model-00002", "status", status=503, server="cdn"),
        Fault("tokenizer", "status", status=403, server="cdn"),  # a signature that has expired
    ]
    started = time.monotonic()
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started > 2
    assert not [f for f in hub.faults if f.times]
    assert tensors_of(tmp_path / "here") == published(content)


def test_a_server_that_asks_for_an_hour_is_left(hub: Hub, run: Run) -> None:
    hub.add(REPO, files())
    hub.faults = [Fault("model-00001", "status", times=99, status=429, headers={"Retry-After": "3600"})]
    done = run("download", REPO)
    assert done.returncode == 3
    assert "asks to wait 3600 s" in done.stderr
    assert done.stderr.strip().count("oss-tools:") == 1


def test_two_at_once_do_not_mix(hub: Hub, environment: dict, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)
    hub.allow(500_000)  # a part of the files: there the first one waits
    patient = environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    first = subprocess.Popen([sys.executable, "-c", KILLED], env=patient, cwd=tmp_path)
    while hub.served < 500_000:
        assert first.poll() is None
        time.sleep(0.01)
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 2
    assert "another process" in done.stderr
    hub.allow(math.inf)
    assert first.wait() == 0
    assert tensors_of(tmp_path / "here") == published(content)


# ---- disks ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_told_and_resumed(hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, content)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    done = run("download", REPO, "--to", "here", preexec_fn=limit)
    assert done.returncode == 3
    assert "free some space" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    before = len(hub.bodies())
    assert run("download", REPO, "--to", "here").returncode == 0
    assert tensors_of(tmp_path / "here") == published(content)
    fetched = sum(request.sent for request in hub.bodies()[before:])
    assert fetched < sum(map(len, content.values())) - 900_000  # whichever file came to the limit kept what fitted


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk(hub: Hub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine allows no mounts")
    try:
        hub.add(REPO, files())
        done = run("download", REPO, "--to", disk)
        assert done.returncode == 3
        assert "still to be fetched" in done.stderr
        assert not hub.bodies()
        unchecked = "from oss_tools.download import places; places.Place.require = lambda *_: None; " + KILLED.replace(
            '"here"', repr(str(disk))
        ).replace("\n", ";").strip(";")
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        filled = subprocess.run(
            [sys.executable, "-c", unchecked], env=environment, capture_output=True, text=True, timeout=60
        )
        assert filled.returncode == 3, filled.stderr
        assert "free some space" in filled.stderr
    finally:
        subprocess.run(["umount", disk], check=True)
