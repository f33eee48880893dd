"""A file or a disk that fails while experts stream: one line, exit status 2, no wrong token. In child processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD, and reads past the cache"),
]
LARGER = {"hidden_size": 256, "moe_intermediate_size": 512}
COMPILER = shutil.which("cc") or shutil.which("gcc")

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

__attribute__((destructor)) static void count(void) {
    const char *name = getenv("FAIL_COUNT");
    FILE *to = name ? fopen(name, "w") : NULL;
    if (to) { fprintf(to, "%ld", atomic_load(&calls)); fclose(to); }
}

static int is_model(int fd) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *ending = getenv("FAIL_FILE");
    return ending && strstr(path, ending) != NULL;
}

static long fate(int fd) {  /* 0: as ever; 1: an error; 2: the file seems to end here */
    if (!is_model(fd)) return 0;
    if (atomic_fetch_add(&calls, 1) < atol(getenv("FAIL_AFTER"))) return 0;
    return strcmp(getenv("FAIL_HOW"), "short") ? 1 : 2;
}

#define GUARD(fd) switch (fate(fd)) { case 1: errno = EIO; return -1; case 2: return 0; }

ssize_t pread(int fd, void *to, size_t count, off_t at) {
    GUARD(fd)
    static ssize_t (*next)(int, void *, size_t, off_t);
    if (!next) next = dlsym(RTLD_NEXT, "pread");
    return next(fd, to, count, at);
}
ssize_t pread64(int fd, void *to, size_t count, off_t at) { return pread(fd, to, count, at); }

ssize_t preadv(int fd, const struct iovec *to, int count, off_t at) {
    GUARD(fd)
    static ssize_t (*next)(int, const struct iovec *, int, off_t);
    if (!next) next = dlsym(RTLD_NEXT, "preadv");
    return next(fd, to, count, at);
}
ssize_t preadv64(int fd, const struct iovec *to, int count, off_t at) { return preadv(fd, to, count, at); }

ssize_t preadv2(int fd, const struct iovec *to, int count, off_t at, int flags) {
    GUARD(fd)
    static ssize_t (*next)(int, const struct iovec *, int, off_t, int);
    if (!next) next = dlsym(RTLD_NEXT, "preadv2");
    return next(fd, to, count, at, flags);
}
ssize_t preadv64v2(int fd, const struct iovec *to, int count, off_t at, int flags) { return preadv2(fd, to, count, at, flags); }
"""

RUNNER = """
import os, sys
from oss_tools.cli.main import main
from oss_tools.engine.stream import plan
plan.memory.WORK_BYTES = 0                      # the model is tiny: only its experts are to count
sys.argv = ["oss-tools", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of 0.8 MB. Not to be changed."""
    shape = load_shape("qwen3-moe-tiny").with_layers(6)
    return synthesize(
        plan_synthesis(replace(shape, config=shape.config | LARGER), "ready", router="skewed"),
        tmp_path_factory.mktemp("faults") / "model.ready",
    )


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes reads of a file fail."""
    if not COMPILER:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    done = subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, folder / "shim.c", "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the compiler makes no library here: {done.stderr[:200]}")
    return library


def least_memory(model: Path) -> int:
    """The smallest --memory that the model runs with, as its refusal says."""
    done = finish(start(model, memory="1B"))
    assert done.returncode == 3, done.stderr
    return int(done.stderr.partition("at least ")[2].split()[0]) * 10**6


def start(model: Path, *, memory: str, tokens: int = 40, **environment: str) -> subprocess.Popen[str]:
    options = ["--raw", "-n", str(tokens), "-t", "1", "-q", "--memory", memory, "--context", "128"]
    command = [sys.executable, "-c", RUNNER, "generate", str(model), "One two three", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, said = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


@pytest.fixture(scope="module")
def memory(model: Path) -> str:
    return f"{least_memory(model)}B"


@pytest.fixture(scope="module")
def sound(model: Path, memory: str) -> str:
    """What the model writes."""
    done = finish(start(model, memory=memory))
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_one_line(done: subprocess.CompletedProcess[str], sound: str, *words: str) -> None:
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert any(word in done.stderr for word in words), done.stderr
    assert sound.startswith(done.stdout.rstrip("\n")), (sound, done.stdout)
    assert len(done.stdout) < len(sound)


def run_with(shim: Path, model: Path, memory: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return finish(start(model, memory=memory, LD_PRELOAD=str(shim), FAIL_FILE=model.name, **environment))


@pytest.fixture(scope="module")
def reads(model: Path, memory: str, sound: str, shim: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many reads of the file a sound run makes."""
    count = tmp_path_factory.mktemp("count") / "reads"
    assert run_with(shim, model, memory, FAIL_AFTER="1000000000", FAIL_HOW="error", FAIL_COUNT=str(count)).stdout == sound
    return int(count.read_text())


@pytest.mark.parametrize("how", ["error", "short"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.8])
def test_a_disk_that_fails_is_one_line_and_no_wrong_token(
    model: Path, memory: str, sound: str, shim: Path, reads: int, how: str, share: float
) -> None:
    done = run_with(shim, model, memory, FAIL_AFTER=str(int(share * reads)), FAIL_HOW=how)
    assert_one_line(done, sound, "cannot be read", "ended at byte", "Input/output error", "cut")
    assert "model.ready" in done.stderr


# ---- the file changes -----------------------------------------------------------------------------------------------


@pytest.fixture
def running(model: Path, memory: str, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A copy of the model, and a process that has printed of it and stands still."""
    copy = Path(shutil.copy(model, tmp_path / "model.ready"))
    process = start(copy, memory=memory, tokens=100)
    assert process.stdout
    assert process.stdout.read(1)
    os.kill(process.pid, signal.SIGSTOP)
    yield copy, process
    process.kill()
    process.wait()


def go_on(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    os.kill(process.pid, signal.SIGCONT)
    return finish(process)


@pytest.mark.parametrize("deed", ["write", "truncate"])
def test_a_file_that_changes_is_one_line(running: tuple[Path, subprocess.Popen[str]], deed: str) -> None:
    path, process = running
    if deed == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(4096))
        os.utime(path, ns=(1, 1))
    done = go_on(process)
    if done.returncode == 0:
        pytest.skip("the process had generated everything before it could be stopped")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "was changed" in done.stderr or "ended at byte" in done.stderr


@pytest.mark.parametrize("deed", ["replace", "remove"])
def test_a_file_that_is_replaced_or_removed_is_read_on_as_it_was(
    running: tuple[Path, subprocess.Popen[str]], model: Path, memory: str, deed: str
) -> None:
    path, process = running
    if deed == "replace":
        other = path.with_name("other")
        other.write_bytes(os.urandom(path.stat().st_size))
        other.replace(path)
    else:
        path.unlink()
    done = go_on(process)
    assert done.returncode == 0, done.stderr
    whole = finish(start(model, memory=memory, tokens=100)).stdout
    assert whole.endswith(done.stdout)


def test_a_killed_run_leaves_nothing(running: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = running
    process.kill()
    process.wait()
    assert [file.name for file in path.parent.iterdir()] == ["model.ready"]
