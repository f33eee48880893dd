"""Code that wants out: what it tries, on the Landlock of this kernel and held down to what older kernels have."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oss_tools.chat.tools import confined
from oss_tools.chat.tools.python import PythonTool
from tests.chat.landlock import skip_without_landlock

skip_without_landlock()

# What every attack begins with. OUTSIDE has `kept.txt`, `folder`, and `library`, which may be read like Python's own files
BEFORE = """
import ctypes, fcntl, os, platform, resource, signal, socket, struct, sys
libc, parent, column = ctypes.CDLL(None, use_errno=True), os.getppid(), platform.machine() == "aarch64"
kept, library, folder = (os.path.join(OUTSIDE, name) for name in ("kept.txt", "library/module.py", "folder"))
def call(numbers, *arguments):
    number = numbers if isinstance(numbers, int) else numbers[column]
    if number is None:
        raise PermissionError(1, "this machine has no such call")
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result
def block(text, size=0):
    return ctypes.create_string_buffer(text, size or len(text))
"""

READ = {
    "open": "open(kept).read()",
    "open for nothing (mode 3)": "os.open(kept, 3)",
    "open as a path": "os.open(kept, os.O_PATH)",
    "openat2": "call(437, -100, kept.encode(), struct.pack('QQQ', 0, 0, 0), 24)",
    "through a symbolic link": "os.symlink(kept, 'mine'); open('mine').read()",
    "through a hard link": "os.link(kept, 'mine'); open('mine').read()",
    "a folder": "os.listdir(OUTSIDE)",
    "the root": "os.listdir('/')",
    "after chdir": "os.chdir(OUTSIDE); open('kept.txt').read()",
    "a moved file": "os.rename(kept, 'mine')",
    "a moved folder": "os.rename(folder, 'mine')",
    "a handle's number": "call((303, 264), -100, kept.encode(), block(bytes(200)), block(bytes(8)), 0)",
    "by a handle": "call((304, 265), -100, block(bytes(200)), 0)",
    "another mount": "call((165, 40), OUTSIDE.encode(), b'.', None, 4096, None)",
    "a cloned tree": "call(428, -100, OUTSIDE.encode(), 1)",
    "a new root": "call((161, 51), OUTSIDE.encode())",
    "changes, watched": "call((294, 26), 0)",
    "changes, watched in all": "call((300, 262), 0, 0)",
    "changes, noted": "fcntl.fcntl(os.open('.', os.O_RDONLY), 1026, 0x8000001f)",
    "the parent's memory": "open(f'/proc/{parent}/mem', 'rb')",
    "the parent's environment": "open(f'/proc/{parent}/environ', 'rb')",
    "the parent's descriptors": "os.listdir(f'/proc/{parent}/fd')",
    "the parent's working folder": "os.readlink(f'/proc/{parent}/cwd')",
    "its own memory, as a file": "open('/proc/self/mem', 'r+b')",
    "memory of others": "call((310, 270), parent, None, 0, None, 0, 0)",
    "the parent, traced": "call((101, 117), 16, parent, 0, 0)",
    "a descriptor of the parent": "call(438, call(434, parent, 0), 1, 0)",
    "users": "open('/etc/passwd').read()",
    "devices": "os.open('/dev/tty', os.O_RDWR)",
    "a new terminal": "os.openpty()",
    "kernel messages": "call((103, 116), 3, block(bytes(9)), 9)",
}
WRITE = {
    "open": "open(kept, 'w')",
    "append": "open(kept, 'a')",
    "a new file": "open(os.path.join(OUTSIDE, 'new'), 'w')",
    "a new folder": "os.mkdir(os.path.join(OUTSIDE, 'new'))",
    "a file without a name": "os.open(folder, os.O_TMPFILE | os.O_WRONLY)",
    "truncate": "os.truncate(kept, 0)",
    "truncate what may be read": "os.truncate(library, 0)",
    "open for reading, and truncate": "os.open(library, os.O_RDONLY | os.O_TRUNC)",
    "the same, high bits set": "call((257, 56), -100, library.encode(), os.O_RDONLY | os.O_TRUNC | 1 << 40, 0)",
    "open for nothing, and truncate": "os.open(library, 3 | os.O_TRUNC)",
    "write what may be read": "open(library, 'r+')",
    "chmod": "os.chmod(kept, 0o777)",
    "fchmod of what may be read": "os.fchmod(os.open(library, 0), 0o777)",
    "chown": "os.chown(kept, os.getuid(), os.getgid())",
    "times": "os.utime(kept, (0, 0))",
    "times of what may be read": "os.utime(os.open(library, 0), (0, 0))",
    "attributes": "os.setxattr(kept, 'user.x', b'x')",
    "attributes, newer call": "call(463, -100, kept.encode(), 0, b'user.x', struct.pack('QII', 0, 1, 0), 16)",
    "flags": "fcntl.ioctl(os.open(library, 0), 0x40086602, struct.pack('l', 16))",
    "unlink": "os.unlink(kept)",
    "rmdir": "os.rmdir(folder)",
    "a link": "os.symlink('x', os.path.join(OUTSIDE, 'link'))",
    "a hard link of one's own": "open('mine', 'w').close(); os.link('mine', os.path.join(OUTSIDE, 'link'))",
    "a file moved there": "open('mine', 'w').close(); os.rename('mine', os.path.join(OUTSIDE, 'new'))",
    "an exchange": "open('mine', 'w').close(); call((316, 276), -100, b'mine', -100, kept.encode(), 2)",
    "a pipe with a name": "os.mkfifo('pipe')",
    "a socket with a name": "socket.socket(socket.AF_UNIX).bind('here')",
    "shared memory": "open('/dev/shm/oss-tools-test', 'w')",
    "a lease": "fcntl.fcntl(os.open(library, 0), 1024, 1)",
    "room beyond the end": "call((285, 47), os.open('mine', os.O_RDWR | os.O_CREAT), 1, 0, 1 << 30)",
    "a folder that nobody enters": "os.mkdir('closed', 0)",
    "permissions of new files": "call((95, 166), 0o777)",
}
PROCESSES = {
    "kill": "os.kill(parent, 0)",
    "kill all": "call((62, 129), -1, 0)",
    "kill the group": "call((62, 129), 0, 0)",
    "tkill": "call((200, 130), parent, 0)",
    "tgkill": "call((234, 131), parent, parent, 0)",
    "a queued signal": "call((129, 138), parent, 0, block(bytes(128)))",
    "a descriptor of a process": "os.pidfd_open(parent)",
    "an owner of a pipe": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, parent)",
    "an owner of a pair": "fcntl.fcntl(socket.socketpair()[0], fcntl.F_SETOWN, parent)",
    "the same, high bits set": "call((72, 25), os.pipe()[0], 1 << 32 | 8, parent)",
    "an owner, in full": "fcntl.fcntl(os.pipe()[0], 15, struct.pack('ii', 1, parent))",
    "an owner, by ioctl": "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', parent))",
    "a signal of one's choice": "fcntl.fcntl(os.pipe()[0], 10, signal.SIGUSR1)",
    "signals when ready": "fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)",
    "signals when ready, by ioctl": "fcntl.ioctl(os.pipe()[0], 0x5452, struct.pack('i', 1))",
    "typed for another": "fcntl.ioctl(0, 0x5412, b'x')",
    "a timer's signal": "call((222, 107), 0, block(struct.pack('QiiI', 0, signal.SIGUSR1, 4, parent), 64), block(bytes(8)))",
    "cores": "os.sched_setaffinity(parent, os.sched_getaffinity(0))",
    "a policy": "os.sched_setscheduler(parent, os.SCHED_OTHER, os.sched_param(0))",
    "a policy, in full": "call((314, 274), parent, block(struct.pack('IIQiIQQQ', 48, 0, 0, 0, 0, 0, 0, 0)), 0)",
    "niceness": "os.setpriority(os.PRIO_PROCESS, parent, os.getpriority(os.PRIO_PROCESS, 0))",
    "priority of input and output": "call((251, 30), 1, parent, 2 << 13)",
    "limits": "resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0))",
    "its own limits": "call((302, 261), 0, 7, struct.pack('QQ', 64, 64), None)",
    "advice on memory": "call(440, parent, None, 0, 4, 0)",
    "moved pages": "call((256, 238), parent, 0, None, None)",
    "fork": "os.fork()",
    "vfork": "call((58, None))",
    "a process that shares memory": "call((56, 220), 0x100 | 17, 0, 0, 0, 0)",
    "clone3": "call(435, block(struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0)), 64)",
    "another program": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "a program without a name": "call((322, 281), 0, b'', None, None, 0x1000)",
    "a file in memory": "os.memfd_create('program')",
    "a session": "os.setsid()",
    "outliving the parent": "call((157, 167), 1, 0, 0, 0, 0)",
    "hiding from the parent": "call((157, 167), 4, 0, 0, 0, 0)",
    "its own descriptors": "call((272, 97), 0x400)",
    "its own descriptors, by closing": "call(436, 50, 60, 2)",
    "name spaces": "call((272, 97), 0x10000000)",
    "a user": "os.setuid(os.getuid())",
    "a personality": "call((135, 92), 0x40000)",
    "a filter of its own": "call((317, 277), 1, 0, struct.pack('HxxxxxxQ', 0, 0))",
}
KERNEL = {
    "a socket": "socket.socket()",
    "a Unix socket": "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "netlink": "call((41, 198), 16, 3, 0)",
    "ciphers": "call((41, 198), 38, 5, 0)",
    "a pair of datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a pair of packets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
    "an address for a pair": "socket.socketpair()[0].sendto(b'x', '/dev/log')",
    "a pair, connected anew": "socket.socketpair()[0].connect('/dev/log')",
    "data out of band": "socket.socketpair()[0].send(b'x', socket.MSG_OOB)",
    "a descriptor, sent": "socket.send_fds(socket.socketpair()[0], [b'x'], [1])",
    "rings": "call(425, 1, block(bytes(120)))",
    "queues": "call((240, 180), b'oss-tools-test', os.O_CREAT | os.O_RDWR, 0o600, None)",
    "queues of System V": "call((68, 186), 0, 0o1600)",
    "semaphores of System V": "call((64, 190), 0, 1, 0o1600)",
    "memory of System V": "call((29, 194), 0, 4096, 0o1600)",
    "attached memory of System V": "call((30, 196), 0, None, 0)",
    "programs of the kernel": "call((321, 280), 0, block(bytes(120)), 120)",
    "counters": "call((298, 241), block(bytes(120)), 0, -1, -1, 0)",
    "page faults": "call((323, 282), 1)",
    "keys": "call((250, 219), 0, -3, 0)",
    "a key": "call((248, 217), b'user', b'oss-tools-test', b'x', 1, -2)",
    "splice": "call((275, 76), os.pipe()[0], None, os.pipe()[1], None, 1, 2)",
    "the clock": "call((227, 112), 0, block(bytes(16)))",
    "syncing all disks": "call((162, 81))",
    "kcmp": "call((312, 272), parent, parent, 0, 0, 0)",
    "rules of its own": "call(444, None, 0, 1)",
    "a call that is to come": "call(999)",
}
REFUSED = "(1, 13, 18, 38)"  # EPERM, EACCES, EXDEV, ENOSYS


def outcome(tool: PythonTool, outside: Path, attacks: dict[str, str]) -> list[str]:
    """The attacks that were not refused, each with what came of it. All run in one call, in a folder of their own."""
    code = f"""OUTSIDE = {str(outside)!r}
{BEFORE}
home = os.getcwd()
for number, (name, attack) in enumerate({attacks!r}.items()):
    os.chdir(home); os.mkdir(f"a{{number}}"); os.chdir(f"a{{number}}")
    try:
        exec(attack)
        print(name, "came through")
    except OSError as error:
        if error.errno not in {REFUSED}:
            print(name, repr(error))
    except BaseException as error:
        print(name, repr(error))
