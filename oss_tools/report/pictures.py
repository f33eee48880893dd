"""SVG files that stand by themselves: plots with a style of their own, in light and dark, for pages that show pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"
CSS_RULE = re.compile(r"^(\.plot [^{]+\{[^}]*\})$", re.MULTILINE)
SIZED = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def style() -> Markup:
    """The page's colours and its rules for plots, which a picture needs as well."""
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    colours, rules = css[: css.index("* { box-sizing")], "\n".join(CSS_RULE.findall(css))
    return Markup(f"<style>{colours}\n.plot {{ font: 13px {FONT}; }}\n{rules}</style>")  # noqa: S704 (our own file)


def size_of(drawn: Markup) -> tuple[float, float]:
    """Width and height of a plot."""
    found = SIZED.search(drawn)
    assert found, "a plot has a viewBox"
    return float(found[1]), float(found[2])


def placed(drawn: Markup, x: float, y: float) -> Markup:
    """A plot as a part of a picture, at its own size."""
    width, height = size_of(drawn)
    at = f'<svg x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="plot" '
    return Markup(str(drawn).replace('<svg class="plot" ', at, 1))  # noqa: S704 (made by `svg.svg`, with figures)


def picture(width: float, height: float, title: str, parts: Sequence[Markup]) -> str:
    """An SVG file."""
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" role="img" '
        'class="plot" aria-label="{title}">'
    ).format(w=width, h=height, title=title)
    ground = Markup('<rect width="{:g}" height="{:g}" rx="12" style="fill: var(--card)"/>').format(width, height)
    return str(head + style() + ground + Markup("").join(parts) + Markup("</svg>\n"))
