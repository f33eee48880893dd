"""The Arm paths on a machine that is none: kernels compiled for AArch64, and run in an emulator where there is one.

Run as a program, `arm.py PATH [PATTERN …]` takes the path `neon` or `i8mm`, packs random weights, compiles kernels for AArch64
and prints a JSON object: for each case the instructions of interest in its assembly and, with an emulator, the error of its
result, how many guard bytes were overrun, and a digest of the result. The emulator is `qemu-aarch64` or, for `neon`, unicorn.
"""

from __future__ import annotations

import collections
import ctypes
import hashlib
import importlib.util
import json
import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

TRIPLE = "aarch64-unknown-linux-gnu"
LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128-Fn32"


FEATURES = {"neon": "+neon,+dotprod", "i8mm": "+neon,+dotprod,+i8mm,+bf16"}  # of the CPU of each path
WORDS = ("sdot", "smmla", "bfdot", "bfmmla", "tbl", "fmla", "fcvtl", "bl")  # instructions that are counted


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


def _mapped(file: int, size: int) -> np.ndarray:
    """A file in memory at an address below those that programs use for themselves."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    place = libc.mmap(64 << 30, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    assert place not in (None, ctypes.c_void_p(-1).value)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(place), np.uint8)


STACK = 8 << 20  # bytes: as many as threads have on Linux
GUARD, GUARDED = 256, 0xC1  # bytes on each side of what is taken; what they hold


class Arena:
    """Memory that the emulated program sees at this process's own addresses. Where there is Linux it is a file, which another
    process can map too, and lies low enough to be free there."""

    def __init__(self, size: int) -> None:
        self.file = os.memfd_create("arena") if sys.platform == "linux" else -1
        if self.file >= 0:
            os.ftruncate(self.file, size)
            self.memory = _mapped(self.file, size)
        else:
            self.memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        self.base, self.size, self.used = self.memory.ctypes.data, size, 0
        self.cells: dict[int, int] = {}
        self.guards: list[tuple[int, int]] = []
        self.stack = (self.take(STACK).ctypes.data + STACK) & ~63  # its top; one program runs at a time

    def take(self, nbytes: int) -> np.ndarray:
        """Memory with guard bytes on both sides."""
        start = self.used + GUARD
        self.used = start + -(-nbytes // 64) * 64
        assert self.used + GUARD <= self.size
        self.guards += [(start - GUARD, start), (start + nbytes, self.used + GUARD)]
        for first, last in self.guards[-2:]:
            self.memory[first:last] = GUARDED
        return self.memory[start : start + nbytes]

    def overruns(self) -> int:
        """Guard bytes that are not what they were."""
        return sum(int((self.memory[first:last] != GUARDED).sum()) for first, last in self.guards)

    def copy(self, array: np.ndarray) -> np.ndarray:
        place = self.take(max(array.nbytes, 1))[: array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array
        return place


def load_object(data: bytes, arena: Arena, name: str) -> int:
    """Puts an ELF object's sections into memory, applies its relocations, and finds a function."""
    header = struct.unpack_from("<16sHHIQQQIHHHHHH", data)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, header[6] + i * header[11]) for i in range(header[12])]
    places: dict[int, int] = {}
    for i, (_, kind, flags, _, offset, size, *_rest) in enumerate(sections):
        if flags & 2 and size:  # to be in memory
            raw = np.frombuffer(data, np.uint8, size, offset) if kind != 8 else np.zeros(size, np.uint8)
            places[i] = arena.copy(raw).ctypes.data
    table = next(s for s in sections if s[1] == 2)
    strings = sections[table[6]][4]
    symbols: list[tuple[str, int]] = []
    for at in range(table[4], table[4] + table[5], 24):
        text, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        label = data[strings + text : data.index(b"\0", strings + text)].decode()
        symbols.append((label, places.get(section, 0) + value))
    for _, kind, _, _, offset, size, _, target, *_ in sections:
        if kind == 4 and target in places:
            for at in range(offset, offset + size, 24):
                where, info, addend = struct.unpack_from("<QQq", data, at)
                _relocate(arena, places[target] + where, info & 0xFFFFFFFF, symbols[info >> 32][1] + addend)
    return dict(symbols)[name]


