"""The option --ray, whose address may be left out, and the cluster that it names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from oss_tools.cluster.nodes import Cluster

OPTION = "--ray"
Ray = Annotated[
    str | None,
    typer.Option(
        OPTION,
        metavar="[ADDRESS]",
        help="Spread the work over the Ray cluster at HOST:PORT; without an address, over the one of this "
        "machine. Needs the extra `ray`.",
        show_default=False,
    ),
]


def with_address(arguments: list[str]) -> list[str]:
    """A command line on which --ray has an address: what follows, if it looks like one, else auto."""
    from oss_tools.cluster.nodes import ADDRESS, AUTO

    found = list(arguments)
    for at, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == OPTION and not (at + 1 < len(arguments) and ADDRESS.fullmatch(arguments[at + 1])):
            found[at] = f"{OPTION}={AUTO}"
    return found


@contextmanager
def cluster_at(address: str | None) -> Iterator[Cluster | None]:
    """The cluster, if one is wanted. Raises what `Cluster.connect` raises."""
    if address is None:
        yield None
        return
    from oss_tools.cluster.nodes import Cluster

    with Cluster.connect(address) as cluster:
        yield cluster
