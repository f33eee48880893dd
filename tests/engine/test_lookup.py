"""Prompt lookup: what is guessed, when, and that a text is the same with it as without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.engine.generation import Generation
from oss_tools.engine.lookup import GRANT, MOST, SHARE, SURE, Lookup, Pace
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.engine.scheduling import Scheduler

# ---- guesses --------------------------------------------------------------------------------------------------------


def found_by_search(tokens: list[int]) -> int | None:
    """Behind which token the last four tokens, or else two, stood last before the end, by looking at every place."""
    for size in (4, 2):
        for at in range(len(tokens) - 1, size - 1, -1):
            if tokens[at - size : at] == tokens[-size:]:
                return at
    return None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_a_guess_is_what_followed_the_last_tokens(tokens: list[int]) -> None:
    lookup = Lookup(tokens)
    assert lookup.tokens == tokens
    assert (lookup.length > 0) == (found_by_search(tokens) is not None)
    if lookup.length:
        at = lookup._at
        assert tokens[at - lookup.length : at] == tokens[-lookup.length :]
        assert lookup.guess(1) == [tokens[at]]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(1, 60))
def test_a_long_guess_goes_round_in_circles(tokens: list[int], count: int) -> None:
    lookup = Lookup(tokens)
    if lookup.length:
        period = len(tokens) - lookup._at
        endless = tokens + [0] * count
        for place in range(len(tokens), len(endless)):
            endless[place] = endless[place - period]
        assert lookup.guess(count) == endless[len(tokens) :]


def test_a_text_from_the_beginning_or_token_by_token_is_the_same() -> None:
    tokens = np.random.default_rng(0).integers(0, 6, 300).tolist()
    whole, grown = Lookup(tokens), Lookup([])
    for token in tokens:
        grown.add(token)
    assert whole._behind == grown._behind


def test_a_text_that_is_repeated_with_changes_is_followed() -> None:
    lookup = Lookup([*range(100), *range(20)])
    for token in (20, 21, 500, 501, 24):  # two tokens are others
        lookup.add(token)
    assert lookup.guess(3) == [25, 26, 27]
    for token in (25, 26, 27, 28, 600, 601, 602, 603):
        lookup.add(token)
    assert lookup.length == 0  # that is something else


@given(st.lists(st.integers(0, 3), max_size=60))
def test_there_is_always_something_where_the_guess_stands(tokens: list[int]) -> None:
    lookup = Lookup([])
    for number, token in enumerate(tokens):
        lookup.add(token)
        assert lookup.tokens == tokens[: number + 1]
        assert lookup.length == 0 or 0 < lookup._at < len(lookup.tokens)


def test_what_was_right_before_is_likelier() -> None:
    tokens = list(range(100))
    right, wrong = Lookup([*tokens, *range(20)]), Lookup([*tokens, *range(20)])
    for token in range(20, 60):
        right.add(token)
        wrong.add(token if token % 3 else 500 + token)
    assert right.length == SURE
    assert right.chances(3)[0] > 0.95 > 0.7 > wrong.chances(3)[0]
    chances = right.chances(MOST)
    assert len(chances) == MOST
    assert all(later < earlier for earlier, later in pairwise(chances))
    assert not Lookup(tokens).chances(5)


# ---- how many are worth it ------------------------------------------------------------------------------------------


def paced(cost: dict[int, float]) -> Pace:
    pace = Pace()
    for _ in range(100):
        pace.plain(1, cost[1])
    for rows, seconds in cost.items():
        if rows > 1:
            pace.guessed(1, rows, rows, seconds)
    return pace


def test_free_guesses_are_all_taken() -> None:
    assert paced(dict.fromkeys((1, 2, 4, 8, 33), 1.0)).best([0.9**n for n in range(1, 33)], 1, 1.0) == 32


def test_guesses_that_cost_what_tokens_cost_are_not_taken() -> None:
    assert paced({n: float(n) for n in range(1, 34)}).best([0.99**n for n in range(1, 33)], 1, 1e9) == 0


def test_the_best_number_of_guesses_has_the_most_tokens_a_second() -> None:
    cost = {n: 1 + 0.1 * (n - 1) for n in range(1, 34)}
    chances = [0.8**n for n in range(1, 33)]
    rates = [(1 + sum(chances[:n])) / cost[1 + n] for n in range(33)]
    assert paced(cost).best(chances, 1, 1e9) == int(np.argmax(rates))
    assert paced(cost).best(chances, 1, 0.05) in (1, 2)  # with so little to lose
    assert paced(cost).best(chances, 1, -0.1) == 0


def test_losses_stay_within_a_share_of_the_time() -> None:
    """Guesses that seem likely and are always wrong: an opponent who knows the rule."""
    pace, spent, passes, balance = Pace(), 0.0, 0, GRANT
    for _ in range(1000):
        if count := pace.best([0.6] * 8, 1, balance):
            spent += (seconds := 1 + 0.2 * count)
            balance += pace.guessed(1, 1 + count, 1, seconds)
            passes += 1
        else:
            spent += 1
            pace.plain(1, 1.0)
        balance += SHARE
    assert passes
    assert spent < 1000 * 1.01
    assert pace.figures.right == 0
    assert pace.figures.seconds_won == pytest.approx(1000 - spent)


def test_one_bad_moment_is_not_believed_for_ever() -> None:
    pace, chances, taken = Pace(), [0.99**n for n in range(1, 9)], 0
    for _ in range(10):
        pace.plain(1, 1.0)
    for _ in range(2000):
        if count := pace.best(chances, 1, 1.0):
            pace.guessed(1, 1 + count, 1 + count, 40.0 if not taken else 1.1)  # the first is held up by something else
            taken += 1
        else:
            pace.plain(1, 1.0)
    assert taken > 1000


# ---- the same text --------------------------------------------------------------------------------------------------


WINDOWS = (16, 50, 64, 128)  # a guess fits in beside some, and not beside others
LATENT = pytest.param(("deepseek-v2-tiny", None), marks=pytest.mark.slow, id="deepseek-v2-tiny")
MODELS = [*(("gpt-oss-tiny", window) for window in WINDOWS), ("llama-tiny", None), LATENT]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    name, window = request.param
    shape = load_shape(name)
    if window:
        shape = replace(shape.with_layers(3), config=shape.config | {"sliding_window": window})
    path = synthesize(plan_synthesis(shape, "hf"), tmp_path_factory.mktemp("lookup") / "model")
    with Engine.load(path, context=1024, threads=2, prefix_budget=4 << 20) as found:
        yield found


class Teller:
    """Takes guesses along whatever they cost: some of them the text's own, which it knows, and some wrong, by chance."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, engine: Engine, requests: list[Request], texts: list[list[int]]
    ) -> None:
        self.chance, self.guessed = np.random.default_rng(len(texts[0])), 0
        self.texts = {tuple(request.tokens): text for request, text in zip(requests, texts, strict=True)}
        self.engine = engine
        monkeypatch.setattr(engine, "_guesses", self.guesses)

    def guesses(self, live: list[Generation], pace: Pace) -> list[list[int]]:
        found = []
        for generation in live:
            text = self.texts[tuple(generation.request.tokens)]
            room = int(self.chance.integers(0, min(generation.room_for_guesses, 24) + 1))
            guess = text[generation.generated : generation.generated + room]
            if guess and self.chance.random() < 0.6:
                wrong = int(self.chance.integers(len(guess)))
                guess[wrong] = (guess[wrong] + 1) % self.engine.backend.vocabulary
            self.guessed += len(guess)
            found.append(guess)
        return found