def _cell(arena: Arena, value: int) -> int:
    if value not in arena.cells:
        arena.cells[value] = arena.copy(np.array([value], np.int64)).ctypes.data
    return arena.cells[value]


def _relocate(arena: Arena, at: int, kind: int, value: int) -> None:
    word = arena.memory[at - arena.base :][:8].view(np.uint32)
    if kind == 257:  # ABS64
        arena.memory[at - arena.base :][:8].view(np.uint64)[0] = value
    elif kind == 311:  # ADR_GOT_PAGE, and 312, LD64_GOT_LO12_NC: through a cell with the address
        _relocate(arena, at, 275, _cell(arena, value))
    elif kind == 312:
        _relocate(arena, at, 286, _cell(arena, value))
    elif kind == 275:  # ADR_PREL_PG_HI21
        pages = ((value >> 12) - (at >> 12)) & 0x1FFFFF
        word[0] |= (pages & 3) << 29 | (pages >> 2) << 5
    elif kind in (282, 283):  # JUMP26, CALL26
        word[0] |= ((value - at) >> 2) & 0x3FFFFFF
    elif kind in (277, 278, 284, 285, 286, 299):  # ADD and LDST of 8 … 128 bits: the low 12 bits
        shift = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}[kind]
        word[0] |= ((value & 0xFFF) >> shift) << 10
    elif kind not in (0, 261):  # NONE, PREL32 (unwinding only)
        raise NotImplementedError(f"relocation {kind}")


