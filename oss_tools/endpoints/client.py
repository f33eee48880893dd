"""Asks a model behind an OpenAI-compatible endpoint, many requests at once.

Failures that may pass are tried again with growing pauses, or those that the server asks for. What the server is found to want
(another name of a field, one field less) holds for all requests after.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, TypeVar

from oss_tools import __version__
from oss_tools.download.addresses import is_exposed, shown, without_addresses
from oss_tools.download.bodies import in_time, whole_body
from oss_tools.download.failures import TRANSIENT, Transient
from oss_tools.download.library import get_session
from oss_tools.download.web import retry_after
from oss_tools.endpoints.endpoint import CHAT, Endpoint
from oss_tools.endpoints.keys import Blotter
from oss_tools.errors import BadSource, Unreachable

LARGEST_ANSWER = 4 << 20  # bytes of a response
LONGEST_PAUSE = 300.0  # seconds; a server that asks for more is left
RENAMED = {"max_tokens": "max_completion_tokens"}  # fields that newer models of OpenAI want under another name
MALFORMED = "malformed_answer"  # the code of an error
MOST_TOKENS = 1 << 53  # that a server may say it counted

T = TypeVar("T")
R = TypeVar("R")


class Malformed(Exception):
    """The server says that the model's answer was malformed and not sent on (`oss-tools serve` does): asked again it would be the
    same."""


class Stopped(Exception):
    """Another request has failed for good."""


@dataclass
class _Manners:
    """What the server has been found to want.

    Attributes:
        renamed: fields that go by another name.
        unknown: fields that it does not take.
        not_before: when it may be asked again, on the monotonic clock.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    not_before: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {self.renamed.get(name, name): value for name, value in body.items() if name not in self.unknown}


