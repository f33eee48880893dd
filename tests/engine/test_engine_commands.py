"""The commands that run a model, as a user calls them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.machine.description import machine
from oss_tools.measure.identity import model_sha256


def oss_tools(*arguments: object, status: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == status, (done.stderr, done.exception)
    return done


def test_generate_streams_text_and_ends_with_figures(tiny_llama: Path) -> None:
    done = oss_tools("generate", tiny_llama, "The", "--raw", "--max-tokens", 8, "--threads", 1)
    assert "tokens/s" in done.stderr.splitlines()[-1]
    record = json.loads(oss_tools("generate", tiny_llama, "The", "--raw", "-n", 8, "-t", 1, "--json", "-q").stdout)
    assert record["text"] + "\n" == done.stdout
    assert record["tokens"] == 8 or record["finish"] == "stop"


def test_generate_without_a_template_says_so(tiny_llama: Path) -> None:
    done = oss_tools("generate", tiny_llama, "The", "-n", 1, "-t", 1)
    assert "no chat template" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--context", "999999999"], "context"),
        (["--backend", "abacus"], "no backend named"),
        (["--activations", "int3"], "activations"),
    ],
)
def test_bad_options_are_one_line(tiny_llama: Path, options: list[str], said: str) -> None:
    done = oss_tools("generate", tiny_llama, "The", "--raw", "-q", *options, status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_measures_every_case(tiny_gpt_oss: Path) -> None:
    options = ("--prompt", 16, "--gen", 4, "--depth", "0,8", "--batch", "1,2", "--repeat", 1, "--threads", 1, "-q")
    record = json.loads(oss_tools("bench", tiny_gpt_oss, *options, "--json").stdout)
    (entry,) = record["models"]
    ours = entry["contenders"]["oss-tools"]
    assert [r["case"] for r in ours["results"]] == ["pp16", "pp16 @ 8", "tg4", "tg4 × 2", "tg4 @ 8", "tg4 @ 8 × 2"]
    assert all(r["tokens_per_second"] > 0 for r in ours["results"])
    assert ours["peak_bytes"] > ours["facts"]["bytes_per_token"] > 0
    assert ours["facts"]["kernels"].startswith("numba ")
    for result in ours["results"]:
        if result["kind"] == "generate" and result["batch"] == 1:
            assert result["ceilings"].keys() == result["shares"].keys() == {"read", "multiply"}
            assert result["shares"]["multiply"]["median"] > 0
        else:
            assert "shares" not in result
    (file,) = tiny_gpt_oss.glob("*.safetensors")
    assert entry["sha256"] == model_sha256([file], remember=False)
    assert {"began", "machine", "versions", "settings", "load_before", "load_after"} <= record.keys()
    assert {"python", "oss-tools", "numpy", "numba", "llvmlite"} <= record["versions"].keys()
    table = oss_tools("bench", tiny_gpt_oss, "--prompt", 8, "--gen", 0, "--repeat", 1, "-t", 1, "-q", "--markdown").stdout
    assert table.startswith("| model")


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """What a shell runs in the background ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_generate_is_interrupted_by_ctrl_c(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "oss_tools", "generate", str(tiny_llama), "The", "--raw", "-n", "2000", "-t", "2", "-q"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "pipesize": 4096}  # full, it makes the writer wait
    with subprocess.Popen([*command, "--context", "2048"], **pipes) as process:
        assert process.stdout
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.decode().splitlines() == ["oss-tools: interrupted"]


def test_bench_of_several_models_is_one_table(tiny_gpt_oss: Path, tiny_llama: Path) -> None:
    options = ("--prompt", 8, "--gen", 2, "--repeat", 1, "--threads", 1, "-q")
    done = oss_tools("bench", tiny_gpt_oss, tiny_llama, *options, "--markdown")
    table, _, notes = done.stdout.partition("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()[2:]]
    assert rows == [[m.name, "oss-tools", case] for m in (tiny_gpt_oss, tiny_llama) for case in ("pp8", "tg2")]
    assert [line.split(",")[0] for line in notes.splitlines()] == [tiny_gpt_oss.name, tiny_llama.name, "machine: " + cpu()]
    assert "numba " in notes
    assert "1 threads" in notes


def cpu() -> str:
    return str(machine()["cpu"]).split(",")[0]


def test_an_unknown_peer_is_refused(tiny_llama: Path) -> None:
    command = [sys.executable, "-m", "oss_tools", "bench", str(tiny_llama), "--peer", "abacus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "'abacus' is not one of llama.cpp, ik_llama.cpp" in " ".join(done.stderr.split())


@pytest.mark.peers
@pytest.mark.parametrize(("peer", "module"), [("llama.cpp", "llama_cpp"), ("ik_llama.cpp", "ik_llama_cpp")])
def test_bench_beside_a_peer(tiny_llama: Path, peer: str, module: str) -> None:
    pytest.importorskip(module)
    options = ("--prompt", 16, "--gen", 4, "--repeat", 2, "--threads", 1, "-q", "--json", "--peer", peer)
    (entry,) = json.loads(oss_tools("bench", tiny_llama, *options).stdout)["models"]
    results = entry["contenders"]["oss-tools"]["results"]
    assert [r["ratio"]["median"] > 0 for r in results] == [True, True]
    assert [r["ratios"] for r in results] == [{peer: r["ratio"]} for r in results]
    assert len(entry["contenders"][peer]["results"]) == 2
    (file,) = tiny_llama.glob("*.safetensors")
    assert entry["made_from_sha256"] == model_sha256([file]) != entry["sha256"]
