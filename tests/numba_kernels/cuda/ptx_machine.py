"""An interpreter of the PTX that the kernels compile to: what a GPU would execute, executed without one, and watched.

All threads of a launch are lanes of NumPy arrays. The instruction with the lowest place in the program goes first, so lanes that
parted meet again where the code does. Refused, as a GPU would not: addresses outside of an array, accesses that are not aligned,
shared memory that one warp reads and another writes between two barriers, warp instructions that not all lanes of a
warp execute together, and `ld.global.nc` from an array that the same launch writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx_arithmetic import (
    UNARY,
    bf16_values,
    compare,
    convert,
    dot,
    dtype_of,
    matrix_of,
    minimum,
    multiply,
    permute,
    round_bf16,
    shift,
)
from ptx_memory import SHARED_BASE
from ptx_program import Fault, Instruction, parse
from ptx_threads import WARP, Threads


class Machine(Threads):
    """One launch: what each instruction does."""

    def _execute(self, i: Instruction, lanes: np.ndarray) -> None:
        name, kinds = i.code[0], [c for c in i.code if re.fullmatch(r"[busf]\d+|pred", c)]
        handler = getattr(self, f"_{name}", None)
        if handler:
            handler(i, kinds, lanes)
            return
        kind = kinds[-1] if kinds else "b32"
        if name == "setp":
            a, b = (self._value(o, kind, lanes) for o in i.operands[1:3])
            self._set(i.operands[0], lanes, compare(i.code[1], a, b))
            return
        values = [self._value(o, kind, lanes) for o in i.operands[1:]]
        if name in UNARY:
            result = UNARY[name](values[0])
        elif name in ("add", "sub", "and", "or", "xor"):
            result = {"add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[
                name
            ](*values)
        elif name in ("min", "max"):
            result = minimum(*values, least=name == "min")
            if "NaN" in i.code:
                result = np.where(np.isnan(values[0]) | np.isnan(values[1]), np.float32(np.nan), result)
        elif name == "mul":
            result = multiply(i.code, kind, *values)
        elif name in ("div", "rem") and kind[0] == "f":
            result = values[0] / values[1]
        elif name in ("div", "rem"):
            a, b = values
            quotient = np.where(b == 0, 0, np.abs(a.astype(object)) // np.maximum(np.abs(b.astype(object)), 1))
            quotient = (quotient * np.where((a < 0) != (b < 0), -1, 1)).astype(a.dtype)
            result = quotient if name == "div" else a - quotient * b
        else:
            raise Fault("this instruction is not known here")
        self._set(i.operands[0], lanes, result.astype(values[0].dtype) if name not in ("mul", "popc") else result)

    def _mad(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        kind = kinds[-1]
        a, b = (self._value(o, kind, lanes) for o in i.operands[1:3])
        wide = f"{kind[0]}{2 * int(kind[1:])}" if "wide" in i.code else kind
        self._set(i.operands[0], lanes, multiply(i.code, kind, a, b) + self._value(i.operands[3], wide, lanes))

    def _fma(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        if "bf16x2" in i.code:
            a, b, c = (bf16_values(self._value(o, "u32", lanes)).astype(np.float64) for o in i.operands[1:])
            low, high = (round_bf16((a * b + c)[:, n]) for n in (0, 1))
            self._set(i.operands[0], lanes, high << np.uint32(16) | low)
            return
        a, b, c = (self._value(o, kinds[-1], lanes).astype(np.float64) for o in i.operands[1:])
        exact = a * b + c
        result = exact.astype(dtype_of(kinds[-1]))
        if "rm" in i.code:  # toward minus infinity
            result = np.where(result > exact, np.nextafter(result, np.float32(-np.inf)), result)
        self._set(i.operands[0], lanes, result)

    def _shl(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = self._value(i.operands[1], kinds[-1], lanes), self._value(i.operands[2], "u32", lanes)
        self._set(i.operands[0], lanes, shift(a, b, i.code[0] == "shl"))

    _shr = _shl

    def _selp(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = (self._value(o, kinds[-1], lanes) for o in i.operands[1:3])
        self._set(i.operands[0], lanes, np.where(self.registers[i.operands[3]][lanes], a, b))

    def _cvt(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        if "bf16x2" in i.code:
            high, low = (round_bf16(self._value(o, "f32", lanes)) for o in i.operands[1:])
            self._set(i.operands[0], lanes, high << np.uint32(16) | low)
            return
        value = self._value(i.operands[1], kinds[1], lanes)
        self._set(i.operands[0], lanes, convert(i.code, kinds[0], kinds[1], value))

    def _cvta(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        self._set(i.operands[0], lanes, self._value(i.operands[1], "u64", lanes))

    def _mov(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        kind = kinds[-1] if kinds else "pred"
        if isinstance(i.operands[0], tuple):  # a register taken apart
            parts = self._value(i.operands[1], kind, lanes).view(np.dtype(f"u{int(kind[1:]) // 16}")).reshape(len(lanes), 2)
            for part, name in enumerate(i.operands[0]):
                if name != "_":
                    self._set(name, lanes, parts[:, part].copy())
        elif isinstance(i.operands[1], tuple):  # put together
            half = f"b{int(kind[1:]) // 2}"
            halves = [self._value(o, half, lanes) for o in i.operands[1]]
            self._set(i.operands[0], lanes, np.stack(halves, 1).view(dtype_of(kind))[:, 0])
        else:
            self._set(i.operands[0], lanes, self._value(i.operands[1], kind, lanes))

    def _bfi(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """The low bits of a, put into b at a place."""
        kind = kinds[-1]
        a, b = (self._value(o, kind, lanes) for o in i.operands[1:3])
        place, count = (self._value(o, "u32", lanes).astype(a.dtype) for o in i.operands[3:])
        one = a.dtype.type(1)
        mask = ((one << count) - one) << place
        self._set(i.operands[0], lanes, (b & ~mask) | (a << place & mask))

    def _bfe(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """Bits of a from a place on, sign-extended if it is signed."""
        kind = kinds[-1]
        a = self._value(i.operands[1], kind, lanes)
        place, count = (self._value(o, "u32", lanes).astype(a.dtype) for o in i.operands[2:])
        top = a.dtype.type(8 * a.itemsize) - count
        self._set(i.operands[0], lanes, a << (top - place) >> top)

    def _prmt(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        self._set(i.operands[0], lanes, permute(*(self._value(o, "u32", lanes) for o in i.operands[1:])))

    def _dp4a(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = (self._value(o, "u32", lanes) for o in i.operands[1:3])
        self._set(i.operands[0], lanes, dot(a, b, self._value(i.operands[3], "s32", lanes), kinds))

    # ---- what a warp does together ----------------------------------------------------------------------------------

    def _shfl(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        target = i.operands[0].split("|")[0]
        value = self._value(i.operands[1], "b32", lanes)
        by = self._value(i.operands[2], "u32", lanes).astype(np.int64)
        lane = lanes % WARP
        source = {"bfly": lane ^ by, "down": np.minimum(lane + by, WARP - 1), "idx": by % WARP}[i.code[2]]
        self._set(target, lanes, value[np.arange(len(lanes)) - lane + source])

    def _mma(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        given = [self._value(o, "b32", lanes) for group in i.operands[1:] for o in group]
        for name, value in zip(i.operands[0], matrix_of(given), strict=True):
            self._set(name, lanes, value)

    def _redux(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        value = self._value(i.operands[1], "u32", lanes).reshape(-1, WARP)
        self._set(i.operands[0], lanes, np.repeat({"min": value.min(1), "max": value.max(1)}[i.code[2]], WARP))

    def _vote(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        value = self.registers[i.operands[1]][lanes].reshape(-1, WARP)
        result = {"any": value.any(1), "all": value.all(1)}[i.code[2]]
        self._set(i.operands[0], lanes, np.repeat(result, WARP))

    # ---- memory -----------------------------------------------------------------------------------------------------

    def _ld(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        kind = kinds[-1]
        if i.code[1] == "param":
            name, _, offset = i.operands[1].strip("[]").partition("+")
            declared, value = self.parameters[name]
            if (declared, kind) == ("u64", "u32"):  # the lower half
                value = int(value) & 0xFFFFFFFF
            elif declared != kind.replace("b", "u"):
                offset = "of another type"
            if offset:
                raise Fault(f"a parameter of type {declared} read as {kind}")
            self._set(i.operands[0], lanes, np.full(len(lanes), value, dtype_of(kind)))
            return
        targets = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
        size = dtype_of(kind).itemsize * len(targets)
        data = self._read(i.code, self._address(i.operands[1], lanes), size, lanes)
        for n, target in enumerate(targets):
            part = np.ascontiguousarray(data[:, n * size // len(targets) : (n + 1) * size // len(targets)])
            self._set(target, lanes, part.view(dtype_of(kind))[:, 0])

    def _read(self, code: tuple[str, ...], address: np.ndarray, size: int, lanes: np.ndarray) -> np.ndarray:
        """uint8 [lanes, size]."""
        if "shared" in code:
            offset = (address - np.uint64(SHARED_BASE)).astype(np.int64)
            self.memory.check_shared(self.block[lanes], offset, size, self.warp[lanes], self.epoch, write=False)
            return self.memory.shared[self.block[lanes][:, None], offset[:, None] + np.arange(size)]
        if "global" not in code:
            raise Fault("a load from memory of unknown kind")
        n, offset = self.memory.place(address, size)
        if "nc" in code:
            self.memory.uncached.add(n)
        return self.memory.arrays[n][offset[:, None] + np.arange(size)]

    def _cp(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """Asynchronous copies into shared memory: the bytes arrive when their thread waits for them."""
        if i.code[:4] == ("cp", "async", "bulk", "prefetch"):
            self._prefetch_bulk(i, lanes)
        elif "bulk" in i.code:
            raise Fault("this instruction is not known here")
        elif i.code[:3] == ("cp", "async", "commit_group"):
            self.groups[lanes] += 1
        elif i.code[:3] == ("cp", "async", "wait_group"):
            self._copies_arrive(self.groups - int(i.operands[0]), lanes)
        else:
            size = int(i.operands[2])
            given = self._value(i.operands[3], "u32", lanes) if len(i.operands) > 3 else np.full(len(lanes), size)
            offset = (self._address(i.operands[0], lanes) - np.uint64(SHARED_BASE)).astype(np.int64)
            data = np.zeros((len(lanes), size), np.uint8)
            if not np.isin(given, (0, size)).all():
                raise Fault("a copy of a part of what it is to copy")
            wanted = given > 0
            if wanted.any():
                data[wanted] = self._read(("global",), self._address(i.operands[1], lanes)[wanted], size, lanes[wanted])
            self.memory.check_shared(self.block[lanes], offset, size, self.warp[lanes], self.epoch, write=True)
            self.copies.append((lanes, offset, data, self.groups[lanes]))

    def _copies_arrive(self, before: np.ndarray, lanes: np.ndarray) -> None:
        """Of these lanes, copies of groups before those numbers."""
        waiting = []
        for owners, offset, data, group in self.copies:
            done = np.isin(owners, lanes) & (group < before[owners])
            if done.any():
                who = owners[done]
                self.memory.check_shared(
                    self.block[who], offset[done], data.shape[1], self.warp[who], self.epoch, write=True
                )
                self.memory.shared[self.block[who][:, None], offset[done][:, None] + np.arange(data.shape[1])] = data[done]
            if not done.all():
                waiting.append((owners[~done], offset[~done], data[~done], group[~done]))
        self.copies = waiting

    def _st(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        sources = i.operands[1] if isinstance(i.operands[1], tuple) else (i.operands[1],)
        kind = kinds[-1]
        values = [np.ascontiguousarray(self._value(o, kind, lanes)).view(np.uint8).reshape(len(lanes), -1) for o in sources]
        data = np.concatenate(values, 1)
        address, size = self._address(i.operands[0], lanes), data.shape[1]
        if "shared" in i.code:
            offset = (address - np.uint64(SHARED_BASE)).astype(np.int64)
            self.memory.check_shared(self.block[lanes], offset, size, self.warp[lanes], self.epoch, write=True)
            self.memory.shared[self.block[lanes][:, None], offset[:, None] + np.arange(size)] = data
            return
        if "global" not in i.code:
            raise Fault("a store to memory of unknown kind")
        n, offset = self.memory.place(address, size)
        self.memory.changed.add(n)
        self.memory.arrays[n][offset[:, None] + np.arange(size)] = data

    def _atom(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """Atomic addition: one lane after another."""
        if "add" not in i.code or not {"global", "shared"} & set(i.code):
            raise Fault("this atomic operation is not known here")
        dtype = dtype_of(kinds[-1])
        address, added = self._address(i.operands[1], lanes), self._value(i.operands[2], kinds[-1], lanes)
        if "shared" in i.code:
            offset = (address - np.uint64(SHARED_BASE)).astype(np.int64)
            self.memory.check_shared_atomic(self.block[lanes], offset, dtype.itemsize, self.epoch)
            cells, at = self.memory.shared.view(dtype), offset // dtype.itemsize
            places = [(int(b), int(c)) for b, c in zip(self.block[lanes], at, strict=True)]
        else:
            n, offset = self.memory.place(address, dtype.itemsize)
            self.memory.changed.add(n)
            cells, places = self.memory.arrays[n].view(dtype), (offset // dtype.itemsize).tolist()
        old = np.empty(len(lanes), dtype)
        for lane, at in enumerate(places):
            old[lane] = cells[at]
            cells[at] += added[lane]
        self._set(i.operands[0], lanes, old)

    def _prefetch(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        self.memory.place(self._address(i.operands[0], lanes), 1)

    def _prefetch_bulk(self, i: Instruction, lanes: np.ndarray) -> None:
        """Memory is to be brought into the second cache."""
        for address, size in zip(
            self._address(i.operands[0], lanes), self._value(i.operands[1], "u32", lanes).tolist(), strict=True
        ):
            if int(address) % 16 or size % 16 or not size:
                raise Fault(f"{size} bytes from address {int(address):x}: no multiples of 16")
            first, last = (self.memory.place(np.array([a], np.uint64), 16) for a in (int(address), int(address) + size - 16))
            if first[0] != last[0]:
                raise Fault("the end is not in the array")

    def _griddepcontrol(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """One launch follows another here."""

    def _membar(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        """Memory is seen at once here."""

    _fence = _membar


def launch(ptx: str, grid: int | tuple[int, ...], threads: int, arguments: Sequence[Any]) -> int:
    """Runs a kernel on NumPy arrays and numbers; returns how many instructions were executed. Raises Fault."""
    machine = Machine(parse(ptx), grid if isinstance(grid, tuple) else (grid,), threads, arguments)
    machine.run()
    return machine.executed
