"""The kernels' results are the same bits however a sequence comes about: by windows, chunks, forks, stored prefixes, in whatever
company, with however many threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.compiling import compile_all
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_cache import Pool
from oss_tools.engine.numba_pages import POSITIONS
from oss_tools.engine.requests import Request, Sequence
from oss_tools.engine.sampling import Sampling, log_softmax
from oss_tools.errors import BadRequest
from oss_tools.models import open_checkpoint
from oss_tools.models.operations import Heads

LONG = 760  # more than a chunk and a window
NEVER: frozenset[int] = frozenset()


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow, id=str(kind)) for kind in ((128, "f32"), (None, "bf16"))
]  # much to compile


@pytest.fixture(scope="module", params=[(128, "int8"), (16, "int8"), (None, "int8"), *SLOW], ids=str)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Engine:
    """A gpt-oss of three layers with a sliding window, or a llama."""
    window, activations = request.param
    path = tiny_llama
    if window:
        shape = load_shape("gpt-oss-tiny").with_layers(3)
        shape = replace(shape, config=shape.config | {"sliding_window": window})
        path = synthesize(plan_synthesis(shape, "hf"), tmp_path_factory.mktemp("window") / "model")
    return Engine.load(path, activations=activations, context=1024, threads=2, prefix_budget=1 << 26)


@pytest.fixture(scope="module")
def tokens(engine: Engine) -> list[int]:
    return np.random.default_rng(2).integers(0, engine.backend.vocabulary, LONG).tolist()


@pytest.fixture(scope="module")
def one_by_one(engine: Engine, tokens: list[int]) -> np.ndarray:
    """The logits after every token, each computed by itself: straight in the ring."""
    sequence = engine.open(tokens, reuse=0)
    sequence.kept = False
    return np.array([engine.step([sequence], [token])[0].copy() for token in tokens])


def fresh(engine: Engine, tokens: list[int]) -> Sequence:
    """A sequence that nothing is known of, and that leaves nothing."""
    sequence = engine.open(tokens, reuse=0)
    sequence.kept = False
    return sequence


def test_a_sliding_layer_keeps_its_window_and_no_more(engine: Engine) -> None:
    sequence = engine.open([1] * 1000)
    for window, numbers in sequence.cache.numbers.items():
        assert len(numbers) * POSITIONS == {128: 128, 16: POSITIONS, None: 1024}[window]


@pytest.mark.parametrize(("window", "pages"), [(1, 1), (64, 1), (65, 2), (128, 2), (300, 5), (5000, 16)])
def test_pages_of_a_ring(window: int, pages: int) -> None:
    pool = Pool([Heads(0, 4, 2, 32, window)], 1024, 512)
    assert pool.ring == pages
    assert (pool.passing is None) == (window > 1024)


@pytest.mark.parametrize(
    "length", [1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 511, 512, 513, 575, 639, 641, 700]
)
def test_prompts_of_any_length(engine: Engine, tokens: list[int], one_by_one: np.ndarray, length: int) -> None:
    sequence = fresh(engine, tokens)
    np.testing.assert_array_equal(engine.prefill(sequence, tokens[:length]), one_by_one[length - 1])
    for n in range(length, length + 3):
        np.testing.assert_array_equal(engine.step([sequence], [tokens[n]])[0], one_by_one[n])
    np.testing.assert_array_equal(engine.prefill(sequence, tokens[length + 3 : length + 50]), one_by_one[length + 49])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history(engine: Engine, tokens: list[int], one_by_one: np.ndarray, data: st.DataObject) -> None:
    """Sequences that grow by any pieces, alone or together in a pass, fork, end, and begin with what others stored."""
    live = [engine.open(tokens, reuse=0)]
    for _ in range(data.draw(st.integers(3, 12))):
        deed = data.draw(st.sampled_from(["grow", "grow", "grow", "fork", "save", "open", "drop"]))
        index = data.draw(st.integers(0, len(live) - 1))
        if deed == "fork":
            live.append(engine.fork(live[index]))
        elif deed == "save":
            engine.save(live[index])
        elif deed == "open":
            live.append(engine.open(tokens, reuse=data.draw(st.integers(0, LONG))))
        elif deed == "drop" and len(live) > 1:
            del live[index]
        elif deed == "grow":
            together = [s for s in live if data.draw(st.booleans())] or [live[index]]
            parts, room = [], engine.backend.chunk
            for sequence in together:
                wanted = data.draw(st.integers(1, data.draw(st.sampled_from([1, 1, 60, 130, 400]))))
                begin = len(sequence.tokens)  # by what earlier examples stored: nothing that is drawn may depend on it
                if (most := min(room, LONG - begin, wanted)) > 0:
                    part = tokens[begin : begin + most]
                    parts.append((sequence, part))
                    room -= len(part)
            if parts:
                engine.run(parts)
                last = np.cumsum([len(part) for _, part in parts]) - 1
                expected = [one_by_one[len(sequence.tokens) - 1] for sequence, _ in parts]
                np.testing.assert_array_equal(engine.backend.logits(last), expected)


def test_threads_do_not_matter(tiny_llama: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, 200, 1300).tolist()  # three parts of keys; heads that threads cannot share
    results = []
    for threads in (1, 2, 3):
        with Engine.load(tiny_llama, threads=threads, context=1400) as engine:
            sequence = engine.open(tokens)
            results.append([engine.prefill(sequence, tokens), engine.step([sequence], [5])[0].copy()])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("container", ["original", "gguf"])
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_every_container_gives_the_same_logits(tiny_gpt_oss: Path, tmp_path: Path, container: str, activations: str) -> None:
    target = tmp_path / f"model.{container}"
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        run(make_plan(checkpoint, container, KEEP_ALL), target, Options(verify=False))
    tokens = np.random.default_rng(3).integers(0, 200, 150).tolist()
    expected, found = (
        Engine.load(path, threads=2, context=256, activations=activations).logits(tokens) for path in (tiny_gpt_oss, target)
    )
    np.testing.assert_array_equal(found, expected)


def test_interleaved_prompts_and_answers(engine: Engine, tokens: list[int]) -> None:
    """More requests than slots, of all lengths, with stop tokens of their own: tokens and log-probabilities are those of each
    request alone, and a slot is given to the next as soon as it is free."""
    lengths = (3, 700, 40, 129, 520, 64, 300, 1, 90)
    rule = Sampling(temperature=1.0, seed=4)
    requests = [Request(tokens[i : i + n], 4 + 3 * (i % 4), rule, (), NEVER, 2) for i, n in enumerate(lengths)]
    engine.prefixes = type(engine.prefixes)(0)
    alone = [list(engine.generate(request)) for request in requests]
    for i, answer in enumerate(alone[:5]):  # ends early, at a token that only this request stops at
        requests[i] = Request(requests[i].tokens, 50, rule, (), frozenset([answer[-1].id]), 2)
        alone[i] = list(engine.generate(requests[i]))
        assert alone[i][-1].finish == "stop"
    ran: list[int] = []
    run = engine.backend.run
    engine.backend.run = lambda runs: (ran.append(len(runs)), run(runs))[0]  # type: ignore[method-assign,assignment,func-returns-value]
    together: list[list] = [[] for _ in requests]
    for index, token in engine.generate_batch(requests, batch=3):
        together[index].append(token)
    engine.backend.run = run  # type: ignore[method-assign]
    assert together == alone
    assert max(ran) == 3
    assert sum(ran) < sum(map(len, alone)) + len(lengths) + 4  # no slot waits for another's end


def test_what_is_shared_is_computed_once(engine: Engine, tokens: list[int]) -> None:
    """A header of all, questions that some share, an answer for each: all the same as alone."""
    header, questions = tokens[:200], [tokens[300:350], tokens[400:450], tokens[500:530]]
    prompts = [header + question + [answer] for question in questions for answer in range(4)]
    requests = [([*prompt, 7, 8], len(prompt)) for prompt in prompts]
    for budget in (0, 1 << 26):
        engine.prefixes = type(engine.prefixes)(budget)
        before = engine.computed
        scores = engine.score(requests)
        assert engine.computed - before == 200 + 50 + 50 + 12 * 2 + 4 * 30  # 30 tokens in common are not worth a pass
        for (prompt, start), score in zip(requests, scores, strict=True):
            logprobs = log_softmax(engine.logits(prompt))[start - 1 : -1]
            assert score.logprobs.tolist() == [logprobs[0, 7], logprobs[1, 8]]
        before = engine.computed
        generated = dict.fromkeys(range(len(prompts)), 0)
        for index, token in engine.generate_batch([Request(p, 1, stop_tokens=NEVER) for p in prompts], batch=12):
            generated[index] = token.id
        known = 300 if budget else 0  # of the stems, from the scores
        assert engine.computed - before <= 200 + 50 + 50 + 12 * 1 + 4 * 30 - known
        assert list(generated.values()) == [engine.logits(p)[-1].argmax() for p in prompts]


def test_an_engine_can_be_used_while_it_generates(engine: Engine, tokens: list[int]) -> None:
    requests = [Request(tokens[:30], 6, stop_tokens=NEVER), Request(tokens[5:50], 6, stop_tokens=NEVER)]
    expected = list(engine.generate_batch(requests))
    found = []
    for item in engine.generate_batch(requests):
        found.append(item)
        engine.score([(tokens[:9], 4)])
    assert found == expected


def test_bad_requests_are_refused_before_anything_is_computed(engine: Engine, tokens: list[int]) -> None:
    before = engine.computed
    for bad in (Request([]), Request(tokens, 0), Request(tokens * 2), Request([-1])):
        with pytest.raises(BadRequest):
            next(engine.generate_batch([Request(tokens[:5]), bad]))
    assert engine.computed == before


def test_only_what_is_compiled_is_announced(tiny_llama: Path) -> None:
    """A model's second load finds all kernels in the cache."""
    calls: list[tuple[int, int, str]] = []
    Engine.load(tiny_llama, threads=1).close()
    Engine.load(tiny_llama, threads=1, on_compile=lambda *call: calls.append(call)).close()
    assert calls == []


def test_a_compilation_is_announced_as_it_begins() -> None:
    numba = pytest.importorskip("numba")
    happened: list[object] = []

    def compiling(factor: int) -> object:
        numba.njit("int64(int64)")(lambda x: factor * x)
        happened.append("done")

    jobs = [("one", lambda: compiling(2)), ("kept", lambda: None), ("two", lambda: compiling(3))]
    compile_all(jobs, lambda *call: happened.append(call))
    assert happened == [(0, 3, "one"), "done", (2, 3, "two"), "done", (3, 3, "")]
