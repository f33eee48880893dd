"""The engine holds to itself: decode equals prefill, batch equals single, a reused prefix equals a computed one.

With the kernels they are the same bits. With PyTorch, whose sums depend on the shapes of matrices, they are close.
"""

from pathlib import Path

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.engine.prefix import PrefixCache
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling, log_softmax
from oss_tools.errors import BadRequest, NoRoom

TOLERANCE = {("torch", "f32"): 2e-5, ("numba", "f32"): 0.0, ("numba", "int8"): 0.0}  # in log-probabilities
MODELS = [(*kind, model) for kind in TOLERANCE for model in ("gpt_oss", "llama")]


@pytest.fixture(scope="module", params=MODELS, ids=str)
def engine(request: pytest.FixtureRequest, tiny_gpt_oss: Path, tiny_llama: Path) -> Engine:
    backend, activations, model = request.param
    if backend == "torch":
        pytest.importorskip("torch")
    path = tiny_gpt_oss if model == "gpt_oss" else tiny_llama
    engine = Engine.load(path, backend=backend, activations=activations, context=1024, threads=2)
    engine.tolerance = TOLERANCE[backend, activations]  # type: ignore[attr-defined]
    return engine


@pytest.fixture
def prompt(engine: Engine) -> list[int]:
    """400 tokens: past the window of 128."""
    return np.random.default_rng(1).integers(0, engine.backend.vocabulary, 400).tolist()


def assert_close(engine: Engine, a: np.ndarray, b: np.ndarray) -> None:
    assert np.abs(log_softmax(a) - log_softmax(b)).max() <= engine.tolerance


def test_decode_equals_prefill(engine: Engine, prompt: list[int]) -> None:
    tokens = prompt[:260]
    whole = engine.logits(tokens)
    sequence = engine.open(tokens, reuse=0)
    rows = [engine.prefill(sequence, tokens[:100])]
    rows += [engine.step([sequence], [token])[0].copy() for token in tokens[100:]]
    assert_close(engine, np.array(rows), whole[99:])


def test_chunks_do_not_matter(engine: Engine, prompt: list[int]) -> None:
    whole = engine.logits(prompt)
    sequence = engine.open(prompt, reuse=0)
    rows = [engine.prefill(sequence, prompt[a:b]) for a, b in ((0, 1), (1, 130), (130, 131), (131, 399), (399, 400))]
    assert_close(engine, np.array(rows), whole[[0, 129, 130, 398, 399]])


def test_batch_equals_single(engine: Engine, prompt: list[int]) -> None:
    prompts = [prompt[:5], prompt[50:190], prompt[7:307]]
    sequences = [engine.open(p, room=20, reuse=0) for p in prompts]
    for sequence, tokens in zip(sequences, prompts, strict=True):
        engine.prefill(sequence, tokens)
    following = prompt[380:400]
    batch = [engine.step(sequences, [token] * 3).copy() for token in following]
    for i, tokens in enumerate(prompts):
        alone = engine.logits(tokens + following)[len(tokens) :]
        assert_close(engine, np.array([rows[i] for rows in batch]), alone)


@pytest.mark.parametrize("shared", [3, 127, 128, 129, 300, 399])
def test_a_reused_prefix_equals_a_computed_one(engine: Engine, prompt: list[int], shared: int) -> None:
    first = engine.open(prompt, reuse=0)
    engine.prefill(first, prompt)
    engine.save(first)
    other = prompt[:shared] + [(t + 1) % engine.backend.vocabulary for t in prompt[shared:]]
    sequence = engine.open(other, room=3)
    assert len(sequence.tokens) == shared
    logits = engine.prefill(sequence, other[shared:])
    assert_close(engine, logits, engine.logits(other)[-1])


def test_requests_that_come_later_begin_with_what_the_first_have_in_common(engine: Engine, prompt: list[int]) -> None:
    """Without the prefix cache: a beginning that two share is kept for those that take their places in the batch."""
    beginnings = [[*prompt[:200], n, n + 1, n + 2] for n in range(6)] + [prompt[300:340]]
    requests = [Request(tokens, max_tokens=3 + n, stop_tokens=frozenset()) for n, tokens in enumerate(beginnings)]
    known, engine.prefixes = engine.prefixes, PrefixCache(0)
    try:
        before = engine.computed
        found: dict[int, list[int]] = {n: [] for n in range(len(requests))}
        for n, token in engine.generate_batch(requests, batch=2):
            found[n].append(token.id)
        generated = sum(request.max_tokens - 1 for request in requests)
        assert engine.computed - before == 200 + 6 * 3 + 40 + generated
        alone = [[token.id for token in engine.generate(request)] for request in requests]
    finally:
        engine.prefixes = known
    if not engine.tolerance:  # type: ignore[attr-defined]
        assert list(found.values()) == alone


