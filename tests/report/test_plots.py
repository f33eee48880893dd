"""Plots as SVG: what is drawn is where it says, and stays within its place."""

import re

from oss_tools.report.axes import Axis
from oss_tools.report.fidelity import Cell
from oss_tools.report.heat_map import heat_map, heat_scale
from oss_tools.report.metrics import Interval
from oss_tools.report.scatter import Point, scatter


def test_points_on_a_logarithmic_axis_leave_out_what_it_cannot_hold() -> None:
    points = [Point("a", Interval(1), Interval(0)), Point("b", Interval(2), Interval(1e-3, -1e-3, 2e-3))]
    plot = scatter(points, Axis("x", str), Axis("y", str, log=True), "t")
    assert plot.count("<circle") == 1
    assert "nan" not in plot
    assert scatter(points[:1], Axis("x", str), Axis("y", str, log=True), "t") == ""


def test_a_heat_map_of_many_layers_stays_within_its_width() -> None:
    cells = [Cell(layer, "experts_down", "q4_0", 0.1 + layer, 10, 0.2, "w", layer == 70) for layer in range(80)]
    plot = heat_map([*cells, Cell(None, "head", "q4_0", 0.0, 1, 0.0, "h")], heat_scale(cells), "t")
    places = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', plot)]
    assert len(places) == 81
    assert max(x + w for x, w in places) <= 420.01
    assert plot.count('class="heat suspicious"') == 1


def test_a_role_in_and_outside_the_layers_has_two_rows_of_a_heat_map() -> None:
    cells = [Cell(layer, "norm", "bf16", 0.1, 10, 0.2, "w") for layer in (0, None, 1)]
    plot = heat_map(cells, heat_scale(cells), "t")
    places = [tuple(map(float, place)) for place in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', plot)]
    assert len({y for _, y, _ in places}) == 2
    assert len(places) == 3
    assert ">last norm</text>" in plot


def test_figures_at_an_axis_are_where_they_say() -> None:
    points = [Point(name, Interval(x), Interval(0.82 + x / 20)) for name, x in (("a", 1.0), ("b", 2.0))]
    plot = scatter(points, Axis("x", str), Axis("y", lambda v: f"{100 * v:.3g} %"), "t")
    marks = re.findall(r'y="([\d.]+)" text-anchor="end" class="tick">([\d.]+) %<', plot)
    assert len(marks) >= 3
    slopes = [(float(y) - float(marks[0][0])) / (float(v) - float(marks[0][1])) for y, v in marks[1:]]
    assert max(slopes) - min(slopes) < 0.5


def test_names_beside_points_keep_off_whiskers() -> None:
    one = Point("a longer name", Interval(3), Interval(5))
    two = Point("b", Interval(3.15), Interval(6, 1, 9))
    plot = scatter(
        [one, two, Point("c", Interval(1), Interval(5)), Point("d", Interval(5), Interval(5))],
        Axis("x", str),
        Axis("y", str),
        "t",
    )
    mark, whisker = (float(x) for x in re.findall(r'cx="([\d.]+)"', plot)[:2])
    x, anchor = re.search(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)" class="label">a longer name', plot).groups()  # type: ignore[union-attr]
    assert mark < whisker
    assert anchor == "end"
    assert float(x) < mark
