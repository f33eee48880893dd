"""What an Arm processor can do, asked of the system: LLVM finds few of Arm's features on Linux and none on macOS."""

from __future__ import annotations

import ctypes
import sys

# LLVM's name of a feature: the auxiliary vector's entry and bit on Linux (asm/hwcap.h), and the name of macOS
AT_HWCAP, AT_HWCAP2 = 16, 26
FEATURES = {
    "neon": (AT_HWCAP, 1, "hw.optional.AdvSIMD"),
    "dotprod": (AT_HWCAP, 20, "hw.optional.arm.FEAT_DotProd"),
    "i8mm": (AT_HWCAP2, 13, "hw.optional.arm.FEAT_I8MM"),
    "bf16": (AT_HWCAP2, 14, "hw.optional.arm.FEAT_BF16"),
}


def arm_features(system: str = sys.platform) -> set[str]:
    """Those of FEATURES that this processor has, by LLVM's names; none where the system cannot be asked."""
    if system == "linux":
        return {name for name, (entry, bit, _) in FEATURES.items() if _auxiliary(entry) >> bit & 1}
    if system == "darwin":
        return {name for name, (_, _, asked) in FEATURES.items() if _sysctl(asked)}
    return set()


def _auxiliary(entry: int) -> int:
    """An entry of the vector that Linux gives every process; 0 where the C library does not pass it on."""
    try:
        ask = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return 0
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return int(ask(entry))


def _sysctl(name: str) -> int:
    """A number of macOS's by its name; 0 for one that it does not know."""
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (OSError, AttributeError):
        return 0
    value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
    failed = ask(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return 0 if failed else value.value
