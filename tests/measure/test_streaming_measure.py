"""The records of models larger than memory: what they hold, on a model small enough for a test."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.measure import starting, streaming
from oss_tools.measure.memory_group import memory_group


def test_a_group_limits_what_its_processes_take(tmp_path: Path) -> None:
    """A process that takes more than its group may is ended by the system."""
    taking = "import sys; sys.path[:0] = [sys.argv[2]]; from oss_tools.measure.memory_group import join; join(sys.argv[1])"
    taking += "; b = bytearray(int(sys.argv[3])); b[::4096] = b[::4096].replace(b'\\0', b'x'); print(len(b))"
    with memory_group(100 << 20, "test") as group:
        if group is None:
            pytest.skip("no control groups can be made here")
        root = str(Path(__file__).parents[2])
        for size, ends_well in ((10 << 20, True), (400 << 20, False)):
            command = [sys.executable, "-c", taking, str(group.members), root, str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert (done.returncode == 0) is ends_well, done.stderr
        folder = group.folder
        assert (group.peak_bytes() or 0) > 10 << 20
    assert not folder.exists()


def test_no_group_is_none_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oss_tools.measure.memory_group.ROOT", tmp_path / "none")
    with memory_group(1 << 30, "test") as group:
        assert group is None


@pytest.mark.slow
def test_a_streaming_record(tmp_path: Path) -> None:
    shape = load_shape("qwen3-moe-tiny").with_layers(6)
    shape = replace(shape, config=shape.config | {"hidden_size": 1024, "moe_intermediate_size": 1024})
    model = synthesize(plan_synthesis(shape, "ready", router="skewed"), tmp_path / "m.ready")
    trial = streaming.Trial(model, None, 560 << 20, 1, 6, 6, 2)
    record = streaming.measure_trial(trial, 1)
    assert record["identical_tokens"] is True
    assert 0 < record["oss-tools"]["streaming"]["hit_rate"] < 1
    assert record["oss-tools"]["streaming"]["bytes_read_per_token"] > 0
    assert record["share_of_both_bounds"]["median"] > 0
    assert json.dumps(record)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux's account of a process's pages")
def test_processes_are_asked_what_they_have() -> None:
    command = [
        sys.executable,
        "-c",
        "b = bytearray(50 << 20); b[::4096] = b'x' * len(b[::4096]); print(1, flush=True); input()",
    ]
    found = starting.once([command, command], lambda: None)
    assert len(found["seconds"]) == 2
    assert found["anonymous_bytes"] > 2 * (50 << 20)
    assert found["shared_out_bytes"] <= found["resident_bytes"]
    with pytest.raises(subprocess.CalledProcessError):
        starting.once([[sys.executable, "-c", "raise SystemExit(3)"]], lambda: None)
