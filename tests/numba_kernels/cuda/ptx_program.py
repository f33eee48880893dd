"""PTX as a program: instructions, labels, parameters, registers and shared arrays, read from its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


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


def operands_of(text: str) -> tuple[Any, ...]:
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
            instructions.append(Instruction(m[2] or "", bool(m[1]), code, operands_of(m[4]), text))
        elif not text.startswith(".pragma"):
            raise Fault(f"cannot read {text!r}")
    return Program(tuple(instructions), labels, parameters, registers, shared, offset)
