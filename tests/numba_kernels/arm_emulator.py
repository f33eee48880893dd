"""Kernels compiled for AArch64, loaded into memory that an emulator shares, and run: `qemu-aarch64` or unicorn."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STACK = 8 << 20  # bytes: as many as threads have on Linux
GUARD, GUARDED = 256, 0xC1  # bytes on each side of what is taken; what they hold


def _mapped(file: int, size: int) -> np.ndarray:
    """A file in memory at an address below those that programs use for themselves."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    place = libc.mmap(64 << 30, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    assert place not in (None, ctypes.c_void_p(-1).value)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(place), np.uint8)


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