RULES = (
    Sampling(),
    Sampling(temperature=1.0, seed=3),
    Sampling(1.3, 0.8, top_k=20, top_p=0.9, min_p=0.01, seed=5),
)


def asked(engine: Engine, rule: Sampling, length: int, most: int, **more: Any) -> Request:
    prompt = np.random.default_rng(length).integers(0, engine.backend.vocabulary, length).tolist()
    return Request(prompt, most, rule, stop_tokens=frozenset(), **more)


def plain(engine: Engine, request: Request, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "pace", None)
        return list(engine.generate(request))


@pytest.mark.parametrize(
    "rule",
    [*(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[:2]), RULES[2]],
    ids=["likeliest", "drawn", "all rules"],
)
@pytest.mark.parametrize("length", [61, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 130, 400))])
def test_a_text_is_the_same_with_any_guesses(
    engine: Engine, rule: Sampling, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right guesses and wrong ones, past the borders of windows, rings, pages and saved prefixes; probabilities too."""
    request = asked(engine, rule, length, 300, logprobs=2)
    expected = plain(engine, request, monkeypatch)
    teller = Teller(monkeypatch, engine, [request], [[token.id for token in expected]])
    assert list(engine.generate(request)) == expected
    assert teller.guessed > 100
    monkeypatch.undo()
    assert plain(engine, request, monkeypatch) == expected  # what went into the prefix cache is right


def test_texts_that_share_passes_are_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [asked(engine, RULES[n % 3], 20 + 37 * n, 90 + 11 * n) for n in range(5)]
    expected = [[token.id for token in plain(engine, request, monkeypatch)] for request in requests]
    Teller(monkeypatch, engine, requests, expected)
    found: list[list[int]] = [[] for _ in requests]
    for i, token in engine.generate_batch(requests, batch=3):
        found[i].append(token.id)
    assert found == expected


def test_the_scheduler_gives_the_same_texts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [asked(engine, RULES[n % 3], 25 + 31 * n, 60 + 17 * n) for n in range(6)]
    expected = [[token.id for token in plain(engine, request, monkeypatch)] for request in requests]
    teller = Teller(monkeypatch, engine, requests, expected)
    scheduler = Scheduler(engine, parallel=3, positions=1024)
    heard: list[list[Any]] = [[] for _ in requests]
    for request, events in zip(requests, heard, strict=True):
        scheduler.submit(request, events.append)
    while not all(events and isinstance(events[-1], (Finished, BaseException)) for events in heard):
        scheduler.run(lambda engine: None).result(timeout=120)
    scheduler.close()
    assert [[token.id for token in events[:-1]] for events in heard] == expected
    assert [events[-1].tokens for events in heard] == [len(text) for text in expected]
    assert teller.guessed > 100


class EvenTokens:
    """A constraint: even numbers only, none of them twice in a row."""

    ended = False

    def __init__(self) -> None:
        self.last = -1

    def mask(self, logits: np.ndarray) -> None:
        logits[1::2] = -np.inf
        if self.last >= 0:
            logits[self.last] = -np.inf

    def accept(self, token: int) -> None:
        assert token % 2 == 0
        assert token != self.last
        self.last = token


def test_constraints_see_the_tokens_that_are_chosen_and_no_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(engine, RULES[1], 50, 120, constraint=EvenTokens)
    expected = [token.id for token in plain(engine, request, monkeypatch)]
    Teller(monkeypatch, engine, [request], [expected])
    assert [token.id for token in engine.generate(request)] == expected


def test_an_interrupt_while_tokens_are_chosen_leaves_a_text_that_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(engine, RULES[0], 200, 80)
    expected = [token.id for token in plain(engine, request, monkeypatch)]
    Teller(monkeypatch, engine, [request], [expected])
    generation = engine.begin(request)
    found: list[int | None] = [token.id for _, token in engine._advance([generation], None)]
    choose, calls = generation.choose, 0

    def interrupted(logits: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt
        token = choose(logits)
        found.append(token.id if token else None)
        return token

    monkeypatch.setattr(generation, "choose", interrupted)
    interrupts = 0
    while not generation.ended and interrupts < 100:
        try:
            engine._advance_guessed([generation], engine._guesses([generation], Pace()))
        except KeyboardInterrupt:
            interrupts += 1
    assert found == expected
    assert interrupts > 3


@pytest.mark.parametrize("plain_passes", [0, 1, 3])
def test_what_is_saved_after_a_wrong_guess_is_of_the_right_tokens(engine: Engine, plain_passes: int) -> None:
    for number in range(3):
        prompt = np.random.default_rng(number).integers(0, engine.backend.vocabulary, 140 + number).tolist()
        generation = engine.begin(Request(prompt, 60, stop_tokens=frozenset()))
        engine._advance([generation], None)
        engine._advance_guessed([generation], [[(generation.ahead[0] + n) % 90 for n in range(1, 21)]])
        for _ in range(plain_passes):
            engine._advance([generation], None)
        engine.save(generation.sequence)
        text = generation.sequence.tokens + generation.ahead
        assert len(text) > len(prompt) + 1 + plain_passes
        known = engine.open(text)
        assert len(known.tokens) == len(text) - 1
        np.testing.assert_array_equal(engine.prefill(known, text[-1:]), engine.logits(text)[-1])


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000))
def test_a_text_that_repeats_itself_is_guessed_by_itself(engine: Engine, seed: int) -> None:
    """Nothing is told here: what is guessed depends on the machine's times, and the text does not."""
    period = np.random.default_rng(seed).integers(0, engine.backend.vocabulary, 30).tolist()
    request = Request(period * 4, 60, stop_tokens=frozenset())
    pace, engine.pace = engine.pace, None
    try:
        expected = list(engine.generate(request))
    finally:
        engine.pace = pace
    assert list(engine.generate(request)) == expected


def test_guesses_can_be_left_out(tiny_llama: Path) -> None:
    with Engine.load(tiny_llama, context=256, threads=1, speculate=False) as engine:
        assert engine.pace is None


def test_torch_guesses_nothing(tiny_llama: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra `torch`")
    with Engine.load(tiny_llama, context=256, threads=1, backend="torch") as engine:
        assert engine.pace is None  # whose results depend on what else is in a pass
