"""Hints by which the system reads and writes files while the program computes. They change nothing of what is read or written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

AHEAD = 32 << 20  # bytes behind what is read, which the system is asked to have ready
LEAST = 128 << 10  # bytes; smaller pieces are not worth a call
START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of <fcntl.h>
WAIT_UNTIL_WRITTEN = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, WRITE and WAIT_AFTER


def read_ahead(descriptor: int, offset: int, nbytes: int) -> None:
    """To be called before these bytes of a file are read, in order: asks for as many, AHEAD bytes further on."""
    if nbytes >= LEAST and hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(descriptor, offset + AHEAD, nbytes, os.POSIX_FADV_WILLNEED)
        except OSError:  # a file system without it: a hint that is not taken
            return


def write_behind(descriptor: int, offset: int, nbytes: int) -> None:
    """To be called after these bytes of a file were written: the disk begins at once, not when the file is flushed, which it
    must be all the same."""
    if nbytes >= LEAST and (start := _sync_file_range()):
        start(descriptor, offset, nbytes, START_WRITING)


def let_go(descriptor: int, offset: int, nbytes: int) -> None:
    """To be called for written bytes that nobody will read soon: waits until they are on their way to the disk no longer, and
    has the system use their memory for something else. An error of the disk is told when the file is flushed."""
    if nbytes >= LEAST and (write := _sync_file_range()):
        write(descriptor, offset, nbytes, WAIT_UNTIL_WRITTEN)
        try:
            os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)
        except OSError:  # a file system without it: a hint that is not taken
            return


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's system call of this name; None where there is none."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function
