"""Reading and writing at the edge of the system: whole stretches at an offset, small files from strangers, flushing to disk."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.overlap import read_ahead, write_behind
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom

LEFTOVER = re.compile(r"\.oss-tools-([0-9]{1,10})-[0-9a-f]{8}")  # of replace_file: its process, and a number
MAX_NAME = 255  # bytes of a file's name
AT_ONCE = 512 << 10  # bytes of a write; Linux looks for a stretch of free memory as large as a write, which can take long


def is_plain_name(name: str) -> bool:
    """Whether it names a file in the folder itself: no separator, no `..`, no control character."""
    fine = name not in ("", ".", "..") and not set(name) & set("/\\:") and name.isprintable()
    return fine and len(os.fsencode(name)) < 256


def read_at(descriptor: int, offset: int, nbytes: int, path: Path, *, ahead: bool = True) -> np.ndarray:
    """Bytes of an open file, freshly allocated: uint8 [nbytes]. `path` is for messages. Raises BadCheckpoint.

    `ahead`: whether what lies further on will be read soon.
    """
    data = np.empty(nbytes, np.uint8)
    done = 0
    if ahead:
        read_ahead(descriptor, offset, nbytes)
    while done < nbytes:
        try:
            count = os.preadv(descriptor, [data.data[done:]], offset + done)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from None
        if not count:
            raise BadCheckpoint(f"{path}: ended at byte {offset + done} while being read; did it change?")
        done += count
    return data


def write_at(descriptor: int, offset: int, data: np.ndarray, path: Path) -> None:
    """Writes an array's bytes at an offset of an open file. `path` is for messages. Raises NoRoom."""
    view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    start, nbytes = offset, len(view)
    with full_disk_is_no_room(path):
        while view:
            written = os.pwrite(descriptor, view[: AT_ONCE - offset % AT_ONCE], offset)
            offset += written
            view = view[written:]
    write_behind(descriptor, start, nbytes)


POINTER = b"version https://git-lfs.github.com/spec/"
LEGACY = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt", b"algg": "ggla, a LoRA adapter"}
ZIPS = (b"PK\x03\x04", b"PK\x05\x06")


def what_is(path: Path) -> str | None:
    """What a file is by its first bytes, where they are those of something that is often taken for a model; else None."""
    try:
        with path.open("rb") as file:
            return what_bytes_are(file.read(512))
    except OSError:  # whoever opens it says so
        return None


