"""Small files: written whole or not at all, and places in which none can be made."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oss_tools.checkpoints.files import check_folder, check_place, clear_leftovers, read_text, replace_file
from oss_tools.checkpoints.json_files import read_json
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom


@pytest.mark.parametrize("read", [lambda path: read_json(path), lambda path: json.loads(read_text(path, 100))])
def test_a_byte_order_mark_is_no_part_of_a_text(read: Callable[[Path], object], tmp_path: Path) -> None:
    """As Notepad and PowerShell's `-Encoding utf8` write it. RFC 8259, section 8.1: a parser may pass over it."""
    file = tmp_path / "config.json"
    file.write_text('{"a": "ä"}', encoding="utf-8-sig")
    assert read(file) == {"a": "ä"}
    file.write_text('{"a": "ä"}', encoding="utf-16")
    with pytest.raises(BadCheckpoint, match=r"config\.json: is UTF-16.*; save it as UTF-8"):
        read(file)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 1000 bytes, a log of the tests included: it is held around one call."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_the_old_file_stays_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("last week")
    with full_disk(), pytest.raises(NoRoom, match=r"page\.html: File too large; free some space"):
        replace_file(file, "x" * 5000)
    assert file.read_text() == "last week"
    assert list(tmp_path.iterdir()) == [file]


def test_the_new_file_has_the_old_ones_permissions_and_a_first_one_the_usual(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    old.chmod(0o640)
    for file in (old, new):
        replace_file(file, "text \ud83d")
        assert file.read_text() == "text \\ud83d"
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(new.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    replace_file(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    os.mkfifo(pipe)
    replace_file(Path("/dev/null"), "nowhere")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    replace_file(pipe, "through")
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_places_in_which_nothing_can_be_made_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for path, said in (
        (tmp_path / "file" / "new", f"{tmp_path / 'file'} is a file, not a folder"),
        (tmp_path / "file" / "deeper" / "new", f"{tmp_path / 'file'} is a file, not a folder"),
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / ("x" * 256), "a name is longer than the 255 bytes"),
        (tmp_path / os.fsdecode(b"caf\xe9"), "not UTF-8"),
    ):
        with pytest.raises(BadRequest, match=said):
            check_place(path)
    check_place(tmp_path / "several" / "new" / "folders", with_parents=True)
    check_folder(tmp_path / "several" / "new")
    check_folder(tmp_path)
    with pytest.raises(BadRequest, match="file is a file, not a folder"):
        check_folder(tmp_path / "file" / "new")
    with pytest.raises(BadRequest, match="a name is longer than the 255 bytes"):
        check_folder(tmp_path / ("x" * 256))
    for step in (check_place, lambda path: replace_file(path, "x")):
        with pytest.raises(BadRequest, match=r"there is no folder \S+new; make it first"):
            step(tmp_path / "several" / "new" / "file")
    assert not (tmp_path / "several").exists()
    state = os.statvfs(tmp_path)
    with monkeypatch.context() as patched:
        read_only = os.statvfs_result((*state[:8], state.f_flag | os.ST_RDONLY, state.f_namemax))
        patched.setattr(os, "statvfs", lambda _: read_only)
        with pytest.raises(BadRequest, match="is on a read-only disk; choose another place"):
            check_place(tmp_path / "new")
        with pytest.raises(BadRequest, match="is on a read-only disk; choose another place"):
            check_folder(tmp_path)  # it is there already
    with monkeypatch.context() as patched:  # as the system answers a user who is not root
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(BadRequest, match="is read-only for this user"):
            check_place(tmp_path / "new")
    with monkeypatch.context() as patched:  # what only an attempt shows

        def refuse(**_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(BadRequest, match=r"cannot be written to \(No space left on device\); choose another place"):
            check_folder(tmp_path / "new")


def test_an_open_file_of_the_process_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "redirected").open("w+b") as file:
        replace_file(Path(f"/dev/fd/{file.fileno()}"), "into it")
        assert os.path.samestat(os.fstat(file.fileno()), (tmp_path / "redirected").stat())
    assert (tmp_path / "redirected").read_text() == "into it"
    assert len(list(tmp_path.iterdir())) == 1
    incoming, outgoing = os.pipe()
    replace_file(Path(f"/dev/fd/{outgoing}"), "through")
    assert os.read(incoming, 100) == b"through"
    os.close(incoming)
    os.close(outgoing)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_user_s_mode_or_is_the_user_s_alone(tmp_path: Path, mask: int, mode: int) -> None:
    code = f"""
import os, sys
from pathlib import Path
from oss_tools.checkpoints.files import replace_file
os.umask({mask})
replace_file(Path("open"), "x")
replace_file(Path("private"), "x", private=True)
Path("kept").touch(0o640)
os.chmod("kept", 0o640)
replace_file(Path("kept"), "x", private=True)
print(*(oct(os.stat(name).st_mode & 0o777) for name in ("open", "private", "kept")))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [oct(mode), "0o600", "0o640"]


def test_the_copy_of_a_private_file_is_private_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(oct(os.fstat(descriptor).st_mode & 0o777))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    (tmp_path / "secret").touch(0o600)
    replace_file(tmp_path / "secret", "x")
    assert seen == ["0o600"]


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = {f".oss-tools-{os.getpid()}-0123abcd", ".oss-tools-download", f".oss-tools-{ended.pid}-notes", "a"}
    for name in (*kept, f".oss-tools-{ended.pid}-0123abcd", f".oss-tools-{'9' * 10}-0123abcd"):
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == kept
