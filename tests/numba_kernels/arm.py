"""The Arm paths on a machine that is none: kernels compiled for AArch64, and run in an emulator where there is one.

Run as a program, `arm.py PATH [PATTERN …]` takes the path `neon` or `i8mm`, packs random weights, compiles kernels for AArch64
and prints a JSON object: for each case the instructions of interest in its assembly and, with an emulator, the error of its
result, how many guard bytes were overrun, and a digest of the result. The emulator is `qemu-aarch64` or, for `neon`, unicorn.
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
import sys

import llvmlite.binding as llvm
import numpy as np
from arm_cases import cases
from arm_compiler import compile_for_arm, stop_at_llvm_ir, take_path
from arm_emulator import Arena, emulate, emulator

WORDS = ("sdot", "smmla", "bfdot", "bfmmla", "tbl", "fmla", "fcvtl", "bl")  # instructions that are counted


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def main(name: str, *wanted: str) -> None:
    take_path(name)
    arena = Arena(512 << 20)
    todo = cases(arena)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    stop_at_llvm_ir()
    run = emulator(name)
    report = {}
    for name, op, arguments, error in todo:
        if wanted and not any(re.search(w, name) for w in wanted):
            continue
        compiled = compile_for_arm(op)
        found = collections.Counter(re.findall(r"^\s+([a-z][a-z0-9.]*)", compiled[0], re.M))
        report[name] = {"instructions": {w: found[w] for w in WORDS}, "error": None}
        if run:
            emulate(op, arena, arguments, compiled, run)
            report[name]["error"] = error()
            report[name]["overruns"] = arena.overruns()
            out = arguments.get("out", np.zeros((1, 0), np.float32))
            report[name] |= {"result": _digest(out), "first": _digest(out[0])}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
