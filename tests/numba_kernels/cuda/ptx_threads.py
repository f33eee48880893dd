"""The threads of a launch: which instruction is next for which of them, barriers, warps, registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ptx_arithmetic import dtype_of
from ptx_memory import SHARED_BASE, Memory
from ptx_program import Fault, Instruction, Program

WARP = 32
COLLECTIVE = ("shfl", "mma", "vote", "redux", "bar")  # what a warp executes together


class Threads:
    """The threads of one launch, as lanes: where each is in the program, and its registers."""

    def __init__(self, program: Program, grid: tuple[int, ...], threads: int, arguments: Sequence[Any]) -> None:
        self.program = program
        self.grid, self.threads = (*grid, 1, 1)[:3], threads
        self.blocks = int(np.prod(self.grid))
        lanes = self.blocks * threads
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        self.memory = Memory(arrays, self.blocks, program.shared_bytes)
        self.parameters = self._flattened(arguments)
        self.registers = {
            name: np.full(lanes, 0xA5 if kind != "pred" else 0, dtype_of(kind)) for name, kind in program.registers.items()
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
        dtype = dtype_of(kind)
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

    def _execute(self, i: Instruction, lanes: np.ndarray) -> None:
        """What an instruction does to these lanes."""
        raise NotImplementedError
