"""The folder of a call: what it may hold, seen from outside, however the code hides it; and its removal."""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from oss_tools.chat.tools import folder
from oss_tools.chat.tools.python import PythonTool
from tests.chat.landlock import skip_without_landlock


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calls have their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def tool(base: Path) -> PythonTool:
    skip_without_landlock()
    return PythonTool(clock=120)


FILLING = {
    "many files": "for n in range(40): open(f'f{n}', 'wb').write(block)",
    "files in folders": "for n in range(40):\n    os.mkdir(f'd{n}')\n    open(f'd{n}/f', 'wb').write(block)",
    "files without a name": "kept = []\nfor n in range(40): kept += [open('f', 'wb', 0)]; kept[-1].write(block); os.unlink('f')",
    "files that never had one": "for n in range(40): os.write(os.open('.', os.O_TMPFILE | os.O_RDWR), block)",
    "files that are mapped": """
import mmap
kept = []
for n in range(40):
    f = open('f', 'w+b', 0); f.write(block); os.unlink('f')
    kept.append(mmap.mmap(f.fileno(), 4096)); f.close()
    time.sleep(0.1)
""",
    "files without a name, on changing descriptors": """
import threading
kept = []
def change():
    while True:
        for n in range(len(kept)):
            other = os.dup(kept[n]); os.close(kept[n]); kept[n] = other
threading.Thread(target=change, daemon=True).start()
for n in range(40):
    f = os.open('f', os.O_RDWR | os.O_CREAT); os.unlink('f'); os.write(f, block); kept.append(f)
""",
    "folders that are moved meanwhile": """
import threading
os.makedirs('a/b/c'); os.mkdir('z')
def move():
    while True:
        os.rename('a/b', 'z/b'); os.rename('z/b', 'a/b')
threading.Thread(target=move, daemon=True).start()
for n in range(40): open(f'g{n}', 'wb').write(block); os.rename(f'g{n}', f'a/g{n}')
""",
    "lengths": "for n in range(40): open(f'f{n}', 'wb').truncate(1 << 24)",
    "links": "open('f', 'wb').write(block)\nfor n in range(40): os.link('f', f'f{n}')",
    "small files": "for n in range(1100): open(f'f{n}', 'w').close()",
    "symbolic links": "for n in range(1100): os.symlink('x', f'f{n}')",
    "folders": "for n in range(1100): os.mkdir(f'd{n}')",
    "folders in folders": "for n in range(200): os.mkdir('d'); os.chdir('d')",
    "without output": "os.close(1); os.close(2)\nfor n in range(40): open(f'f{n}', 'wb').write(block)",
}


@pytest.mark.parametrize("code", FILLING.values(), ids=FILLING)
def test_a_folder_that_is_full_ends_the_call(tool: PythonTool, base: Path, code: str) -> None:
    said = tool.call({"code": f"import os, time\nblock = bytes(1 << 24)\n{code}\ntime.sleep(60)"})
    assert said == f"error: stopped, {folder.HOLDS}"
    assert os.listdir(base) == []


def test_a_file_that_is_written_again_and_again_ends_the_call(tool: PythonTool, base: Path) -> None:
    said = tool.call({"code": "f = open('f', 'wb', 0); block = bytes(1 << 24)\nwhile True: f.seek(0); f.write(block)"})
    assert said == "error: stopped, it may write 256 MiB in all"
    assert os.listdir(base) == []


def test_what_is_over_at_the_end_counts_too(tool: PythonTool) -> None:
    said = tool.call({"code": "block = bytes(1 << 24)\nfor n in range(5): open(f'f{n}', 'wb').write(block)\nprint('done')"})
    assert said == "error: stopped, its folder may hold 64 MiB and 1,000 files and folders, 64 deep"


def test_what_fits_is_no_matter(tool: PythonTool, base: Path) -> None:
    code = """
import os, tempfile
for n in range(900): open(f'f{n}', 'w').write('x')
open('big', 'wb').write(bytes(16 << 20))
with tempfile.TemporaryFile() as file: file.write(bytes(16 << 20)); file.flush()
print(len(os.listdir()))
"""
    assert tool.call({"code": code}) == "901"
    assert os.listdir(base) == []


