"""What the system says of an Arm processor becomes LLVM's features."""

from __future__ import annotations

import ctypes

import pytest

from numba_kernels.simd import arm_features as asked
from numba_kernels.simd.arm import Neon, NeonI8mm


class Function:
    """A C function that ctypes could have found."""

    def __init__(self, body):
        self.body = body

    def __call__(self, *arguments):
        return self.body(*arguments)


def library(monkeypatch, **functions):
    body = type("Library", (), {name: Function(f) for name, f in functions.items()})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: body())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((0x0007FFFF | 1 << 20, 0), {"neon", "dotprod"}),  # a Neoverse N1
        ((1 << 1, 0), {"neon"}),  # a Cortex-A72
        ((1 << 1 | 1 << 20, 1 << 13 | 1 << 14), {"neon", "dotprod", "i8mm", "bf16"}),
        ((0, 0), set()),
    ],
)
def test_linux_passes_bits_to_every_process(monkeypatch, words, wanted):
    library(monkeypatch, getauxval=lambda entry: {16: words[0], 26: words[1]}[entry])
    assert asked.arm_features("linux") == wanted


def test_macos_knows_features_by_name(monkeypatch):
    known = {b"hw.optional.AdvSIMD": 1, b"hw.optional.arm.FEAT_DotProd": 1, b"hw.optional.arm.FEAT_I8MM": 0}

    def sysctlbyname(name, value, size, new, new_size):
        if name not in known:
            return -1
        value._obj.value = known[name]
        return 0

    library(monkeypatch, sysctlbyname=sysctlbyname)
    assert asked.arm_features("darwin") == {"neon", "dotprod"}  # an M1: one name is 0, the other unknown


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_system_that_cannot_be_asked_has_none(monkeypatch, system):
    library(monkeypatch)
    assert asked.arm_features(system) == set()


def test_paths_need_what_can_be_asked_for():
    assert asked.FEATURES.keys() == NeonI8mm.features > Neon.features


def test_numba_is_told_of_features_that_llvm_does_not_find(monkeypatch):
    """Beside those that it finds; the CPU's name stays the host's."""
    import llvmlite.binding as llvm
    from numba.core import config

    from numba_kernels.simd.path import _name_features

    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {"neon": True, "lse": True, "sve": False})
    monkeypatch.setattr(config, "CPU_FEATURES", None)
    _name_features(NeonI8mm())
    words = config.CPU_FEATURES.split(",")
    assert set(words) == {"+lse", "-sve", "+neon", "+dotprod", "+i8mm", "+bf16"}
