"""Which of several short answers a model behind an endpoint would begin with: letters, yes and no, in conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance

from oss_tools.endpoints.replies import Likeliest, Unscored, read_likeliest
from oss_tools.errors import BadRecipe, BadSource
from oss_tools.harness.answerer import task_of
from oss_tools.harness.jobs import Usage
from oss_tools.harness.log import request_key
from oss_tools.harness.prompts import conversation_of

if TYPE_CHECKING:
    from oss_tools.harness.endpoint_lm import EndpointLM

LIKELIEST = 20  # first tokens that OpenAI's servers tell of, at most
LONGEST = 8  # characters of an answer that may be one token


def begun(lm: EndpointLM, requests: Sequence[Instance]) -> list[dict[str, Any]]:
    """Rows for (conversation, answer), the answer being one token, from the likeliest first tokens of what the model would say.

    An answer that is not among them counts as likely as the least of them, which is more than it is. Raises BadRecipe for longer
    answers, BadSource where the server does not say, or where the model begins with none of the answers.
    """
    asked = [lm.asked(conversation_of(request.args[0], request.doc, lm.effort)) for request in requests]
    contents = [lm.content_of(prompt) for prompt in asked]
    answers = [str(request.args[1]).strip() for request in requests]
    keys = [request_key("begun", content, answer=answer) for content, answer in zip(contents, answers, strict=True)]
    for request, answer in zip(requests, answers, strict=True):
        if not answer or len(answer) > LONGEST or len(answer.split()) > 1:
            said = "scores longer answers than a token: an endpoint does so in plain texts only: --no-chat, or leave it out"
            raise BadRecipe(f"{task_of(request)} {said}")

    def ask(group: list[int]) -> list[tuple[int, dict[str, Any]]]:
        body = {"model": lm.endpoint.model, **asked[group[0]], "max_tokens": 1, "temperature": 0.0}
        task = task_of(requests[group[0]])
        try:
            found = lm.client.post(body | {"logprobs": True, "top_logprobs": LIKELIEST}, read_likeliest)
        except Unscored:
            raise BadSource(f"{lm.endpoint.name} gives no log-probabilities of an answer, which {task} needs") from None
        rows = _rows(found, [answers[i] for i in group])
        if rows is None:
            first = max(found.logprobs, key=lambda token: found.logprobs[token])
            why = f"its answers to {task} begin with {first[:20]!r}, with none of those to compare"
            raise BadSource(f"{lm.endpoint.name}: {why}; a model that reasons first is asked for whole answers")
        return list(zip(group, rows, strict=True))

    def score(missing: list[int], usage: Usage) -> Iterator[tuple[int, dict[str, Any]]]:
        groups: dict[bytes, list[int]] = {}
        for i in missing:
            groups.setdefault(contents[i], []).append(i)
        for rows in lm.each(ask, list(groups.values()), usage):
            yield from rows

    return lm.scored("begun", requests, keys, score)


def _rows(found: Likeliest, answers: Sequence[str]) -> list[dict[str, Any]] | None:
    """A row for each answer; None if none of them is among the likeliest tokens."""
    values = [found.of(answer) for answer in answers]
    if all(value is None for value in values):
        return None
    least, best = min(found.logprobs.values()), max(found.logprobs.values())
    return [
        {"logprob": least if value is None else value, "greedy": value is not None and value >= best, "tokens": 1}
        for value in values
    ]
