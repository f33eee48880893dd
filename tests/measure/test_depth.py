"""What comes before the tokens that a benchmark times: computed once, for rounds and for all kinds of cases at a depth."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from oss_tools.engine.engine import Engine
from oss_tools.measure.engine_contender import EngineContender

TEXT = [(7919 * i + 13) % 250 for i in range(60)]
DEPTH = 48


@pytest.fixture
def contender(tiny_llama: Path) -> Iterator[EngineContender]:
    contender = EngineContender(str(tiny_llama), threads=2, context=128, batch=2)
    yield contender
    contender.close()


def test_what_comes_before_is_computed_once_for_each_sequence(contender: EngineContender) -> None:
    engine = contender._engine
    for _ in range(2):
        assert contender.prompt(TEXT, DEPTH) > 0
        assert len(contender.generate(TEXT, DEPTH, 2)) == len(TEXT) - DEPTH
        contender.generate(TEXT[:4], 0, 1)
    timed = len(TEXT) - DEPTH
    assert engine.computed == 2 * DEPTH + 2 * (timed + 2 * timed + 4)
    contender.prompt(TEXT, DEPTH - 1)  # another depth
    assert engine.computed == 2 * DEPTH + 2 * (3 * timed + 4) + DEPTH - 1 + timed + 1


def test_rounds_go_on_from_the_same_text(contender: EngineContender, tiny_llama: Path) -> None:
    with Engine.load(tiny_llama, context=128) as engine:
        wanted = [int(row.argmax()) for row in engine.logits(TEXT)[DEPTH:]]
    for _ in range(2):
        contender.generate(TEXT, DEPTH, 1)
        assert contender.chosen() == wanted
        contender.generate(TEXT, DEPTH, 2)
        assert contender.chosen() == wanted
