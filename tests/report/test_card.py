"""Cards for a model's page: a picture that stands by itself, and a Markdown block that says the same."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.errors import BadRequest
from oss_tools.report.card import BEGIN, END, card
from oss_tools.report.comparison import read
from oss_tools.report.reading import load_sheets
from oss_tools.report.sheet import sheet_of

SAMPLE = Path(__file__).with_name("sample-comparison.json")
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(f"{SVG}text"))


def test_the_picture_has_every_model_and_stays_within_its_frame() -> None:
    sheet = sheet_of(read(SAMPLE))
    svg = card(sheet, "card.svg").svg
    root = ET.fromstring(svg)
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    said = [element.text for element in texts(svg)]
    for model in sheet.models:
        assert any(text and text.startswith(model.name[:20]) for text in said)
    for element in root.findall(f"{SVG}text"):
        assert 0 <= float(element.get("x", "-1")) <= width
        assert 0 <= float(element.get("y", "-1")) <= height
    plots = root.findall(f"{SVG}svg")
    assert plots
    for plot in plots:
        x, y, w, h = (float(plot.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert x + w <= width
        assert y + h <= height
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"(href|src|url\(|@import|<script)", svg), "it needs nothing from elsewhere"


def test_columns_do_not_touch() -> None:
    """At some 6.9 units a letter, as plots reckon."""
    sheet = sheet_of(read(SAMPLE))
    rows: dict[float, list[tuple[float, float]]] = {}
    for element in ET.fromstring(card(sheet, "x.svg").svg).findall(f"{SVG}text"):
        x, wide = float(element.get("x", "0")), 6.9 * len(element.text or "")
        begin = x if element.get("text-anchor") == "start" else x - wide
        rows.setdefault(float(element.get("y", "0")), []).append((begin, begin + wide))
    table = [sorted(row) for row in rows.values() if len(row) > 3]
    assert len(table) == 1 + len(sheet.models)
    for row in table:
        assert all(one[1] <= two[0] for one, two in pairwise(row))


def test_the_block_names_what_each_costs() -> None:
    sheet = sheet_of(read(SAMPLE))
    block = card(sheet, "pictures/my card.svg").markdown
    assert block.startswith(BEGIN)
    assert block.rstrip().endswith(END)
    assert "](pictures/my%20card.svg)" in block
    for model in sheet.models:
        assert re.search(rf"^\| {re.escape(model.name).replace('_', '.{0,2}')}", block, re.MULTILINE), model.name
    for candidate in read(SAMPLE).others:
        if candidate.fidelity and candidate.fidelity[0].kld:
            assert "nats a token" in block
    assert "Measured with `oss-tools compare`" in block


def test_names_of_strangers_stay_text() -> None:
    record = read(SAMPLE)
    bad = '<script>x</script>" & [a](http://b) | \x1b[31m'
    renamed = [replace(c, name=bad) if c.name == record.others[0].name else c for c in record.candidates]
    made = card(sheet_of(replace(record, candidates=renamed, model=bad)), "a.svg")
    ET.fromstring(made.svg)
    assert "<script" not in made.svg
    assert "\x1b" not in made.svg + made.markdown
    assert not re.search(r"(?<!\\)<script", made.markdown), "it is escaped"
    assert not re.search(r"(?<!\\)\]\(http", made.markdown)


def test_only_comparisons_have_cards(tmp_path: Path) -> None:
    bench = Path(__file__).parents[2] / "results" / "bench-small.json"
    with pytest.raises(BadRequest, match="a card is made of a comparison"):
        card(load_sheets([bench])[0], "a.svg")
    for options, message in (
        (("--card", "a.png"), "must end with .svg"),
        (("--card", "a.svg", str(SAMPLE)), "it shows one comparison: name one record"),
    ):
        done = CliRunner().invoke(app, ["report", str(SAMPLE), *options])
        assert done.exit_code == 2
        assert message in re.sub(r"[\s│]+", " ", done.output)


def test_both_files_are_written(tmp_path: Path) -> None:
    file = tmp_path / "card.svg"
    done = CliRunner().invoke(app, ["report", str(SAMPLE), "--card", str(file)])
    assert done.exit_code == 0, done.output
    ET.fromstring(file.read_text())
    assert "](card.svg)" in (tmp_path / "card.md").read_text()