def what_bytes_are(head: bytes) -> str | None:
    """The same of a file's first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(POINTER):
        return "a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned, or download it"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page, not the file itself: a download that failed (a page of login or of an error); fetch it again"
    if head.startswith(ZIPS):
        return "a zip archive, as PyTorch's pickled weights are, which are never opened here; convert it to safetensors"
    if head[257:262] == b"ustar" or head.startswith(b"\x1f\x8b"):
        return "an archive (tar or gzip); unpack it and give what is inside"
    if len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return "a Python pickle, which is never opened here; convert it to safetensors"
    if head[:4] in LEGACY:
        return f"a file from before GGUF ({LEGACY[head[:4]]}), which no current program reads; take the model's GGUF"
    return None


def read_small(path: Path, limit: int) -> bytes:
    """A regular file's bytes, at most `limit` of them. Raises BadCheckpoint."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadCheckpoint(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(min(status.st_size, limit) + 1)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from None
    if data.startswith(POINTER):
        raise BadCheckpoint(f"{path}: {what_bytes_are(data)}")
    if len(data) > limit:
        raise BadCheckpoint(f"{path}: larger than the {limit} bytes such a file may have")
    return data


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file. Raises BadCheckpoint."""
    return decoded(read_small(path, limit), str(path))


def decoded(data: bytes, where: str) -> str:
    """UTF-8 as text, without the byte order mark that editors on Windows put before it. Raises BadCheckpoint."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadCheckpoint(f"{where}: is UTF-16, as PowerShell writes text; save it as UTF-8") from None
        raise BadCheckpoint(f"{where}: not UTF-8 at byte {error.start}") from None


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a small file and flushes it to disk. `mode`: of a new one, less the user's mask. Raises NoRoom."""
    with full_disk_is_no_room(path), open(path, "wb", opener=opener(mode)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


PRIVATE = 0o600  # the mode of files that hold conversations


def opener(mode: int) -> Callable[[str, int], int]:
    """For `open`: a new file has this mode, less the user's mask."""
    return lambda name, flags: os.open(name, flags, mode)


def replace_file(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Writes a file under another name beside it, flushes it and renames it: the old one stays until the new one is whole.

    `private`: whether a new file is the user's alone (mode 0600); an old one's mode stays.
    Half a surrogate pair in text becomes an escape. What is no regular file (a pipe, `/dev/stdout`) is written to directly; a
    symbolic link stays, and the file that it names is replaced. Raises NoRoom, and BadRequest where no file can be made.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    check_place(path)
    if is_stream(path):
        with full_disk_is_no_room(path), path.open("wb") as stream:
            stream.write(data)
        return
    with replacing(path, private=private) as fresh:
        write_file(fresh, data, PRIVATE if private or path.exists() else 0o666)


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A name beside a file, where what is to replace it is written; it gets the file's name, and an old one's mode, at the end of
    the block, unless that raises. `private`, links and errors: as of `replace_file`. No pipes and devices."""
    target = path.resolve()
    if target.exists() and not os.access(target, os.W_OK):
        raise BadRequest(f"{path}: the file is read-only; choose another name, or change its permissions")
    fresh = target.with_name(f".oss-tools-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with full_disk_is_no_room(path):
            yield fresh
            if target.exists():
                fresh.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(fresh, target)
    except NoRoom as error:
        raise NoRoom(str(error).replace(str(fresh), str(path))) from None
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        fresh.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Removes what `replace_file` left in a folder when its process was killed."""
    for file in folder.glob(".oss-tools-*"):
        found = LEFTOVER.fullmatch(file.name)
        if found and not _is_running(int(found[1])):
            file.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe or device, or a process's open file (`/dev/stdout`), which cannot be replaced."""
    if not os.path.exists(path) or os.path.isdir(path):  # Path.exists raises for names that are too long
        return False
    return not os.path.isfile(path) or path.absolute().parts[1] in ("dev", "proc")


def check_place(path: Path, *, with_parents: bool = False) -> None:
    """Raises BadRequest, in words, unless a file or folder of this name could be made; nothing of it stays.

    `with_parents`: whether the folders above it will be made too where they are missing, and it may be a folder.
    """
    _check_encoding(path)
    if is_stream(path):
        return
    if os.path.isdir(path) and not with_parents:
        raise BadRequest(f"{path}: is a folder; name a file in it")
    target = path.resolve()
    _check_names(path, target.name)
    if _check_writable(path, target.parent) and not with_parents:
        raise BadRequest(f"{path}: there is no folder {target.parent}; make it first")


def check_folder(path: Path) -> None:
    """Raises BadRequest, in words, unless files could be made in this folder, which may be missing, as may those above it."""
    _check_encoding(path)
    _check_writable(path, path.resolve())


def _check_encoding(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{path}: the name is not UTF-8; choose another") from None


def _check_names(path: Path, *names: str) -> None:
    if any(len(os.fsencode(name)) > MAX_NAME for name in names):
        raise BadRequest(f"{path}: a name is longer than the {MAX_NAME} bytes that a disk takes")


def _check_writable(path: Path, folder: Path) -> list[str]:
    """Raises BadRequest, about `path`, unless something can be made in `folder`, or in the first one above it that there is.
    Returns the names of the folders that are missing."""
    missing: list[str] = []
    while not os.path.lexists(folder):
        missing, folder = [folder.name, *missing], folder.parent
    _check_names(path, *missing)
    if not folder.is_dir():
        raise BadRequest(f"{path}: {folder} is a file, not a folder")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise BadRequest(f"{path}: {folder} is on a read-only disk; choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"{path}: {folder} is read-only for this user; choose another place, or change its permissions")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # a full disk, /proc
        raise BadRequest(f"{path}: {folder} cannot be written to ({error.strerror}); choose another place") from None
    return missing


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def full_disk_is_no_room(path: Path) -> Iterator[None]:
    """Turns a full disk, an exceeded quota or file size limit into NoRoom."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoRoom(f"{path}: {error.strerror}; free some space") from None
        raise
