"""Tables and lists of figures on stdout, within the width of the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from oss_tools.escapes import in_a_line

UNBOUNDED = 10_000  # columns where stdout is no terminal: a pipe or a file takes lines of any length
LEAST = 16  # characters that a cut text keeps
HEAD = 18  # of a name above a turned table's column
PADDING = 2  # tabulate's, beside a column's header
MOST_BLOCKS = 4  # of a turned table; one that would need more is written row by row


def cut_in_the_middle(text: str, most: int) -> str:
    """The text in at most so many characters: its beginning and its end, which both tell names apart."""
    if len(text) <= most:
        return text
    kept = max(most - 1, 0)
    return text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]


def screen_width(otherwise: int = UNBOUNDED) -> int:
    """Columns of the terminal; `otherwise` where stdout is none. COLUMNS in the environment says otherwise, as everywhere."""
    return shutil.get_terminal_size((otherwise, 24)).columns


def print_table(
    rows: Sequence[Sequence[Any]], headers: Sequence[str], *, title: str = "", right: Sequence[int] = ()
) -> None:
    """A table to stdout, after an empty line and its title. `right` are the columns that hold figures."""
    if title:
        print(f"\n{title}")
    cells = [["" if cell is None else in_a_line(str(cell)) for cell in row] for row in rows]
    print(fitted(cells, headers, screen_width(), right))


def fitted(rows: Sequence[Sequence[str]], headers: Sequence[str], width: int, right: Sequence[int] = ()) -> str:
    """A table that is no wider than `width`, as far as its figures allow.

    Long texts are cut in the middle. Where that is not enough, the table is turned: a row for each column, and a column for each
    row, in blocks below each other. A table of many rows is written row by row instead, a line for each figure.
    """
    table = grid(rows, headers, right)
    if widest(table) <= width or not rows:
        return table
    table = grid(_with_cut_texts(rows, headers, width, right), headers, right)
    if widest(table) <= width:
        return table
    blocks = list(turned(rows, headers, width))
    return "\n\n".join(blocks if len(blocks) <= MOST_BLOCKS else _row_by_row(rows, headers, width))


def grid(rows: Sequence[Sequence[str]], headers: Sequence[str], right: Sequence[int] = ()) -> str:
    """The table as it is."""
    from tabulate import tabulate

    align = ["right" if column in right else "left" for column in range(len(headers))]
    return tabulate(rows, headers=headers, colalign=align if rows else None, disable_numparse=True)


def widest(table: str) -> int:
    """The length of the longest line."""
    return max(map(len, table.splitlines()), default=0)


def turned(rows: Sequence[Sequence[str]], headers: Sequence[str], width: int) -> Iterator[str]:
    """The table with rows and columns exchanged, in blocks of as many columns as the width holds: at least one."""
    first = max(len(headers[0]) + PADDING, *map(len, headers))
    block: list[Sequence[str]] = []
    used = first
    for row in rows:
        row = [cut_in_the_middle(row[0], HEAD), *row[1:]]
        wide = 2 + max(len(row[0]) + PADDING, *map(len, row))
        if block and used + wide > width:
            yield _turned_block(block, headers)
            block, used = [], first
        block.append(row)
        used += wide
    if block:
        yield _turned_block(block, headers)


def _turned_block(block: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    lines = [[header, *(row[place] for row in block)] for place, header in enumerate(headers)]
    return grid(lines[1:], lines[0], range(1, len(block) + 1))


def _with_cut_texts(
    rows: Sequence[Sequence[str]], headers: Sequence[str], width: int, right: Sequence[int]
) -> list[list[str]]:
    """The rows with texts cut in the middle, the longest column first, until the table fits or nothing is left to cut."""
    widths = [max([len(header) + PADDING, *(len(row[place]) for row in rows)]) for place, header in enumerate(headers)]
    texts = [place for place in range(len(headers)) if place not in right]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        longest = max(texts, key=lambda place: widths[place], default=None)
        if longest is None or widths[longest] <= max(LEAST, len(headers[longest]) + PADDING):
            break
        widths[longest] -= 1
    return [[cut_in_the_middle(cell, widths[place]) for place, cell in enumerate(row)] for row in rows]


def _row_by_row(rows: Sequence[Sequence[str]], headers: Sequence[str], width: int) -> Iterator[str]:
    first = max(len(header) for header in headers)
    for row in rows:
        yield "\n".join(
            f"{header:<{first}}  {cut_in_the_middle(cell, max(width - first - 2, LEAST))}"
            for header, cell in zip(headers, row, strict=True)
        )


def print_facts(facts: dict[str, Any]) -> None:
    """Names and values to stdout, one a line; None and empty values are left out. A long value goes on below itself."""
    import textwrap

    shown = {name: value for name, value in facts.items() if value not in (None, "")}
    first = max(map(len, shown), default=0)
    room = max(screen_width() - first - 2, LEAST)
    for name, value in shown.items():
        said = in_a_line(str(value))
        lines = [said] if len(said) <= room else textwrap.wrap(said, room, break_on_hyphens=False) or [""]
        print(f"{name:<{first}}  " + f"\n{'':<{first}}  ".join(lines))
