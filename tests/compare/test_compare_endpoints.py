"""Models behind addresses beside checkpoints: paired scores, what was measured over the wire, runs that go on."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.remote import over_the_wire, remotes
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.report.comparison import read
from oss_tools.report.sheet import sheet_of
from tests.endpoints.chat_server import completion, serving

FEW = ("--suites", "math", "--limit", 6, "--chunks", 1, "--repeat", 0, "-t", 1, "-q")


def oss_tools(*arguments: Any, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == status, done.output
    return done.output


def seven(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return completion("7", tokens=20, prompt_tokens=30)


def test_a_checkpoint_and_an_endpoint_stand_in_one_table_with_paired_tests(tmp_path: Path) -> None:
    with serving(seven) as server:
        name = f"{server.url}#hosted-1"
        oss_tools("compare", "tiny", name, *FEW, "--price", "1,10", "-o", tmp_path)
        asked = len(server.requests)
        oss_tools("compare", "tiny", name, *FEW, "--price", "1,10", "-o", tmp_path)
        assert len(server.requests) == asked, "answers are kept"
    record = read(tmp_path / "comparison.json")
    own, hosted = record.candidates
    assert (record.base, hosted.name, hosted.container, hosted.path) == ("tiny", "hosted-1", "endpoint", name)
    (task,) = hosted.tasks
    assert task.item_ids == own.tasks[0].item_ids
    assert task.difference is not None
    assert "McNemar" in task.difference.method
    assert hosted.weight_error is None
    assert not hosted.fidelity
    assert hosted.wire is not None
    assert (len(hosted.wire.seconds.values), hosted.wire.tokens) == (6, 6 * 20)
    assert hosted.wire.dollars == pytest.approx(6 * (30 * 1 + 20 * 10) / 1e6)
    figures = next(model for model in sheet_of(record).models if model.name == "hosted-1").figures
    assert "size" not in figures
    assert "wire.seconds" in figures
    shown = oss_tools("report", tmp_path / "comparison.json")
    assert "s/request (wire)" in shown
    oss_tools("report", tmp_path / "comparison.json", "--html", tmp_path / "page.html")
    assert "hosted-1" in (tmp_path / "page.html").read_text()


def test_the_hosted_original_may_be_the_base_of_scores(tmp_path: Path) -> None:
    with serving(seven) as server:
        oss_tools("compare", "tiny", "--base", f"{server.url}#original", *FEW, "-o", tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["base"] == "original"
    by_name = {candidate["name"]: candidate for candidate in record["candidates"]}
    assert by_name["original"]["tasks"][0]["difference"] is None
    assert by_name["tiny"]["tasks"][0]["difference"] is not None
    oss_tools("report", tmp_path / "comparison.json")


def test_a_server_that_fails_for_good_loses_nothing(tmp_path: Path) -> None:
    def broken(path: str, body: dict[str, Any]) -> Any:
        return seven(path, body) if len(server.requests) <= 4 else 403

    with serving(broken) as server:
        failed = oss_tools("compare", "tiny", f"{server.url}#m", *FEW, "--jobs", 1, "-o", tmp_path, status=2)
        assert "answers 403" in failed
        first = len(server.requests)
        server.answer = seven
        oss_tools("compare", "tiny", f"{server.url}#m", *FEW, "--jobs", 1, "-o", tmp_path)
        assert len(server.requests) - first == 6 - 4


def test_endpoints_alone_are_no_comparison(tmp_path: Path) -> None:
    said = oss_tools("compare", "http://127.0.0.1:9/v1#a", "http://127.0.0.1:9/v1#b", *FEW, "-o", tmp_path, status=2)
    assert "one checkpoint at least" in said


def test_two_of_one_name_go_by_their_addresses() -> None:
    both = remotes([Endpoint("http://a/v1", "m"), Endpoint("http://b/v1", "m"), Endpoint("http://b/v1", "n")], None)
    assert [remote.name for remote in both] == ["http://a/v1#m", "http://b/v1#m", "n"]


def test_nothing_asked_is_nothing_measured() -> None:
    assert over_the_wire({"a": {"wire": None}, "b": {"wire": {"seconds": [], "rates": []}}}) is None
