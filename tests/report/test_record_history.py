"""Records over commits: ordered, labelled, cut where something else was measured."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.errors import BadRequest
from oss_tools.report.history import courses, history_text, load_history, picture_of

SAMPLE = Path(__file__).with_name("sample-comparison.json")
COMMITS = ("810264d", "35516cb0aa", "259a210")


def write(folder: Path, name: str, created: str, change: Any = None) -> Path:
    raw = json.loads(SAMPLE.read_text())
    raw["environment"]["created"] = created
    if change:
        change(raw)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(raw))
    return file


@pytest.fixture
def history(tmp_path: Path) -> Path:
    write(tmp_path, f"tiny-{COMMITS[1]}.json", "2026-11-02T00:00:00+00:00")
    write(tmp_path, f"{COMMITS[0]}/comparison.json", "2026-11-01T00:00:00+00:00")
    write(tmp_path, "latest.json", "2026-11-04T00:00:00+00:00")
    write(tmp_path, f"{COMMITS[2]}.json", "2026-11-03T00:00:00+00:00", other_text)
    return tmp_path


def other_text(raw: dict[str, Any]) -> None:
    for candidate in raw["candidates"]:
        for fidelity in candidate["fidelity"]:
            fidelity["sha256"] = "another"


def test_records_are_in_the_order_of_their_dates(history: Path) -> None:
    assert [entry.label for entry in load_history(history)] == ["810264d", "35516cb", "259a210", "11-04"]


def test_lines_are_cut_where_something_else_was_measured(history: Path) -> None:
    found = {course.metric: course for course in courses(load_history(history))}
    assert found["kld.mean"].breaks == (2, 3)
    assert found["size"].breaks == ()
    names = [candidate["name"] for candidate in json.loads(SAMPLE.read_text())["candidates"]]
    assert sorted(one.name for one in found["size"].series) == sorted(names)
    assert len({one.colour for one in found["size"].series}) == len(names)
    colours = {one.name: one.colour for one in found["size"].series}
    assert all(colours[one.name] == one.colour for one in found["kld.mean"].series), "a model has one colour"


def test_the_table_and_the_picture(history: Path) -> None:
    entries = load_history(history)
    table = history_text(entries)
    assert re.search(r"model +810264d +35516cb +259a210 +11-04", table)
    assert "| " in table
    drawn = picture_of(entries)
    root = ET.fromstring(drawn)
    assert "stroke-dasharray" in drawn
    assert drawn.count('class="cut"') >= 2
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for plot in root.findall("{http://www.w3.org/2000/svg}svg"):
        x, y, w, h = (float(plot.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert x + w <= width
        assert y + h <= height


def test_the_command(history: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "out" / "h.html", tmp_path / "out" / "h.svg"
    page.parent.mkdir()
    done = CliRunner().invoke(app, ["report", "--history", str(history)])
    assert done.exit_code == 0, done.output
    assert "810264d" in done.output
    done = CliRunner().invoke(app, ["report", "--history", str(history), "--html", str(page), "--card", str(picture)])
    assert done.exit_code == 0, done.output
    assert "lines are cut where something else was measured" in page.read_text()
    assert "default-src 'none'" in page.read_text()
    ET.fromstring(picture.read_text())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no records"),
        (lambda folder: write(folder, "a.json", "2026"), "needs two comparisons at least"),
        (lambda folder: (folder / "a.json").write_text("{"), "no readable JSON"),
        (lambda folder: (folder / "a.json").write_text('{"kind": "bench", "schema": 1, "models": []}'), "a list of models"),
    ],
)
def test_folders_that_are_no_history(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path)
    with pytest.raises(BadRequest, match=message):
        load_history(tmp_path)
    with pytest.raises(BadRequest, match="a folder of records is wanted"):
        load_history(tmp_path / "missing")


def test_it_stands_by_itself(history: Path) -> None:
    for options in ((str(SAMPLE),), ("--gate", "default")):
        done = CliRunner().invoke(app, ["report", "--history", str(history), *options])
        assert done.exit_code == 2
    assert CliRunner().invoke(app, ["report"]).exit_code == 2
