"""Whether this machine can shut code in at all."""

import ctypes
import os
import sys

import pytest


def skip_without_landlock() -> None:
    """Asks the kernel, not the tool: where Landlock is there, the tool has to work."""
    if sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("Linux on x86-64 and 64-bit Arm only", allow_module_level=True)
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock", allow_module_level=True)
