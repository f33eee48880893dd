"""A model behind an endpoint as a model of lm-eval: answers over HTTP, many at once.

Conversations go to /chat/completions, plain texts to /completions. Where log-probabilities are wanted, the server is asked to
echo the text with them, which vLLM and llama.cpp do and most hosted models do not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from oss_tools.chat.completion import Finding, read_arguments
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.plain import CallForm, plain_messages, plain_tools
from oss_tools.endpoints.client import MALFORMED, Client, Malformed
from oss_tools.endpoints.endpoint import CHAT, Endpoint
from oss_tools.endpoints.replies import ChatReply, Echo, Unscored, read_chat, read_echo, read_text
from oss_tools.endpoints.wire import Wire
from oss_tools.errors import BadRecipe, BadSource
from oss_tools.harness.answerer import Answerer, task_of
from oss_tools.harness.answers import Answer, Call, Details
from oss_tools.harness.endpoint_choices import begun
from oss_tools.harness.jobs import Job, Prompt, Reply, Rule, Usage
from oss_tools.harness.log import request_key
from oss_tools.harness.prompts import ChatPrompt
from oss_tools.harness.texts import Rolling

COMPLETIONS = "/completions"
FORM = CallForm(text=True)  # OpenAI's: arguments are JSON text
STOPS = 4  # strings, at most, that OpenAI's servers take
DISPENSABLE = (
    "temperature", "seed", "reasoning_effort", "top_k", "min_p", "repetition_penalty", "stop", "prompt_logprobs"
)  # fmt: skip


class EndpointLM(Answerer):
    """lm-eval's three methods over an OpenAI-compatible API.

    Attributes:
        client: which asks.
        wire: what was measured.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], object] | None = None,
        **how: Any,
    ) -> None:
        """
        Args:
            say: is told of retries and of fields that the server does not take.
            sleep: see `Client`.
            how: see `Answerer`.
        """
        super().__init__(**how)
        self.endpoint = endpoint
        self.client = Client(endpoint, dispensable=DISPENSABLE, say=say, sleep=sleep, kept=self._what_is_kept)
        self.wire = Wire()
        self._clock = _Clock()

    def close(self) -> None:
        self.client.close()

    def _what_is_kept(self) -> str:
        return f"{len(self.log)} answers are kept; --output and --resume go on from them"

    # ---- what lm-eval asks of a model -------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Tells apart the prompts that lm-eval may keep between runs."""
        return f"oss-tools-endpoint-{self.endpoint.name}-{self.effort or ''}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "the server's"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The history as JSON, which remembers it: the request's document may add tools and turns."""
        return ChatPrompt(json.dumps(chat_history, ensure_ascii=False), chat_history, continued=not add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For (context, continuation): the continuation's log-probability, and whether greedy decoding gives it."""
        pairs = [(request.args[0], request.args[1]) for request in requests]
        chat = bool(pairs) and isinstance(pairs[0][0], ChatPrompt)
        found = begun(self, requests) if chat else self._echoed("loglikelihood", requests, pairs)
        return [(row["logprob"], row["greedy"]) for row in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """For (text,): its log-probability, without that of the first token."""
        found = self._echoed("loglikelihood_rolling", requests, [("", request.args[0]) for request in requests])
        return [Rolling(row["logprob"], row["tokens"]) for row in found]

    def _echoed(self, kind: str, requests: Sequence[Instance], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        def echo(i: int) -> tuple[int, dict[str, Any]]:
            context, continuation = pairs[i]
            kept = context.rstrip()  # blanks at the end belong to the continuation
            text = context + continuation
            body = {"model": self.endpoint.model, "prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1}
            body["prompt_logprobs"] = 0  # vLLM's own form
            try:
                found: Echo = self.client.post(body, lambda answer: read_echo(answer, len(kept), len(text)), COMPLETIONS)
            except Unscored:
                task = task_of(requests[i])
                raise BadSource(
                    f"{self.endpoint.name} gives no log-probabilities of a prompt, which {task} needs; leave it out"
                ) from None
            return i, {"logprob": found.logprob, "greedy": found.greedy, "tokens": found.tokens}

        def score(missing: list[int], usage: Usage) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, row in self.each(echo, missing, usage):
                usage.prompt_tokens += row["tokens"]
                yield i, row

        keys = [request_key(kind, json.dumps(pair).encode()) for pair in pairs]
        return self.scored(kind, requests, keys, score)

    # ---- generating -------------------------------------------------------------------------------------------------

    @property
    def has_chat(self) -> bool:
        return True

    @property
    def reasons(self) -> bool:
        """It is not known, so there is room for it."""
        return True

    def prompted(
        self, conversation: Conversation | None, text: str, beginning: str, room: int
    ) -> tuple[Prompt, tuple[str, ...]]:
        """The fields of a request that say what is asked. How much fits is for the server to say."""
        if beginning:
            raise BadRecipe("a task begins the answers itself, which an endpoint cannot go on with; leave it out")
        return (self.asked(conversation) if conversation is not None else {"prompt": text}), ()

    def asked(self, conversation: Conversation) -> dict[str, Any]:
        """The fields of a request that say what is asked."""
        asked: dict[str, Any] = {"messages": plain_messages(conversation, FORM)}
        if tools := plain_tools(conversation):
            asked["tools"] = tools
        if conversation.effort in ("low", "high") or (self.effort and conversation.effort == self.effort != "none"):
            asked["reasoning_effort"] = conversation.effort
        return asked

    def content_of(self, prompt: Prompt) -> bytes:
        return json.dumps(prompt, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")

    def single(self, jobs: list[Job], usage: Usage) -> Iterator[tuple[Job, Answer]]:
        def ask(job: Job) -> tuple[Job, Answer]:
            return job, self._answer_of(self._reply(job.prompt, job.rule), job.rule, job.conversation)[0]

        yield from self.each(ask, jobs, usage)

    def replies(self, asked: list[tuple[Conversation, Rule]], usage: Usage) -> Iterator[Reply]:
        def ask(i: int) -> Reply:
            conversation, rule = asked[i]
            return Reply(i, *self._answer_of(self._reply(self.asked(conversation), rule), rule, conversation))

        yield from self.each(ask, range(len(asked)), usage)

    def each(self, work: Callable[[Any], Any], items: Sequence[Any], usage: Usage) -> Iterator[Any]:
        began = time.perf_counter()
        for result in self.client.each(work, items):
            usage.seconds += time.perf_counter() - began
            yield result
            began = time.perf_counter()

    def _reply(self, prompt: dict[str, Any], rule: Rule) -> ChatReply:
        """One answer over the wire; its time is that of the try that succeeded."""
        sampling, chat = rule.sampling, "messages" in prompt
        body = {"model": self.endpoint.model, **prompt, "max_tokens": rule.max_tokens, "temperature": sampling.temperature}
        unusual = {"top_p": (sampling.top_p, 1.0), "top_k": (sampling.top_k, 0), "min_p": (sampling.min_p, 0.0)}
        unusual["repetition_penalty"] = (sampling.repetition_penalty, 1.0)
        body |= {name: value for name, (value, usual) in unusual.items() if value != usual}
        if sampling.temperature > 0 and sampling.seed is not None:
            body["seed"] = sampling.seed % (1 << 31)
        if not chat and rule.until:
            body["stop"] = list(rule.until[:STOPS])

        def read(answer: Any) -> ChatReply:
            reply = read_chat(answer) if chat else read_text(answer)
            self.wire.add(self._clock.passed(), reply.prompt_tokens, reply.tokens, reply.finish == "length")
            return reply

        try:
            return self.client.post(body, read, CHAT if chat else COMPLETIONS, self._clock.start)
        except Malformed:
            return ChatReply("", "", (), MALFORMED, 0, 0)

    def _answer_of(
        self, reply: ChatReply, rule: Rule, conversation: Conversation | None
    ) -> tuple[Answer, tuple[Message, ...]]:
        """The answer, and the assistant's messages."""
        calls = tuple(_call(name, text) for name, text in reply.calls)
        shown = min((reply.text.split(stop)[0] for stop in rule.until if stop), key=len, default=reply.text)
        problems: tuple[str, ...] = ()
        if conversation is not None and not shown.strip() and not calls:
            problems += ("no_final",)
        if reply.finish == MALFORMED:
            problems += ("malformed",)
        if reply.finish == "content_filter":
            problems += ("filtered",)
        problems += tuple("broken_json" for call in calls if call.arguments is None)
        written = [reply.reasoning, reply.text, *(f"{name}({text})" for name, text in reply.calls)]
        details = Details(
            calls=calls, analysis=reply.reasoning, problems=problems, transcript="\n".join(filter(None, written)),
            prompt_tokens=reply.prompt_tokens, tokens=reply.tokens, finish="length" if reply.finish == "length" else "stop",
        )  # fmt: skip
        return Answer(shown, details), _said(reply)


class _Clock(threading.local):
    """When this thread's request was sent."""

    began = 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def passed(self) -> float:
        return time.perf_counter() - self.began


def _call(name: str, text: str) -> Call:
    arguments = read_arguments(text or "{}")
    return Call(name, None if isinstance(arguments, Finding) else arguments, text)


def _said(reply: ChatReply) -> tuple[Message, ...]:
    said = [Message("assistant", reply.reasoning, "analysis")] if reply.reasoning else []
    for name, arguments in reply.calls:
        said.append(Message("assistant", arguments or "{}", "commentary", NAMESPACE + name, "json"))
    if reply.text or not said:
        said.append(Message("assistant", reply.text, "final"))
    return tuple(said)
