"""A comparison that is killed and taken up again ends with the figures of one that nobody disturbed, and does nothing twice."""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from oss_tools.report.comparison import read

FEW = ["--limit", "40", "--chunks", "8", "--repeat", "0", "--threads", "1", "--quiet"]
PART = {"convert": 1, "weights": 1, "predict": 1, "answer": 3, "margins": 1}  # parts of one more format


def start(output, formats):
    command = [sys.executable, "-m", "oss_tools", "compare", "tiny", "--formats", formats, *FEW, "-o", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(output, formats):
    assert start(output, formats).wait() == 0
    return read(output / "comparison.json")


def kill(output, formats, reached):
    """Starts a comparison, and ends it as a power cut would, once it has come so far; its finished parts."""
    process = start(output, formats)
    while not reached() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9, "it was through before it could be killed"
    return parts(output)


def parts(output):
    """When each finished part was written."""
    return {file.name: file.stat().st_mtime_ns for file in (output / "parts").glob("*.json")}


def kinds(names):
    return Counter(name.partition("-")[0] for name in names)


def quality(record):
    """The record but for the folder."""
    return [replace(candidate, path="") for candidate in record.candidates]


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    undisturbed = finish(tmp_path / "undisturbed", "bf16,int8")
    output = tmp_path / "killed"
    first = kill(output, "bf16,int8", lambda: any((output / "parts").glob("predict-*.json")))
    assert kinds(first)["predict"] >= 1

    def answering():
        return any(log.read_bytes().count(b"\n") > 3 for log in output.glob("answers/*/answers.jsonl"))

    second = kill(output, "bf16,int8", answering)
    logs = {log: log.read_bytes() for log in output.glob("answers/*/answers.jsonl")}
    resumed = finish(output, "bf16,int8")
    assert quality(resumed) == quality(undisturbed)
    last = parts(output)
    for before in (first, second):
        assert {name: last[name] for name in before} == before
    for log, written in logs.items():
        whole = written[: written.rindex(b"\n") + 1]  # without a line that was being written
        assert log.read_bytes().startswith(whole)

    finish(output, "bf16,int8,q8_0")
    more = parts(output)
    assert {name: more[name] for name in last} == last
    assert kinds(more) - kinds(last) == PART
