"""How much memory this process may still take, and the refusal of what does not fit."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

from oss_tools.errors import NoRoom
from oss_tools.sizes import format_size

LIBRARY = re.compile(r"\.so(\.\d+)*$")
WORK_BYTES = 400_000_000  # interpreter, libraries, activations and tables of the largest known model


def available_memory() -> int:
    """Bytes that can still be allocated: what the system has free, and what the limits of the process and its group leave."""
    limits = [_system_free(), _address_space_left(), *_group_left()]
    return max(min(limit for limit in limits if limit is not None), 0)


def taken_memory() -> int:
    """Bytes that this process has taken and shares with no other; 0 where the system does not say."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def library_bytes() -> int:
    """Bytes of the files of programs and shared libraries that lie in this process's memory, without what it has changed there;
    0 where the system does not say. They depend on how the system has read those files before: the same program may have 40 MB of
    them or 100."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return 0
    found, code = 0, False
    for line in lines:
        name, *values = line.split()
        if not name.endswith(":"):  # a mapping: address, permissions, offset, device, inode, path
            path = " ".join(values[4:])
            code = path == os.path.realpath(sys.executable) or bool(LIBRARY.search(path))
        elif code and name in ("Rss:", "Anonymous:"):
            found += int(values[0]) * 1024 * (1 if name == "Rss:" else -1)
    return found


def require(weights: int, cache: int, context: int, per_position: float) -> None:
    """Raises NoRoom with the numbers if the weights and the cache of `context` positions do not fit into free memory."""
    free = available_memory()
    if weights + cache + WORK_BYTES <= free:
        return
    room = free - weights - WORK_BYTES
    if per_position and room // per_position >= 256:
        advice = f"--context {int(room // per_position)} would fit"
    else:
        advice = f"weights of at most {format_size(max(free - cache - WORK_BYTES, 0))} would fit: requantize to fewer bits"
    raise NoRoom(
        f"the model needs {format_size(weights + cache + WORK_BYTES)} of memory (weights {format_size(weights)}, "
        f"KV cache of {context} tokens {format_size(cache)}, the rest {format_size(WORK_BYTES)}), "
        f"{format_size(free)} are free; {advice}"
    )


def give_back() -> None:
    """Returns freed memory to the system, which glibc keeps for itself else: after a vocabulary has been parsed, 100 MB."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)


def _system_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the physical memory is what can be known
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _address_space_left() -> int:
    """What RLIMIT_AS leaves of the address space."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not sys.platform.startswith("linux"):
        return sys.maxsize
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return limit - used


def _group_left() -> list[int]:
    """What the memory limits of this process's control groups, and of those around them, leave (version 2, then version 1)."""
    return [
        *group_left(Path("/sys/fs/cgroup"), "memory.max", "memory.current", _group("")),
        *group_left(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", _group("memory")),
    ]


def group_left(root: Path, limit: str, used: str, own: str) -> list[int]:
    """What the limits leave of the group `own` below `root` and of those around it, by the names of their files."""
    left = []
    for folder in [root / own, *(root / own).parents]:
        if not folder.is_relative_to(root):
            break
        try:
            most = (folder / limit).read_text().strip()
            if most.isdigit():
                left.append(int(most) - int((folder / used).read_text()) + _reclaimable(folder / "memory.stat"))
        except OSError:
            continue  # no limits here, or the group is seen under another name in this container
    return left


def _group(controller: str) -> str:
    """The control group of this process, as a path below its root. Version 2 has no controllers' names."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return ""
    found = (path for _, names, path in lines if controller in names.split(","))
    return next(found, "").strip("/")


def _reclaimable(stat: Path) -> int:
    """File pages that count as used but can be dropped."""
    for line in stat.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
