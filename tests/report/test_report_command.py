"""`oss-tools report`: what it writes and prints, and its exit status."""

import errno
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oss_tools.cli import main as cli

SAMPLE = Path(__file__).with_name("sample-comparison.json")
runner = CliRunner()


def report(*arguments: object):
    return runner.invoke(cli.app, ["report", *map(str, arguments)])


def test_a_table_and_all_files(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("report.html", "report.md", "report.xml")]
    result = report(SAMPLE, "--html", files[0], "--markdown", files[1], "--junit", files[2])
    assert result.exit_code == 0
    assert "bf16 (base)" in result.stdout
    assert [file.read_text(encoding="utf-8")[:9] for file in files] == ["<!doctype", "## tiny: ", "<?xml ver"]


def test_a_gate_that_fails_says_what_and_ends_with_1(tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules:\n  - {name: small enough, metric: size, max: 6000000, candidates: '*_0'}\n", encoding="utf-8")
    result = report(SAMPLE, "--gate", gate)
    assert result.exit_code == 1
    assert "FAILED  small enough: q8_0: size is 9.79 MB; allowed is at most 6 MB" in result.stdout
    assert result.stdout.splitlines()[-1] == "gate gate: failed, 1 of 2 checks"


def test_a_gate_that_holds_ends_with_0_and_json_has_the_verdict(tmp_path: Path) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules: [{metric: size, ratio: baseline, min: 1, max: 1}]", encoding="utf-8")
    result = report(SAMPLE, "--gate", gate, "--baseline", SAMPLE, "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["verdicts"][0]["passed"] is True
    assert record["sheets"][0]["models"][0]["figures"]["size"]["value"] == 18312400


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gate", "tiny"], "compares with a baseline; give --baseline FILE"),
        (["--baseline", SAMPLE], "a baseline is for a gate"),
        (["--gate", "none"], "no gate named 'none'"),
    ],
)
def test_what_is_wrong_is_a_line_and_2(arguments: list, said: str) -> None:
    result = report(SAMPLE, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_markdown_to_the_standard_output_is_all_there_is() -> None:
    result = report(SAMPLE, "--markdown", "-")
    assert result.stdout.startswith("## tiny: 5 quantizations\n")
    assert "bf16 (base)  " not in result.stdout


@pytest.mark.parametrize("option", ["--html", "--markdown", "--junit"])
def test_on_a_full_disk_the_old_file_stays(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "old"
    file.write_text("last week's")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = report(SAMPLE, option, file)
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [f"oss-tools: {file}: No space left on device; free some space"]
    assert file.read_text() == "last week's"
    assert list(tmp_path.iterdir()) == [file]