class Client:
    """Posts to an endpoint. Close it, or use it in a `with`.

    Attributes:
        endpoint: that is asked.
        dispensable: fields of a request that may be left out where the server does not know them, after a line that says so.
        blotted: clears a text of the key.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        dispensable: Iterable[str] = ("temperature",),
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], object] | None = None,
        retried: Callable[[], None] = lambda: None,
        kept: Callable[[], str] = lambda: "",
    ) -> None:
        """
        Args:
            say: is told, in a line, of every retry.
            sleep: between tries; None sleeps until another request fails for good.
            retried: called before each further try.
            kept: what the user has already, said where the server is given up.

        Raises BadRecipe.
        """
        self.endpoint, self.dispensable = endpoint, tuple(dispensable)
        self._base, self._say, self._retried, self._kept = endpoint.base(), say, retried, kept
        key = endpoint.key()
        self.blotted = Blotter(key or "")
        if key and is_exposed(self._base):
            say(f"{shown(endpoint.address())}: the {endpoint.role}'s key goes there without encryption; use https")
        headers = {"User-Agent": f"oss-tools/{__version__}", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._library = _http_library()
        limits = self._library.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._client = self._library.Client(headers=headers, timeout=endpoint.timeout, limits=limits, follow_redirects=False)
        self._manners = _Manners()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self.sleep = sleep or self._stop.wait

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def unknown_fields(self) -> frozenset[str]:
        """Fields of requests that the server was found not to take."""
        return frozenset(self._manners.unknown)

    # ---- many requests ----------------------------------------------------------------------------------------------

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` returns for each item, as they end, so many at once as the endpoint allows. The first failure stops the
        others and is raised."""
        self._stop.clear()
        self._failure = None

        def run(item: T) -> R | None:
            try:
                return work(item)
            except Stopped:
                return None
            except Exception as failure:  # it is raised below
                with self._lock:
                    self._failure = self._failure or failure
                self._stop.set()
                return None

        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            futures = [pool.submit(run, item) for item in items]
            try:
                for future in as_completed(futures):
                    if self._failure is not None:
                        raise self._failure
                    yield future.result()  # type: ignore[misc]
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # ---- one request ------------------------------------------------------------------------------------------------

    def post(
        self,
        body: Mapping[str, Any],
        read: Callable[[Any], R],
        path: str = CHAT,
        began: Callable[[], object] = lambda: None,
    ) -> R:
        """What `read` makes of the JSON that answers a request; it raises Transient for what is none, as of a proxy in trouble.
        `began`: called as each try is sent.

        Raises BadSource if the server refuses, Malformed if the model's answer was none, Unreachable if it does not answer,
        Stopped if another request failed for good.
        """
        failures = 0
        while True:
            if self._stop.is_set():
                raise Stopped
            self._wait_until_allowed()
            try:
                began()
                return read(self._answer(body, path))
            except Transient as failure:
                failures += 1
                self._retried()
                self._back_off(failure, failures, path)

    def _back_off(self, failure: Transient, failures: int, path: str) -> None:
        """Waits; what a server asks for holds for all requests. Raises Unreachable when it is time to give up."""
        pause, where = failure.pause, shown(self._base + path)
        if failures >= self.endpoint.tries or (pause or 0) > LONGEST_PAUSE:
            asked = (
                f" and asks to wait {pause:.0f} s"
                if pause is not None and pause > LONGEST_PAUSE
                else f", {failures} times in a row"
            )
            raise Unreachable("; ".join(filter(None, (f"{where}: {failure}{asked}", self._kept()))))
        if pause is None:
            pause = min(2.0 ** (failures - 1), 60.0) * random.uniform(0.5, 1.0)
        else:
            with self._manners.lock:
                self._manners.not_before = max(self._manners.not_before, time.monotonic() + pause)
        self._say(f"{where}: {failure}; trying again in {pause:.1f} s")
        self.sleep(pause)

    def _wait_until_allowed(self) -> None:
        pause = self._manners.not_before - time.monotonic()
        if pause > 0:
            self.sleep(pause)

    def _answer(self, body: Mapping[str, Any], path: str) -> Any:
        """The JSON of one answer. Raises Transient, BadSource."""
        sent = self._manners.applied(body)
        status, headers, content = self._post(sent, path)
        if status == 400 and self._learn(body, sent, content):
            return self._answer(body, path)
        if status == 502 and _code(content) == MALFORMED:
            raise Malformed(self._reason(content, status))
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", retry_after(headers))
        if status != 200:
            said = self._reason(content, status)
            raise BadSource(f"{shown(self._base + path)}: the {self.endpoint.role} answers {status}: {said}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Transient("an answer that is no JSON") from None

    def _post(self, body: Mapping[str, Any], path: str) -> tuple[int, Any, bytes]:
        """Status, headers and body; the whole of it within the time limit."""
        seconds, url = self.endpoint.timeout, self._base + path

        def post() -> tuple[int, Any, bytes]:
            with self._client.stream("POST", url, json=body, auth=None) as response:
                return response.status_code, response.headers, whole_body(response, url, LARGEST_ANSWER, seconds)

        try:
            return in_time(post, seconds)
        except (TimeoutError, self._library.TimeoutException):
            raise Transient(f"no whole answer within {seconds:g} s") from None
        except (self._library.HTTPError, self._library.InvalidURL, self._library.StreamError) as error:
            said = self.blotted(without_addresses(str(error)))[:200]
            raise Transient(said or type(error).__name__) from None

    def _learn(self, body: Mapping[str, Any], sent: Mapping[str, Any], content: bytes) -> bool:
        """Whether a refusal says that a field of what was sent is not known; it is not sent again."""
        text = content.decode(errors="replace")
        for name, other in RENAMED.items():
            if other in text and name in sent:
                self._manners.renamed[name] = other
                return True
        for name in self.dispensable:
            if name in text and name in sent:
                with self._manners.lock:
                    told, self._manners.unknown = name in self._manners.unknown, self._manners.unknown | {name}
                if not told:
                    self._say(f"{shown(self._base)}: the server does not take '{name}'; it is left out")
                return True
        return self._manners.applied(body) != sent  # another request has learnt it meanwhile

    def _reason(self, content: bytes, status: int) -> str:
        """A server's own words, cut short, without the key, with what to do where that is plain."""
        words = None
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(content)
            error = answer.get("error") if isinstance(answer, dict) else None
            words = error.get("message") if isinstance(error, dict) else error
            if not isinstance(words, str):
                words = json.dumps(answer, ensure_ascii=False)  # without escapes, in which the key could hide
        named = " and ".join(dict.fromkeys(self.endpoint.options[:2]))
        hint = {401: "check the key", 403: "check the key", 404: f"check {named}"}.get(status)
        said = self.blotted(words if isinstance(words, str) and words else content.decode(errors="replace"))
        return "; ".join(filter(None, (self.blotted(" ".join(said.split()))[:200], hint)))


def _code(content: bytes) -> Any:
    """The code of an error, if there is one."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return json.loads(content)["error"].get("code")
    return None


def tokens_of(usage: Any, name: str) -> int:
    """A count of tokens as a server gives it; 0 for what is none."""
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else 0


def text_of(content: Any) -> str:
    """The text of a message's content, in one piece or, as some servers give it, in parts; "" of a refusal, which has none."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type", "text") == "text"]
        content = "".join(part for part in texts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _http_library() -> Any:
    """httpx or its successor: the one that huggingface_hub uses."""
    return importlib.import_module(type(get_session()).__module__.partition(".")[0])