print("all tried")
"""
    *through, last = tool.call({"code": code}).splitlines()
    assert last == "all tried", [*through, last]
    return through


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "module.py").write_text("library = 1\n")
    (tmp_path / "kept.txt").write_text("as it was")
    return tmp_path


@pytest.fixture(params=[None, 5, 3, 2, 1], ids=lambda abi: f"abi_{abi}" if abi else "abi_of_this_kernel")
def tool(request: pytest.FixtureRequest, outside: Path, monkeypatch: pytest.MonkeyPatch) -> PythonTool:
    """The tool, on a kernel whose Landlock is of an older version."""
    if request.param:
        anchor = "    if version < 1:"
        source = Path(confined.__file__).read_text()
        assert source.count(anchor) == 1
        held = outside / "library" / "held_down.py"
        held.write_text(source.replace(anchor, f"    version = min(version, {request.param})\n{anchor}"))
        monkeypatch.setattr(confined, "__file__", str(held))
    tool = PythonTool(clock=120)
    tool._readable.append(str(outside / "library"))
    return tool


def state(folder: Path) -> list[tuple[str, int, int, int, int]]:
    found = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(name, status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink) for name, status in found]


@pytest.mark.parametrize("attacks", [READ, WRITE, PROCESSES, KERNEL], ids=["reading", "writing", "processes", "kernel"])
def test_nothing_comes_through(tool: PythonTool, outside: Path, attacks: dict[str, str]) -> None:
    before, cores, limits = state(outside), os.sched_getaffinity(0), Path("/proc/self/limits").read_text()
    assert outcome(tool, outside, attacks) == []
    assert (state(outside), os.sched_getaffinity(0), Path("/proc/self/limits").read_text()) == (before, cores, limits)


def test_what_may_be_read_can_be_read_and_files_be_made(tool: PythonTool, outside: Path) -> None:
    """The other side of the test above: it is the attack that fails there, not all."""
    allowed = {
        "read": f"assert open({str(outside / 'library' / 'module.py')!r}).read()",
        "list": f"assert os.listdir({str(outside / 'library')!r})",
        "write": "open('a', 'w').write('x'); open('a', 'w').write('y'); assert open('a').read() == 'y'",
        "move": "open('a', 'w').close(); os.replace('a', 'b'); os.link('b', 'c'); os.symlink('b', 'd'); os.remove('b')",
        "empty": "f = open('a', 'w+'); f.write('x'); f.truncate(0); os.ftruncate(f.fileno(), 9); f.close()",
        "folders": "os.makedirs('a/b/c'); os.removedirs('a/b/c'); os.mkdir('a'); os.rmdir('a')",
        "nothing": "open(os.devnull, 'w').write('x'); assert not open(os.devnull).read(); assert os.urandom(4)",
        "itself": "signal.signal(signal.SIGUSR1, lambda *_: seen.append(1)); seen = []; os.kill(os.getpid(), 10); assert seen",
        "a pair": "a, b = socket.socketpair(); a.setblocking(False); a.send(b'x'); assert b.recv(1) == b'x'",
        "a map": "import mmap; f = open('a', 'w+b'); f.truncate(9); m = mmap.mmap(f.fileno(), 9); m[:1] = b'x'; m.close()",
    }
    assert sorted(outcome(tool, outside, allowed)) == sorted(f"{name} came through" for name in allowed)


LISTED = """
import os
for number in range(3, 1024):
    try: print(number, os.fstat(number))
    except OSError: pass
