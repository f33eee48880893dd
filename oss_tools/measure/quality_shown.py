"""Records of `quality` as a Markdown table and as a figure (SVG): size against divergence, by way of rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# The ways that are shown, in this order, each with its colour; `plain` and llama.cpp's plain rounding are mostly the same bytes.
WAYS = {
    "plain": "#8c8c8c",
    "search": "#4c78a8",
    "importance": "#54a24b",
    "gptq": "#d62728",
    "llama.cpp": "#b5a10e",
    "llama.cpp, importance": "#b279a2",
    "torchao": "#9d755d",
}
WIDTH, HEIGHT = 600.0, 380.0  # of a base's panel
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 56.0, 48.0
LETTER = 6.2
SIDE = 14.0  # between formats of the same bits


def table(record: Mapping[str, Any]) -> str:
    """A base's rows as Markdown: a line for each format, a column for each way; mean divergence with its 95 % interval's half."""
    rows = record["rows"]
    ways = [way for way in WAYS if any(row["way"] == way for row in rows.values())]
    formats = list(dict.fromkeys(row["format"] for row in rows.values()))
    lines = ["| format | bits | " + " | ".join(ways) + " |", "|---|---|" + "---|" * len(ways)]
    for format in sorted(formats, key=lambda name: (bits_of(rows, name) or math.inf, name)):
        cells = [_cell(rows.get(f"{format}/{way}")) for way in ways]
        bits = bits_of(rows, format)
        lines.append(f"| {format} | {f'{bits:.2f}' if bits else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bits_of(rows: Mapping[str, Any], format: str) -> float:
    """A weight, of the files in this format; ours and the peers' mixtures of one name may differ a little: ours then.
    0 where no row has a file."""
    found = [row["bits"] for way in WAYS if (row := rows.get(f"{format}/{way}")) and row["bits"]]
    return found[0] if found else 0.0


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    kld = row["kld"]
    half = f" ± {(kld['high'] - kld['low']) / 2:.4f}" if kld["low"] is not None else ""
    return f"{kld['value']:.4f}{half}"


# ---- the figure -----------------------------------------------------------------------------------------------------


def figure(records: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each base, one under another: bits a weight, divergence on a logarithmic scale, a mark for each row."""
    height = HEIGHT * len(records)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" font-family="sans-serif" font-size="12" '
        f'role="img"><title>Size against divergence, by way of rounding</title>',
        f'<rect width="{WIDTH:g}" height="{height:g}" fill="white"/>',
    ]
    for number, record in enumerate(records):
        parts += [f'<g transform="translate(0 {HEIGHT * number:g})">', *_panel(record), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(record: Mapping[str, Any]) -> list[str]:
    rows = [row for row in record["rows"].values() if row["bits"] and row["kld"]["value"] > 0 and row["way"] in WAYS]
    low, high = (pick(row["bits"] for row in rows) for pick in (min, max))
    least, most = (math.log10(pick(row["kld"]["value"] for row in rows)) for pick in (min, max))
    least, most = least - 0.15, most + 0.15

    def across(bits: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (bits - low + 0.2) / (high - low + 0.4)

    def up(kld: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (most - math.log10(kld)) / (most - least)

    parts = [_text(LEFT, 20, record["base"]["name"], weight="bold"), *_legend(rows)]
    for exponent in range(math.floor(least), math.ceil(most) + 1):
        for step in (1, 3):
            value = step * 10.0**exponent
            if least <= math.log10(value) <= most:
                parts += [
                    _line(LEFT, up(value), WIDTH - RIGHT, up(value), "#e4e4e4"),
                    _text(LEFT - 6, up(value) + 4, f"{value:g}", "end"),
                ]
    for bits in (half / 2 for half in range(math.ceil(2 * low - 0.4), math.floor(2 * high + 0.4) + 1)):
        parts += [_line(across(bits), HEIGHT - BOTTOM, across(bits), HEIGHT - BOTTOM + 4, "#444"),
                  _text(across(bits), HEIGHT - BOTTOM + 17, f"{bits:g}", "middle")]  # fmt: skip
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#444"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "bits a weight, of the whole file", "middle"))
    parts.append(_text(LEFT, TOP - 8, "KL divergence from the base, nats"))
    taken: list[tuple[float, float]] = []
    shown: list[str] = []
    for format in dict.fromkeys(row["format"] for row in rows):
        own = [row for row in rows if row["format"] == format]
        beside = SIDE * sum(abs(bits_of(record["rows"], name) - own[0]["bits"]) < 0.02 for name in shown)
        shown.append(format)
        places = [(across(row["bits"]) + beside, up(row["kld"]["value"])) for row in own]
        parts += [_line(x, y, x2, y2, "#cccccc") for (x, y), (x2, y2) in itertools.pairwise(places)]
        for row, (x, y) in zip(own, places, strict=True):
            hint = f"{format}, {row['way']}: {row['bits']:.2f} bits, {row['kld']['value']:.4f} nats"
            colour = WAYS[row["way"]]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(hint)}</title></circle>')
        parts.append(_label(format, *min(places, key=lambda place: place[1]), taken))
    return parts


def _label(name: str, x: float, y: float, taken: list[tuple[float, float]]) -> str:
    """A format's name above its highest mark, or higher where another one is."""
    y -= 8
    while any(abs(x - a) < LETTER * 7 and abs(y - b) < 12 for a, b in taken):
        y -= 4
    taken.append((x, y))
    return _text(x, y, name, "middle")


def _legend(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    parts, x = [], LEFT + 84
    for way, colour in WAYS.items():
        if any(row["way"] == way for row in rows):
            parts += [f'<circle cx="{x:.1f}" cy="16" r="4" fill="{colour}"/>', _text(x + 8, 20, way)]
            x += 18 + LETTER * len(way)
    return parts


def _text(x: float, y: float, content: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#222">{escape(content)}</text>'
    )


def _line(x: float, y: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
