"""Options that several verbs share, and how sizes are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oss_tools.sizes import format_size as format_size
from oss_tools.sizes import parse_size as parse_size

EMBEDDED = "tiny"  # as MODEL, the model that travels with the program


def names_in(text: str | None) -> tuple[str, ...]:
    """The names of a list that commas part."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def model_path(text: str) -> Path:
    """The path of the checkpoint that MODEL names.

    That is `tiny`, the embedded model; a file or folder (`./tiny` too); or what was downloaded: a short name, `owner/name`,
    `owner/name@REVISION`, `owner/name:QUANTIZATION`, or a folder of the hub's cache. Raises BadSource.
    """
    if text == EMBEDDED:
        return embedded_model()
    from oss_tools.download.contents import opened

    path = Path(text)
    return opened(path, _remark) if path.exists() else downloaded_model(text)


def embedded_model() -> Path:
    """The folder of the model that travels with the program. Raises BadSource."""
    from oss_tools.errors import BadSource
    from oss_tools.resources import resource

    path = resource("tiny/checkpoint")
    if not (path / "config.json").exists():
        raise BadSource(
            "the embedded model `tiny` is missing from this installation; a file or folder of that name is ./tiny"
        )
    return path


def download_path(text: str) -> Path:
    """The folder or file of a download that a path or a name means, complete or not. Raises BadSource."""
    from oss_tools.download.contents import folder_at

    path = Path(text)
    return folder_at(path) if path.exists() else downloaded_model(text, whole=True)


def downloaded_model(text: str, whole: bool = False) -> Path:
    """The checkpoint of that name in the hub's cache, or the folder of the whole download. Raises BadSource."""
    from oss_tools.download.downloaded import checkpoint_named
    from oss_tools.download.layout import cache_folder
    from oss_tools.download.library import constants

    return checkpoint_named(text, cache_folder(), constants.ENDPOINT.rstrip("/"), _remark, whole, others=(EMBEDDED,))


def _remark(text: str) -> None:
    from oss_tools.cli._output import remark

    remark(text)


def size_option(text: str) -> int:
    try:
        return parse_size(text)
    except OverflowError:
        raise typer.BadParameter(f"{text[:40]}… is not a size; write it as 5GB, 500MB or 16GiB") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Repeats = Annotated[
    int | None,
    typer.Option(
        "--repeats",
        min=1,
        max=1024,
        help="How many answers each question gets; several are sampled, and their mean counts. [default: "
        "the task's, mostly 1]",
        show_default=False,
    ),
]
Published = Annotated[
    str | None,
    typer.Option(
        "--published",
        metavar="NAMES",
        help="Published figures to show beside: names or .yaml files, separated by commas, or none. "
        "[default: those of the same model]",
        show_default=False,
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of tables.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--shard-size",
        parser=size_option,
        metavar="SIZE",
        help="The most bytes that one file may have, e.g. 5GB. [default: the container's]",
    ),
]
Jobs = Annotated[int, typer.Option("--threads", "-t", "--jobs", "-j", min=0, help="Threads to use; 0 means every core.")]


def threads(jobs: int) -> int:
    """The number of threads that --threads means: 0 is all cores that this process may use."""
    from numba_kernels.parallel import cores

    return jobs or cores()
