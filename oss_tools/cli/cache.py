"""Show what is kept on this disk: compiled kernels and downloads.

Kernels (the machine code of the arithmetic) are compiled when they are first needed, and kept for the next time, in one
folder for each version of the kernels. --clear removes them all; the next run compiles again what it needs. Downloads are
the models in the hub's cache. Other programs use that cache too, so they are listed here and never removed (`oss-tools
models rm` removes one).
"""

from __future__ import annotations

from typing import Annotated

import typer

from oss_tools.cli._options import JsonFlag, format_size
from oss_tools.cli._output import print_json, print_table, remark

EXAMPLES = """
oss-tools cache
oss-tools cache --clear
oss-tools cache --json | jq '.kept[].bytes'
"""


def run(
    clear: Annotated[bool, typer.Option("--clear", help="Remove the compiled kernels of all versions.")] = False,
    as_json: JsonFlag = False,
) -> None:
    import numba_kernels
    from oss_tools.download.layout import cache_folder
    from oss_tools.machine.caches import clear_kernels, is_named_by_user, kept, kernels

    if clear:
        nbytes, files = clear_kernels()
        remark(f"removed {files} files of compiled kernels, {format_size(nbytes)}")
    if is_named_by_user():
        remark("NUMBA_CACHE_DIR names the folder of the kernels: --clear leaves it alone")
    elif numba_kernels.NOT_KEPT:
        remark(f"kernels are not kept: {numba_kernels.NOT_KEPT}; NUMBA_CACHE_DIR names another folder")
    found = [*kernels(), kept("downloads", cache_folder())]
    if as_json:
        print_json({"kept": [{"what": k.what, "path": str(k.path), "bytes": k.nbytes, "files": k.files} for k in found]})
    else:
        rows = [(k.what, format_size(k.nbytes), f"{k.files:,}", str(k.path)) for k in found]
        print_table(rows, ("what", "size", "files", "folder"), right=range(1, 3))
