"""Two models side by side: answers are those of `generate`, divergences those of the definition, over the whole vocabulary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import DOSE, TINY, load_pair
from scripted_engine import ScriptedBackend, scripted_engine
from serving import Running, running

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.engine.backend import Run
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling
from oss_tools.report.reading import load_sheets

COMPARE = "/playground/compare"
ANSWER = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(load_pair(tmp_path_factory.mktemp("pair"))) as found:
        yield found


def asking(text: str, *models: str, **more: Any) -> dict[str, Any]:
    return {"models": list(models or ("tiny", "coarse")), "messages": [{"role": "user", "content": text}], **more}


def events(server: Running, body: dict[str, Any]) -> list[tuple[str, Any]]:
    with server.client() as client:
        text = client.post(COMPARE, json=body).raise_for_status().text
    found = []
    for event in filter(None, text.split("\n\n")):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


def test_answers_and_divergences_are_those_of_the_models_alone(pair: Running) -> None:
    said = events(pair, asking(DOSE, seed=7, temperature=1, max_tokens=200))
    record = said[-1][1]
    engines = [Engine.load(TINY, threads=2), pair.models["coarse"].engine]
    prompt = chat_template(engines[0].metadata, engines[0].text).encode(Conversation((Message("user", DOSE),)))
    for side, answer in enumerate(record["answers"]):
        request = Request(prompt, 200, Sampling(temperature=1, seed=7))
        assert answer["tokens"] == [token.id for token in engines[side].generate(request)]
        assert answer["tokens"] == [event["id"] for name, event in said if name == "token" and event["side"] == side]
        rows = slice(len(prompt) - 1, None)
        text = prompt + answer["tokens"][:-1]
        own, other = (log_softmax(engines[which].logits(text)[rows]) for which in (side, 1 - side))
        kld = (np.exp(own) * (own - other)).sum(-1)
        came = np.arange(len(answer["tokens"])), answer["tokens"]
        np.testing.assert_allclose(answer["kld"], kld, atol=1e-12)
        np.testing.assert_allclose(answer["logprob"], own[came], atol=1e-12)
        np.testing.assert_allclose(answer["other_logprob"], other[came], atol=1e-12)
        assert answer["same_top"] == (own.argmax(-1) == other.argmax(-1)).tolist()
        sums = next(event for name, event in said if name == "sums" and event["side"] == side)
        assert sums["kld_sum"] == pytest.approx(kld.sum())
    one, two = (answer["tokens"] for answer in record["answers"])
    assert one != two
    assert one[: record["parted"]] == two[: record["parted"]]
    assert one[record["parted"]] != two[record["parted"]]
    engines[0].close()


def test_the_case_is_one_for_the_report(pair: Running, tmp_path: Path) -> None:
    record = events(pair, asking(DOSE, seed=7, temperature=1))[-1][1]
    file = tmp_path / "case.json"
    file.write_text(json.dumps(record))
    (sheet,) = load_sheets([file])
    assert sheet.case
    assert sheet.case.question == DOSE
    assert sheet.models[1].figures["kld.mean"].value == pytest.approx(np.mean(record["answers"][0]["kld"]))


def test_the_same_seed_gives_the_same_case_and_none_is_drawn(pair: Running) -> None:
    one, two = (events(pair, asking("What is 8 * 7?", temperature=1, max_tokens=20))[-1][1] for _ in range(2))
    assert one["sampling"]["seed"] != two["sampling"]["seed"]
    again = events(pair, asking("What is 8 * 7?", temperature=1, max_tokens=20, seed=one["sampling"]["seed"]))[-1][1]
    assert [answer["tokens"] for answer in again["answers"]] == [answer["tokens"] for answer in one["answers"]]


def test_tokens_are_named_with_their_channel(pair: Running) -> None:
    said = [event for name, event in events(pair, asking("What is 8 * 7?", temperature=0)) if name == "token"]
    mine = [event for event in said if event["side"] == 0]
    assert mine[0]["text"] == "<|channel|>"
    assert mine[0]["special"]
    assert mine[0]["channel"] is None
    assert "".join(event["text"] for event in mine if event["channel"] == "final") == "56"
    assert any(event["channel"] == "analysis" for event in mine)


@pytest.mark.parametrize(
    ("models", "status"), [(("tiny", "tiny"), 400), (("tiny", "other"), 404), (("tiny",), 400), (("a", "b", "c"), 400)]
)
def test_two_different_models_are_wanted(pair: Running, models: tuple[str, ...], status: int) -> None:
    with pair.client() as client:
        answer = client.post(COMPARE, json=asking("Hello", *models))
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_models_of_other_tokenizers_are_refused() -> None:
    scripted = scripted_engine(ANSWER.format("a"))
    stranger = scripted_engine(ANSWER.format("b"))
    numbers = stranger.text.numbers()
    stranger.text.numbers = lambda: {name[::-1]: number for name, number in numbers.items()}  # type: ignore[method-assign]
    with running({"one": scripted, "two": stranger}) as server, server.client() as client:
        answer = client.post(COMPARE, json=asking("Hello", "one", "two"))
        assert answer.status_code == 400
        assert "tokenizer" in answer.json()["error"]["message"]


def test_logits_that_are_no_numbers_are_told_of() -> None:
    class Broken(ScriptedBackend):
        def logits(self, rows: np.ndarray) -> np.ndarray:
            found = super().logits(rows)
            return found if self.opened < 2 else found * np.nan  # answers, then scores nothing

    broken = scripted_engine(ANSWER.format("a"))
    broken.backend.__class__ = Broken
    with running({"one": scripted_engine(ANSWER.format("a")), "two": broken}) as server:
        said = events(server, asking("Hello", "one", "two"))
    assert said[-1][0] == "error"
    assert "two gives logits that are no numbers" in said[-1][1]["error"]["message"]


def slowed() -> Engine:
    """A model that takes a while for a long answer."""

    class Slow(ScriptedBackend):
        def run(self, runs: list[Run]) -> None:
            time.sleep(0.01)
            super().run(runs)

    engine = scripted_engine(ANSWER.format("word " * 3000))
    engine.backend.__class__ = Slow
    return engine


def test_who_leaves_takes_the_work_along() -> None:
    body = asking("Hello", "one", "two")
    with running({"one": slowed(), "two": slowed()}) as server:
        with server.client() as client, client.stream("POST", COMPARE, json=body) as stream:
            lines = stream.iter_lines()  # kept: the stream ends with it
            assert next(lines) == "event: token"
            other = client.post(COMPARE, json=body)
            assert other.status_code == 429
            assert int(other.headers["retry-after"]) > 0
        while any(served.scheduler.stats.running for served in server.models.values()):  # else the test runs out of time
            time.sleep(0.1)
        assert all(served.scheduler.stats.finished["cancelled"] == 1 for served in server.models.values())
