"""Kernels compiled for AArch64 on a machine that is none: Numba as far as LLVM IR, then LLVM for the other processor."""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm

TRIPLE = "aarch64-unknown-linux-gnu"
LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128-Fn32"
FEATURES = {"neon": "+neon,+dotprod", "i8mm": "+neon,+dotprod,+i8mm,+bf16"}  # of the CPU of each path


def take_path(name: str) -> None:
    """Imports the kernels as if this CPU were an Arm that has this path."""
    from numba.core import config

    triple, config.CPU_FEATURES = llvm.get_process_triple, FEATURES[name]
    llvm.get_process_triple = lambda: TRIPLE
    from numba_kernels import simd

    llvm.get_process_triple, config.CPU_FEATURES = triple, None
    assert simd.path() == name


def stop_at_llvm_ir() -> None:
    """Lets Numba compile to LLVM IR and no further: this machine's code generator does not know the instructions."""
    from numba.core import caching, codegen

    codegen.JITCodeLibrary._finalize_specific = lambda self: None
    codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: 1
    codegen.JITCPUCodegen.set_env = lambda self, name, env: None
    caching.FunctionCache.save_overload = lambda self, *_: None


def libraries(library: Any, seen: dict[int, Any]) -> dict[int, Any]:
    """A compiled library and all that it was linked from. Several can have one name: a builtin for several types."""
    if id(library) not in seen:
        seen[id(library)] = library
        for other in library._linking_libraries:
            libraries(other, seen)
    return seen


def for_arm(ir: str) -> Any:
    ir = re.sub(r'target triple = "[^"]*"', f'target triple = "{TRIPLE}"', ir)
    return llvm.parse_assembly(re.sub(r'target datalayout = "[^"]*"', f'target datalayout = "{LAYOUT}"', ir))


def compile_for_arm(op: Any) -> tuple[str, bytes, str]:
    """An operation's assembly, object file, and the name of its C function."""
    from numba_kernels.simd import path

    assert op.address == 1
    name = op._compiled.native_name
    module = None
    for library in libraries(op._compiled._library, {}).values():
        part = for_arm(str(library._final_module))
        for function in part.functions:
            if not function.is_declaration and function.name != name:
                function.linkage = "linkonce_odr"
        if module is None:
            module = part
        else:
            module.link_in(part)
    machine = llvm.Target.from_triple(TRIPLE).create_target_machine(
        cpu="neoverse-n1", features=FEATURES[path()], opt=3, reloc="static", codemodel="small"
    )
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_assembly(module), machine.emit_object(module), name
