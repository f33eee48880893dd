"""Tools that a YAML file declares, and the choice of tools."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oss_tools.chat.tools.base import ToolError, check_arguments
from oss_tools.chat.tools.choice import open_tools
from oss_tools.errors import BadRequest

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
SHOW = "import sys, json; print(sys.argv[1:], sys.stdin.read())"


def declared(folder: Path, **fields: Any) -> Any:
    """The tool that a file with one entry declares."""
    entry = {"name": "weather", "description": "d", "parameters": CITY, "command": [sys.executable, "-c", SHOW], **fields}
    path = folder / "tools.yaml"
    path.write_text(yaml.safe_dump({"tools": [entry]}))
    return open_tools(f"calculator, {path}")["weather"]


def test_arguments_come_on_stdin(tmp_path: Path) -> None:
    assert declared(tmp_path).call({"city": "Zürich"}) == '[] {"city": "Zürich"}'


def test_arguments_come_in_the_command_without_a_shell(tmp_path: Path) -> None:
    tool = declared(tmp_path, command=[sys.executable, "-c", SHOW, "--city={city}", "{days}"])
    assert tool.call({"city": "$(id); 'x' \"y\"", "days": 3}) == "['--city=$(id); \\'x\\' \"y\"', '3']"
    assert tool.call({"city": "{days}", "days": 3}) == "['--city={days}', '3']"
    assert tool.call({"city": "a"}) == "['--city=a', '']"


def test_an_argument_is_no_option(tmp_path: Path) -> None:
    tool = declared(tmp_path, command=[sys.executable, "-c", SHOW, "{city}"])
    assert tool.call({"city": "--help"}) == "error: '--help' would be read as an option"


def test_failures_are_told_to_the_model(tmp_path: Path) -> None:
    fail = declared(tmp_path, command=[sys.executable, "-c", "print('no such city'); raise SystemExit(4)"])
    assert fail.call({"city": "a"}) == "error: exit status 4\nno such city"
    slow = declared(tmp_path, command=[sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert slow.call({"city": "a"}) == "error: no answer within 0.2 seconds"
    assert "cannot be started" in declared(tmp_path, command=["/no/such/program"]).call({"city": "a"})
    assert "cannot be started" in declared(tmp_path, command=["echo", "{city}"]).call({"city": "a\0b"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "'city' is missing"),
        ({"city": 7}, "of type string"),
        ({"city": "a", "days": True}, "of type integer"),
        ({"city": "a", "days": 1.5}, "of type integer"),
        ({"city": "a", "week": 1}, "no argument 'week'"),
        ({"city": "a", "unit": "k"}, "one of c, f"),
    ],
)
def test_arguments_are_held_against_the_schema(arguments: dict[str, Any], said: str) -> None:
    properties = {**CITY["properties"], "unit": {"type": "string", "enum": ["c", "f"]}}  # type: ignore[dict-item]
    with pytest.raises(ToolError, match=said):
        check_arguments({**CITY, "properties": properties}, arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no YAML"),
        ("a: &a [*a]\n--- {", "is no YAML"),
        ("[]", "has no list"),
        ("tools: []", "has no list"),
        ("tools: [7]", "tool 1: must be an object"),
        ("tools: [{name: a b, command: [x]}]", "`name`"),
        ("tools: [{name: a, command: x}]", "`command` must be a list"),
        ("tools: [{name: a, command: [x], shell: true}]", "must be an object with"),
        ("tools: [{name: a, command: [x, '{city}']}]", "placeholder"),
        ("tools: [{name: a, command: [x], timeout: -1}]", "`timeout`"),
        ("tools: [{name: a, command: [x], parameters: [1]}]", "`parameters`"),
        (
            "tools: [{name: a, command: [x], parameters: {type: object, properties: {d: {default: 2020-01-01}}}}]",
            "must be JSON",
        ),
        ("tools: [{name: a, command: [x]}, {name: a, command: [x]}]", "two tools"),
        (
            "tools: [{name: a, command: [x], parameters: {type: object, properties: {d: {default: .nan}}}}]",
            "must be JSON",
        ),
        ("a: &a [" + "x, " * 2000 + "]\ntools: [{name: [*a, *a], command: [x]}]", "`name`"),
        ("tools: [{name: a, command: [x], timeout: .nan}]", "`timeout`"),
        ("tools: [{name: a, command: [x], timeout: 1:30}]", "base 60"),
        ("tools: [{name: a, name: b, command: [x]}]", "line 1: the key 'name' occurs twice"),
        ("tools: [{name: calculator, command: [x]}]", "two tools"),
        ("tools: !!python/object/apply:os.system [true]", "is no YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tools.yaml"
    path.write_text(content)
    with pytest.raises(BadRequest, match=said) as caught:
        open_tools(f"calculator,{path}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unknown_tools_are_refused() -> None:
    assert open_tools("") == {}
    with pytest.raises(BadRequest, match="known are calculator, python"):
        open_tools("abacus")
