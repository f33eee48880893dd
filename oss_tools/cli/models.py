"""List the models on this machine; remove one from the hub's cache.

`models` lists what is in the hub's cache and in the current folder, with size, format and age. Other verbs take these names
as MODEL. `models rm NAME...` removes models from the cache, after a question: a repository, one of its revisions
(owner/name@REVISION) or one of its GGUF models (owner/name:QUANTIZATION). Files that another revision shares are kept.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._options import JsonFlag, format_size
from oss_tools.cli._output import print_json, print_table, remark

if TYPE_CHECKING:
    from oss_tools.download.inventory import Holding

EXAMPLES = """
oss-tools models
oss-tools models --json | jq '.models[].name'
oss-tools models rm ggml-org/gpt-oss-20b-GGUF:mxfp4
oss-tools models rm openai/gpt-oss-20b --yes
"""
REMOVE = "rm"
AGES = ((86_400 * 365, "years"), (86_400 * 30, "months"), (86_400, "days"), (3_600, "hours"), (60, "minutes"))


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="rm NAME", help="Remove these models from the hub's cache.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.download.inventory import holdings
    from oss_tools.download.layout import cache_folder
    from oss_tools.errors import BadRequest

    cache = cache_folder()
    if words:
        if words[0] != REMOVE:
            raise BadRequest(
                f"models {words[0][:80]!r}: the only word that may follow is {REMOVE}, as in `models {REMOVE} NAME`"
            )
        if not words[1:]:
            raise BadRequest(f"models {REMOVE}: name what to remove, as `oss-tools models` lists it")
        remove(words[1:], cache, yes, as_json)
        return
    found = holdings(cache, Path())
    rows = [(holding, *_formats_of(holding)) for holding in found]
    if as_json:
        print_json({"cache": str(cache), "models": [_record(*row) for row in rows]})
    elif not rows:
        remark(f"no models in {cache}, nor in this folder; `oss-tools download gpt-oss-20b` fetches one")
    else:
        cells = [(h.name, format_size(h.nbytes), formats or problem, _age(h.modified)) for h, formats, problem in rows]
        print_table(cells, ("model", "size", "format", "age"), right=(1, 3))
        cached = sum(h.nbytes for h in found if h.cached)
        remark(f"{format_size(cached)} of models in {cache}")


def _formats_of(holding: Holding) -> tuple[str, str]:
    """The formats that most bytes are in, and why they cannot be said."""
    from oss_tools.errors import OssToolsError
    from oss_tools.models import open_checkpoint
    from oss_tools.models.summary import summarize

    if holding.problem:
        return "", holding.problem
    try:
        with open_checkpoint(holding.path) as checkpoint:
            shares = summarize(checkpoint).by_format
    except (OssToolsError, OSError) as error:
        return "", str(error)
    whole = sum(share.nbytes for share in shares)
    return ", ".join(share.name for share in shares if share.nbytes >= whole / 20), ""


def _record(holding: Holding, formats: str, problem: str) -> dict[str, Any]:
    return {
        "name": holding.name,
        "path": str(holding.path),
        "bytes": holding.nbytes,
        "formats": formats.split(", ") if formats else [],
        "modified": holding.modified,
        "cached": holding.cached,
        "problem": problem or None,
    }


def _age(modified: float) -> str:
    seconds = max(time.time() - modified, 0.0)
    unit, name = next(((unit, name) for unit, name in AGES if seconds >= 2 * unit), (60, "minutes"))
    return f"{seconds / unit:.0f} {name}"


def remove(names: list[str], cache: Path, yes: bool, as_json: bool) -> None:
    """Removes models from the cache, after a question on a terminal. Raises BadSource before anything goes."""
    from oss_tools.download.inventory import removal
    from oss_tools.download.library import constants
    from oss_tools.errors import BadRequest

    removals = [removal(name, cache, constants.ENDPOINT.rstrip("/")) for name in names]
    whole = format_size(sum(r.nbytes for r in removals))
    if not yes:
        if not sys.stdin.isatty():
            raise BadRequest(f"{', '.join(names)}: {whole} would go; --yes removes them without a question")
        typer.confirm(f"Remove {', '.join(names)} ({whole})?", abort=True, err=True)
    for each in removals:
        each.carry_out()
    if as_json:
        print_json({"removed": [{"name": r.name, "bytes": r.nbytes} for r in removals]})
    else:
        remark(f"removed {', '.join(names)}: {whole} are free")
