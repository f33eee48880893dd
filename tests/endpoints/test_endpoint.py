"""Endpoints as users name them, what is measured of them, and what a look at their manners finds."""

import itertools

import pytest

from oss_tools.download.failures import Transient
from oss_tools.endpoints.client import Client
from oss_tools.endpoints.endpoint import Endpoint, parse_endpoint
from oss_tools.endpoints.manners import remarks
from oss_tools.endpoints.replies import Unscored, read_chat, read_echo
from oss_tools.endpoints.wire import Price, Wire
from oss_tools.errors import BadRecipe, BadSource
from tests.endpoints.chat_server import call, completion, serving


def test_a_name_has_an_address_and_a_model() -> None:
    endpoint = parse_endpoint("https://api.example/v1/#vendor/model:free", concurrency=3)
    assert (endpoint.base(), endpoint.model, endpoint.concurrency) == ("https://api.example/v1", "vendor/model:free", 3)
    assert endpoint.address() == "https://api.example/v1/chat/completions"
    assert endpoint.name == "https://api.example/v1#vendor/model:free"


@pytest.mark.parametrize("text", ["https://api.example/v1", "https://api.example/v1#"])
def test_a_name_without_a_model_is_refused(text: str) -> None:
    with pytest.raises(BadRecipe, match="which model"):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["https://user:s3cret@host/v1#m", "https://[::1/v1#m", "http://host:99999/v1#m"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(BadRecipe, match="expected an address") as caught:
        parse_endpoint(text)
    assert "s3cret" not in str(caught.value)


def refusing(*names: str):
    """A server that takes a chat without these fields."""

    def answer(path: str, body: dict) -> object:
        unknown = next((name for name in names if name in body), None)
        if unknown is None:
            return completion("fine")
        hint = " Use 'max_completion_tokens' instead." if unknown == "max_tokens" else ""
        return 400, {"error": {"message": f"Unsupported parameter: '{unknown}'.{hint}"}}

    return answer


def test_what_a_server_wants_is_learnt_once() -> None:
    said: list[str] = []
    body = {"max_tokens": 5, "temperature": 0.0, "seed": 1}
    taking = serving(refusing("max_tokens", "temperature"))
    with taking as server, Client(Endpoint(server.url, "m", tries=1), say=said.append) as client:
        replies = [client.post(body, read_chat) for _ in range(2)]
    assert [reply.text for reply in replies] == ["fine", "fine"]
    assert [sorted(sent) for _, sent in server.requests[2:]] == [["max_completion_tokens", "seed"]] * 2
    assert len(said) == 1
    assert "does not take 'temperature'" in said[0]


def test_a_field_that_may_not_be_left_out_is_not() -> None:
    with (
        serving(refusing("seed")) as server,
        Client(Endpoint(server.url, "m", tries=1)) as client,
        pytest.raises(BadSource, match="answers 400: Unsupported parameter: 'seed'"),
    ):
        client.post({"seed": 1}, read_chat)
    assert len(server.requests) == 1


def test_what_a_chat_says() -> None:
    reply = read_chat(completion(None, "tool_calls", reasoning="I look.", tool_calls=[call("look", {"at": 1})]))
    assert (reply.text, reply.reasoning, reply.calls, reply.finish) == (
        "",
        "I look.",
        (("look", '{"at": 1}'),),
        "tool_calls",
    )
    parts = [{"type": "reasoning", "text": "x"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_chat({"choices": [{"message": {"content": parts}}]}).text == "ab"


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {"tool_calls": [1]}}]}, {"choices": 3}],
)
def test_what_is_no_chat_completion_may_pass(answer: object) -> None:
    with pytest.raises(Transient):
        read_chat(answer)


def echoed(text: str, cut: int = 2) -> dict:
    """A text in tokens of two characters; token i has log-probability −i, and every other one is not the likeliest."""
    offsets = list(range(0, len(text), cut))
    tokens = [text[at : at + cut] for at in offsets]
    logprobs = [None, *(-float(i) for i in range(1, len(tokens)))]
    tops = [None, *({"x": -0.5 if i % 2 else -float(i)} for i in range(1, len(tokens)))]
    found = {"tokens": tokens, "text_offset": offsets, "token_logprobs": logprobs, "top_logprobs": tops}
    return {"choices": [{"text": text, "logprobs": found}]}


def test_log_probabilities_are_of_the_tokens_behind_the_context() -> None:
    found = read_echo(echoed("abcdefghij"), 4, 8)
    assert (found.logprob, found.greedy, found.tokens) == (-2.0 - 3.0, False, 2)
    assert read_echo(echoed("abcdef"), 4, 6).greedy


def test_the_first_token_has_no_log_probability() -> None:
    assert read_echo(echoed("abcdef"), 0, 6).tokens == 2


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"tokens": [], "text_offset": [], "token_logprobs": []}, {"text_offset": [0], "token_logprobs": []}],
)
def test_a_server_without_log_probabilities_is_told_apart(logprobs: object) -> None:
    with pytest.raises(Unscored):
        read_echo({"choices": [{"text": "", "logprobs": logprobs}]}, 0, 5)


@pytest.mark.parametrize("value", [5.0, "x", float("nan"), True])
def test_numbers_that_are_no_log_probabilities_may_pass(value: object) -> None:
    found = {"text_offset": [0, 2], "token_logprobs": [None, value], "top_logprobs": None}
    with pytest.raises(Transient):
        read_echo({"choices": [{"text": "", "logprobs": found}]}, 0, 5)


def test_the_wire_is_summed_up() -> None:
    wire = Wire()
    for seconds in (1.0, 2.0, 4.0):
        wire.add(seconds, 100, 20, seconds == 4.0)
    record = wire.to_json(Price(1.0, 10.0))
    assert (record["requests"], record["seconds_median"], record["tokens_per_second_median"]) == (3, 2.0, 10.0)
    assert record["dollars"] == pytest.approx((300 * 1.0 + 60 * 10.0) / 1e6)
    assert record["truncated"] == 1
    assert "seconds_median" not in Wire().to_json()


def manners(answer, **wanted: bool) -> str:
    with serving(answer) as server, Client(Endpoint(server.url, "m", tries=1)) as client:
        return "; ".join(remarks(client, **wanted))


def test_a_server_that_does_as_it_is_asked_gets_no_remark() -> None:
    said = manners(
        lambda path, body: completion("a b c d", prompt_tokens=90 if "tools" in body else 12), sampled=True, tools=True
    )
    assert not said


def test_a_server_that_ignores_seeds_tools_and_counts_is_seen() -> None:
    count = itertools.count()
    said = manners(lambda path, body: completion(str(next(count)), prompt_tokens=12), sampled=True, tools=True)
    assert "ignores `seed`" in said
    assert "not told of them" in said
    assert "counts no tokens" in manners(lambda path, body: completion("x", prompt_tokens=0), sampled=False, tools=False)