def test_a_file_is_limited(tool: PythonTool) -> None:
    assert "File too large" in tool.call({"code": "open('f', 'wb').write(bytes(17 << 20))"})


def test_threads_are_limited(tool: PythonTool) -> None:
    code = """
import threading, time
threading.stack_size(1 << 16)
for _ in range(1000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
time.sleep(60)
"""
    assert tool.call({"code": code}) == "error: stopped, it may run 256 threads"


def test_code_that_closed_its_output_is_stopped_in_time(tool: PythonTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "_clock", 2.0)
    assert tool.call({"code": "import os, time; os.close(1); os.close(2); time.sleep(300)"}).startswith("error: stopped")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')",
        "import os\nfor n in (b'\\xff\\xfe', b'a\\nb', b'-rf', b'*'): os.mkdir(n); open(n + b'/' + n, 'w').close()",
        "import os\nos.mkdir('closed', 0o700); open('closed/f', 'w').close(); os.close(os.open('f', os.O_CREAT, 0))",
        "import os; os.symlink('.', 'loop'); os.symlink('/', 'root'); os.mkdir('d'); os.symlink('../..', 'd/up')",
    ],
    ids=["deep", "names", "permissions", "links"],
)
def test_nothing_is_left_of_a_call(tool: PythonTool, base: Path, code: str) -> None:
    (base / "beside").mkdir()
    tool.call({"code": code})
    assert os.listdir(base) == ["beside"]


@pytest.mark.skipif(sys.platform != "linux", reason="folders by descriptor")
def test_removal_takes_everything_and_nothing_beside_it(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("stays")
    gone = tmp_path / "gone"
    gone.mkdir()
    here = os.open(gone, os.O_RDONLY)
    try:
        for _ in range(1500):  # far longer than a path may be
            os.mkdir("deep", dir_fd=here)
            below = os.open("deep", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.mkdir("end", dir_fd=here)
    finally:
        os.close(here)
    os.mkdir(os.fsencode(gone) + b"/\xff\xfe")
    Path(os.fsdecode(os.fsencode(gone) + b"/\xff\xfe/\xff")).touch()
    (gone / "links").mkdir()
    (gone / "links" / "folder").symlink_to(kept)
    (gone / "links" / "file").symlink_to(kept / "file")
    os.link(kept / "file", gone / "links" / "hard")
    os.mkfifo(gone / "links" / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(gone / "links" / "socket"))
    for mode in (0, 0o111, 0o444, 0o222):
        closed = gone / "links" / f"{mode:o}"
        closed.mkdir()
        (closed / "file").touch(0)
        closed.chmod(mode)
    gone.chmod(0)
    opened = len(os.listdir("/proc/self/fd"))
    assert folder.remove(str(gone)) == ""
    assert len(os.listdir("/proc/self/fd")) == opened
    assert os.listdir(tmp_path) == ["kept"]
    assert (kept / "file").read_text() == "stays"
    assert (kept.stat().st_mode & 0o777, (kept / "file").stat().st_nlink) != (0o700, 2)


def test_a_process_that_cannot_be_looked_into_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the moment in which a program begins."""

    def closed(place: str, process: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder, "_nameless", closed)
    watch = folder.Watch(str(tmp_path), (1 << 22) + 1)  # beyond the largest number of a process
    assert watch.excess() == ""
    with pytest.raises(PermissionError):
        [watch.excess() for _ in range(1000) if not time.sleep(0.001)]


def test_what_cannot_be_removed_is_said(tmp_path: Path) -> None:
    assert "missing" in folder.remove(str(tmp_path / "missing"))


def test_a_folder_that_cannot_be_removed_is_an_answer(tool: PythonTool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "remove", lambda place: "Input/output error")
    said = tool.call({"code": "1"})
    assert said.startswith("error: the call's folder ")
    assert said.endswith(" cannot be removed: Input/output error")


def test_no_room_for_a_folder_is_an_answer(tool: PythonTool, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base / "missing"))
    assert tool.call({"code": "1"}).startswith("error: the code cannot be run: ")
