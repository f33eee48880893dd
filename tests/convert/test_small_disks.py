"""Conversions on real disks that become full while they are written to, and on file systems that live in memory."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.output import SPARE_BYTES, partial_of
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.errors import NoRoom
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify

NAMES = {"hf": "model", "gguf": "model.gguf", "ready": "model.ready", "original": "model"}
SIZE = SPARE_BYTES + (16 << 20)  # bytes of the disk: a conversion wants so much spare room before it begins

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE bytes, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(file: Path) -> None:
    """Takes all the room that a disk has left."""
    with file.open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(1 << 16))
        except OSError:
            pass


def convert(source: Path, target: Path, container: str, progress: Callable[..., None], *, resume: bool = False) -> None:
    with open_checkpoint(source) as checkpoint:
        run(make_plan(checkpoint, container, load_recipe("bf16")), target, Options(resume=resume), progress)


@pytest.mark.parametrize("container", ["hf", "gguf", "ready"])
def test_a_disk_that_another_program_fills_leaves_what_can_be_gone_on_with(
    synthetic: Callable[..., Path], disk: Path, tmp_path: Path, container: str
) -> None:
    source, target, filler = synthetic("gpt-oss-tiny"), disk / NAMES[container], disk / "filler"

    def progress(what: str, *_: object) -> None:
        if what == "write" and not filler.exists():
            fill(filler)

    with pytest.raises(NoRoom, match=r"No space left.*free some space, then go on with --resume"):
        convert(source, target, container, progress)
    assert sorted(disk.iterdir()) == sorted([filler, partial_of(target)])
    filler.unlink()
    convert(source, target, container, lambda *_: None, resume=True)
    whole = tmp_path / NAMES[container]
    convert(source, whole, container, lambda *_: None)
    assert Manifest.read(manifest_path(target)).tensors == Manifest.read(manifest_path(whole)).tensors
    with open_checkpoint(target) as ours, open_checkpoint(whole) as theirs:
        assert verify(ours, theirs).equal
    assert not partial_of(target).exists()


def test_a_disk_without_room_is_refused_before_the_first_byte(synthetic: Callable[..., Path], disk: Path) -> None:
    (disk / "taken").write_bytes(bytes(20 << 20))
    with pytest.raises(NoRoom, match=r"are needed and .* are free; choose another disk"):
        convert(synthetic("gpt-oss-tiny"), disk / "model.gguf", "gguf", lambda *_: None)
    assert [path.name for path in disk.iterdir()] == ["taken"]


def test_sources_that_cannot_be_read_past_the_cache_are_read_through_it(
    synthetic: Callable[..., Path], disk: Path, tmp_path: Path
) -> None:
    """tmpfs has no cache to read past."""
    there, back = disk / "model.gguf", tmp_path / "back"
    convert(synthetic("gpt-oss-tiny"), there, "gguf", lambda *_: None)
    convert(there, back, "hf", lambda *_: None)
    with open_checkpoint(there) as one, open_checkpoint(back) as other:
        assert verify(one, other).equal
