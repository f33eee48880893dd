"""A model behind an endpoint as a model of lm-eval: what is sent, what is made of answers, and what hostile servers can do."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.wire import Price
from oss_tools.errors import BadRecipe, BadSource, OssToolsError, Unreachable
from oss_tools.harness.answers import Environment
from oss_tools.harness.endpoint_lm import EndpointLM
from oss_tools.harness.log import AnswerLog
from oss_tools.harness.prompts import ChatPrompt
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EndpointSubject
from tests.endpoints.chat_server import call, completion, serving

TOOLS = [{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}]


def instance(context: Any, settings: Any, doc: Any = None, kind: str = "generate_until") -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, doc or {}, (context, settings), 0, metadata=("a task", 0, 1))


def asking(text: str) -> ChatPrompt:
    return ChatPrompt("", [{"role": "user", "content": text}])


def model(url: str, **how: Any) -> EndpointLM:
    how = {"sleep": lambda seconds: None, **how}
    return EndpointLM(Endpoint(url, "m", tries=2, timeout=5.0, concurrency=4), **how)


def answers(respond: Any, requests: list[Any], **how: Any) -> tuple[list[Any], Any, EndpointLM]:
    with serving(respond) as server:
        lm = model(server.url, **how)
        try:
            return lm.generate_until(requests), server, lm
        finally:
            lm.close()


def test_a_conversation_goes_out_and_its_answer_comes_back() -> None:
    doc = {"conversation": {"tools": TOOLS, "instructions": "Be brief.", "effort": "high"}}
    (answer,), server, lm = answers(
        lambda path, body: completion("It is 3.\n\nMore", reasoning_content="1 + 2", tokens=9, prompt_tokens=40),
        [instance(asking("What is 1 + 2?"), {"max_gen_toks": 50, "until": ["\n\n"]}, doc)],
    )
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
    assert body["tools"] == [{"type": "function", "function": TOOLS[0]}]
    assert (body["model"], body["temperature"], body["reasoning_effort"]) == ("m", 0.0, "high")
    assert body["max_tokens"] == 50 + 16384
    assert "seed" not in body
    assert answer == "It is 3."
    assert (answer.details.analysis, answer.details.tokens, answer.details.prompt_tokens) == ("1 + 2", 9, 40)
    assert lm.wire.to_json(Price(1, 1))["tokens"] == 9


def test_calls_are_read_and_broken_ones_are_a_problem() -> None:
    calls = [call("add", {"a": 1}), call("add", '{"a": ')]
    (answer,), _, _ = answers(
        lambda path, body: completion(None, "tool_calls", tool_calls=calls), [instance(asking("?"), {})]
    )
    assert [(c.name, c.arguments) for c in answer.details.calls] == [("add", {"a": 1}), ("add", None)]
    assert answer.details.problems == ("broken_json",)


def test_an_answer_that_ended_in_its_reasoning_is_no_answer() -> None:
    (answer,), _, lm = answers(lambda path, body: completion("", "length", reasoning="hm"), [instance(asking("?"), {})])
    assert (answer, answer.details.problems, answer.details.finish) == ("", ("no_final",), "length")
    assert lm.wire.truncated == 1


def test_sampled_answers_have_seeds_of_their_own_and_the_same_ones_again() -> None:
    requests = [instance(asking("?"), {"do_sample": True, "temperature": 0.7, "top_k": 5}) for _ in range(3)]

    def seeds() -> list[int]:
        _, server, _ = answers(lambda path, body: completion(str(body["seed"])), requests)
        assert {body["top_k"] for _, body in server.requests} == {5}
        return sorted(body["seed"] for _, body in server.requests)

    first = seeds()
    assert len(set(first)) == 3
    assert seeds() == first


def test_plain_texts_go_to_completions() -> None:
    (answer,), server, _ = answers(
        lambda path, body: {"choices": [{"text": " four.\nB: x", "finish_reason": "stop"}]},
        [instance("A: two and two is", {"until": ["\nB:", "b", "c", "d", "e"]})],
    )
    path, body = server.requests[0]
    assert (path, body["prompt"], body["stop"]) == ("/v1/completions", "A: two and two is", ["\nB:", "b", "c", "d"])
    assert answer == " four."


class Sums(Environment):
    """Answers one call, asks once more, ends."""

    def respond(self, calls, text):
        if calls:
            return [{"role": "tool", "name": "functions.add", "content": "3"}]
        return [{"role": "user", "content": "And now?"}] if "3" in text else []


def test_conversations_of_several_turns_go_on_with_calls_and_reasoning() -> None:
    script = [
        completion(None, "tool_calls", reasoning="I add.", tool_calls=[call("add", {"a": 1})]),
        completion("It is 3."),
        completion("Done."),
    ]
    doc = {"conversation": {"messages": [{"role": "user", "content": "1 + 2?"}], "tools": TOOLS}}
    (answer,), server, _ = answers(
        lambda path, body: script[len(server_requests(body))],
        [instance(asking("?"), {"environment": Sums}, doc)],
    )
    roles = [[message["role"] for message in body["messages"]] for _, body in server.requests]
    assert roles == [["user"], ["user", "assistant", "tool"], ["user", "assistant", "tool", "assistant", "user"]]
    said, result = server.requests[1][1]["messages"][1:]
    assert said["reasoning_content"] == "I add."
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert (result["tool_call_id"], result["content"]) == (said["tool_calls"][0]["id"], "3")
    assert answer == "Done."
    assert [len(turn) for turn in answer.details.turns] == [2, 1]


def server_requests(body: dict[str, Any]) -> list[Any]:
    """The assistant's messages so far: which answer of the script is next."""
    return [message for message in body["messages"] if message["role"] == "assistant"]


