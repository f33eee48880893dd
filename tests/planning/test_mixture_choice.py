"""The knapsack: as good as trying all mixtures, within its steps; more room never loses more."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.errors import BadRequest
from oss_tools.planning.choice import Option, best_under, frontier, least_under

options = st.builds(Option, st.just("f"), st.integers(1, 1000), st.floats(0, 1))
units = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=5)


def loss(chosen: list[Option]) -> float:
    return sum(option.loss for option in chosen)


def size(chosen: list[Option]) -> int:
    return sum(option.nbytes for option in chosen)


@given(units, st.integers(0, 5000))
def test_as_good_as_trying_all(units: list[list[Option]], budget: int) -> None:
    mixtures = [list(mixture) for mixture in itertools.product(*units) if sum(o.nbytes for o in mixture) <= budget]
    if not mixtures:
        with pytest.raises(BadRequest, match="smallest"):
            best_under(units, budget)
        return
    found = best_under(units, budget)
    assert size(found) <= budget  # sizes below the number of steps: the steps are single bytes
    assert loss(found) == pytest.approx(min(loss(mixture) for mixture in mixtures), abs=1e-12)
    assert all(option in of for option, of in zip(found, units, strict=True))


@given(units, st.integers(0, 5000), st.integers(0, 2000))
def test_more_room_never_loses_more(units: list[list[Option]], budget: int, more: int) -> None:
    budget += sum(min(option.nbytes for option in of) for of in units)
    assert loss(best_under(units, budget + more)) <= loss(best_under(units, budget)) + 1e-12


@given(units)
def test_the_frontier_has_no_option_that_another_beats(units: list[list[Option]]) -> None:
    for of in units:
        front = frontier(of)
        for option in of:
            assert any(f.nbytes <= option.nbytes and f.loss <= option.loss for f in front)
        assert all(a.nbytes < b.nbytes and a.loss > b.loss for a, b in itertools.pairwise(front))


def test_the_smallest_that_loses_little_enough() -> None:
    of = [Option("small", 10, 1.0), Option("middle", 20, 0.3), Option("large", 40, 0.0)]
    assert [option.format for option in least_under([of, of], 0.65)] == ["middle", "middle"]
    assert [option.format for option in least_under([of, of], 0.0)] == ["large", "large"]
    with pytest.raises(BadRequest, match="loses so little"):
        least_under([[Option("only", 10, 0.5)]], 0.1)
