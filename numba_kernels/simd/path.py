"""Which instruction set the kernels are compiled for. Decided once, before anything is compiled.

LLVM aborts the process when it meets an instruction that the target CPU lacks, so the choice is made from the features that
Numba will compile for, and a wish that they do not cover is refused here.
"""

from __future__ import annotations

import os

import llvmlite.binding as llvm
from numba.core import config

from numba_kernels.simd.amx import Amx, permitted
from numba_kernels.simd.arm import Neon, NeonI8mm
from numba_kernels.simd.arm_features import arm_features
from numba_kernels.simd.portable import Portable
from numba_kernels.simd.x86 import Avx2, Avx512, Avx512Bf16, AvxVnni

PATHS = {path.name: path for path in (Amx, Avx512Bf16, Avx512, AvxVnni, Avx2, NeonI8mm, Neon, Portable)}
VARIABLE = "OSS_TOOLS_SIMD"


class UnsupportedPath(RuntimeError):
    """OSS_TOOLS_SIMD names a path that does not exist, or that this CPU cannot execute."""


def _target_features() -> set[str]:
    """The features of the CPU that Numba compiles for, with LLVM's names."""
    if config.CPU_FEATURES is not None:
        return {word[1:] for word in config.CPU_FEATURES.split(",") if word.startswith("+")}
    if config.CPU_NAME not in (None, "host"):  # a CPU named without its features: assume nothing of it
        return set()
    named = {name for name, present in llvm.get_host_cpu_features().items() if present}
    return named | arm_features() if _architecture() == "arm" else named


def _architecture() -> str:
    machine = llvm.get_process_triple().split("-")[0]
    return {"x86_64": "x86", "amd64": "x86", "i686": "x86", "aarch64": "arm", "arm64": "arm"}.get(machine, machine)


def _possible() -> list[str]:
    features, architecture = _target_features(), _architecture()
    found = [
        path.name
        for path in PATHS.values()
        if path.architecture in ("any", architecture)
        and features.issuperset(path.features)
        and (not path.matrix_registers or permitted())
    ]
    if "amx-tile" in features and Avx512Bf16.name in found:  # vdpbf16ps has half the products of multiply-adds there
        found.remove(Avx512Bf16.name)
        found.insert(found.index(Avx512.name) + 1, Avx512Bf16.name)
    return found


EXECUTABLE = _possible()


def executable_paths() -> list[str]:
    """The names of the paths that this machine can execute, fastest first."""
    return list(EXECUTABLE)


def _choose() -> Portable:
    possible = EXECUTABLE
    wish = os.environ.get(VARIABLE, "").strip().lower()
    if not wish or wish == possible[0]:
        chosen = PATHS[possible[0]]()
        if chosen.architecture == "arm" and config.CPU_NAME is None and config.CPU_FEATURES is None:
            _name_features(chosen)
        return chosen
    if wish not in PATHS:
        raise UnsupportedPath(f"{VARIABLE}={wish}: no such path; there are {', '.join(PATHS)}")
    if wish not in possible:
        raise UnsupportedPath(f"{VARIABLE}={wish}: this CPU cannot execute it; it can execute {', '.join(possible)}")
    chosen = PATHS[wish]()
    if chosen.baseline and config.CPU_NAME is None and config.CPU_FEATURES is None:
        # What a lower path is measured and tested on is the code that a lesser CPU would get.
        config.CPU_NAME, config.CPU_FEATURES = chosen.baseline, chosen.extra
    return chosen


def _name_features(chosen: Portable) -> None:
    """Tells Numba of what LLVM does not find out about the host by itself."""
    named = {name: present for name, present in llvm.get_host_cpu_features().items() if name not in chosen.features}
    words = ["+-"[not present] + name for name, present in (named | dict.fromkeys(sorted(chosen.features), True)).items()]
    config.CPU_FEATURES = ",".join(words)


ACTIVE = _choose()


def path() -> str:
    """The name of the path in use."""
    return ACTIVE.name
