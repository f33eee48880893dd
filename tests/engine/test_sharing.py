"""Stems against all common beginnings, found one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.sharing import find_stems

BEGINNINGS = st.lists(st.lists(st.integers(0, 1), max_size=8), max_size=8)


@settings(deadline=None, max_examples=300)
@given(BEGINNINGS, st.integers(1, 3))
def test_stems(beginnings: list[list[int]], least: int) -> None:
    levels, owners = find_stems(beginnings, least)
    stems = [stem for level in levels for stem in level]
    assert len({tuple(s.tokens) for s in stems}) == len(stems)
    seen: list[object] = [None]
    for level in levels:
        assert all(stem.parent in seen for stem in level)  # parents come before their children
        seen += level
    for stem in stems:
        sharing = [b for b in beginnings if b[: len(stem.tokens)] == stem.tokens]
        assert len(sharing) > 1
        assert not any(all(b[: len(stem.tokens) + 1] == [*stem.tokens, t] for b in sharing) for t in (0, 1))
        parent = stem.parent.tokens if stem.parent else []
        assert stem.tokens[: len(parent)] == parent
        assert len(stem.tokens) - len(parent) >= least
    for beginning, owner in zip(beginnings, owners, strict=True):
        fitting = [s for s in stems if beginning[: len(s.tokens)] == s.tokens]
        assert owner is max(fitting, key=lambda s: len(s.tokens), default=None)


def test_a_header_and_questions_with_choices() -> None:
    header, questions = list(range(100, 200)), [[q] * 40 for q in (1, 2, 3)]
    beginnings = [header + question for question in questions for _ in range(4)] + [[9] * 5]
    levels, owners = find_stems(beginnings, 32)
    assert [[len(s.tokens) for s in level] for level in levels] == [[100], [140, 140, 140]]
    assert owners[:4] == [levels[1][0]] * 4
    assert owners[-1] is None
    assert levels[1][0].line() == [levels[1][0], levels[0][0]]
