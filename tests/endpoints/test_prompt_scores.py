"""Log-probabilities over the wire: prompts of token numbers that come back scored, in both forms that servers have."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.compare.margins import Decision, measure, measure_remote
from oss_tools.download.failures import Transient
from oss_tools.endpoints.client import Client
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.prompt_scores import DISPENSABLE, read_prompt_scores, score
from oss_tools.endpoints.replies import Likeliest, Unscored, read_echo, read_likeliest
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadSource
from oss_tools.resources import resource
from tests.endpoints.chat_server import serving

TINY = resource("tiny/checkpoint")


@pytest.fixture(scope="module")
def engine():
    with Engine.load(TINY, threads=1) as loaded:
        yield loaded


def logprobs_of(engine: Engine, tokens: list[int]) -> list[float | None]:
    return [None, *engine.score([(tokens, 1)])[0].logprobs.tolist()]


def by_echo(engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    tokens = body["prompt"]
    assert body["echo"] is True
    spelt = [engine.text.decode([token], skip_special=False) for token in tokens]
    found = {"tokens": [*spelt, "x"], "token_logprobs": [*logprobs_of(engine, tokens), -1.0]}
    return {"choices": [{"text": "…", "logprobs": found, "finish_reason": "length"}]}


def by_number(engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM gives `prompt_logprobs`."""
    tokens = body["prompt"]
    rows = [
        None if value is None else {str(token): {"logprob": value, "rank": 3, "decoded_token": "?"}}
        for token, value in zip(tokens, logprobs_of(engine, tokens), strict=True)
    ]
    return {"choices": [{"text": "…", "logprobs": None, "prompt_logprobs": rows, "finish_reason": "length"}]}


@pytest.mark.parametrize("form", [by_echo, by_number])
def test_margins_over_the_wire_are_those_of_the_engine(engine: Engine, form) -> None:
    def tokens(text: str) -> tuple[int, ...]:
        return tuple(engine.text.encode(text, special=False))

    rivals = ((tokens("B"),), (tokens("CC"),))
    asked = [tokens(f"<|start|>user<|message|>Pick {n}.<|end|><|start|>assistant") for n in range(4)]
    found = [Decision("option", prefix, (tokens("A"),), rivals) for prefix in asked]
    with serving(lambda path, body: form(engine, body)) as server:
        over = measure_remote(Endpoint(server.url, "m", concurrency=1), engine.text, found, lambda line: None)
    assert over == pytest.approx(measure(engine, found), abs=1e-3)
    assert np.isfinite(over).all()


def asking(server, tokens=(1, 2, 3), spelling=str) -> list[float]:
    with Client(Endpoint(server.url, "m", tries=1), dispensable=DISPENSABLE) as client:
        return score(client, [(list(tokens), 1)], spelling)


def test_a_server_with_another_tokenizer_is_refused() -> None:
    found = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0, -1.0]}
    with serving(lambda path, body: {"choices": [{"text": "", "logprobs": found}]}) as server:
        with pytest.raises(BadSource, match="another tokenizer: 3 of 3 tokens are other texts there"):
            asking(server)
        assert asking(server, spelling=dict(zip((1, 2, 3), "abc", strict=True)).get) == [-2.0]


def test_a_server_that_does_not_know_the_other_form_is_asked_without_it() -> None:
    found = {"tokens": ["1", "2", "3"], "token_logprobs": [None, -1.0, -1.5]}

    def answer(path: str, body: dict[str, Any]) -> Any:
        if "prompt_logprobs" in body:
            return 400, {"error": {"message": "unknown field prompt_logprobs"}}
        return {"choices": [{"text": "", "logprobs": found}]}

    with serving(answer) as server:
        assert asking(server) == [-2.5]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "x"},
        {"text": "x", "logprobs": {"tokens": ["a"], "token_logprobs": [None]}},
        {"text": "x", "logprobs": {"tokens": ["1", "2", "3"], "token_logprobs": [None, None, -1.0]}},
        {"text": "x", "prompt_logprobs": [None, {"9": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}]},
    ],
)
def test_servers_without_them_are_named(choice: dict[str, Any]) -> None:
    said = "#m gives no log-probabilities of a prompt"
    with serving(lambda path, body: {"choices": [choice]}) as server, pytest.raises(BadSource, match=said):
        asking(server)


@pytest.mark.parametrize("value", ["x", True, math.nan, 3.0, [1]])
def test_figures_that_are_none_are_asked_for_again(value: Any) -> None:
    with pytest.raises(Transient):
        read_prompt_scores({"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, value]}}]}, [1, 2])
    with pytest.raises(Transient):
        read_prompt_scores({"choices": []}, [1])


# ---- texts, and first tokens -----------------------------------------------------------------------------------------


def test_an_echo_in_vllms_form() -> None:
    pieces = [("The", None), (" sky", -1.0), (" is", -0.5), (" blue", -0.25), (" now", -2.0)]
    rows = [
        None if value is None else {str(i): {"logprob": value, "rank": 1 + i % 2, "decoded_token": text}}
        for i, (text, value) in enumerate(pieces)
    ]
    rows[0] = {"0": {"logprob": -9.0, "rank": 1, "decoded_token": "The"}}
    found = read_echo({"choices": [{"text": "", "prompt_logprobs": rows}]}, 10, 15)
    assert (found.logprob, found.tokens, found.greedy) == (-0.25, 1, False)
    with pytest.raises(Unscored):
        read_echo({"choices": [{"text": "", "prompt_logprobs": [None, {"1": {"logprob": -1}}]}]}, 0, 5)


def test_the_likeliest_first_tokens() -> None:
    top = [
        {"token": "A", "logprob": math.log(0.5)},
        {"token": " A", "logprob": math.log(0.25)},
        {"token": "B", "logprob": math.log(0.1)},
    ]
    found = read_likeliest({"choices": [{"logprobs": {"content": [{"token": "A", "top_logprobs": top}]}}]})
    assert found.of("A") == pytest.approx(math.log(0.75))
    assert found.of("C") is None
    assert isinstance(found, Likeliest)
    for bad in (
        {},
        {"logprobs": None},
        {"logprobs": {"content": []}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": 3}]}]}},
    ):
        with pytest.raises(Unscored):
            read_likeliest({"choices": [bad]})


def test_a_comparison_names_who_has_no_margins(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from oss_tools.cli.main import app
    from oss_tools.report.comparison import read
    from tests.endpoints.chat_server import completion

    def answer(path: str, body: dict[str, Any]) -> Any:
        return completion("Answer: A") if path.endswith("/chat/completions") else 404

    with serving(answer) as server:
        arguments = [
            "compare",
            "tiny",
            f"{server.url}#m",
            "--suites",
            "health",
            "--limit",
            "6",
            "--chunks",
            "1",
            "--repeat",
            "0",
            "-t",
            "1",
        ]
        done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "it has no margins" in done.stderr
    assert not read(tmp_path / "comparison.json").candidates[1].margins
