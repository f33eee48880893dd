"""Asks a model behind an OpenAI-compatible endpoint for grades, many at once, and keeps every grade that it gave.

Failures that may pass are tried again with growing pauses, or those that the server asks for; an answer that is no grade
(`grades`) is asked for again and then counted apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from oss_tools import __version__
from oss_tools.download.addresses import is_exposed, shown, without_addresses
from oss_tools.download.bodies import in_time, whole_body
from oss_tools.download.failures import TRANSIENT, Transient
from oss_tools.download.library import get_session
from oss_tools.download.web import retry_after
from oss_tools.errors import BadRecipe, BadSource, Unreachable
from oss_tools.harness.grader_settings import GraderSettings as GraderSettings
from oss_tools.harness.grades import Grade, GradeCache, read_grade
from oss_tools.harness.keys import Blotter

LARGEST_ANSWER = 4 << 20  # bytes of a response
LONGEST_PAUSE = 300.0  # seconds; a server that asks for more is left
CHARACTERS_A_TOKEN = 4  # of English, about; for estimates
MOST_TOKENS = 1 << 53  # that a server may say it counted


@dataclass
class Tally:
    """What grading took.

    Attributes:
        graded: asked and answered in this run; `kept`: found among the grades of earlier runs.
        ungraded: for which the grader gave no grade, however often it was asked.
        retries: after failures; `malformed`: answers that were no grades.
        prompt_tokens, tokens: as the server counts them.
    """

    graded: int = 0
    kept: int = 0
    ungraded: int = 0
    retries: int = 0
    malformed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Stopped(Exception):
    """Another request has failed for good."""


@dataclass
class _Manners:
    """What the server has been found to want."""

    length_field: str = "max_tokens"
    temperature: bool = True
    not_before: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Grader:
    """Grades prompts. Close it, or use it in a `with`.

    Attributes:
        tally: what grading took so far.
    """

    def __init__(
        self,
        settings: GraderSettings,
        cache: GradeCache | None = None,
        *,
        report: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """
        Args:
            cache: of earlier grades; they are not asked for again.
            report: called with grades done and wanted.
            say: is told, in a line, of every retry.
            sleep: between tries; None sleeps until another request fails for good.

        Raises BadRecipe.
        """
        self.settings, self.cache = settings, GradeCache() if cache is None else cache
        self.report, self.say = report, say
        self.tally = Tally()
        self._endpoint = settings.endpoint()
        key = settings.key()
        self._blotted = Blotter(key or "")
        if key and is_exposed(self._endpoint):
            say(f"{shown(self._endpoint)}: the grader's key goes there without encryption; use https")
        headers = {"User-Agent": f"oss-tools/{__version__}", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._library = _http_library()
        limits = self._library.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        self._client = self._library.Client(headers=headers, timeout=settings.timeout, limits=limits, follow_redirects=False)
        self._manners = _Manners()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self.sleep = sleep or self._stop.wait

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        self.cache.close()

    def key_of(self, prompt: str) -> str:
        """Names a grade: who gives it, and all that it is given on."""
        return hashlib.sha256(json.dumps([self.settings.model, prompt]).encode()).hexdigest()

    def grade(self, prompts: Sequence[str]) -> list[Grade | None]:
        """The grades of prompts, in their order; None where the grader gave none.

        Raises BadSource if the server refuses, Unreachable if it does not answer. The grades that came until then are kept.
        """
        keys = [self.key_of(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self.cache.get(key) is None}
        done = len(set(keys)) - len(missing)
        self.tally.kept += done
        total = len(set(keys))
        self.report(done, total)
        self._stop.clear()
        self._failure = None
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = [pool.submit(self._work, key, prompt) for key, prompt in missing.items()]
            try:
                for _ in as_completed(futures):
                    done += 1
                    if self._failure is not None:
                        raise self._failure
                    self.report(done, total)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [self.cache.get(key) for key in keys]

    def _work(self, key: str, prompt: str) -> None:
        """Gets one grade, unless another request has failed for good; what fails first is what is reported."""
        try:
            self._ask_until_graded(key, prompt)
        except Stopped:
            return
        except Exception as failure:  # it is raised in `grade`
            with self._lock:
                self._failure = self._failure or failure
            self._stop.set()

    def _ask_until_graded(self, key: str, prompt: str) -> None:
        for attempt in range(self.settings.malformed_tries):
            grade = read_grade(self._ask_patiently(prompt, attempt))
            if grade is not None:
                grade = Grade(grade.criteria_met, self._blotted(grade.explanation))
                self.cache.add(key, grade, self.settings.model)
                self._count(graded=1)
                return
            self._count(malformed=1)
        self._count(ungraded=1)

    def _ask_patiently(self, prompt: str, attempt: int) -> str:
        failures = 0
        while True:
            if self._stop.is_set():
                raise Stopped
            self._wait_until_allowed()
            try:
                return self._ask(prompt, attempt)
            except Transient as failure:
                failures += 1
                self._count(retries=1)
                self._back_off(failure, failures)

    def _back_off(self, failure: Transient, failures: int) -> None:
        """Waits; what a server asks for holds for all requests. Raises Unreachable when it is time to give up."""
        pause = failure.pause
        if failures >= self.settings.tries or (pause or 0) > LONGEST_PAUSE:
            asked = (
                f" and asks to wait {pause:.0f} s"
                if pause is not None and pause > LONGEST_PAUSE
                else f", {failures} times in a row"
            )
            kept = f"{len(self.cache)} grades are kept, and the same command goes on from them"
            raise Unreachable(f"{shown(self._endpoint)}: {failure}{asked}; {kept}")
        if pause is None:
            pause = min(2.0 ** (failures - 1), 60.0) * random.uniform(0.5, 1.0)
        else:
            with self._manners.lock:
                self._manners.not_before = max(self._manners.not_before, time.monotonic() + pause)
        self.say(f"{shown(self._endpoint)}: {failure}; trying again in {pause:.1f} s")
        self.sleep(pause)

    def _wait_until_allowed(self) -> None:
        pause = self._manners.not_before - time.monotonic()
        if pause > 0:
            self.sleep(pause)

    def _ask(self, prompt: str, attempt: int) -> str:
        """The text of one answer. Raises Transient, BadSource."""
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": prompt}],
            self._manners.length_field: self.settings.max_tokens,
        }
        if self._manners.temperature:
            body["temperature"] = 0.0 if attempt == 0 else 1.0  # the same question would get the same malformed answer
        status, headers, content = self._post(body)
        if status == 400 and self._learn(body, content):
            return self._ask(prompt, attempt)
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", retry_after(headers))
        if status != 200:
            raise BadSource(f"{shown(self._endpoint)}: the grader answers {status}: {self._reason(content, status)}")
        return self._text(content)

    def _post(self, body: dict[str, Any]) -> tuple[int, Any, bytes]:
        """Status, headers and body; the whole of it within the time limit."""
        seconds = self.settings.timeout

        def post() -> tuple[int, Any, bytes]:
            with self._client.stream("POST", self._endpoint, json=body, auth=None) as response:
                return response.status_code, response.headers, whole_body(response, self._endpoint, LARGEST_ANSWER, seconds)

        try:
            return in_time(post, seconds)
        except (TimeoutError, self._library.TimeoutException):
            raise Transient(f"no whole answer within {seconds:g} s") from None
        except (self._library.HTTPError, self._library.InvalidURL, self._library.StreamError) as error:
            said = self._blotted(without_addresses(str(error)))[:200]
            raise Transient(said or type(error).__name__) from None

    def _learn(self, body: Mapping[str, Any], content: bytes) -> bool:
        """Whether a refusal says that a field of this request is not known; it is not sent again."""
        text = content.decode(errors="replace")
        if "max_completion_tokens" in text and "max_tokens" in body:
            self._manners.length_field = "max_completion_tokens"
            return True
        if "temperature" in text and "temperature" in body:
            self._manners.temperature = False
            return True
        return False

    def _text(self, content: bytes) -> str:
        """The message of an answer. Raises Transient if it is none, as of a proxy in trouble."""
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"]["content"]
            usage = answer.get("usage") or {}
            self._count(prompt_tokens=_tokens(usage.get("prompt_tokens")), tokens=_tokens(usage.get("completion_tokens")))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Transient("an answer that is no chat completion") from None
        if isinstance(text, list):  # in parts, as some servers give it
            texts = [part.get("text") for part in text if isinstance(part, Mapping) and part.get("type", "text") == "text"]
            text = "".join(part for part in texts if isinstance(part, str))
        return text if isinstance(text, str) else ""  # a refusal has none

    def _reason(self, content: bytes, status: int) -> str:
        """A server's own words, cut short, without the key, with what to do where that is plain."""
        words = None
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(content)
            error = answer.get("error") if isinstance(answer, dict) else None
            words = error.get("message") if isinstance(error, dict) else error
            if not isinstance(words, str):
                words = json.dumps(answer, ensure_ascii=False)  # without escapes, in which the key could hide
        hint = {401: "check the key", 403: "check the key", 404: "check --grader-url and --grader-model"}.get(status)
        said = self._blotted(words if isinstance(words, str) and words else content.decode(errors="replace"))
        return "; ".join(filter(None, (self._blotted(" ".join(said.split()))[:200], hint)))

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self.tally, name, getattr(self.tally, name) + count)


def about_tokens(text: str) -> int:
    """An estimate of the tokens of a text."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


def _tokens(count: Any) -> int:
    """A count of tokens as a server gives it; 0 for what is none."""
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


def _http_library() -> Any:
    """httpx or its successor: the one that huggingface_hub uses."""
    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


_CURRENT: ContextVar[Grader | None] = ContextVar("grader", default=None)


@contextlib.contextmanager
def grading_with(grader: Grader) -> Iterator[Grader]:
    """Within it, tasks that need a grader find this one."""
    token = _CURRENT.set(grader)
    try:
        yield grader
    finally:
        _CURRENT.reset(token)


def current_grader() -> Grader:
    """Raises BadRecipe if there is none."""
    grader = _CURRENT.get()
    if grader is None:
        raise BadRecipe("HealthBench is graded by a model: name one with --grader-url and --grader-model")
    return grader
