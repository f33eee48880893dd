"""Our engine as a model of lm-eval: `simple_evaluate(model=EngineLM(engine), …)`, or `model="oss-tools"` by name.

Requests are taken task by task and, within one, in the order of their tokens, so that what they have in common (few-shot
examples, system prompt, the question of several choices) is computed once; decoding is batched.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from oss_tools.chat.messages import Conversation, Effort
from oss_tools.engine.engine import Engine, Request, Scores
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.harness.answers import Answer, Details
from oss_tools.harness.jobs import Asked, Job, Rule, Usage
from oss_tools.harness.log import AnswerLog, request_key
from oss_tools.harness.prompts import ChatPrompt, conversation_of, needs_chat
from oss_tools.harness.speech import Speech
from oss_tools.harness.texts import Rolling
from oss_tools.harness.turns import converse

MAX_TOKENS = 256  # generated, where neither the task nor the user says: lm-eval's own number
ANALYSIS_TOKENS = {
    "low": 1024,
    "medium": 4096,
    "high": 16384,
}  # room for reasoning, beside what the task allows for its answer
SLAB = 128  # scored requests between two writes to the log
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
IGNORED = {"num_return_sequences", "use_cache", "num_beams", "early_stopping", "pad_token_id", "max_length"}

Report = Callable[[str, int, int], None]  # task, requests done, of how many


@register_model("oss-tools")
class EngineLM(LM):
    """lm-eval's three methods over an engine.

    Attributes:
        usage: what each task's requests took.
        log: answers by request key.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        effort: Effort | None = None,
        batch: int = 16,
        max_tokens: int | None = None,
        seed: int = 0,
        log: AnswerLog | None = None,
        report: Report = lambda task, done, total: None,
    ) -> None:
        """
        Args:
            engine: a loaded model.
            effort: of reasoning; None takes the document's, or medium.
            batch: requests that share each pass of decoding.
            max_tokens: generated for one answer, analysis included; None takes the task's, and room for analysis beside it.
            seed: of sampled answers; each request draws from its own.
            log: where answers are kept, and found again.
            report: called as requests are done.
        """
        super().__init__()
        self.engine, self.speech = engine, Speech(engine)
        self.effort, self.batch, self.max_tokens, self.seed = effort, batch, max_tokens, seed
        self.log = AnswerLog() if log is None else log
        self.report = report
        self.usage: dict[str, Usage] = defaultdict(Usage)

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
        text = self.speech.render(conversation_of(prompt, None, self.effort), _beginning(prompt))
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

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """For (context, settings): an `Answer`."""
        seen: Counter[str] = Counter()
        jobs = [self._job(request, seen) for request in requests]
        done: dict[str, Answer] = {}
        for task, group in _by_task(jobs, [job.task for job in jobs]):
            done |= self._generated(task, {job.key: job for job in group})
            self.usage[task].repeated += len(group) - len({job.key for job in group})
        return [done[job.key] for job in jobs]

    # ---- scoring ----------------------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Positions of the longest request, the token after them not counted."""
        return self.engine.context - 1

    def _pair(self, context: str, continuation: str, doc: Any) -> tuple[list[int], int]:
        """The tokens of both, and where the continuation begins. Blanks at the context's end belong to the continuation,
        whose tokens are those of the whole behind the context's, as lm-eval's own models have it."""
        if isinstance(context, ChatPrompt):
            before = self.speech.encode(conversation_of(context, doc, self.effort), _beginning(context), scoring=True)
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
        keys = [request_key(kind, tokens, start=start) for tokens, start in pairs]
        tasks = [_task(request) for request in requests]
        for task, group in _by_task(list(range(len(pairs))), tasks):
            wanted = {keys[i]: i for i in group}
            missing = sorted((i for key, i in wanted.items() if key not in self.log), key=lambda i: pairs[i][0])
            usage, done = self.usage[task], len(wanted) - len(missing)
            usage.requests += len(wanted)
            usage.repeated += len(group) - len(wanted)
            usage.prompt_tokens += sum(len(pairs[i][0]) for i in wanted.values())
            self.report(task, done, len(wanted))
            step = SLAB if self.batch > 1 else 1
            for at in range(0, len(missing), step):
                slab = missing[at : at + step]
                began, before = time.perf_counter(), self.engine.computed
                scores = self.engine.score([pairs[i] for i in slab])
                usage.computed += self.engine.computed - before
                usage.positions += sum(len(pairs[i][0]) - 1 for i in slab)
                usage.seconds += time.perf_counter() - began
                for i, score in zip(slab, scores, strict=True):
                    self.log.add(keys[i], {"kind": kind, "task": task, "doc": requests[i].doc_id, **_score_row(score)})
                done += len(slab)
                self.report(task, done, len(wanted))
        return [self.log[key] for key in keys]

    # ---- generating -------------------------------------------------------------------------------------------------

    def _job(self, request: Instance, seen: Counter[str]) -> Job:
        prompt, settings = request.args[0], dict(request.args[1])
        environment = settings.pop("environment", None)
        conversation = None
        if isinstance(prompt, ChatPrompt):
            conversation = conversation_of(prompt, request.doc, self.effort)
            tokens = self.speech.encode(conversation, _beginning(prompt))
        else:
            if environment is not None or needs_chat(request.doc):
                raise BadCheckpoint(f"{_task(request)} is a conversation, which needs a chat template; leave this task out")
            tokens = self.engine.text.encode(prompt)
        rule = self._rule(settings, conversation)
        room = self.engine.context - min(rule.max_tokens, self.engine.context // 2)
        problems: tuple[str, ...] = ()
        if conversation is None and len(tokens) > room:
            tokens, problems = tokens[-room:], ("truncated",)
        elif len(tokens) >= self.engine.context:
            problems = ("too_long",)
        about = {**rule.settings(), "chat": conversation is not None, "environment": getattr(environment, "__name__", None)}
        if rule.sampling.temperature > 0:
            same = request_key("generate_until", tokens, **about)
            about["sample"] = seen[same]
            seen[same] += 1
            rule = Rule(rule.max_tokens, rule.until, _reseeded(rule.sampling, f"{same} {about['sample']} {self.seed}"))
        if environment is not None:
            about["doc"] = request.doc
        key = request_key("generate_until", tokens, **about)
        return Job(
            key, _task(request), request.doc_id, tokens, rule, conversation, environment, doc=request.doc, problems=problems
        )

    def _rule(self, settings: Mapping[str, Any], conversation: Conversation | None) -> Rule:
        """lm-eval's settings in our terms. Sampling needs `do_sample` or a temperature above 0, as in lm-eval."""
        left = {name: value for name, value in settings.items() if name not in IGNORED and value is not None}
        until = left.pop("until", [])
        lengths = [int(left.pop(name)) for name in LENGTHS if name in left]
        temperature = float(left.pop("temperature", 1.0 if left.get("do_sample") else 0.0))
        if not left.pop("do_sample", temperature > 0):
            temperature = 0.0
        known: dict[str, Any] = {
            name: left.pop(name) for name in ("top_k", "top_p", "min_p", "repetition_penalty") if name in left
        }
        if left:
            raise BadRecipe(f"generation settings that this engine has not: {', '.join(sorted(left))}")
        allowed = lengths[0] if lengths else MAX_TOKENS
        if conversation is not None and self.speech.channels:
            allowed += ANALYSIS_TOKENS[conversation.effort]
        sampling = (
            Sampling(temperature=temperature, **known) if temperature else Sampling(**_only(known, "repetition_penalty"))
        )
        return Rule(self.max_tokens or allowed, tuple([until] if isinstance(until, str) else until), sampling)

    def _generated(self, task: str, jobs: dict[str, Job]) -> dict[str, Answer]:
        """The answers to the distinct jobs of one task."""
        usage = self.usage[task]
        missing = [job for key, job in jobs.items() if key not in self.log]
        done = len(jobs) - len(missing)
        self.report(task, done, len(jobs))
        for job, answer in self._answer(sorted(missing, key=lambda job: job.tokens), usage):
            row = {
                "kind": "generate_until",
                "task": task,
                "doc": job.doc_id,
                "text": str(answer),
                **answer.details.to_json(),
            }
            self.log.add(job.key, row)
            done += 1
            self.report(task, done, len(jobs))
        answers = {key: Answer(self.log[key]["text"], Details.from_json(self.log[key])) for key in jobs}
        for answer in answers.values():
            _count(usage, answer.details)
        return answers

    def _answer(self, jobs: list[Job], usage: Usage) -> Iterable[tuple[Job, Answer]]:
        """Answers as they come."""
        for job in jobs:
            if "too_long" in job.problems:
                yield job, Answer("", Details(problems=(*job.problems, "no_final"), prompt_tokens=len(job.tokens)))
        fitting = [job for job in jobs if "too_long" not in job.problems]
        yield from self._single([job for job in fitting if job.environment is None], usage)
        yield from converse(self, [job for job in fitting if job.environment is not None], usage)

    def _single(self, jobs: list[Job], usage: Usage) -> Iterable[tuple[Job, Answer]]:
        for i, tokens, text, finish in self.decode([Asked(job.tokens, job.rule, job.conversation) for job in jobs], usage):
            job = jobs[i]
            about = {"problems": job.problems, "prompt_tokens": len(job.tokens)}
            yield job, self.speech.answer(tokens, text, finish, job.rule.until, job.conversation, **about)

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


def _beginning(prompt: ChatPrompt) -> str:
    return prompt.history[-1]["content"] if prompt.continued else ""


def _task(request: Instance) -> str:
    return request.task_name or "unnamed"


def _by_task(items: list[Any], tasks: list[str]) -> Iterable[tuple[str, list[Any]]]:
    """The items of each task, tasks in their order."""
    groups: dict[str, list[Any]] = {}
    for item, task in zip(items, tasks, strict=True):
        groups.setdefault(task, []).append(item)
    return groups.items()


def _score_row(score: Scores) -> dict[str, Any]:
    return {
        "logprob": float(score.logprobs.sum(dtype="float64")),
        "greedy": bool(score.greedy.all()),
        "tokens": len(score.greedy),
    }


def _reseeded(sampling: Sampling, content: str) -> Sampling:
    seed = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=6).digest(), "little")
    return Sampling(**{**asdict(sampling), "seed": seed})


def _only(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: settings[name]} if name in settings else {}


def _count(usage: Usage, details: Details) -> None:
    usage.requests += 1
    usage.answers += 1
    usage.prompt_tokens += details.prompt_tokens
    usage.tokens += details.tokens
    usage.no_final += "no_final" in details.problems
    usage.problems.update(details.problems)
