"""What every model is for lm-eval, wherever it runs: requests become jobs, answers are kept and found again.

Requests are taken task by task. A model says how it is prompted, how it scores and how it replies.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from oss_tools.chat.messages import Conversation, Effort
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.harness.answers import Answer, Details
from oss_tools.harness.jobs import ANALYSIS_TOKENS, LENGTHS, MAX_TOKENS, Job, Prompt, Reply, Rule, Share, ShareDone, Usage
from oss_tools.harness.log import AnswerLog, request_key
from oss_tools.harness.prompts import ChatPrompt, conversation_of, needs_chat
from oss_tools.harness.turns import converse

IGNORED = {"num_return_sequences", "use_cache", "num_beams", "early_stopping", "pad_token_id", "max_length"}

Report = Callable[[str, int, int], None]  # task, requests done, of how many


class Answerer(LM):
    """A model of lm-eval.

    Attributes:
        usage: what each task's requests took.
        log: answers by request key.
        prompts: what was sent, by task and document.
    """

    def __init__(
        self,
        *,
        effort: Effort | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        log: AnswerLog | None = None,
        report: Report = lambda task, done, total: None,
        share: Share | None = None,
    ) -> None:
        """
        Args:
            effort: of reasoning; None takes the document's, or medium.
            max_tokens: generated for one answer, analysis included; None takes the task's, and room for analysis beside it.
            seed: of sampled answers; each request draws from its own.
            log: where answers are kept, and found again.
            report: called as requests are done.
            share: of one task's requests: these alone are answered, and then ShareDone is raised.
        """
        super().__init__()
        self.effort, self.max_tokens, self.seed = effort, max_tokens, seed
        self.log = AnswerLog() if log is None else log
        self.report, self.share = report, share
        self.usage: dict[str, Usage] = defaultdict(Usage)
        self.prompts: dict[tuple[str, int | None], Prompt] = {}

    def renumber(self, drawn: Mapping[str, Sequence[int]]) -> None:
        """Prompts by the numbers of documents in their sets, where some were drawn: requests number those by themselves."""
        self.prompts = {
            (task, drawn[task][doc] if task in drawn and doc is not None else doc): sent
            for (task, doc), sent in self.prompts.items()
        }

    # ---- what a model says of itself --------------------------------------------------------------------------------

    @property
    @abstractmethod
    def has_chat(self) -> bool:
        """Whether it takes conversations."""

    @property
    @abstractmethod
    def reasons(self) -> bool:
        """Whether its answers may have reasoning before them, which needs room."""

    @abstractmethod
    def prompted(
        self, conversation: Conversation | None, text: str, beginning: str, room: int
    ) -> tuple[Prompt, tuple[str, ...]]:
        """What is sent for a conversation (and the beginning of its answer) or a text, so that `room` tokens are left; and what
        is wrong with it: "too_long", "truncated"."""

    @abstractmethod
    def content_of(self, prompt: Prompt) -> bytes:
        """What tells prompts apart."""

    @abstractmethod
    def single(self, jobs: list[Job], usage: Usage) -> Iterator[tuple[Job, Answer]]:
        """The answers to jobs of one turn, as they come."""

    @abstractmethod
    def replies(self, asked: list[tuple[Conversation, Rule]], usage: Usage) -> Iterator[Reply]:
        """The next turn of each conversation, as they come."""

    # ---- generating -------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """For (context, settings): an `Answer`."""
        seen: Counter[str] = Counter()
        jobs = [self._job(request, seen) for request in requests]
        done: dict[str, Answer] = {}
        for task, group in by_task(jobs, [job.task for job in jobs]):
            done |= self._generated(task, {job.key: job for job in group})
            self.usage[task].repeated += len(group) - len({job.key for job in group})
        return [done[job.key] for job in jobs]

    def _job(self, request: Instance, seen: Counter[str]) -> Job:
        prompt, settings = request.args[0], dict(request.args[1])
        environment = settings.pop("environment", None)
        conversation = conversation_of(prompt, request.doc, self.effort) if isinstance(prompt, ChatPrompt) else None
        if conversation is None and (environment is not None or needs_chat(request.doc)):
            raise BadCheckpoint(f"{task_of(request)} is a conversation, which needs a chat template; leave this task out")
        rule = self._rule(settings, conversation)
        sent, problems = self.prompted(conversation, str(prompt), beginning_of(prompt), rule.max_tokens)
        self.prompts[task_of(request), request.doc_id] = sent
        content = self.content_of(sent)
        about = {**rule.settings(), "chat": conversation is not None, "environment": environment and environment.identity()}
        if rule.sampling.temperature > 0:
            same = request_key("generate_until", content, **about)
            about["sample"] = seen[same]
            seen[same] += 1
            rule = Rule(rule.max_tokens, rule.until, _reseeded(rule.sampling, f"{same} {about['sample']} {self.seed}"))
        if environment is not None:
            about["doc"] = request.doc
        key = request_key("generate_until", content, **about)
        return Job(key, task_of(request), request.doc_id, sent, rule, conversation, environment, request.doc, problems)

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
        if conversation is not None and self.reasons:
            allowed += ANALYSIS_TOKENS[conversation.effort]
        sampling = (
            Sampling(temperature=temperature, **known) if temperature else Sampling(**_only(known, "repetition_penalty"))
        )
        return Rule(self.max_tokens or allowed, tuple([until] if isinstance(until, str) else until), sampling)

    def _generated(self, task: str, jobs: dict[str, Job]) -> dict[str, Answer]:
        """The answers to the distinct jobs of one task."""
        usage = self.usage[task]
        chosen = self.share.of(list(jobs)) if self.share else jobs
        missing = [jobs[key] for key in chosen if key not in self.log]
        done = len(jobs) - len(missing)
        self.report(task, done, len(jobs))
        for job, answer in self._answer(missing, usage):
            about = {"kind": "generate_until", "task": task, "doc": job.doc_id}
            self.log.add(job.key, {**about, "text": str(answer), **answer.details.to_json()})
            done += 1
            self.report(task, done, len(jobs))
        if self.share:
            raise ShareDone
        answers = {key: Answer(self.log[key]["text"], Details.from_json(self.log[key])) for key in jobs}
        for answer in answers.values():
            _count(usage, answer.details)
        return answers

    def _answer(self, jobs: list[Job], usage: Usage) -> Iterable[tuple[Job, Answer]]:
        """Answers as they come."""
        for job in jobs:
            if "too_long" in job.problems:
                size = len(job.prompt) if isinstance(job.prompt, list) else 0
                yield job, Answer("", Details(problems=(*job.problems, "no_final"), prompt_tokens=size))
        fitting = [job for job in jobs if "too_long" not in job.problems]
        yield from self.single([job for job in fitting if job.environment is None], usage)
        yield from converse(self, [job for job in fitting if job.environment is not None], usage)

    # ---- scoring ----------------------------------------------------------------------------------------------------

    def scored(
        self,
        kind: str,
        requests: Sequence[Instance],
        keys: Sequence[str],
        score: Callable[[list[int], Usage], Iterable[tuple[int, dict[str, Any]]]],
    ) -> list[dict[str, Any]]:
        """A row of the log for each request. `score`: scores the requests of these numbers, and gives each row as it comes."""
        for task, group in by_task(list(range(len(keys))), [task_of(request) for request in requests]):
            wanted = {keys[i]: i for i in group}
            chosen = self.share.of(list(wanted)) if self.share else wanted
            missing = [wanted[key] for key in chosen if key not in self.log]
            usage, done = self.usage[task], len(wanted) - len(missing)
            usage.requests += len(wanted)
            usage.repeated += len(group) - len(wanted)
            self.report(task, done, len(wanted))
            for i, row in score(missing, usage):
                self.log.add(keys[i], {"kind": kind, "task": task, "doc": requests[i].doc_id, **row})
                done += 1
                self.report(task, done, len(wanted))
            if self.share:
                raise ShareDone
        return [self.log[key] for key in keys]


def beginning_of(prompt: str) -> str:
    """Of an answer: what an assistant is to go on with."""
    return prompt.history[-1]["content"] if isinstance(prompt, ChatPrompt) and prompt.continued else ""


def task_of(request: Instance) -> str:
    return request.task_name or "unnamed"


def by_task(items: list[Any], tasks: list[str]) -> Iterable[tuple[str, list[Any]]]:
    """The items of each task, tasks in their order."""
    groups: dict[str, list[Any]] = {}
    for item, task in zip(items, tasks, strict=True):
        groups.setdefault(task, []).append(item)
    return groups.items()


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