def emulate(op: Any, arena: Arena, arguments: dict[str, Any], compiled: tuple[str, bytes, str], run: Emulator) -> None:
    """Runs an operation with one thread."""
    from numba_kernels.cpu.team import STATE, THREADS

    cells, _ = op.cells(arguments)
    team = arena.copy(np.zeros(STATE // 8 + 32, np.int64))
    team[THREADS // 8] = 1
    entry = load_object(compiled[1], arena, compiled[2])
    run(arena, entry, arena.stack, (arena.copy(cells).ctypes.data, team.ctypes.data, 0))


Emulator = Callable[[Arena, int, int, tuple[int, ...]], None]  # (memory, function, top of the stack, arguments)


def with_qemu(arena: Arena, entry: int, stack: int, arguments: tuple[int, ...]) -> None:
    """A process of its own: a program that maps the arena, calls the function and leaves."""
    call, set_stack, supervisor = 0xD63F0140, 0x9100013F, 0xD4000001  # blr x10; mov sp, x9; svc 0
    steps: list[Any] = [  # (register, value), or an instruction
        (0, arena.base), (1, arena.size), (2, 7), (3, mmap.MAP_SHARED | 0x10), (4, arena.file), (5, 0), (8, 222), supervisor,
        (9, stack), set_stack, *enumerate(arguments), (10, entry), call, (0, 0), (8, 94), supervisor,
    ]  # fmt: skip
    values = [step[1] for step in steps if isinstance(step, tuple)]
    begin = -(-4 * len(steps) // 8) * 8  # of the values, which instructions load relative to themselves
    words, at = [], 0
    for i, step in enumerate(steps):
        if isinstance(step, tuple):
            words.append(0x58000000 | (begin + 8 * at - 4 * i) // 4 << 5 | step[0])
            at += 1
        else:
            words.append(step)
    code = struct.pack(f"<{len(words)}I", *words).ljust(begin, b"\0") + struct.pack(f"<{len(values)}Q", *values)
    place, header = 0x400000, 64 + 56
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 183, 1, place + header, 64, 0, 0, 64, 56, 1, 0, 0, 0
    ) + struct.pack("<IIQQQQQQ", 1, 5, 0, place, place, header + len(code), header + len(code), 4096)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "call"
        program.write_bytes(elf + code)
        program.chmod(0o700)
        command = ["qemu-aarch64", "-cpu", "max", str(program)]
        subprocess.run(command, pass_fds=[arena.file], check=True, timeout=600)


def with_unicorn(arena: Arena, entry: int, stack: int, arguments: tuple[int, ...]) -> None:
    """In this process."""
    import unicorn
    from unicorn import arm64_const as arm

    back = arena.take(64)
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    machine.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
    machine.mem_map_ptr(arena.base, arena.size, unicorn.UC_PROT_ALL, arena.base)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
    machine.reg_write(arm.UC_ARM64_REG_SP, stack)
    machine.reg_write(arm.UC_ARM64_REG_LR, back.ctypes.data)
    for register, value in enumerate(arguments):
        machine.reg_write(arm.UC_ARM64_REG_X0 + register, value)
    machine.emu_start(entry, back.ctypes.data)


def emulator(name: str) -> Emulator | None:
    """What can run a path's code here. Unicorn's processors are older than the matrix instructions."""
    if sys.platform == "linux" and shutil.which("qemu-aarch64"):
        return with_qemu
    return with_unicorn if name == "neon" and importlib.util.find_spec("unicorn") else None


def cases(arena: Arena) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """(name, operation, arguments, error of the result) for all kinds of kernels; packing still runs on this machine."""
    from problems import FORMATS, weights

    from numba_kernels.cpu import rows
    from numba_kernels.cpu.linear import linear_op, one_group
    from numba_kernels.cpu.packed import Packed
    from numba_kernels.cpu.packing import pack
    from numba_kernels.cpu.records import empty_records
    from numba_kernels.reference import ops

    rng = np.random.default_rng(0)
    n, columns, tokens = 19, 256, 13
    x = arena.copy(rng.normal(size=(tokens, columns)).astype(np.float32))
    records = arena.copy(empty_records(tokens, columns))
    result: list[tuple[str, Any, dict[str, Any], Any]] = []
    given = {"x": x, "x_stride": x.strides[0], "records": records, "record_stride": records.strides[0], "rows": tokens}
    codes, scales = ops.quantize_rows(x)
    meant = codes * scales.repeat(32, 1)

    def quantize_error() -> float:
        blocks = records[:, : columns // 32 * 44].reshape(tokens, -1, 44)[..., :32]
        return float(np.abs(np.ascontiguousarray(blocks).view(np.int8).reshape(tokens, -1) - codes).max())

    result.append(("quantize", rows.quantize, {**given, "columns": columns}, quantize_error))
    weight, out = arena.copy(rng.normal(size=columns).astype(np.float32)), arena.copy(np.full_like(x, np.nan))

    def norm_error() -> float:
        return float(np.abs(out - ops.rms_norm(x, weight, 1e-5)).max())

    norm = {
        **given,
        "records": 0,
        "columns": columns,
        "weight": weight,
        "out": out,
        "out_stride": out.strides[0],
        "eps": 1e-5,
    }
    result.append(("rms_norm", rows.rms_norm, norm, norm_error))
    half = arena.copy(np.full((tokens, columns // 2), np.nan, np.float32))

    def gated_error() -> float:
        return float(np.abs(half - ops.clamped_swiglu(x[:, 0::2], x[:, 1::2])).max())

    gate = {
        **given,
        "records": 0,
        "columns": columns // 2,
        "out": half,
        "out_stride": half.strides[0],
        "limit": 7,
        "alpha": 1.702,
    }
    result.append(("swiglu", rows.gated_op("swiglu"), gate, gated_error))
    for name in FORMATS:
        planes, values = weights(name, n, columns, rng)
        packed = Packed(name, 1, n, columns)
        pack(packed, planes)
        data = arena.copy(packed.data)
        for activations in ("int8", "f32"):
            for many in (False, True):
                count = tokens if many else 1
                y = arena.copy(np.full((count, n), np.nan, np.float32))
                quantized = activations == "int8" and packed.layout.decode is not None
                group = one_group(count)
                arguments = {
                    "weights": data, "matrix_bytes": packed.matrix_bytes, "panel_bytes": packed.panel_bytes,
                    "scales_at": packed.scales_at, "blocks": packed.blocks, "shift": packed.shift, "height": n,
                    "panels_at_once": 2, "groups": arena.copy(group.count), "group_matrix": arena.copy(group.matrix),
                    "group_start": arena.copy(group.start), "index": arena.copy(group.index), "bias": 0, "bias_stride": 0,
                    "residual": 0, "out": y, "out_stride": y.strides[0], "x": records if quantized else x,
                    "x_stride": (records if quantized else x).strides[0],
                }  # fmt: skip
                exact = (meant if quantized else x)[:count].astype(np.float64) @ values.T

                def error(y: np.ndarray = y, exact: np.ndarray = exact) -> float:
                    return float(np.abs(y - exact).max() / np.abs(exact).max())

                label = f"linear {name} {activations} {'many' if many else 'one'}"
                result.append((label, linear_op(name, activations, many), arguments, error))
    result += shape_cases(arena, int(os.environ.get("ARM_SEED", "0")))
    for element, head_dim in (("bf16", 20), ("f32", 6), ("bf16", 64)):
        result += attention_cases(arena, element, head_dim)
    for element, rank in (("bf16", 40), ("f32", 21)):
        result += latent_cases(arena, element, rank)
    return result + codec_cases(arena)


def shape_cases(arena: Arena, seed: int) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Odd shapes, drawn: groups of tokens of any size that meet their experts' matrices through an index, in all formats, with
    bias and residual, and all kinds of records, which are written here."""
    import ml_dtypes
    from problems import FORMATS, K_QUANTS, weights

    from numba_kernels.cpu.linear import linear_op
    from numba_kernels.cpu.packed import INT8_GROUPS, Packed
    from numba_kernels.cpu.packing import pack
    from numba_kernels.cpu.records import OFFSETS, RECORDS, empty_records

    rng = np.random.default_rng(seed)
    result: list[tuple[str, Any, dict[str, Any], Any]] = []
    kinds = [(name, kind) for name in FORMATS if name not in ("f16", "f32", "bf16") for kind in ("int8", "int8_g16")]
    for name, kind in [*kinds, ("bf16", "bf16")]:
        n, experts, tokens = int(rng.integers(1, 40)), 5, int(rng.integers(9, 30))
        columns = int(rng.integers(1, 6)) * (256 if name in K_QUANTS else INT8_GROUPS.get(name, 32))
        if name in ("bf16", "int8"):
            columns -= int(rng.integers(0, 31))
        padded = -(-columns // 32) * 32
        packed, values = Packed(name, experts, n, columns), []
        for matrix in range(experts):
            planes, v = weights(name, n, columns, rng)
            pack(packed, planes, matrix=matrix)
            values.append(np.pad(v, ((0, 0), (0, padded - columns))))
        x = np.pad(rng.normal(size=(tokens, columns)).astype(np.float32), ((0, 0), (0, padded - columns)))
        width = RECORDS[kind]
        records = empty_records(tokens, columns, kind)
        blocks = records[:, : padded // 32 * width].reshape(tokens, -1, width)
        if kind == "bf16":
            meant = x.astype(ml_dtypes.bfloat16)
            blocks[...] = meant.view(np.uint8).reshape(blocks.shape)
        else:
            size = 16 if kind == "int8_g16" else 32
            apart = x.reshape(tokens, -1, size)
            scales = (np.abs(apart).max(-1) / 127).astype(np.float32)
            codes = np.rint(apart / np.maximum(scales, 1e-30)[..., None]).astype(np.int8)
            scale_at, start_at, sum_at = OFFSETS[kind]
            each = codes.astype(np.int32).sum(-1).reshape(tokens, -1, 32 // size)
            by_block = scales.reshape(each.shape)
            whole = np.concatenate(
                [
                    codes.reshape(tokens, -1, 32).view(np.uint8),
                    by_block.view(np.uint8),
                    (each * -16).astype(np.int32).view(np.uint8),
                    (each * by_block).sum(-1, keepdims=True, dtype=np.float32).view(np.uint8),
                ],
                -1,
            )
            assert (scale_at, start_at, sum_at, width) == (32, 32 + 128 // size, 32 + 256 // size, whole.shape[-1])
            blocks[...] = whole
            meant = (codes * scales[..., None]).reshape(tokens, padded)
        chosen = np.sort(rng.choice(experts, 3, False))  # experts that have rows
        cuts = np.sort(rng.integers(0, tokens + 1, 2))
        start = np.array([0, *cuts, tokens], np.int32)
        index = rng.permutation(tokens).astype(np.int32)
        bias = rng.normal(size=(experts, n)).astype(np.float32)
        residual = rng.normal(size=(tokens, n)).astype(np.float32)
        out = arena.copy(np.full((tokens, n), np.nan, np.float32))
        exact = np.empty((tokens, n))
        for g, matrix in enumerate(chosen):
            some = slice(start[g], start[g + 1])
            product = meant[index[some]].astype(np.float64) @ values[matrix].T.astype(np.float64)
            exact[some] = product + bias[matrix] + residual[some]
        given = arena.copy(records)
        arguments = {
            "weights": arena.copy(packed.data), "matrix_bytes": packed.matrix_bytes, "panel_bytes": packed.panel_bytes,
            "scales_at": packed.scales_at, "blocks": packed.blocks, "shift": packed.shift, "height": n,
            "panels_at_once": 2, "groups": arena.copy(np.array([3], np.int32)),
            "group_matrix": arena.copy(chosen.astype(np.int32)),
            "group_start": arena.copy(start), "index": arena.copy(index), "bias": arena.copy(bias), "bias_stride": 4 * n,
            "residual": arena.copy(residual), "out": out, "out_stride": out.strides[0], "x": given,
            "x_stride": given.strides[0],
        }  # fmt: skip

        def error(out: np.ndarray = out, exact: np.ndarray = exact) -> float:
            return float(np.abs(out - exact).max() / np.abs(exact).max())

        result.append((f"shapes {name} {kind}", linear_op(name, kind, True), arguments, error))
    return result


def codec_cases(arena: Arena) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """Rows are searched and rounded to the bytes that the plain twins make."""
    from numba_kernels.codec import ggml, iq4_nl, mxfp4, nvfp4, tables
    from numba_kernels.codec.call import bound
    from numba_kernels.reference import formats as twin
    from numba_kernels.reference import ggml as ggml_twin

    rng = np.random.default_rng(0)
    rows, columns = 3, 96
    values = arena.copy((rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 3, (rows, 1))).astype(np.float32))
    weights = arena.copy(rng.random((1, columns)).astype(np.float32))
    x, w = values.reshape(-1, 32), np.broadcast_to(weights, values.shape).reshape(-1, 32)
    given = {"values": values, "values_stride": 4 * columns, "weights": weights, "weights_stride": 0, "rows": rows}
    given |= {"columns": columns, "errors": arena.copy(np.zeros((rows, 4))), "errors_stride": 32}
    result: list[tuple[str, Any, dict[str, Any], Any]] = []

    def add(name: str, op: Any, wanted: list[np.ndarray], **parameters: Any) -> None:
        made = [arena.copy(np.zeros((rows, plane.size // rows), np.uint8)) for plane in wanted]
        planes = dict(zip(("blocks", "scales"), made, strict=False))
        strides = {f"{key}_stride": plane.shape[1] for key, plane in planes.items()}

        def error() -> float:
            return float(sum((a.reshape(b.shape) != b).sum() for a, b in zip(made, wanted, strict=True)))

        result.append((f"{name} blocks", op, {**given, **planes, **strides, **parameters}, error))

    steps = arena.copy(tables.STEPS_8_BITS)
    add("q8_0", bound(ggml.quantize_q8_0, SEARCH=True), [ggml_twin.quantize_q8_0(x, "search", w)], steps=steps)
    for bits in (4, 5):
        steps = arena.copy(tables.STEPS_SYMMETRIC[bits])
        wanted = [ggml_twin.quantize_nibbles(x, bits, False, "search", w)]
        add(f"q{bits}_0", bound(ggml.quantize_symmetric, SEARCH=True, BITS=bits), wanted, steps=steps)
        steps = arena.copy(tables.STEPS_MINIMUM[bits])
        wanted = [ggml_twin.quantize_nibbles(x, bits, True, "search", w)]
        add(f"q{bits}_1", bound(ggml.quantize_minimum, SEARCH=True, BITS=bits), wanted, steps=steps)
    steps = arena.copy(tables.STEPS_IQ4_NL)
    add("iq4_nl", bound(iq4_nl.quantize_iq4_nl, SEARCH=True), [ggml_twin.quantize_iq4_nl(x, "search", w)], steps=steps)
    for rule in ("search", "ceil", "ocp"):
        add(f"mxfp4 {rule}", bound(mxfp4.quantize_mxfp4, RULE=rule), list(twin.quantize_mxfp4(x, rule, w)))
    scale, steps = np.float32(0.01), arena.copy(tables.NVFP4_SEARCH)
    wanted = list(twin.quantize_nvfp4(x.reshape(-1, 16), scale, "search", w.reshape(-1, 16)))
    add("nvfp4", bound(nvfp4.quantize_nvfp4, SEARCH=True), wanted, steps=steps, tensor_scale=scale)
    return result


def attention_cases(arena: Arena, element: str, head_dim: int) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """A prompt's keys and values are stored, and its queries attend; rows are longer than what is in them."""
    import ml_dtypes

    from numba_kernels.cpu.attention import attention_op, attention_scratch
    from numba_kernels.cpu.kv_pages import Pages, store_op
    from numba_kernels.reference import ops

    rng = np.random.default_rng(head_dim)
    heads, kv_heads, tokens, window = 5, 1, 21, 9
    pages = Pages(kv_heads, head_dim, 16, element)
    width = (heads + 2 * kv_heads) * head_dim
    qkv = arena.copy(rng.normal(size=(tokens, width + 3)).astype(np.float32))
    given = qkv[:, :width].reshape(tokens, heads + 2 * kv_heads, head_dim).copy()
    memory = arena.copy(np.zeros((3, pages.nbytes), np.uint8))
    tables = ops.rope_table(ops.rope_frequencies(head_dim, 1e4), tokens)
    cos, sin = (arena.copy(table) for table in tables)
    out = arena.copy(np.full((tokens, heads, head_dim), np.nan, np.float32))
    scratch = attention_scratch(1, head_dim)
    scratch |= {name: arena.copy(scratch[name]) for name in ("areas", "counters")}
    sinks = arena.copy(rng.normal(size=heads).astype(np.float32))
    positions = arena.copy(np.arange(tokens, dtype=np.int32))
    zeros = arena.copy(np.zeros(tokens, np.int32))
    shared = {
        "qkv": qkv, "stride": qkv.strides[0], "positions": positions, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "pages": memory, "page_bytes": pages.nbytes, "page_positions": 16, "tables": arena.copy(np.array([2, 0, 1], np.int32)),
        "table_stride": 12, "ring": 3,
    }  # fmt: skip
    store = {**shared, "rows": tokens, "sequence": zeros, "cos": cos, "sin": sin, "scale": head_dim**-0.5}
    store |= {"pairs": head_dim // 2, "interleaved": 0, "query_norm": None, "key_norm": None, "eps": 0.0}
    attend = {
        **shared, "rows": tokens, "value_dim": head_dim,
        "out": out, "out_stride": out.strides[0], "sequences": 1, "first_row": zeros, "window": window, "sinks": sinks,
        "row_count": arena.copy(np.array([tokens], np.int32)), "divided": 0, **scratch,
    }  # fmt: skip

    def error() -> float:
        q, k = (ops.apply_rope(given[:, a:b], *tables) for a, b in ((0, heads), (heads, heads + kv_heads)))
        v = given[:, heads + kv_heads :]
        if element == "bf16":
            k, v = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (k, v))
        exact = ops.attention(q, k, v, 0, scale=head_dim**-0.5, window=window, sinks=sinks)
        return float(np.abs(out - exact).max() / np.abs(exact).max())

    name = f"attention {head_dim} {element}"
    stored = (f"keys of {name}", store_op(element), store, lambda: 0.0)
    return [stored, (name, attention_op(8, element), attend, error)]


def latent_cases(arena: Arena, element: str, rank: int) -> list[tuple[str, Any, dict[str, Any], Any]]:
    """A prompt's latents and rotated keys are stored, and its queries, whose part for the latents is given, attend to them."""
    import ml_dtypes

    from numba_kernels.cpu.attention import attention_scratch
    from numba_kernels.cpu.latent import LatentPages, latent_attention_op, store_latents_op
    from numba_kernels.reference import ops

    rng = np.random.default_rng(rank)
    heads, tokens, nope, rope, scale = 5, 21, 18, 6, 0.3
    pages, width = LatentPages(rank, rope, 16, element), -(-(rank + rope) // 32) * 32
    shapes = ((tokens, heads, nope + rope), (tokens, rank), (tokens, rope), (heads, tokens, width))
    query, latent, key, absorbed = (arena.copy(rng.normal(size=shape).astype(np.float32)) for shape in shapes)
    given = query.copy(), latent.copy(), key.copy(), absorbed.copy()
    unrotated, out = (arena.copy(np.full((heads, tokens, n), np.nan, np.float32)) for n in (nope, rank))
    tables = ops.rope_table(ops.rope_frequencies(rope, 1e4), tokens)
    zeros, number = arena.copy(np.zeros(tokens, np.int32)), arena.copy(np.array([2, 0, 1], np.int32))
    shared = {
        "rows": tokens, "heads": heads, "positions": arena.copy(np.arange(tokens, dtype=np.int32)), "tables": number,
        "pages": arena.copy(np.zeros((3, pages.nbytes), np.uint8)), "page_bytes": pages.nbytes, "page_positions": 16,
        "table_stride": 12, "ring": 3,
    }  # fmt: skip
    store = {
        **shared, "query": query, "query_stride": query.strides[0], "latent": latent, "latent_stride": latent.strides[0],
        "key": key, "key_stride": key.strides[0], "nope": nope, "rope": rope, "rank": rank, "sequence": zeros,
        "cos": arena.copy(tables[0]), "sin": arena.copy(tables[1]), "pairs": rope // 2, "interleaved": 1, "scale": scale,
        "unrotated": unrotated, "unrotated_stride": unrotated.strides[1], "absorbed": absorbed,
        "absorbed_stride": absorbed.strides[1],
    }  # fmt: skip
    scratch = attention_scratch(1, rank)
    scratch |= {name: arena.copy(scratch[name]) for name in ("areas", "counters")}
    attend = {
        **shared, "qkv": absorbed, "stride": absorbed.strides[1], "out": out, "out_stride": out.strides[1], "sequences": 1,
        "first_row": zeros, "row_count": arena.copy(np.array([tokens], np.int32)), "kv_heads": 1, "head_dim": rank + rope,
        "value_dim": rank, "window": 0, "sinks": None, "divided": 0, **scratch,
    }  # fmt: skip

    def stored_error() -> float:
        return float(np.abs(unrotated - given[0][..., :nope].transpose(1, 0, 2) * scale).max())

    def error() -> float:
        turned = ops.apply_rope(given[0][..., nope:], *tables, True) * scale
        queries = np.concatenate([given[3].transpose(1, 0, 2)[..., :rank], turned], -1)
        rows = np.concatenate([given[1], ops.apply_rope(given[2][:, None], *tables, True)[:, 0]], -1)
        if element == "bf16":
            rows = rows.astype(ml_dtypes.bfloat16).astype(np.float32)
        exact = ops.attention(queries, rows[:, None], rows[:, None, :rank], 0, scale=1)
        return float(np.abs(out.transpose(1, 0, 2) - exact).max() / np.abs(exact).max())

    name = f"latent attention {rank} {element}"
    stored = (f"keys of {name}", store_latents_op(element), store, stored_error)
    return [stored, (name, latent_attention_op(element, rank), attend, error)]


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
