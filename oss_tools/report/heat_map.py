"""Heat maps of weight errors by layer and role."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from oss_tools.report.axes import Scale
from oss_tools.report.fidelity import Cell
from oss_tools.report.svg import WIDTH, svg, text
from oss_tools.tables import cut_in_the_middle

CELL, LABELS = 24.0, 118.0  # rows, and the width of their names
CELL_TEXT = 37.0  # a cell this wide holds its figure
DARK_TEXT = 0.6  # opacity of a cell from which its figure has the other colour


def heat_scale(cells: Sequence[Cell]) -> Scale | None:
    """One logarithmic scale of opacity for all errors above 0; None where there are none."""
    values = [cell.relative_error for cell in cells if cell.relative_error > 0]
    return Scale(min(values), max(values), 0.1, 1.0, True) if values else None


def heat_map(cells: Sequence[Cell], scale: Scale | None, title: str) -> Markup:
    """Weight error by role (rows) and layer (columns); what lies outside the layers has a row of one cell."""
    layers = sorted({cell.layer for cell in cells if cell.layer is not None})
    rows: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.role, cell.layer is None), []).append(cell)
    width = (WIDTH - LABELS) / max(len(layers), 1)
    column = {layer: place for place, layer in enumerate(layers)}
    parts: list[Markup] = []
    for row, ((role, outside), own) in enumerate(rows.items()):
        name = f"last {role}" if outside and (role, False) in rows else role
        name = cut_in_the_middle(name, 17)
        parts.append(text(LABELS - 8, CELL * row + CELL / 2 + 4, name, "end", "tick"))
        for cell in own:
            x = LABELS + (0 if cell.layer is None else width * column[cell.layer])
            parts.append(_cell(cell, scale, x, CELL * row, WIDTH - LABELS if cell.layer is None else width))
    bottom = CELL * len(rows)
    step = max(1, math.ceil(len(layers) * 22 / (WIDTH - LABELS)))
    middles = [(layer, LABELS + width * (column[layer] + 0.5)) for layer in layers[::step]]
    parts += [text(middle, bottom + 16, str(layer), "middle", "tick") for layer, middle in middles]
    if layers:
        parts.append(text(LABELS - 8, bottom + 16, "layer", "end", "title"))
    wrong = [cell.worst_tensor for cell in cells if cell.suspicious]
    words = f"Relative error by role and layer, {len(cells)} cells. " + (f"Suspicious: {', '.join(wrong)}." if wrong else "")
    return svg(bottom + 24, title, words, parts)


def _cell(cell: Cell, scale: Scale | None, x: float, y: float, width: float) -> Markup:
    opacity = scale(cell.relative_error) if scale and cell.relative_error > 0 else 0.0
    where = "" if cell.layer is None else f"layer {cell.layer}, "
    hint = f"{where}{cell.role} in {cell.format}: {100 * cell.relative_error:.3g} %"
    hint += f"; worst {cell.worst_tensor}, {100 * cell.worst_slice:.3g} %" + (", suspicious" if cell.suspicious else "")
    gap = 1.0 if width > 6 else 0.0
    shape = Markup(
        '<g><title>{}</title><rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill-opacity="{:.2f}" class="heat{}"/>'
    ).format(hint, x, y, max(width - gap, 0.5), CELL - 1, opacity, " suspicious" if cell.suspicious else "")
    if width >= CELL_TEXT:
        figure = f"{100 * cell.relative_error:.2g} %" if cell.relative_error else "0"
        kind = "cell over" if opacity > DARK_TEXT else "cell"
        shape += text(x + width / 2, y + CELL / 2 + 4, ("! " if cell.suspicious else "") + figure, "middle", kind)
    elif cell.suspicious:
        shape += text(x + width / 2, y + CELL / 2 + 4, "!", "middle", "cell over" if opacity > DARK_TEXT else "cell")
    return shape + Markup("</g>")


def legend_bar(scale: Scale) -> Markup:
    """The heat maps' scale of opacity, with figures."""
    steps = 40
    width = WIDTH - LABELS
    rect = Markup('<rect x="{:.2f}" y="2" width="{:.2f}" height="10" fill-opacity="{:.2f}" class="heat"/>')
    parts = []
    for step in range(steps):
        place = scale.low * (scale.high / scale.low) ** ((step + 0.5) / steps)
        parts.append(rect.format(LABELS + width * step / steps, width / steps + 0.2, scale(place)))
    parts.append(text(LABELS, 28, f"{100 * scale.low:.2g} %", "start", "tick"))
    parts.append(text(WIDTH, 28, f"{100 * scale.high:.2g} %", "end", "tick"))
    parts.append(text(LABELS - 8, 12, "error", "end", "title"))
    return svg(
        34, "Scale of the heat maps", f"From {100 * scale.low:.2g} % to {100 * scale.high:.2g} %, logarithmic.", parts
    )
