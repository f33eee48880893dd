"""Traces of which experts were chosen: the same whether they stream or not, and files that are no trace or are cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.engine.stream.trace import HEADER, TraceWriter, read_trace
from oss_tools.errors import BadRequest
from oss_tools.machine import memory

TOKENS = list(range(30, 70))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    writer = TraceWriter(tmp_path / "a.trace", (1, 2), 8, 3)
    writer.add([np.array([[1, 2, 3], [7, 0, 4]]), np.array([[5, 6], [6, 5]])])
    writer.add([np.array([[0, 1, 2]]), np.array([[7, 3]])])
    assert not (tmp_path / "a.trace").exists()
    writer.close()
    return tmp_path / "a.trace"


def test_what_was_written_is_read(trace: Path) -> None:
    found = read_trace(trace)
    assert (found.layers, found.experts, found.top, found.tokens) == ((1, 2), 8, 3, 3)
    assert found.passes[0].tolist() == [[[1, 2, 3], [7, 0, 4]], [[5, 6, 6], [6, 5, 5]]]
    assert found.passes[1].tolist() == [[[0, 1, 2]], [[7, 3, 3]]]
    assert list(trace.parent.iterdir()) == [trace]


def test_every_cut_is_noticed(trace: Path) -> None:
    content = trace.read_bytes()
    whole = {HEADER.size + 8, HEADER.size + 8 + 4 + 24, len(content)}  # nothing yet, one pass, both
    for length in range(len(content)):
        trace.write_bytes(content[:length])
        if length in whole:
            assert len(read_trace(trace).passes) < 2
        else:
            with pytest.raises(BadRequest, match=r"a\.trace"):
                read_trace(trace)


@pytest.mark.parametrize(
    ("at", "value", "what"),
    [
        (8, 2, "version 2"),
        (12, 1 << 31, "no model's"),
        (16, 2, "no model's"),
        (24 + 8, 1 << 30, "damaged"),
        (24 + 12, 9, "names expert 9"),
    ],
)
def test_numbers_that_cannot_be_are_refused(trace: Path, at: int, value: int, what: str) -> None:
    content = bytearray(trace.read_bytes())
    content[at : at + 4] = value.to_bytes(4, "little")
    trace.write_bytes(content)
    with pytest.raises(BadRequest, match=what):
        read_trace(trace)


def test_the_same_choices_whether_experts_stream_or_not(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    found = []
    for name, size in (("a", None), ("b", memory.WORK_BYTES + 10**6)):
        with Engine.load(tiny_gpt_oss, context=64, memory=size, prefix_budget=0, trace_experts=tmp_path / name) as engine:
            sequence = engine.open(TOKENS)
            engine.prefill(sequence, TOKENS[:-2])
            engine.step([sequence], TOKENS[-2:-1])
            engine.step([sequence], TOKENS[-1:])
        found.append(read_trace(tmp_path / name))
    assert [each.shape for each in found[0].passes] == [(2, 38, 2), (2, 1, 2), (2, 1, 2)]
    for ours, theirs in zip(found[0].passes, found[1].passes, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_dense_model_has_none(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no experts"):
        Engine.load(tiny_llama, context=64, trace_experts=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_made_is_one_line(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be written"):
        Engine.load(tiny_gpt_oss, context=64, trace_experts=tmp_path / "none" / "a")


def test_limits_of_the_own_control_group_and_those_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "outer" / "own"
    own.mkdir(parents=True)
    for folder, limit, used in ((own, 3000, 1000), (tmp_path / "outer", 2500, 1200)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    assert memory.group_left(tmp_path, "memory.max", "memory.current", "outer/own") == [2100, 1400]
    (own / "memory.max").write_text("max\n")
    assert memory.group_left(tmp_path, "memory.max", "memory.current", "outer/own") == [1400]
    assert memory.group_left(tmp_path, "memory.max", "memory.current", "elsewhere") == []
