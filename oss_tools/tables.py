"""Tables and lists of figures on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oss_tools.escapes import in_a_line


def print_table(
    rows: Sequence[Sequence[Any]], headers: Sequence[str], *, title: str = "", right: Sequence[int] = ()
) -> None:
    """A table to stdout, after an empty line and its title. `right` are the columns that hold figures."""
    from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    if title:
        print(f"\n{title}")
    cells = [[in_a_line(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    print(tabulate(cells, headers=headers, colalign=align if rows else None, disable_numparse=True))


def print_facts(facts: dict[str, Any]) -> None:
    """Names and values to stdout, one a line; None and empty values are left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {in_a_line(str(value))}")
