"""An interpreter of the PTX that the kernels compile to: what a GPU would execute, executed without one, and watched.

All threads of a launch are lanes of NumPy arrays. The instruction with the lowest place in the program goes first, so lanes that
parted meet again where the code does. Refused, as a GPU would not: addresses outside of an array, accesses that are not aligned,
shared memory that one warp reads and another writes between two barriers, warp instructions that not all lanes of a
warp execute together, and `ld.global.nc` from an array that the same launch writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

WARP = 32
SHARED_BASE, GLOBAL_BASE = 1 << 32, 1 << 40
ATOMIC = -3  # in place of a warp's number
GUARD = 4096  # bytes between arrays
COLLECTIVE = ("shfl", "mma", "vote", "redux", "bar")  # what a warp executes together


class Fault(Exception):
    """The program did what no program may do."""


@dataclass(frozen=True)
class Instruction:
    guard: str  # predicate register, or ""
    negated: bool
    code: tuple[str, ...]  # the opcode's parts
    operands: tuple[Any, ...]  # text; braces are tuples of text
    text: str


@dataclass(frozen=True)
class Program:
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[tuple[str, str], ...]  # (name, type)
    registers: dict[str, str]  # name -> type
    shared: dict[str, tuple[int, int]]  # name -> (offset, size)
    shared_bytes: int


# ---- reading --------------------------------------------------------------------------------------------------------


def _operands(text: str) -> tuple[Any, ...]:
    found: list[Any] = []
    for braces, address, plain in re.findall(r"\{([^}]*)\}|(\[[^\]]*\])|([^,\s{}\[\]]+)", text):
        found.append(tuple(p.strip() for p in braces.split(",")) if braces else address or plain)
    return tuple(found)


@lru_cache(maxsize=256)
def parse(ptx: str) -> Program:
    """Reads a module with one kernel."""
    shared: dict[str, tuple[int, int]] = {}
    offset = 0
    for alignment, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", ptx):
        offset = -(-offset // int(alignment)) * int(alignment)
        shared[name] = (offset, int(size))
        offset += int(size)
    head, body = ptx[ptx.index(".entry") :].split("\n{\n", 1)
    parameters = tuple((name, kind) for kind, name in re.findall(r"\.param \.(\w+)(?: \.ptr \.align \d+)? (\w+)", head))
    registers: dict[str, str] = {}
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in re.sub(r"//.*", "", body).replace("{ ", "{").split("\n"):
        text = line.strip()
        if not text or text in "{}":
            continue
        if (m := re.fullmatch(r"\.reg \.(\w+)\s+(%\w+?)<(\d+)>;", text)) is not None:
            registers |= {f"{m[2]}{i}": m[1] for i in range(int(m[3]))}
        elif (m := re.fullmatch(r"(\$?\w+):", text)) is not None:
            labels[m[1]] = len(instructions)
        elif (m := re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);", text)) is not None:
            code = tuple(m[3].split("."))
            instructions.append(Instruction(m[2] or "", bool(m[1]), code, _operands(m[4]), text))
        elif not text.startswith(".pragma"):
            raise Fault(f"cannot read {text!r}")
    return Program(tuple(instructions), labels, parameters, registers, shared, offset)


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def _dtype(kind: str) -> np.dtype:
    """b32, u8, s64, f32, … as NumPy's type; predicates are bool."""
    if kind == "pred":
        return np.dtype(bool)
    letter, bits = kind[0], int(kind[1:])
    return np.dtype({"b": "u", "u": "u", "s": "i", "f": "f"}[letter] + str(bits // 8))


def _compare(relation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    unordered = relation.endswith("u") and relation not in ("u",) and a.dtype.kind == "f"
    base = relation[:-1] if unordered else relation
    result = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[
        {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(base, base)
    ]
    nan = (np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else np.zeros(len(a), bool)
    return np.where(nan, unordered, result)


def _shift(a: np.ndarray, b: np.ndarray, left: bool) -> np.ndarray:
    bits = 8 * a.itemsize
    amount = np.minimum(b.astype(np.uint32), bits - 1).astype(a.dtype)
    shifted = a << amount if left else a >> amount
    beyond = b.astype(np.uint32) >= bits
    return np.where(beyond, 0 if left or a.dtype.kind == "u" else shifted, shifted).astype(a.dtype)


def _minimum(a: np.ndarray, b: np.ndarray, least: bool) -> np.ndarray:
    if a.dtype.kind == "f":
        return (np.fmin if least else np.fmax)(a, b)
    return (np.minimum if least else np.maximum)(a, b)


def _multiply(code: tuple[str, ...], kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if kind[0] == "f":
        return a * b
    if "wide" in code:
        return a.astype(_dtype(f"{kind[0]}{2 * int(kind[1:])}")) * b
    if "hi" in code:
        bits = int(kind[1:])
        return np.array([int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)], object).astype(_dtype(kind))
    return a * b


def _convert(code: tuple[str, ...], target: str, source: str, value: np.ndarray) -> np.ndarray:
    to = _dtype(target)
    if "sat" in code:
        if target != "f32":
            raise Fault("a saturating conversion to an integer")
        return np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(to)
    if source[0] == "f" and target[0] in "su":
        rounded = np.rint(value.astype(np.float64)) if "rni" in code else np.trunc(value.astype(np.float64))
        if "rmi" in code:
            rounded = np.floor(value.astype(np.float64))
        info = np.iinfo(to)
        return np.clip(np.nan_to_num(rounded, nan=0, posinf=2.0**70, neginf=-(2.0**70)), info.min, info.max).astype(to)
    if source[0] == "f" and source == target and any(r in code for r in ("rni", "rmi", "rzi")):
        return (np.rint if "rni" in code else np.floor if "rmi" in code else np.trunc)(value)
    return value.astype(to)


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    both = np.stack([a, b], 1).view(np.uint8).reshape(len(a), 8)
    out = np.zeros((len(a), 4), np.uint8)
    for i in range(4):
        s = selector >> np.uint32(4 * i) & np.uint32(15)
        byte = np.take_along_axis(both, (s & np.uint32(7)).astype(np.int64)[:, None], 1)[:, 0]
        out[:, i] = np.where(s & np.uint32(8), (byte.view(np.int8) >> 7).view(np.uint8), byte)
    return out.view(np.uint32)[:, 0]


def _dot(a: np.ndarray, b: np.ndarray, c: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    left = a.view(np.int8 if kinds[0] == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)
    right = b.view(np.int8 if kinds[1] == "s32" else np.uint8).reshape(-1, 4).astype(np.int32)
    return c + (left * right).sum(1, dtype=np.int32)


def _round_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint32)


def _bf16_values(words: np.ndarray) -> np.ndarray:
    """[..., 2] float32 from words [...]."""
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1).view(np.float32)


def _matrix(regs: list[np.ndarray]) -> list[np.ndarray]:
    """mma.m16n8k16 of whole warps: registers [lanes] of A (4), B (2) and C (4) to those of D (4)."""
    words = [r.reshape(-1, 8, 4) for r in regs]  # [warps, g, t]
    a = np.zeros((len(words[0]), 16, 16), np.float32)
    b = np.zeros((len(words[0]), 16, 8), np.float32)
    c = np.zeros((len(words[0]), 16, 8), np.float32)
    for i, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
        a[:, row : row + 8, column : column + 8] = _bf16_values(words[i]).reshape(-1, 8, 8)
    for i in range(2):
        b[:, 8 * i : 8 * i + 8] = _bf16_values(words[4 + i]).reshape(-1, 8, 8).transpose(0, 2, 1)
    for i in range(2):
        pair = np.stack([words[6 + 2 * i], words[7 + 2 * i]], -1).view(np.float32)
        c[:, 8 * i : 8 * i + 8] = pair.reshape(-1, 8, 8)
    d = (c.astype(np.float64) + a.astype(np.float64) @ b).astype(np.float32)
    quarters = d.reshape(-1, 2, 8, 4, 2)
    return [quarters[:, i, :, :, j].reshape(-1) for i in range(2) for j in range(2)]


UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": lambda x: -x,
    "abs": np.abs,
    "not": lambda x: ~x,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: np.ones_like(x) / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "mov": lambda x: x,
    "popc": lambda x: np.bitwise_count(x).astype(np.uint32),
}


# ---- memory ---------------------------------------------------------------------------------------------------------


class Memory:
    """Arrays at addresses, and the shared memory of all blocks."""

    def __init__(self, arrays: Sequence[np.ndarray], blocks: int, shared_bytes: int) -> None:
        self.arrays, self.bases = [], []
        at = GLOBAL_BASE
        for array in arrays:
            self.arrays.append(array.reshape(-1).view(np.uint8))
            self.bases.append(at)
            at += -(-array.nbytes // GUARD) * GUARD + GUARD
        self.starts = np.array(self.bases, np.int64)
        self.sizes = np.array([a.nbytes for a in arrays], np.int64)
        self.shared = np.full((blocks, shared_bytes), 0xA5, np.uint8)
        cells = (blocks, -(-shared_bytes // 4))
        self.writer, self.written = np.full(cells, -1), np.full(cells, -1)  # warp, epoch
        self.reader, self.read = np.full(cells, -1), np.full(cells, -1)  # −2: several warps
        self.uncached: set[int] = set()  # arrays read by ld.global.nc
        self.changed: set[int] = set()

    def place(self, address: np.ndarray, size: int) -> tuple[int, np.ndarray]:
        """(array, byte offsets). All lanes of one instruction have to mean one array."""
        which = np.searchsorted(self.starts, address.astype(np.int64), "right") - 1
        if which.min(initial=0) < 0 or (which.size and which.min() != which.max()):
            raise Fault("an instruction whose lanes mean no array, or several")
        n = int(which[0])
        offset = address.astype(np.int64) - self.starts[n]
        if offset.min() < 0 or offset.max() + size > self.sizes[n]:
            raise Fault(f"bytes {offset.min()}..{offset.max() + size} of array {n}, which has {self.sizes[n]}")
        if (offset % size).any():
            raise Fault(f"an access of {size} bytes at {int(offset[offset % size > 0][0])}")
        return n, offset

    def check_shared(
        self, block: np.ndarray, offset: np.ndarray, size: int, warp: np.ndarray, epoch: np.ndarray, write: bool
    ) -> None:
        if offset.min(initial=0) < 0 or offset.max(initial=0) + size > self.shared.shape[1] or (offset % size).any():
            raise Fault(f"shared memory: {size} bytes at {offset.min()}..{offset.max()} of {self.shared.shape[1]}")
        for word in range(max(size // 4, 1)):
            cell = offset // 4 + word
            now = epoch[block]
            racing = (self.written[block, cell] == now) & (self.writer[block, cell] != warp)
            if write:
                racing |= (self.read[block, cell] == now) & (self.reader[block, cell] != warp)
            if racing.any():
                raise Fault(f"shared memory at {int(offset[racing][0])}: two warps, one of which writes, without a barrier")
            if write:
                self.writer[block, cell], self.written[block, cell] = warp, now
            else:
                again = (self.read[block, cell] == now) & (self.reader[block, cell] != warp)
                self.reader[block, cell] = np.where(again, -2, warp)
                self.read[block, cell] = now

    def check_shared_atomic(self, block: np.ndarray, offset: np.ndarray, size: int, epoch: np.ndarray) -> None:
        """Atomic operations of several warps may meet, but no other access of the same time."""
        if offset.min(initial=0) < 0 or offset.max(initial=0) + size > self.shared.shape[1] or (offset % size).any():
            raise Fault(f"shared memory: {size} bytes at {offset.min()}..{offset.max()} of {self.shared.shape[1]}")
        cell, now = offset // 4, epoch[block]
        if (
            ((self.written[block, cell] == now) & (self.writer[block, cell] != ATOMIC)) | (self.read[block, cell] == now)
        ).any():
            raise Fault(f"shared memory at {int(offset[0])}: an atomic operation beside another access, without a barrier")
        self.writer[block, cell], self.written[block, cell] = ATOMIC, now


# ---- running --------------------------------------------------------------------------------------------------------


class Machine:
    """One launch."""

    def __init__(self, program: Program, grid: tuple[int, ...], threads: int, arguments: Sequence[Any]) -> None:
        self.program = program
        self.grid, self.threads = (*grid, 1, 1)[:3], threads
        self.blocks = int(np.prod(self.grid))
        lanes = self.blocks * threads
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        self.memory = Memory(arrays, self.blocks, program.shared_bytes)
        self.parameters = self._flattened(arguments)
        self.registers = {
            name: np.full(lanes, 0xA5 if kind != "pred" else 0, _dtype(kind)) for name, kind in program.registers.items()
        }
        self.block = np.repeat(np.arange(self.blocks), threads)
        self.thread = np.tile(np.arange(threads), self.blocks)
        self.warp = self.thread // WARP
        self.pc = np.zeros(lanes, np.int64)
        self.waiting = np.zeros(lanes, bool)  # at a barrier
        self.stalled = np.zeros(lanes, bool)  # for the rest of the warp
        self.epoch = np.zeros(self.blocks, np.int64)  # barriers passed
        self.executed = 0
        self.groups = np.zeros(lanes, np.int64)  # of copies that a thread has committed
        self.copies: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []  # under way

    def _flattened(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Parameters by name: an array is seven numbers, the address the fifth."""
        values: list[Any] = []
        arrays = 0
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                base = self.memory.bases[arrays]
                values += [0, 0, argument.size, argument.itemsize, base, argument.size, argument.itemsize]
                arrays += 1
            else:
                values.append(argument)
        if len(values) != len(self.program.parameters):
            raise Fault(f"{len(values)} parameters for {len(self.program.parameters)}")
        return {name: (kind, v) for (name, kind), v in zip(self.program.parameters, values, strict=True)}

    def run(self) -> None:
        """Until all threads have returned."""
        end = len(self.program.instructions)
        while True:
            live = (self.pc < end) & ~self.waiting & ~self.stalled
            if live.any():
                at = int(self.pc[live].min())
                self._run_from(at, np.flatnonzero(live & (self.pc == at)))
            elif self.stalled.any():
                at = int(self.pc[self.stalled].min())
                raise Fault(f"{self.program.instructions[at].text}: some lanes of a warp are elsewhere")
            elif self.waiting.any():
                self.epoch += 1  # all threads that have not returned are at the barrier
                self.waiting[:] = False
            else:
                break
        if clash := self.memory.uncached & self.memory.changed:
            raise Fault(f"ld.global.nc from arrays {sorted(clash)} which the kernel writes")

    def _run_from(self, at: int, lanes: np.ndarray) -> None:
        """Executes instructions in line until lanes part, or meet others that wait further down."""
        instructions, labels = self.program.instructions, self.program.labels
        end = len(instructions)
        others = self.pc[(self.pc > at) & (self.pc < end) & ~self.waiting & ~self.stalled]
        stop = int(others.min()) if others.size else end
        while at < stop:
            i = instructions[at]
            self.executed += 1
            if i.code[0] in COLLECTIVE:
                lanes = self._whole_warps(at, lanes, all_lanes=i.code[:2] != ("bar", "sync"))
                if not lanes.size:
                    return
            active = lanes
            if i.guard:
                active = lanes[self.registers[i.guard][lanes] != i.negated]
            if i.code[0] == "bra":
                self.pc[lanes] = at + 1
                self.pc[active] = labels[i.operands[0]]
                return
            if i.code[0] in ("ret", "exit"):
                self.pc[lanes] = at + 1
                self.pc[active] = end
                return
            if i.code[:2] == ("bar", "sync"):
                self.pc[lanes] = at + 1
                self.waiting[active] = True
                return
            if active.size and i.code[0] != "bar":
                try:
                    with np.errstate(all="ignore"):
                        self._execute(i, active)
                except Fault as fault:
                    raise Fault(f"{i.text}: {fault}") from None
            at += 1
        self.pc[lanes] = at

    def _whole_warps(self, at: int, lanes: np.ndarray, all_lanes: bool) -> np.ndarray:
        """Of the lanes at an instruction that a warp executes together, those whose warps are complete (without the threads
        that have returned, unless it is for all lanes); the others stay there until the rest comes."""
        here = np.zeros(len(self.pc), bool)
        here[lanes] = True
        here |= self.stalled & (self.pc == at)
        needed = np.ones(len(self.pc), bool) if all_lanes else self.pc < len(self.program.instructions)
        complete = np.repeat((here | ~needed).reshape(-1, WARP).all(1), WARP) & here
        self.stalled[here] = ~complete[here]
        self.pc[here] = at
        return np.flatnonzero(complete)

    # ---- operands ---------------------------------------------------------------------------------------------------

    def _value(self, operand: str, kind: str, lanes: np.ndarray) -> np.ndarray:
        """An operand's value as `kind`, for these lanes."""
        dtype = _dtype(kind)
        if operand in self.registers:
            value = self.registers[operand][lanes]
            if value.dtype == bool or value.itemsize == dtype.itemsize:
                return value if value.dtype == bool else value.view(dtype)
            return value.astype(np.dtype("u" + str(dtype.itemsize))).view(dtype)  # the low bits of a wider register
        if operand.startswith("0f"):
            return np.full(len(lanes), int(operand[2:], 16), np.uint32).view(np.float32)
        if operand.startswith("0d"):
            return np.full(len(lanes), int(operand[2:], 16), np.uint64).view(np.float64)
        special = self._special(operand, lanes)
        if special is not None:
            return special.astype(np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
        return np.full(len(lanes), int(operand, 0) & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}").view(dtype)

    def _special(self, operand: str, lanes: np.ndarray) -> np.ndarray | None:
        x, y, _ = self.grid
        b = self.block[lanes]
        constant = lambda n: np.full(len(lanes), n)  # noqa: E731
        table: dict[str, Callable[[], np.ndarray]] = {
            "%tid.x": lambda: self.thread[lanes],
            "%tid.y": lambda: constant(0),
            "%ntid.x": lambda: constant(self.threads),
            "%ctaid.x": lambda: b % x,
            "%ctaid.y": lambda: b // x % y,
            "%ctaid.z": lambda: b // (x * y),
            "%nctaid.x": lambda: constant(x),
            "%nctaid.y": lambda: constant(y),
            "%laneid": lambda: self.thread[lanes] % WARP,
        }
        if operand in table:
            return table[operand]()
        if operand in self.program.shared:
            return constant(SHARED_BASE + self.program.shared[operand][0])
        return None

    def _set(self, operand: str, lanes: np.ndarray, value: np.ndarray) -> None:
        register = self.registers[operand]
        if register.dtype == bool:
            register[lanes] = value
        elif value.itemsize == register.itemsize:
            register[lanes] = value.view(register.dtype)
        else:  # loads into wider registers extend
            register[lanes] = value.astype(np.dtype(f"{value.dtype.kind}{register.itemsize}")).view(register.dtype)

    def _address(self, operand: str, lanes: np.ndarray) -> np.ndarray:
        base, _, offset = operand.strip("[]").partition("+")
        value = self._value(base, "u64", lanes)
        return value + np.uint64(int(offset, 0) & (1 << 64) - 1) if offset else value

    # ---- instructions -----------------------------------------------------------------------------------------------

    def _execute(self, i: Instruction, lanes: np.ndarray) -> None:
        name, kinds = i.code[0], [c for c in i.code if re.fullmatch(r"[busf]\d+|pred", c)]
        handler = getattr(self, f"_{name}", None)
        if handler:
            handler(i, kinds, lanes)
            return
        kind = kinds[-1] if kinds else "b32"
        if name == "setp":
            a, b = (self._value(o, kind, lanes) for o in i.operands[1:3])
            self._set(i.operands[0], lanes, _compare(i.code[1], a, b))
            return
        values = [self._value(o, kind, lanes) for o in i.operands[1:]]
        if name in UNARY:
            result = UNARY[name](values[0])
        elif name in ("add", "sub", "and", "or", "xor"):
            result = {"add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[
                name
            ](*values)
        elif name in ("min", "max"):
            result = _minimum(*values, least=name == "min")
            if "NaN" in i.code:
                result = np.where(np.isnan(values[0]) | np.isnan(values[1]), np.float32(np.nan), result)
        elif name == "mul":
            result = _multiply(i.code, kind, *values)
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
        self._set(i.operands[0], lanes, _multiply(i.code, kind, a, b) + self._value(i.operands[3], wide, lanes))

    def _fma(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        if "bf16x2" in i.code:
            a, b, c = (_bf16_values(self._value(o, "u32", lanes)).astype(np.float64) for o in i.operands[1:])
            low, high = (_round_bf16((a * b + c)[:, n]) for n in (0, 1))
            self._set(i.operands[0], lanes, high << np.uint32(16) | low)
            return
        a, b, c = (self._value(o, kinds[-1], lanes).astype(np.float64) for o in i.operands[1:])
        exact = a * b + c
        result = exact.astype(_dtype(kinds[-1]))
        if "rm" in i.code:  # toward minus infinity
            result = np.where(result > exact, np.nextafter(result, np.float32(-np.inf)), result)
        self._set(i.operands[0], lanes, result)

    def _shl(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = self._value(i.operands[1], kinds[-1], lanes), self._value(i.operands[2], "u32", lanes)
        self._set(i.operands[0], lanes, _shift(a, b, i.code[0] == "shl"))

    _shr = _shl

    def _selp(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = (self._value(o, kinds[-1], lanes) for o in i.operands[1:3])
        self._set(i.operands[0], lanes, np.where(self.registers[i.operands[3]][lanes], a, b))

    def _cvt(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        if "bf16x2" in i.code:
            high, low = (_round_bf16(self._value(o, "f32", lanes)) for o in i.operands[1:])
            self._set(i.operands[0], lanes, high << np.uint32(16) | low)
            return
        value = self._value(i.operands[1], kinds[1], lanes)
        self._set(i.operands[0], lanes, _convert(i.code, kinds[0], kinds[1], value))

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
            self._set(i.operands[0], lanes, np.stack(halves, 1).view(_dtype(kind))[:, 0])
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
        self._set(i.operands[0], lanes, _permute(*(self._value(o, "u32", lanes) for o in i.operands[1:])))

    def _dp4a(self, i: Instruction, kinds: list[str], lanes: np.ndarray) -> None:
        a, b = (self._value(o, "u32", lanes) for o in i.operands[1:3])
        self._set(i.operands[0], lanes, _dot(a, b, self._value(i.operands[3], "s32", lanes), kinds))

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
        for name, value in zip(i.operands[0], _matrix(given), strict=True):
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
            self._set(i.operands[0], lanes, np.full(len(lanes), value, _dtype(kind)))
            return
        targets = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],)
        size = _dtype(kind).itemsize * len(targets)
        data = self._read(i.code, self._address(i.operands[1], lanes), size, lanes)
        for n, target in enumerate(targets):
            part = np.ascontiguousarray(data[:, n * size // len(targets) : (n + 1) * size // len(targets)])
            self._set(target, lanes, part.view(_dtype(kind))[:, 0])

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
        dtype = _dtype(kinds[-1])
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
