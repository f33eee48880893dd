"""Files of a repository that have strange names: left out, or refused by name."""

import json
from pathlib import Path

import pytest
from hub_server import Hub

from tests.download.conftest import Run
from tests.download.small_repository import REPO, files

pytestmark = pytest.mark.slow

STRANGE = [
    "../evil.json",
    "/etc/evil.json",
    "a/../../evil.json",
    "a//evil.json",
    "~/" + "x" * 300 + ".json",
    "logs/12:30:05",
    "a:b",
    "notes\\old.txt",
    "ends in a space ",
    "é" * 200 + ".txt",
    "half a pair \ud800",
    "two\nlines",
    ".",
]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_of_a_file_that_nobody_wants_stops_nothing(name: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    content = files()
    hub.add(REPO, {**content, name: b"evil"})
    done = run("download", REPO, "--to", "deep/here")
    assert done.returncode == 0, done.stderr
    kept = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file() and "hf" not in p.parts}
    wanted = {f"deep/here/{n}" for n in content if "/" not in n and not n.endswith((".bin", ".py"))}
    assert kept == wanted | {"deep/here/oss-tools-download.json"}


@pytest.mark.parametrize("name", [n for n in STRANGE if n not in (".", "ends in a space ")])
def test_of_a_file_that_is_wanted_it_is_refused_by_name(name: str, hub: Hub, run: Run, tmp_path: Path) -> None:
    hub.add(REPO, {**files(), name: b"evil"})
    done = run("download", REPO, "--to", "deep/here", "--include", "*")
    assert done.returncode == 2
    assert repr(name[:120])[1:-1] in done.stderr
    assert "leaves its folder" in done.stderr or "no file can have" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not hub.bodies()
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("name", ["results:1.json", "C:\\notes.json"])
def test_a_small_file_at_the_top_with_a_strange_name_is_left_out_with_a_line(name: str, hub: Hub, run: Run) -> None:
    hub.add(REPO, {**files(), name: b"{}"})
    done = run("download", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert repr(name) in done.stderr
    assert "left out" in done.stderr
    assert name not in {f["path"] for f in json.loads(done.stdout)["files"]}


@pytest.mark.parametrize("name", ["model:1.safetensors", "a\\b.safetensors"])
def test_tensors_with_a_strange_name_are_refused(name: str, hub: Hub, run: Run) -> None:
    hub.add("a/b", {"config.json": b"{}", name: bytes(100)})
    done = run("download", "a/b")
    assert done.returncode == 2
    assert repr(name)[1:-1] in done.stderr


def test_a_file_that_is_a_folder_as_well_is_refused(hub: Hub, run: Run) -> None:
    hub.add(REPO, {**files(), "config.json/x.json": b"evil"})
    assert "lists 'config.json' twice" in run("download", REPO, "--include", "*.json").stderr


def test_a_strangers_manifest_is_not_taken_for_ours(hub: Hub, run: Run, tmp_path: Path) -> None:
    ghost = {"path": "ghost.json", "bytes": 5, "sha256": "0" * 64, "verified_by": "sha256", "url": ""}
    hub.add(REPO, {**files(), "oss-tools-download.json": json.dumps({"files": [ghost]}).encode()})
    for more in ([], ["--include", "*.json"]):
        assert run("download", REPO, "--to", "here", *more).returncode == 0
        assert "ghost" not in (tmp_path / "here" / "oss-tools-download.json").read_text()
