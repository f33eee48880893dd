"""Our engine as a model of lm-eval: `simple_evaluate(model=EngineLM(engine), …)`, or `model="oss-tools"` by name.

Within a task, requests are taken in the order of their tokens, so that what they have in common (few-shot examples, system
prompt, the question of several choices) is computed once; decoding is batched.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from oss_tools.chat.messages import Conversation
from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Scores
from oss_tools.harness.answerer import Answerer, beginning_of
from oss_tools.harness.answers import Answer, Details
from oss_tools.harness.jobs import Asked, Job, Prompt, Reply, Rule, Usage
from oss_tools.harness.log import request_key
from oss_tools.harness.prompts import ChatPrompt, conversation_of
from oss_tools.harness.speech import Speech
from oss_tools.harness.texts import Rolling

SLAB = 128  # scored requests between two writes to the log


@register_model("oss-tools")
class EngineLM(Answerer):
    """lm-eval's three methods over an engine."""

    def __init__(self, engine: Engine, *, batch: int = 16, **how: Any) -> None:
        """
        Args:
            engine: a loaded model.
            batch: requests that share each pass of decoding.
            how: see `Answerer`.
        """
        super().__init__(**how)
        self.engine, self.speech, self.batch = engine, Speech(engine), batch

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> EngineLM:
        """For `simple_evaluate(model="oss-tools", model_args={"path": …, "threads": …, "effort": …})`."""
        own = {name: arg_dict[name] for name in ("effort", "batch", "max_tokens", "seed") if name in arg_dict}
        loading = {name: value for name, value in arg_dict.items() if name not in own}
        return cls(Engine.load(loading.pop("path"), **loading), **own)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> EngineLM:
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string))

    # ---- what lm-eval asks of a model -------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Tells apart the prompts that lm-eval may keep between runs."""
        return f"oss-tools-{hashlib.sha256(self.chat_template().encode()).hexdigest()[:16]}-{self.effort or ''}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What prompts are rendered with."""
        return self.speech.description

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> ChatPrompt:
        """The rendered history, which remembers it: the request's document may add tools and turns."""
        prompt = ChatPrompt("", chat_history, continued=not add_generation_prompt)
        text = self.speech.render(conversation_of(prompt, None, self.effort), beginning_of(prompt))
        return ChatPrompt(text, chat_history, continued=not add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For (context, continuation): the continuation's log-probability, and whether greedy decoding gives it."""
        pairs = [self._pair(request.args[0], request.args[1], request.doc) for request in requests]
        found = self._scored("loglikelihood", requests, pairs)
        return [(row["logprob"], row["greedy"]) for row in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """For (text,): its log-probability, in windows of the context, each of which begins where the last ended."""
        windows: list[tuple[list[int], int]] = []
        owners: list[Instance] = []
        counts: list[int] = []
        for request in requests:
            cut = self._windows(self.engine.text.encode(request.args[0], special=False))
            windows += cut
            owners += [request] * len(cut)
            counts.append(len(cut))
        found = iter(self._scored("loglikelihood_rolling", owners, windows))
        parts = [[next(found) for _ in range(count)] for count in counts]
        return [Rolling(sum(row["logprob"] for row in rows), sum(row["tokens"] for row in rows)) for rows in parts]

    # ---- scoring ----------------------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Positions of the longest request, the token after them not counted."""
        return self.engine.context - 1

    def _pair(self, context: str, continuation: str, doc: Any) -> tuple[list[int], int]:
        """The tokens of both, and where the continuation begins. Blanks at the context's end belong to the continuation,
        whose tokens are those of the whole behind the context's, as lm-eval's own models have it."""
        if isinstance(context, ChatPrompt):
            before = self.speech.encode(conversation_of(context, doc, self.effort), beginning_of(context), scoring=True)
            after = self.engine.text.encode(continuation, special=False)
        elif not context:
            before, after = [self.speech.first_token], self.engine.text.encode(continuation, special=False)
            if after[:1] == before and len(after) > 1:
                before, after = after[:1], after[1:]
        else:
            kept = context.rstrip()
            before = self.engine.text.encode(kept) if kept else [self.speech.first_token]
            after = self.engine.text.encode(context + continuation)[len(before) if kept else 0 :]
        tokens = (before + after)[-(self.max_length + 1) :]
        return tokens, max(len(tokens) - len(after), 1)

    def _windows(self, tokens: list[int]) -> list[tuple[list[int], int]]:
        """A long text in parts: every token is predicted once, the last part has a full context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(tokens, self.speech.first_token, self.max_length, 1)
        return [(list(before) + list(after), len(before)) for before, after in map(make_disjoint_window, windows)]

    def _scored(
        self, kind: str, requests: Sequence[Instance], pairs: Sequence[tuple[list[int], int]]
    ) -> list[dict[str, Any]]:
        """A row of the log for each pair."""

        def score(missing: list[int], usage: Usage) -> Iterator[tuple[int, dict[str, Any]]]:
            missing = sorted(missing, key=lambda i: pairs[i][0])
            step = SLAB if self.batch > 1 else 1
            for at in range(0, len(missing), step):
                slab = missing[at : at + step]
                began, before = time.perf_counter(), self.engine.computed
                scores = self.engine.score([pairs[i] for i in slab])
                usage.computed += self.engine.computed - before
                usage.positions += sum(len(pairs[i][0]) - 1 for i in slab)
                usage.seconds += time.perf_counter() - began
                yield from ((i, _score_row(found)) for i, found in zip(slab, scores, strict=True))

        keys = [request_key(kind, self.content_of(tokens), start=start) for tokens, start in pairs]
        sizes = {
            (request.task_name, key): len(tokens) for request, key, (tokens, _) in zip(requests, keys, pairs, strict=True)
        }
        for (task, _), size in sizes.items():
            self.usage[task or "unnamed"].prompt_tokens += size
        return self.scored(kind, requests, keys, score)

    # ---- generating -------------------------------------------------------------------------------------------------

    @property
    def has_chat(self) -> bool:
        return self.speech.template is not None

    @property
    def reasons(self) -> bool:
        return self.speech.channels

    def prompted(
        self, conversation: Conversation | None, text: str, beginning: str, room: int
    ) -> tuple[Prompt, tuple[str, ...]]:
        """Tokens. Of a plain text that is too long, the end."""
        if conversation is not None:
            tokens = self.speech.encode(conversation, beginning)
            return tokens, (("too_long",) if len(tokens) >= self.engine.context else ())
        tokens = self.engine.text.encode(text)
        left = self.engine.context - min(room, self.engine.context // 2)
        return (tokens[-left:], ("truncated",)) if len(tokens) > left else (tokens, ())

    def content_of(self, prompt: Prompt) -> bytes:
        return np.asarray(prompt, np.int32).tobytes()

    def single(self, jobs: list[Job], usage: Usage) -> Iterator[tuple[Job, Answer]]:
        jobs = sorted(jobs, key=lambda job: job.prompt)
        for i, tokens, text, finish in self.decode([Asked(job.prompt, job.rule, job.conversation) for job in jobs], usage):
            job = jobs[i]
            about = {"problems": job.problems, "prompt_tokens": len(job.prompt)}
            yield job, self.speech.answer(tokens, text, finish, job.rule.until, job.conversation, **about)

    def replies(self, asked: list[tuple[Conversation, Rule]], usage: Usage) -> Iterator[Reply]:
        """What was said before comes from the prefix cache."""
        prompts = [self.speech.encode(conversation) for conversation, _ in asked]
        fitting = sorted((i for i, p in enumerate(prompts) if len(p) < self.engine.context), key=lambda i: prompts[i])
        for i in set(range(len(asked))) - set(fitting):
            yield Reply(i, Answer("", Details(problems=("too_long", "no_final"), finish="length")), ())
        wanted = [Asked(prompts[i], asked[i][1], asked[i][0]) for i in fitting]
        for number, tokens, text, finish in self.decode(wanted, usage):
            i = fitting[number]
            conversation, rule = asked[i]
            answer = self.speech.answer(tokens, text, finish, rule.until, conversation, prompt_tokens=len(prompts[i]))
            yield Reply(i, answer, self.speech.said(tokens, text, conversation))

    def decode(self, asked: list[Asked], usage: Usage) -> Iterable[tuple[int, list[int], str, str]]:
        """Generates in batches; yields (index, tokens, text, finish) as requests end.

        Stop strings of models with channels are looked for in the final text only, not in the analysis.
        """
        requests = [
            Request(tokens, rule.max_tokens, rule.sampling, () if chat and self.speech.channels else rule.until)
            for tokens, rule, chat in asked
        ]
        tokens: dict[int, list[int]] = defaultdict(list)
        texts: dict[int, list[str]] = defaultdict(list)
        began, before = time.perf_counter(), self.engine.computed
        for i, token in self.engine.generate_batch(requests, self.batch):
            tokens[i].append(token.id)
            texts[i].append(token.text)
            if token.finish:
                usage.positions += len(requests[i].tokens) + len(tokens[i]) - 1
                usage.computed += self.engine.computed - before
                usage.seconds += time.perf_counter() - began
                yield i, tokens.pop(i), "".join(texts.pop(i)), token.finish
                began, before = time.perf_counter(), self.engine.computed


def _score_row(score: Scores) -> dict[str, Any]:
    return {
        "logprob": float(score.logprobs.sum(dtype="float64")),
        "greedy": bool(score.greedy.all()),
        "tokens": len(score.greedy),
    }
