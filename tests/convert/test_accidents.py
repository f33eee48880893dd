"""Conversions that are killed, run out of disk, or are written wrongly: nothing is lost, and nothing is half done."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oss_tools.checkpoints.hf import HfWriter
from oss_tools.convert import pipeline
from oss_tools.convert.journal import JOURNAL
from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.output import partial_of
from oss_tools.convert.recipe import load_recipe, recipe_of_format
from oss_tools.errors import BadRecipe, NoRoom, VerificationFailed
from oss_tools.models import open_checkpoint
from tests.convert.helpers import EXTENSION, assert_equal, contents, convert

SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from threading import Lock
from oss_tools.checkpoints import writer_for
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.output import partial_of
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.models import open_checkpoint

source, target, container, resume, last = sys.argv[1:]
writer = writer_for(container)
write, lock, writes = writer.write, Lock(), 0

def until_the_last(self, *arguments):
    global writes
    with lock:
        writes += 1
        if writes > int(last):
            print("waiting to be killed", flush=True)
            time.sleep(600)  # holding the lock: nothing is written any more but what is under way
    write(self, *arguments)

writer.write = until_the_last
with open_checkpoint(source) as checkpoint:
    plan = make_plan(checkpoint, container, load_recipe("mxfp4"))
    print("started", flush=True)
    run(plan, Path(target), Options(jobs=2, resume=resume == "1"))
"""


@pytest.mark.parametrize("container", ["gguf", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hf", "ready"))])
def test_killed_at_any_moment_it_leaves_nothing_half_done_and_resumes_to_the_same_bytes(
    synthetic, tmp_path: Path, container: str
) -> None:
    source = synthetic("gpt-oss-tiny")
    convert(source, tmp_path / f"undisturbed{EXTENSION[container]}", container, load_recipe("mxfp4"))
    target = tmp_path / f"killed{EXTENSION[container]}"
    chance, kills, status = random.Random(container), 0, None
    for attempt in range(40):
        last = chance.randrange(6) if kills < 6 else 10**9  # writes before it waits for its end, however slow the machine is
        command = [
            sys.executable,
            "-c",
            SLOW_CONVERSION,
            str(source),
            str(target),
            container,
            str(int(attempt > 0)),
            str(last),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"started\n", process.communicate()[1]
        if kills < 6:
            assert process.stdout.readline() == b"waiting to be killed\n", process.communicate()[1]
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        status = process.returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL, errors
        kills += 1
        assert not target.exists()
    assert status == 0
    assert kills == 6
    undisturbed = tmp_path / f"undisturbed{EXTENSION[container]}"
    if container == "hf":
        assert contents(target) == contents(undisturbed)
    else:
        assert_same_gguf(target, undisturbed)
    assert not list(tmp_path.glob("*.partial"))
    assert Manifest.read(manifest_path(target)).tensors == Manifest.read(manifest_path(undisturbed)).tensors


def assert_same_gguf(a: Path, b: Path) -> None:
    assert a.read_bytes() == b.read_bytes()


def full_after(writes: int) -> Callable[..., int]:
    """os.pwrite on a disk that is full after so many calls."""
    real, calls = os.pwrite, itertools.count()

    def full(*arguments: Any) -> int:
        if next(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    return full


def test_a_full_disk_is_one_line_and_resumable(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = synthetic("gpt-oss-tiny"), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_after(20))
        with pytest.raises(NoRoom, match=r"No space left.*free some space, then go on with --resume"):
            convert(source, target, "hf")
    assert not target.exists()
    convert(source, target, "hf", resume=True)
    assert_equal(source, target)


def test_disk_space_is_checked_before_the_first_byte(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoRoom, match=r"MB are needed and 1 kB are free"):
        convert(synthetic("gpt-oss-tiny"), tmp_path / "deep" / "out", "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("container", ["gguf", "hf", "original", "ready"])
def test_what_does_not_arrive_as_it_was_written_is_found_out(
    synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    """One bit of one long write is another in the file."""
    real, left = os.pwrite, [1]

    def lying(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) > 5000 and offset > 100_000 and left:  # behind the header
            left.clear()
            data = memoryview(bytearray(data))
            data[4321] ^= 1
        return real(descriptor, data, offset)

    source = synthetic("gpt-oss-tiny", "mxfp4")
    monkeypatch.setattr(os, "pwrite", lying)
    with pytest.raises(VerificationFailed, match="the bytes on disk are not those"):
        convert(source, tmp_path / f"out{EXTENSION.get(container, '')}", container)
    assert not left
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_wrote_is_read_back_too(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run that goes on behind it, which did not write it."""
    source, target = synthetic("llama-tiny"), tmp_path / "out.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_after(12))
        with pytest.raises(NoRoom):
            convert(source, target, "gguf")
    journal = (partial_of(target) / JOURNAL).read_bytes()
    assert journal.count(b"\n") > 2
    file = partial_of(target) / target.name
    with open(file, "r+b") as written, open_checkpoint(file) as partly:
        name = json.loads(journal.splitlines()[1])["name"]
        stored = partly.entries[name].placements[0].stored
        _, info = partly.reader._places[stored]
        written.seek(info.offset)
        byte = written.read(1)[0]
        written.seek(info.offset)
        written.write(bytes([byte ^ 1]))
    with pytest.raises(VerificationFailed, match=f"{name}: the bytes on disk are not those"):
        convert(source, target, "gguf", resume=True)


def test_nothing_that_exists_is_lost(synthetic, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(synthetic("llama-tiny"), source)
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(BadRecipe, match=r"exists|holds no checkpoint"):
            convert(source, target, "hf", **options)
    assert (target / "thesis.tex").exists()
    for wrong in (source, source / "inside", tmp_path):
        with pytest.raises(BadRecipe):
            convert(source, wrong, "hf", overwrite=True)
    with pytest.raises(BadRecipe, match=r"a gguf checkpoint is a \.gguf file"):
        convert(source, tmp_path / "name", "gguf")
    before = contents(source)
    convert(source, tmp_path / "a", "hf")
    convert(source, tmp_path / "a", "hf", recipe_of_format("f16"), overwrite=True)
    with open_checkpoint(tmp_path / "a") as checkpoint:
        assert {e.format.name for e in checkpoint.entries.values()} == {"f16"}
    assert contents(source) == before


def test_an_interrupted_run_is_not_mixed_with_another_plan(
    synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, "hf")
    with pytest.raises(BadRecipe, match="holds an interrupted run"):
        convert(source, target, "hf")
    with pytest.raises(BadRecipe, match="differs in the recipe or format; --overwrite"):
        convert(source, target, "hf", recipe_of_format("f16"), resume=True)
    written: list[str] = []
    write = HfWriter.write
    monkeypatch.setattr(HfWriter, "write", lambda *a: written.append(a[1]) or write(*a))
    convert(source, target, "hf", resume=True)
    assert not written  # everything was complete
    assert_equal(source, target)
