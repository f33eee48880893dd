"""What can be known of a kernel without a GPU: the instructions in its PTX, and what the assembler makes of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What a thread and a block of an assembled kernel take.

    Attributes:
        registers: of a thread.
        stack, spills: bytes of a thread's local memory, and bytes that are stored to and loaded from it for want of registers.
        shared: bytes of a block.
    """

    registers: int
    stack: int
    spills: int
    shared: int


def instructions(ptx: str) -> Counter[str]:
    """How often each instruction occurs, by its full name."""
    return Counter(re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][A-Za-z0-9_.:]*)", ptx, re.M))


def assembled(ptx: str, architecture: tuple[int, int]) -> tuple[bytes, str]:
    """A module's machine code, an ELF file, and the assembler's report. By nvJitLink, which needs no driver. Raises
    RuntimeError."""
    from cuda.bindings import nvjitlink

    handle = nvjitlink.create(2, [f"-arch=sm_{architecture[0]}{architecture[1]}", "-verbose"])
    data = ptx.encode()
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
        nvjitlink.complete(handle)
    except nvjitlink.nvJitLinkError as error:
        raise RuntimeError(f"{error}: {_log(nvjitlink, handle, 'error')}") from None
    log = _log(nvjitlink, handle, "info")
    code = bytearray(nvjitlink.get_linked_cubin_size(handle))
    nvjitlink.get_linked_cubin(handle, code)
    nvjitlink.destroy(handle)
    return bytes(code), log


def assemble(ptx: str, architecture: tuple[int, int]) -> Resources:
    """What the one kernel of a module takes. Raises RuntimeError, also where the report does not say so: nvJitLink leaves it out
    of what it keeps from an earlier time."""
    _, log = assembled(ptx, architecture)
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log)]
    used = re.search(r"info\s+: used (\d+) registers.*?(\d+) stack(?:, (\d+) bytes smem)?.*?, (\d+) bytes lmem", log)
    if not spills or used is None:
        raise RuntimeError(f"the assembler's report cannot be read: {log}")
    return Resources(int(used[1]), int(used[2]) + int(used[4]), sum(spills), int(used[3] or 0))


def _log(nvjitlink: object, handle: int, kind: str) -> str:
    size = getattr(nvjitlink, f"get_{kind}_log_size")(handle)
    text = bytearray(size)
    getattr(nvjitlink, f"get_{kind}_log")(handle, text)
    return text.decode(errors="replace").strip("\0\n ")
