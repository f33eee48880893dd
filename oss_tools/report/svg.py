"""SVG: colours are the page's CSS variables, sizes suit a phone's width, every plot says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from markupsafe import Markup

WIDTH = 420.0  # of every plot, in its own units; a page shows it at some 340 to 540 pixels
FONT = 13.0
LETTER = 6.9  # width of a letter of that size, about

_numbers = count(1)  # of the plots of a page, whose names need ids


def svg(height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """A plot with its name and description for those who do not see it."""
    number = next(_numbers)
    head = Markup(
        '<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="t{n} d{n}">'
        '<title id="t{n}">{title}</title><desc id="d{n}">{description}</desc>'
    ).format(width=WIDTH, height=height, n=number, title=title, description=description)
    return head + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, content)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)
