"""What happens when a page of a mapped file cannot be had: the file was cut short, or the disk failed. The system sends SIGBUS
then, which no Python handler can catch, since the load that failed would be tried again for ever."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
from typing import Any

import numba
import numpy as np
from numba.core import types

LINE = (
    b"oss-tools: a mapped file could not be read: it was cut short, or its disk fails; nothing more is computed with it. "
    b"`oss-tools verify` says whether it is whole; --load resident reads it beforehand\n"
)
STATUS = 2

MARK = 0o765  # no mask that anybody has

_text, _length, _status, _mark = np.frombuffer(LINE, np.uint8), len(LINE), STATUS, MARK
_write: Any = types.ExternalFunction("write", types.intp(types.int32, types.voidptr, types.uintp))
_exit: Any = types.ExternalFunction("_exit", types.void(types.int32))
_umask: Any = types.ExternalFunction("umask", types.uint32(types.uint32))
_pause: Any = types.ExternalFunction("pause", types.int32())
_kept: list[Any] = []


def _say_and_end(number):  # type: ignore[no-untyped-def]
    while (
        _umask(_mark) == _mark
    ):  # the one thing of a process that can be set and asked for at once: another thread was first
        _pause()
    _write(2, _text.ctypes, _length)
    _exit(_status)


def say_and_end() -> None:
    """From now on such an error ends the process with a line on stderr and the exit status of bad input, unless somebody else
    has a handler for it (pytest, faulthandler)."""
    if not sys.platform.startswith(("linux", "darwin")) or _kept or faulthandler.is_enabled():
        return
    if signal.getsignal(signal.SIGBUS) is not signal.SIG_DFL:
        return
    handler = numba.cfunc(types.void(types.int32), cache=True)(_say_and_end)
    _kept.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(int(signal.SIGBUS), handler.address)