"""


def test_descriptors_of_the_program_are_not_handed_over(tool: PythonTool, outside: Path) -> None:
    opened = os.open(outside / "kept.txt", os.O_RDWR)
    try:
        os.set_inheritable(opened, True)
        found = tool.call(
            {"code": "import os\nfor n in range(3, 1024):\n    try: print(n, os.fstat(n))\n    except OSError: pass"}
        )
    finally:
        os.close(opened)
    assert found == ""


def test_its_standard_input_is_no_file_of_the_program(tool: PythonTool) -> None:
    assert (
        tool.call({"code": "import os\nos.fstat(0).st_rdev == os.stat('/dev/null').st_rdev, os.read(0, 9)"}) == "(True, b'')"
    )


def test_another_terminal_is_not_read(tool: PythonTool) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"what is typed\n")
        said = tool.call({"code": f"import os; os.read(os.open({os.ttyname(theirs)!r}, os.O_RDWR | os.O_NOCTTY), 99)"})
        assert said.endswith(f"PermissionError: [Errno 13] Permission denied: {os.ttyname(theirs)!r}")
        assert select.select([theirs], [], [], 5)[0]  # it is still there
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def signals() -> Iterator[list[int]]:
    seen: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: seen.append(number)) for number in (signal.SIGIO, signal.SIGURG)
    }
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_parent_gets_no_signal_from_what_it_reads(tool: PythonTool, outside: Path, signals: list[int]) -> None:
    """The standard output is a pipe that both have."""
    attacks = {
        "owner": "fcntl.fcntl(1, fcntl.F_SETOWN, parent)",
        "when ready": "fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_ASYNC)",
        "by ioctl": "fcntl.ioctl(1, 0x5452, struct.pack('i', 1))",
    }
    assert outcome(tool, outside, attacks) == []
    assert signals == []


def test_all_of_it_again_without_capabilities(tmp_path: Path) -> None:
    """Root's powers must not be what keeps code in: the same as a plain user has."""
    chosen = "(nothing_comes_through or what_may_be_read) and (abi_of_this_kernel or abi_2)"
    code = f"""
import ctypes, struct, sys, pytest
none = struct.pack("=II", 0x20080522, 0)
assert ctypes.CDLL(None).capset(none, bytes(24)) == 0
place = {str(tmp_path / "again")!r}
sys.exit(pytest.main([{__file__!r}, "-q", "-p", "no:cacheprovider", "-k", {chosen!r}, "--basetemp", place]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_powers_of_root_are_gone(tool: PythonTool) -> None:
    code = "import os; os.close(os.open('mine', os.O_CREAT | os.O_WRONLY, 0)); open('mine')"
    assert tool.call({"code": code}).endswith("PermissionError: [Errno 13] Permission denied: 'mine'")
