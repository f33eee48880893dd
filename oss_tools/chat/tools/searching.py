"""Where the browser searches: a SearXNG, or texts of a folder or a site that are searched here."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from urllib.parse import quote, urlencode, urlsplit

from oss_tools.chat.tools.base import ToolError
from oss_tools.chat.tools.fetching import Answer, Fetcher, shown
from oss_tools.chat.tools.html_text import Page, page_of_html, page_of_markdown, page_of_text, without_links
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.errors import BadCheckpoint, BadRequest

MOST_FILES, MOST_FILE, MOST_TEXT = 20_000, 2 << 20, 64 << 20  # files, bytes of one, characters of all
MOST_PAGES = 500  # of a site
KINDS = {  # of a folder's files
    **dict.fromkeys((".html", ".htm", ".xhtml"), "text/html"),
    **dict.fromkeys((".md", ".markdown"), "text/markdown"),
    **dict.fromkeys((".txt", ".rst"), "text/plain"),
}
WORD = re.compile(r"\w+")
SNIPPET = 300  # characters
K1, B = 1.2, 0.75  # of BM25


@dataclass(frozen=True)
class Found:
    """A result, with what it says of what was searched for."""

    url: str
    title: str
    snippet: str = ""


class Source(ABC):
    """Something that can be searched, and pages that can be opened.

    Attributes:
        name: as the model is told of it.
    """

    name: str

    @abstractmethod
    def search(self, query: str, count: int) -> list[Found]:
        """The best results first. Raises ToolError."""

    @abstractmethod
    def page(self, url: str) -> Page:
        """Raises ToolError."""

    @abstractmethod
    def raw(self, url: str) -> str:
        """A page's source. Raises ToolError."""


def page_of(answer: Answer) -> Page:
    if "html" in answer.kind:
        return page_of_html(answer.text, answer.url)
    return page_of_markdown(answer.text, answer.url) if "markdown" in answer.kind else page_of_text(answer.text, answer.url)


class Web(Source):
    """A SearXNG (https://docs.searxng.org/dev/search_api.html), whose settings must allow the format json."""

    name = "web"

    def __init__(self, address: str, engine: Fetcher, pages: Fetcher) -> None:
        """`engine` reaches the SearXNG, and nothing else; `pages` what may be opened. `address` "": nothing can be searched."""
        self._address, self._engine, self._pages = address.rstrip("/"), engine, pages

    def search(self, query: str, count: int) -> list[Found]:
        if not self._address:
            raise ToolError("there is nothing to search here; open an address")
        asked = urlencode({"q": query, "format": "json"}, errors="replace")
        answer = self._engine.get(f"{self._address}/search?{asked}", "application/json")
        try:
            content = parse_json(answer.text.encode("utf-8", "replace"), "the search engine's answer", 100_000)
        except BadCheckpoint:
            raise ToolError(f"{shown(self._address)} does not answer with JSON; allow it in SearXNG's settings") from None
        results = content.get("results")
        found = [entry for entry in results if isinstance(entry, dict)] if isinstance(results, list) else []
        texts = [[str(entry.get(key) or "") for key in ("url", "title", "content")] for entry in found[:count]]
        return [Found(url, title[:200] or url, text[:SNIPPET]) for url, title, text in texts if url]

    def page(self, url: str) -> Page:
        return page_of(self._pages.get(url))

    def raw(self, url: str) -> str:
        return self._pages.get(url).text