def test_a_task_that_begins_the_answer_itself_is_refused() -> None:
    prompt = ChatPrompt("", [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It"}], continued=True)
    with pytest.raises(BadRecipe, match="begins the answers itself"):
        answers(lambda path, body: completion("x"), [instance(prompt, {})])


# ---- log-probabilities ----------------------------------------------------------------------------------------------


def echo(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Every word a token, each as likely as it is long; one more is generated."""
    words = [(match.start(), match.group()) for match in re.finditer(r"\s*\S+", body["prompt"] + " more")]
    logprobs = [None, *(-float(len(word.strip())) for _, word in words[1:])]
    tops = [None, *({"x": -4.0} for _ in words[1:])]
    found = {
        "tokens": [w for _, w in words],
        "text_offset": [at for at, _ in words],
        "token_logprobs": logprobs,
        "top_logprobs": tops,
    }
    return {"choices": [{"text": "", "logprobs": found}]}


def test_given_answers_are_scored_by_echo() -> None:
    with serving(echo) as server:
        lm = model(server.url)
        found = lm.loglikelihood([instance("The sky is", f" {word}", kind="loglikelihood") for word in ("blue", "green")])
        rolling = lm.loglikelihood_rolling([instance("one three five", None, kind="loglikelihood_rolling")])
        lm.close()
    assert found == [(-4.0, True), (-5.0, False)]
    assert [float(value) for value in rolling] == [-9.0]
    assert rolling[0].tokens == 2


def test_a_server_without_log_probabilities_is_named() -> None:
    with serving(lambda path, body: {"choices": [{"text": "x"}]}) as server:
        lm = model(server.url)
        with pytest.raises(BadSource, match="no log-probabilities of a prompt, which a task needs"):
            lm.loglikelihood([instance("a", " b", kind="loglikelihood")])
        lm.close()


def first_tokens(**shares: float):
    """A server that tells of the likeliest first tokens."""
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    found = {"content": [{"token": "?", "logprob": -1.0, "top_logprobs": top}]}

    def answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
        reply = completion("?")
        reply["choices"][0]["logprobs"] = found
        return reply

    return answer


def letters(*names: str) -> list[Any]:
    prompt = ChatPrompt("", [{"role": "user", "content": "Which?"}])
    return [instance(prompt, f" {name}", kind="loglikelihood") for name in names]


def test_short_answers_to_a_conversation_are_compared_by_the_first_token() -> None:
    with serving(first_tokens(A=0.2, B=0.5, the=0.1)) as server:
        lm = model(server.url)
        found = lm.loglikelihood(letters("A", "B", "C"))
        again = lm.loglikelihood(letters("B", "A"))
        lm.close()
        assert len(server.requests) == 1, "one request for all answers, and none for those that are known"
    assert [round(math.exp(value), 3) for value, _ in found] == [0.2, 0.5, 0.1]  # C is no likelier than the least named
    assert [greedy for _, greedy in found] == [False, True, False]
    assert again == [found[1], found[0]]


@pytest.mark.parametrize(
    ("answer", "names", "error", "message"),
    [
        (
            first_tokens(We=0.9),
            ("A", "B"),
            BadSource,
            "begin with 'We', with none of those to compare; a model that reasons",
        ),
        (lambda path, body: completion("A"), ("A", "B"), BadSource, "gives no log-probabilities of an answer"),
        (first_tokens(A=0.9), ("A", "all of them"), BadRecipe, "longer answers than a token"),
    ],
)
def test_conversations_whose_answers_cannot_be_compared(answer, names, error, message: str) -> None:
    with serving(answer) as server:
        lm = model(server.url)
        with pytest.raises(error, match=message):
            lm.loglikelihood(letters(*names))
        lm.close()


# ---- hostile servers, and runs that go on ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"choices": [{"message": 3}]}',
        b"[" * 50_000,
        500,
        None,
        b'{"choices":[{"message":{"content":"half',
    ],
)
def test_what_is_no_answer_is_asked_again_and_given_up_in_a_line(bad: Any) -> None:
    with pytest.raises(Unreachable, match="2 times in a row"):
        answers(lambda path, body: bad, [instance(asking("?"), {})])


def test_wrong_counts_are_none() -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": 10**30}
    (answer,), _, _ = answers(lambda path, body: {**completion("x"), "usage": usage}, [instance(asking("?"), {})])
    assert (answer.details.prompt_tokens, answer.details.tokens) == (0, 0)


def test_a_refusal_names_the_server_and_its_words() -> None:
    with pytest.raises(OssToolsError, match="the endpoint answers 404: as scripted"):
        answers(lambda path, body: 404, [instance(asking("?"), {})])


def test_answers_are_kept_and_a_second_run_asks_for_the_missing_ones_only(tmp_path: Path) -> None:
    """The server fails for good at the fifth question; what came before is not asked for again."""
    about, seen = {"schema": 1}, []

    def respond(path: str, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        seen.append(text)
        return 403 if text == "4" and broken else completion(f"answer {text}")

    requests = [instance(asking(str(i)), {}) for i in range(8)]
    broken = True
    with serving(respond) as server:
        log = AnswerLog(tmp_path / "answers.jsonl", about)
        lm = EndpointLM(Endpoint(server.url, "m", tries=1, concurrency=1), log=log)
        with pytest.raises(BadSource, match="403"):
            lm.generate_until(requests)
        lm.close()
        log.close()
        kept = len(log)
        assert 0 < kept < 8
        broken, first = False, len(seen)
        log = AnswerLog(tmp_path / "answers.jsonl", about, resume=True)
        lm = EndpointLM(Endpoint(server.url, "m", tries=1, concurrency=1), log=log)
        assert lm.generate_until(requests) == [f"answer {i}" for i in range(8)]
        lm.close()
        log.close()
    assert len(seen) - first == 8 - kept


# ---- whole runs -----------------------------------------------------------------------------------------------------


def solve(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Says 7 to everything."""
    return completion("The answer is \\boxed{7}.", prompt_tokens=80 if "tools" in body else 20)


def test_a_run_has_scores_and_what_was_measured_over_the_wire() -> None:
    with serving(solve) as server:
        subject = EndpointSubject(Endpoint(server.url, "m"), Price(1.0, 2.0))
        record = evaluate(subject, ["math_smoke"], Settings(limit=6), model=subject.described)
        subject.close()
    assert record["model"]["name"].endswith("/v1#m")
    assert record["model"]["wire"]["requests"] == len(server.requests) == record["tasks"]["math_smoke"]["n"] == 6
    assert record["model"]["wire"]["dollars"] > 0
    assert record["settings"]["backend"] == "endpoint"


def oss_tools(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_verb_takes_an_address(tmp_path: Path) -> None:
    with serving(solve) as server:
        asked = ["eval", f"{server.url}#m", "--task", "math_smoke", "--limit", 3, "--price", "1,2"]
        planned = oss_tools(*asked, "--dry-run")
        assert not server.requests, "a plan asks nothing"
        run = oss_tools(*asked, "-o", tmp_path / "run")
        refused = oss_tools("eval", f"{server.url}#m", "--base", "tiny")
    assert (planned.exit_code, run.exit_code, refused.exit_code) == (0, 0, 2), run.stderr + planned.stderr
    assert "3 calls" in planned.stdout
    assert "3 requests, median" in run.stdout
    assert "dollars" in run.stdout
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["model"]["endpoint"] is True


def test_an_address_without_a_model_is_refused() -> None:
    refused = oss_tools("eval", "http://127.0.0.1:9/v1")
    assert refused.exit_code == 2
    assert "which model of this server?" in refused.stderr
