"""A process that compiles kernels into the cache for another one: a recipe a line (JSON) on stdin, what is done on stdout."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

from numba_kernels.cpu.packing import pack_kernel
from numba_kernels.cpu.recipes import op_of
from numba_kernels.cpu.team import Team
from oss_tools.engine.compiling import BEGINS, DONE, listening


def carry_out(kind: str, what: Any) -> None:
    """One job: "threads", a format's packing ("pack"), or an operation by its recipe ("op")."""
    if kind == "threads":
        Team.functions()
    elif kind == "pack":
        pack_kernel(what)
    else:
        _ = op_of(what).address


def main() -> None:
    gc.disable()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no reply
    for line in sys.stdin:
        begun = False

        def begins() -> None:
            nonlocal begun
            if not begun:
                begun = True
                replies.write(BEGINS)
                replies.flush()

        with listening(begins):
            carry_out(*json.loads(line))
        replies.write(DONE)
        replies.flush()


if __name__ == "__main__":
    main()
