"""Kernels as machine code: Numba makes PTX, nvJitLink assembles it, and the user's cache keeps what came of it.

Neither needs a GPU or a driver, so the code for a card can be made on another machine, and be taken along in the cache's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from numba_kernels.cuda.ptx import assembled
from numba_kernels.cuda.seam import Kernel, sources

WAIT = "griddepcontrol.wait"  # of a kernel that may begin while the launch before it still runs


@dataclass(frozen=True)
class MachineCode:
    """A kernel for one compute capability.

    Attributes:
        entry: its name in the code.
        code: an ELF file.
        waits: whether it waits, by itself, for the launch before it.
    """

    entry: str
    code: bytes
    waits: bool


def machine_code(kernel: Kernel, architecture: tuple[int, int]) -> MachineCode:
    """The kernel's machine code, from the cache or compiled, which takes a second or two. Raises RuntimeError where the assembler
    fails."""
    place = _place(kernel, architecture)
    with suppress(OSError, ValueError, KeyError):
        return _read(place)
    made = compiled(kernel, architecture)
    with suppress(OSError):  # a full or a read-only disk: it is compiled again next time
        _keep(place, made)
    return made


def compiled(kernel: Kernel, architecture: tuple[int, int]) -> MachineCode:
    """The kernel's machine code, made anew."""
    text = kernel.ptx(architecture)
    (entry,) = re.findall(r"\.entry\s+(\w+)\s*\(", text)
    code, _ = assembled(text, architecture)
    return MachineCode(entry, code, WAIT in text)


@cache
def _compiler() -> str:
    return version("numba-cuda")


def _place(kernel: Kernel, architecture: tuple[int, int]) -> Path:
    what = [kernel.name, *map(str, kernel.parameters), str(kernel.threads), sources(), _compiler()]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:24]
    folder = Path(os.environ["NUMBA_CACHE_DIR"]) / f"cuda-sm_{architecture[0]}{architecture[1]}"
    return folder / f"{kernel.function.__name__}-{name}.code"


def _read(place: Path) -> MachineCode:
    """Raises OSError or ValueError if there is none, or not a whole one."""
    head, _, code = place.read_bytes().partition(b"\n")
    facts = json.loads(head)
    if hashlib.sha256(code).hexdigest() != facts["sha256"]:
        raise ValueError(f"{place} is damaged")
    return MachineCode(facts["entry"], code, facts["waits"])


def _keep(place: Path, made: MachineCode) -> None:
    facts = {"entry": made.entry, "waits": made.waits, "sha256": hashlib.sha256(made.code).hexdigest()}
    place.parent.mkdir(0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=place.parent)
    try:
        with open(handle, "wb") as file:
            file.write(json.dumps(facts).encode() + b"\n" + made.code)
        os.replace(name, place)
    except BaseException:
        os.unlink(name)
        raise
