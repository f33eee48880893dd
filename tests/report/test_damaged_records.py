"""Records in which one value is of another type or absurd: each is shown, or refused in a line that names file and field."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.errors import BadRequest
from oss_tools.report.gates import judge_all
from oss_tools.report.html import page
from oss_tools.report.junit import junit
from oss_tools.report.markdown import markdown
from oss_tools.report.reading import load_sheets
from oss_tools.report.rules import load_gate
from oss_tools.report.table import text

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results"
RECORDS = {
    name: json.loads(file.read_text(encoding="utf-8"))
    for name, file in {
        "comparison": HERE / "sample-comparison.json",
        "bench": RESULTS / "bench-small.json",
        "eval": RESULTS / "eval" / "tiny-q8_0.json",
    }.items()
}
LONE = "\ud83d"  # half of an emoji
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**17,
    1e308,
    "",
    "x",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": [1, {"b": None}]},
    "\x1b[2J",
]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Paths to every value of a record; of long lists to the first two."""
    found = [path] if path else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            found += places(inner, (*path, number))
    return found


PLACES = [(name, path) for name, record in RECORDS.items() for path in places(record)]


def changed(name: str, path: tuple, value: Any) -> dict:
    record = copy.deepcopy(RECORDS[name])
    at = record
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return record


def shown(file: Path) -> None:
    """Everything that is made of a record."""
    sheets = load_sheets([file])
    verdicts = judge_all(load_gate("default"), sheets, []) if sheets[0].comparison else []
    for made in (page(sheets, verdicts), markdown(sheets, verdicts), junit(sheets, verdicts), text(sheets[0], 100)):
        assert made.encode()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_a_value_of_another_type_is_shown_or_refused_by_file_and_field(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, tuple], value: Any
) -> None:
    file = tmp_path_factory.mktemp("record") / "record.json"
    file.write_text(json.dumps(changed(*place, value)), encoding="utf-8")
    refused = ""
    try:
        shown(file)
    except BadRequest as error:
        refused = str(error).removeprefix(f"{file}: ")
        named = refused != str(error)
    else:
        named = True
    assert named
    assert len(refused.splitlines()) < 2
    assert not refused[400:]


@pytest.mark.parametrize("name", RECORDS)
def test_whole_records_are_shown(name: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(RECORDS[name]), encoding="utf-8")
    shown(file)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("eval", ("settings",), None, "record.settings: an object is wanted, not None"),
        ("eval", ("machine",), "x86", "record.machine: an object is wanted, not 'x86'"),
        ("eval", ("versions",), [], "record.versions: an object is wanted, not []"),
        ("eval", ("versions", "numpy"), 2.4, "record.versions.numpy: text is wanted, not 2.4"),
        ("eval", ("tasks", "math_smoke", "n"), "200", "record.tasks.math_smoke.n: a finite number is wanted, not '200'"),
        ("eval", ("tasks", "math_smoke", "usage"), None, "record.tasks.math_smoke.usage: an object is wanted"),
        ("eval", ("tasks", "math_smoke", "scores", "correct", "low"), [], "scores.correct.low: a finite number is wanted"),
        (
            "eval",
            ("model", "name"),
            f"tiny {LONE}",
            r"record.model.name: half a surrogate pair, which is no text: 'tiny \ud83d'",
        ),
        ("eval", ("settings",), {LONE: 1}, "record.settings: half a surrogate pair"),
        ("eval", ("settings", "deep"), deep(900), "more than 32 objects or lists in each other"),
        ("bench", ("settings",), None, "record.settings: an object is wanted, not None"),
        ("bench", ("models", 0, "bytes"), "big", "record.models[0].bytes: a finite number is wanted"),
        ("bench", ("models", 0, "contenders"), [], "record.models[0].contenders: an object is wanted"),
        ("comparison", ("environment", "settings"), None, "record.environment.settings: dict"),
        (
            "comparison",
            ("environment", "settings"),
            {"note": LONE},
            "record.environment.settings.note: half a surrogate pair",
        ),
    ],
)
def test_what_is_wrong_is_named(name: str, path: tuple, value: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(changed(name, path, value)), encoding="utf-8")
    for arguments in ([], ["--html", str(tmp_path / "page.html")], ["--json"]):
        done = CliRunner().invoke(app, ["report", str(file), *arguments])
        assert done.exit_code == 2
        assert len(done.stderr.splitlines()) == 1
        assert f"{file}: " in done.stderr
        assert said in done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_numbers_that_are_none_are_refused_wherever_they_stand(number: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    whole = json.dumps(RECORDS["eval"])
    file.write_text(re.sub(r'"seed": \d+', f'"seed": {number}', whole), encoding="utf-8")
    with pytest.raises(BadRequest, match=r"is no figure|a number that is too large|a number of 400 digits"):
        load_sheets([file])


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text("\ufeff" + json.dumps(RECORDS["eval"]), encoding="utf-8")
    shown(file)
