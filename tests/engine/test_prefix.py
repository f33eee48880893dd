"""The prefix cache against a dictionary of all prefixes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.prefix import PrefixCache

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def block(tokens: list[int]) -> np.ndarray:
    """Data of each token that tells its whole prefix."""
    return np.array([hash(tuple(tokens[: i + 1])) for i in range(len(tokens))], np.int64)[:, None]


@settings(deadline=None, max_examples=300)
@given(st.lists(TOKENS, max_size=8), TOKENS)
def test_longest_prefix_and_its_data(inserted: list[list[int]], wanted: list[int]) -> None:
    cache = PrefixCache(1 << 20)
    for tokens in inserted:
        cache.insert(tokens, 0, block(tokens))
    known = {tuple(t[:n]) for t in inserted for n in range(1, len(t) + 1)}
    expected = max((n for n in range(1, len(wanted) + 1) if tuple(wanted[:n]) in known), default=0)
    length, blocks = cache.longest(wanted)
    assert length == expected
    if length:
        np.testing.assert_array_equal(np.concatenate(blocks), block(wanted)[:length])
    assert cache.nbytes == 8 * len(known)


def test_data_can_come_in_parts() -> None:
    cache = PrefixCache(1 << 20)
    tokens = list(range(10))
    cache.insert(tokens[:4], 0, block(tokens)[:4])
    cache.insert(tokens, 4, block(tokens)[4:])
    cache.insert([7, 8], 1, block([7, 8])[1:])  # what comes before is unknown: nothing is added
    assert cache.longest(tokens)[0] == 10
    assert cache.longest([7, 8])[0] == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(TOKENS, max_size=20), st.integers(0, 200))
def test_the_budget_holds_and_what_is_left_is_right(inserted: list[list[int]], budget: int) -> None:
    cache = PrefixCache(budget)
    for tokens in inserted:
        cache.insert(tokens, 0, block(tokens))
        assert cache.nbytes <= budget
        length, blocks = cache.longest(tokens)
        if length:
            np.testing.assert_array_equal(np.concatenate(blocks), block(tokens)[:length])


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(8 * 6)
    for first in (1, 2, 3):
        cache.insert([first, 0], 0, block([first, 0]))
    cache.longest([1, 0])
    cache.insert([4, 0], 0, block([4, 0]))
    assert [cache.longest([first, 0])[0] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]