class Library(Source):
    """Texts that are read once, and searched by their words (Okapi BM25)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pages: dict[str, Page] | None = None
        self._lock = Lock()

    @abstractmethod
    def _texts(self) -> Iterator[Answer]:
        """All that there is."""

    def _read(self) -> dict[str, Page]:
        with self._lock:
            if self._pages is None:
                pages: dict[str, Page] = {}
                size = 0
                for answer in self._texts():
                    page = page_of(answer)
                    size += len(page.text)
                    if size > MOST_TEXT:
                        break
                    pages[page.url] = page
                self._index(pages)
                self._pages = pages
            return self._pages

    def _index(self, pages: dict[str, Page]) -> None:
        self._counts = {url: Counter(_words(f"{page.title} {page.text}")) for url, page in pages.items()}
        self._sizes = {url: counts.total() for url, counts in self._counts.items()}
        self._holders: dict[str, list[str]] = {}
        for url, counts in self._counts.items():
            for word in counts:
                self._holders.setdefault(word, []).append(url)

    def search(self, query: str, count: int) -> list[Found]:
        pages = self._read()
        words = list(dict.fromkeys(_words(query)))[:50]
        usual = sum(self._sizes.values()) / max(len(pages), 1) or 1.0
        scores: Counter[str] = Counter()
        for word in words:
            holders = self._holders.get(word, [])
            worth = math.log(1 + (len(pages) - len(holders) + 0.5) / (len(holders) + 0.5))
            for url in holders:
                times = self._counts[url][word]
                scores[url] += worth * times * (K1 + 1) / (times + K1 * (1 - B + B * self._sizes[url] / usual))  # type: ignore[assignment]
        best = sorted(scores, key=lambda url: (-scores[url], url))[:count]
        return [self._result(pages[url], words) for url in best]

    def _result(self, page: Page, words: list[str]) -> Found:
        wanted = set(words)
        lines = page.text.split("\n")
        place = max(range(len(lines)), key=lambda i: len(wanted & set(_words(lines[i]))))
        return Found(page.url, page.title, without_links(lines[place]).strip()[:SNIPPET])

    def page(self, url: str) -> Page:
        found = self._read().get(url.partition("#")[0])
        if found is None:
            raise ToolError(f"there is no page {shown(url)} in {self.name}")
        return found

    def raw(self, url: str) -> str:
        raise ToolError(f"{self.name} keeps texts only, no sources of pages")


class Folder(Library):
    """The texts below a folder: HTML, Markdown, plain. Their addresses are `file:///` and the path below the folder: nothing else
    can be opened, and links out of the folder lead nowhere."""

    def __init__(self, folder: Path) -> None:
        """Raises BadRequest if there is no such folder."""
        if not folder.is_dir():
            raise BadRequest(f"browser: {folder} is no folder")
        super().__init__(folder.resolve().name or "folder")
        self._folder = folder.resolve()

    def _texts(self) -> Iterator[Answer]:
        count = 0
        for place, folders, names in os.walk(self._folder):  # links are not followed
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(place, name)
                kind = KINDS.get(path.suffix.lower())
                if name.startswith(".") or kind is None:
                    continue
                count += 1
                if count > MOST_FILES:
                    return
                if (text := _text_of(path)) is not None:
                    below = path.relative_to(self._folder).as_posix()
                    yield Answer(f"file:///{quote(below)}", kind, text)


class Site(Library):
    """The pages of a site that can be reached from its first one, below its path."""

    def __init__(self, address: str, fetcher: Fetcher) -> None:
        super().__init__(urlsplit(address).netloc)
        self._address, self._fetcher = address, fetcher

    def _texts(self) -> Iterator[Answer]:
        below = self._address if self._address.endswith("/") else self._address.rpartition("/")[0] + "/"
        waiting, seen = deque([self._address]), {self._address}
        tries = 0
        while waiting and tries < MOST_PAGES:
            tries += 1
            try:
                answer = self._fetcher.get(waiting.popleft())
            except ToolError:
                if tries == 1:
                    raise
                continue
            yield answer
            for url in page_of(answer).links:
                if url.startswith(below) and url not in seen and len(seen) < 20 * MOST_PAGES:
                    seen.add(url)
                    waiting.append(url)


def _words(text: str) -> list[str]:
    return [word for word in WORD.findall(text.casefold()) if len(word) <= 64]


def _text_of(path: Path) -> str | None:
    """A file's text; None if it is a link, no regular file, too large, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not os.path.isfile(descriptor) or os.fstat(descriptor).st_size > MOST_FILE:
                return None
            return file.read(MOST_FILE).decode("utf-8-sig", "replace")
    except OSError:
        return None