def test_scores_are_the_log_probabilities(engine: Engine, prompt: list[int]) -> None:
    requests = [([*prompt[:300], i, i + 1, i + 2], 300) for i in range(5)] + [(prompt[5:40], 1), (prompt[:2], 2)]
    for scores, (tokens, start) in zip(engine.score(requests), requests, strict=True):
        logprobs = log_softmax(engine.logits(tokens))[start - 1 : -1]
        wanted = logprobs[np.arange(len(logprobs)), tokens[start:]]
        np.testing.assert_allclose(scores.logprobs, wanted, rtol=0, atol=engine.tolerance)
        assert scores.greedy.dtype == bool
        assert scores.greedy.tolist() == (logprobs.argmax(-1) == tokens[start:]).tolist()


def test_generation_is_greedy_and_ends_where_it_should(engine: Engine, prompt: list[int]) -> None:
    tokens = list(engine.generate(Request(prompt[:40], 12, stop_tokens=frozenset(), logprobs=2)))
    assert len(tokens) == 12
    assert [t.finish for t in tokens] == [None] * 11 + ["length"]
    ids = [t.id for t in tokens]
    logprobs = log_softmax(engine.logits(prompt[:40] + ids))[39:-1]
    for token, row in zip(tokens, logprobs, strict=True):
        assert token.top[0][0] == token.id
        assert row.max() - row[token.id] <= engine.tolerance
        assert token.logprob == pytest.approx(row[token.id], abs=engine.tolerance)
    stopped = list(engine.generate(Request(prompt[:40], 12, stop_tokens=frozenset([ids[4]]))))
    assert [t.id for t in stopped] == ids[: ids.index(ids[4]) + 1]
    assert stopped[-1].finish == "stop"


def test_seeds_reproduce_and_do_not_depend_on_the_batch(engine: Engine, prompt: list[int]) -> None:
    requests = [Request(prompt[:9], 8, Sampling(temperature=1.0, seed=s), stop_tokens=frozenset()) for s in range(5)]
    alone = [[t.id for t in engine.generate(r)] for r in requests]
    assert alone == [[t.id for t in engine.generate(r)] for r in requests]
    assert len({tuple(ids) for ids in alone}) > 1
    together: list[list[int]] = [[] for _ in requests]
    for index, token in engine.generate_batch(requests, batch=3):
        together[index].append(token.id)
    agree = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(alone, together, strict=True)]
    assert np.mean(agree) > 7.5  # with PyTorch, a draw that falls on a border may differ by rounding
    assert together == alone or engine.backend.name == "torch"


def test_a_closed_generation_leaves_a_sane_engine(engine: Engine, prompt: list[int]) -> None:
    expected = [t.id for t in engine.generate(Request(prompt[:30], 5, stop_tokens=frozenset()))]
    stream = engine.generate(Request(prompt[:30], 50, stop_tokens=frozenset()))
    next(stream)
    stream.close()
    assert [t.id for t in engine.generate(Request(prompt[:30], 5, stop_tokens=frozenset()))] == expected


def test_an_interrupt_leaves_a_sane_engine(engine: Engine, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.backend.name != "numba":
        pytest.skip("the kernels are interrupted between parts of a program")
    expected = engine.logits(prompt[:200])
    sequence = engine.open(prompt[:200], reuse=0)
    engine.prefill(sequence, prompt[:100])
    calls, run = [], engine.backend.team.run  # type: ignore[attr-defined]

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run(*arguments)

    monkeypatch.setattr(engine.backend.team, "run", interrupted)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        engine.prefill(sequence, prompt[100:200])
    monkeypatch.undo()
    assert sequence.tokens == prompt[:100]
    assert_close(engine, engine.prefill(sequence, prompt[100:200]), expected[-1])


def test_what_does_not_fit_is_refused(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(BadRequest, match="context of 1024"):
        engine.logits(prompt * 3)
    with pytest.raises(BadRequest, match="no tokens"):
        engine.logits([])
    with pytest.raises(BadRequest, match="vocabulary"):
        engine.logits([engine.backend.vocabulary])
    generated = list(engine.generate(Request(prompt * 2 + prompt[:220], 99, stop_tokens=frozenset())))
    assert len(generated) == 5  # 1020 positions and four more; the last token needs none
    assert generated[-1].finish == "length"


@pytest.mark.parametrize("wrong", [-1, 1 << 30])
def test_a_token_of_no_vocabulary_never_reaches_the_kernels(engine: Engine, prompt: list[int], wrong: int) -> None:
    sequence = engine.open(prompt[:4], reuse=0)
    engine.prefill(sequence, prompt[:4])
    for append in (
        lambda: engine.prefill(sequence, [wrong]),
        lambda: list(engine.append(sequence, [prompt[4], wrong])),
        lambda: engine.step([sequence], [wrong]),
        lambda: engine.likeliest([sequence], [wrong]),
    ):
        with pytest.raises(BadRequest, match=f"token {wrong} is outside the vocabulary"):
            append()
    assert sequence.tokens == prompt[:4]


def test_no_room_says_what_would_fit(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("oss_tools.machine.memory.available_memory", lambda: 401_000_000)
    with pytest.raises(NoRoom, match=r"needs 4\d\d MB of memory .* 401 MB are free; "):
        Engine.load(tiny_llama, backend="torch", context=2048)
