"""What a comparison's parts allow on so many nodes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.errors import BadSource
from oss_tools.measure.scale import part_times, wall_seconds

TIMES = {
    "weights": [1.0],
    "predict": [4.0, 4.0],
    "share": [2.0] * 5,
    "margins": [3.0, 3.0],
    "time": [100.0],
    "convert": [100.0],
}


def test_waves_wait_for_each_other_and_what_is_done_here_is_not_counted():
    assert wall_seconds(TIMES, 1) == 1 + 8 + 10 + 6
    assert wall_seconds(TIMES, 2) == 10 + 3
    assert wall_seconds(TIMES, 100) == 4 + 3
    assert wall_seconds({}, 3) == 0


def test_ordering_parts_takes_time_as_well():
    assert wall_seconds({"share": [0.0] * 10}, 1000, overhead=0.5) == 5.0


@given(st.lists(st.floats(0, 50), max_size=30), st.integers(1, 12))
def test_nodes_never_do_better_than_they_can(times, nodes):
    wall = wall_seconds({"share": times}, nodes)
    assert wall >= max(sum(times) / nodes, max(times, default=0.0)) - 1e-6
    assert wall <= sum(times) / nodes + max(times, default=0.0) + 1e-6


def test_times_are_read_by_kind(tmp_path):
    (tmp_path / "parts").mkdir()
    for name, seconds in (("share-1", 2), ("share-2", 3.5), ("weights-9", 1)):
        (tmp_path / "parts" / f"{name}.json").write_text(json.dumps({"seconds": seconds, "result": None}))
    assert part_times(tmp_path) == {"share": [2.0, 3.5], "weights": [1.0]}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": "x"}', '{"seconds": null}'])
def test_what_is_no_part_is_refused(tmp_path, content):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "share-1.json").write_text(content)
    with pytest.raises(BadSource, match=r"share-1\.json: no part"):
        part_times(tmp_path)


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(BadSource, match="no finished parts"):
        part_times(tmp_path)
