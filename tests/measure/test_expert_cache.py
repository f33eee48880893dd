"""Hit rates from a trace, against caches that are simulated the slow way, access by access."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.stream.reuse import NEVER, belady_hits, lfu_hits, lru_hits, stack_distances
from oss_tools.engine.stream.trace import Trace, TraceWriter
from oss_tools.measure.expert_cache import Accesses, accesses_of, default_sizes, measure

sequences = st.lists(st.integers(0, 9), min_size=1, max_size=60)


def naive_lru(keys: list[int], size: int) -> list[bool]:
    held: list[int] = []  # the most recently used last
    hits = []
    for key in keys:
        hits.append(key in held)
        if key in held:
            held.remove(key)
        elif len(held) == size:
            held.pop(0)
        held.append(key)
    return hits


def naive_lfu(keys: list[int], size: int) -> list[bool]:
    held: list[int] = []
    hits = []
    for now, key in enumerate(keys):
        hits.append(key in held)
        if key not in held:
            if len(held) == size:
                uses = Counter(keys[:now])
                held.remove(min(held, key=lambda k: (uses[k], max(i for i in range(now) if keys[i] == k))))
            held.append(key)
    return hits


def most_hits(keys: list[int], size: int) -> int:
    """The best of all choices of what to let go of, by trying each."""
    states = {frozenset[int](): 0}
    for key in keys:
        after: dict[frozenset[int], int] = {}
        for held, hits in states.items():
            if key in held:
                options = [(held, hits + 1)]
            elif len(held) < size:
                options = [(held | {key}, hits)]
            else:
                options = [(held - {out} | {key}, hits) for out in held]
            for state, count in options:
                after[state] = max(after.get(state, -1), count)
        states = after
    return max(states.values())


@given(sequences, st.integers(1, 11))
def test_lru_from_stack_distances_is_that_of_a_cache(keys: list[int], size: int) -> None:
    assert lru_hits(stack_distances(np.array(keys)), size).tolist() == naive_lru(keys, size)


@given(sequences, st.integers(1, 11))
def test_lfu_is_that_of_a_cache(keys: list[int], size: int) -> None:
    assert lfu_hits(np.array(keys), size).tolist() == naive_lfu(keys, size)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=25), st.integers(1, 5))
def test_nothing_hits_more_than_the_best(keys: list[int], size: int) -> None:
    assert belady_hits(np.array(keys), size).sum() == most_hits(keys, size)


def test_first_uses_are_never_hit() -> None:
    assert stack_distances(np.array([4, 4, 7, 4])).tolist() == [NEVER, 1, NEVER, 2]
    assert stack_distances(np.array([], np.int64)).tolist() == []


def trace_of(passes: list[np.ndarray], layers: tuple[int, ...] = (0, 1), experts: int = 8) -> Trace:
    return Trace(layers, experts, passes[0].shape[2], [chosen.astype(np.uint16) for chosen in passes])


def test_a_pass_over_many_tokens_asks_for_each_expert_once() -> None:
    prompt = np.array([[[1, 2], [2, 3], [1, 3]], [[0, 7], [7, 0], [0, 7]]])
    token = np.array([[[3, 1]], [[7, 6]]])
    accesses = accesses_of(trace_of([prompt, token]))
    assert accesses.keys.tolist() == [1, 2, 3, 8, 15, 1, 3, 14, 15]
    assert accesses.places.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert (accesses.tokens, accesses.passes) == (4, 2)


def test_the_record_of_even_choices_is_the_cache_s_share() -> None:
    rng = np.random.default_rng(0)
    passes = [np.array([[rng.permutation(16)[:2]] for _ in range(2)]) for _ in range(3000)]
    record = measure(accesses_of(trace_of(passes, experts=16)), [8, 16, 32])
    for row in record["sizes"][:2]:
        assert row["lru"] == pytest.approx(row["share_of_all"], abs=0.03)
        assert row["lru"] <= row["best"]
    assert record["sizes"][2]["lru"] == 1 - 32 / 12000 == record["sizes"][2]["best"]  # all of them fit
    assert record["sizes"][0]["lru"] == pytest.approx(np.mean(record["sizes"][0]["lru_by_layer"]))
    assert all(chosen["zipf"] < 0.2 for chosen in record["chosen"])


def test_sizes_default_to_tenths() -> None:
    accesses = Accesses(np.array([0]), (0, 1, 2), 10, 1, 1)
    assert default_sizes(accesses) == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert default_sizes(Accesses(np.array([0]), (0,), 4, 1, 1)) == [1, 2, 3, 4]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "oss_tools.measure.expert_cache", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_reads_a_trace_file(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", (1, 3), 8, 2)
    for first, second in itertools.permutations(range(8), 2):
        writer.add(
            [np.array([[first, second]]), np.array([[second, (first + 1) % 8 if (first + 1) % 8 != second else first]])]
        )
    writer.close()
    record = json.loads(run(str(tmp_path / "trace"), "--sizes", "4,16", "--json").stdout)
    assert [row["experts"] for row in record["sizes"]] == [4, 16]
    assert record["layers"] == [1, 3]
    shown = run(str(tmp_path / "trace"), "--layers", "--expert-bytes", "2MB")
    assert shown.returncode == 0
    assert "32 MB" in shown.stdout
    assert "LRU by layer" in shown.stdout


def test_what_is_no_trace_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"OSSREADY" + bytes(64))
    for arguments in ([str(tmp_path / "other")], [str(tmp_path / "missing")]):
        done = run(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
