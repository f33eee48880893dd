"""Which kernels a model on the CPU needs: all are compiled, or taken from the cache, before there is a need for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from numba_kernels.cpu.packing import pack_kernel
from numba_kernels.cpu.recipes import recipe_of
from numba_kernels.cpu.team import Program, Team
from numba_kernels.parallel import cores
from oss_tools.engine.backend import Options
from oss_tools.engine.compiling import Crew, compile_all
from oss_tools.engine.numba_cache import Pool
from oss_tools.machine import memory

LONGEST = ("attention", "linear.*many", "threads|linear|rotate|store")  # what takes longest to compile, for several to share
HELPER_BYTES = 1 << 30  # that must be free for each process that compiles; it takes some 400 MB


def compile_kernels(
    programs: Sequence[Program], pools: Sequence[Pool], formats: Sequence[str], threads: int, options: Options
) -> None:
    """Compiles the programs' operations, what copies the pools' positions, and what packs weights of these formats."""
    ops = dict.fromkeys([op for program in programs for op in program.ops])
    jobs: list[tuple[str, Callable[[], Any]]] = [("threads", Team.functions)]
    recipes: dict[str, list[Any]] = {"threads": ["threads", None]}
    for f in formats:
        jobs.append((f"pack {f}", partial(pack_kernel, f)))
        recipes[f"pack {f}"] = ["pack", f]
    kept = options.prefix_bytes != 0  # else nothing is copied to and from a prefix cache
    copies = [o for p in pools for o in (*p.copies[: 2 if kept else 0], *p.copies[2 if p.passing else 3 :])]
    for op in dict.fromkeys([*ops, *copies]):
        jobs.append((op.name, partial(getattr, op, "address")))
        if recipe := recipe_of(op):
            recipes[op.name] = ["op", recipe]
    jobs.sort(key=lambda job: next((n for n, name in enumerate(LONGEST) if re.match(name, job[0])), len(LONGEST)))
    compile_all(jobs, options.on_compile, Crew(recipes, helpers(threads, options)))


def helpers(threads: int, options: Options) -> int:
    """Processes that may compile beside this one: as many as threads, and as memory has room for."""
    free = memory.available_memory()
    if options.memory is not None:
        free = min(free, options.memory)
    return max(min(threads, cores(), free // HELPER_BYTES) - 1, 0)
