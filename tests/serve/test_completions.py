"""/v1/completions over HTTP: texts and tokens continued as `generate --raw` continues them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from serving import Running

from oss_tools.engine.requests import Request, Token
from oss_tools.engine.sampling import Sampling, log_softmax

PATH = "/v1/completions"
TEXT = "The answer is"


def generated(server: Running, request: Request) -> list[Token]:
    return server.models["tiny"].scheduler.run(lambda engine: list(engine.generate(request))).result(120)


def post(server: Running, **asked: Any) -> dict[str, Any]:
    with server.client() as client:
        found: dict[str, Any] = client.post(PATH, json={"model": "tiny", **asked}).raise_for_status().json()
    return found


@pytest.mark.parametrize("as_tokens", [False, True])
def test_a_text_is_continued_as_by_generate(server: Running, as_tokens: bool) -> None:
    tokens = server.models["tiny"].engine.text.encode(TEXT)
    expected = generated(server, Request(tokens, 20, Sampling(temperature=0.9, seed=5)))
    found = post(server, prompt=tokens if as_tokens else TEXT, max_tokens=20, temperature=0.9, seed=5)
    assert found["choices"][0]["text"] == "".join(token.text for token in expected)
    assert found["choices"][0]["finish_reason"] == expected[-1].finish
    assert found["usage"]["completion_tokens"] == len(expected)


def test_several_prompts_and_choices(server: Running) -> None:
    tokens = server.models["tiny"].engine.text.encode
    found = post(server, prompt=[TEXT, "2 + 2"], n=2, seed=7, temperature=1.0, max_tokens=6)
    expected = [
        "".join(t.text for t in generated(server, Request(tokens(text), 6, Sampling(temperature=1.0, seed=7 + choice))))
        for text in (TEXT, "2 + 2")
        for choice in range(2)
    ]
    assert [choice["text"] for choice in found["choices"]] == expected
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]


def test_the_prompt_comes_back_with_its_probabilities(server: Running) -> None:
    """Which is how lm-eval asks for them."""
    text = "12 + 7 is 19. " * 20
    tokens = server.models["tiny"].engine.text.encode(text)
    logits = server.models["tiny"].scheduler.run(lambda engine: engine.logits(tokens)).result(120)
    expected = log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]
    found = post(server, prompt=text, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert found["text"] == text
    assert found["logprobs"]["token_logprobs"][0] is None
    assert np.array(found["logprobs"]["token_logprobs"][1:], np.float32).tobytes() == expected.tobytes()
    assert found["logprobs"]["text_offset"][:3] == [0, 1, 2]
    assert len(found["logprobs"]["tokens"]) == len(tokens)


def test_pieces_make_up_the_text(server: Running) -> None:
    asked = {"prompt": TEXT, "max_tokens": 12, "temperature": 0, "logprobs": 2}
    whole = post(server, **asked)["choices"][0]
    with server.client() as client:
        answer = client.post(PATH, json={**asked, "stream": True})
    chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for choice in choices for value in choice["logprobs"][name]] == whole["logprobs"][name]


def test_a_stop_string_ends_it(server: Running) -> None:
    whole = post(server, prompt=TEXT, max_tokens=30, temperature=0)["choices"][0]["text"]
    stop = whole[5:7]
    found = post(server, prompt=TEXT, max_tokens=30, temperature=0, stop=[stop])["choices"][0]
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "asked",
    [{"prompt": []}, {"prompt": ""}, {"prompt": [1 << 40]}, {"prompt": [-1]}, {"prompt": "a", "suffix": "b"}, {},
     {"prompt": "a", "n": 99}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "temperature": -1},
     {"prompt": "a", "presence_penalty": 1}, {"prompt": "a" * 7000}, {"prompt": "a", "model": "gpt-9"}],
)  # fmt: skip
def test_what_cannot_be_asked_is_said_in_a_line(server: Running, asked: dict[str, Any]) -> None:
    with server.client() as client:
        found = client.post(PATH, json={"model": "tiny", **asked})
    assert found.status_code == (404 if "model" in asked else 400)
    message = found.json()["error"]["message"]
    assert message
    assert "\n" not in message
    assert "internal" not in message
