"""Folders of the user's own, for what must not come from anybody else: Numba's index of compiled kernels is a pickle.

A folder is private if it belongs to the user, nobody else may write in it, and nobody but the user and root can rename it or
a folder above it. Access control lists are not looked at.
"""

from __future__ import annotations

import atexit
import grp
import os
import pwd
import shutil
import stat
import sys
import tempfile
from pathlib import Path


def user_cache() -> Path | None:
    """Where this user's programs keep what can be made again; None for a user without a home folder, as in some containers."""
    if sys.platform != "darwin" and (named := os.environ.get("XDG_CACHE_HOME")):
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def private_folder(root: Path, *names: str) -> Path | None:
    """The folder root/names…, private; None where that cannot be.

    What is missing is made. Those of `names` get the mode 0700, and one of them that others could write in is emptied before
    it is used: `names` are folders of this program's own, whose content can be made again.
    """
    try:
        folder = Path(os.path.abspath(root))
        folder.mkdir(0o700, parents=True, exist_ok=True)
        if not all(_leads_safely(way) for way in _ways(folder)):
            return None
        for name in names:
            folder = folder / name
            folder.mkdir(0o700, exist_ok=True)
            if not _closed(folder):
                return None
    except (OSError, ValueError):  # a read-only disk; a file in its way; a name with a NUL character
        return None
    return folder


def fresh_folder() -> Path:
    """A new private folder under a name that nobody can guess, in a temporary folder. This process removes it at its end."""
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108 (each is looked at, and the name is random)
    safe = (place for place in places if os.path.isdir(place) and all(map(_leads_safely, _ways(Path(place)))))
    folder, maker = Path(tempfile.mkdtemp(prefix="kernels-", dir=next(safe, places[0]))), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == maker else None)
    return folder


def _closed(folder: Path) -> bool:
    """Whether a folder is the user's, closed to others from now on; it is emptied if it was open to them."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    with os.scandir(folder) as entries:
        statuses = [status, *(entry.stat(follow_symlinks=False) for entry in entries)]
    folder.chmod(0o700)
    if any(_others_write(found) or found.st_uid not in (0, os.geteuid()) for found in statuses):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return True


def _ways(folder: Path) -> set[Path]:
    """A folder and all above it, as they are named and as links lead to them."""
    folder, real = Path(os.path.abspath(folder)), folder.resolve(strict=True)
    return {folder, real, *folder.parents, *real.parents}


def _leads_safely(folder: Path) -> bool:
    """Whether only the user and root can rename what lies in a folder: it is theirs to write in, or sticky."""
    status = folder.lstat()
    if status.st_uid not in (0, os.geteuid()):
        return False
    return not _others_write(status) or bool(status.st_mode & stat.S_ISVTX)


def _others_write(status: os.stat_result) -> bool:
    """Whether a mode lets others write. A link's mode says nothing; where it leads is looked at by itself."""
    if stat.S_ISLNK(status.st_mode):
        return False
    return bool(status.st_mode & (0o002 if _is_own_group(status.st_gid) else 0o022))


def _is_own_group(number: int) -> bool:
    """Whether a group is the user's alone, as Debian and Red Hat make one for each user: of the same name, without others."""
    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and number == user.pw_gid and set(group.gr_mem) <= {user.pw_name}
