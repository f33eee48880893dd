"""The tools `browser.search`, `browser.open` and `browser.find`, as gpt-oss was trained with them.

What they take, what they show and what they say of faults is that of openai/gpt-oss (`gpt_oss/tools/simple_browser`). Each
display begins with a cursor, `[3]`; lines are numbered, and an answer cites them as 【3†L4-L7】.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import quote, unquote

from oss_tools.chat.tools.base import MAX_OUTPUT, Tool, ToolError
from oss_tools.chat.tools.html_text import Page, link, page_of_text, without_links
from oss_tools.chat.tools.searching import Source

WIDTH = 80  # characters of a line
LONGEST_LINE, LONGEST_WORD = 10_000, 2000
RESULTS = 10
MOST_RESULTS = 20
MOST_MATCHES, MATCH_LINES = 50, 4
BEFORE = 4  # lines that are shown before the place that a link leads to
MOST_PAGES = 200  # that one conversation may open
CITATION = re.compile(r"【(\d{1,6})†(L\d{1,9}(?:-L\d{1,9})?)[^】]{0,200}】")
NUMBER, TEXT = {"type": "number", "default": -1}, {"type": "string"}

SEARCH: Mapping[str, Any] = {
    "name": "browser.search",
    "description": "Searches for information related to `query` and displays `topn` results.",
    "parameters": {
        "type": "object",
        "properties": {"query": TEXT, "topn": {"type": "number", "default": 10}, "source": TEXT},
        "required": ["query"],
    },
}
OPEN: Mapping[str, Any] = {
    "name": "browser.open",
    "description": "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` "
    "lines.\n"
    "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
    "If `cursor` is not provided, the most recent page is implied.\n"
    "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
    "If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the most relevant "
    "passage, if available.\n"
    "Use this function without `id` to scroll to a new location of an opened page.",
    "parameters": {
        "type": "object",
        "properties": {
            "id": {"type": ["number", "string"], "default": -1},
            "cursor": NUMBER,
            "loc": NUMBER,
            "num_lines": NUMBER,
            "view_source": {"type": "boolean", "default": False},
            "source": TEXT,
        },
    },
}
FIND: Mapping[str, Any] = {
    "name": "browser.find",
    "description": "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
    "parameters": {"type": "object", "properties": {"pattern": TEXT, "cursor": NUMBER}, "required": ["pattern"]},
}


@dataclass(frozen=True)
class Citation:
    """A place in an answer that names its source: characters start..stop of the answer, the page, the lines of it."""

    start: int
    stop: int
    url: str
    title: str
    lines: str


@dataclass
class Browser:
    """The pages that one conversation has opened; a cursor is a number among them."""

    source: Source
    pages: list[Page] = field(default_factory=list)

    def search(self, query: str, topn: int = RESULTS) -> str:
        found = self.source.search(query, max(1, min(topn, MOST_RESULTS)))
        lines = [f"  * {link(i, each.title, each.url)} {each.snippet}".rstrip() for i, each in enumerate(found)]
        text = "\n".join(["# Search Results", "", *lines]) if found else f"No results for `{query}`"
        return self._shown(Page("", query, text, [each.url for each in found], is_found=True))

    def open(
        self, target: int | str = -1, cursor: int = -1, loc: int = -1, lines: int = -1, view_source: bool = False
    ) -> str:
        if isinstance(target, str):
            return self._shown(self._source_of(target) if view_source else self.source.page(target), max(loc, 0), lines)
        here = self._page(cursor)
        if target < 0 and not view_source:
            return self._shown(here, max(loc, 0), lines)
        if target >= len(here.links):
            raise ToolError(f"Invalid link id `{target}`.")
        url = here.links[target] if target >= 0 else here.url
        if view_source:
            return self._shown(self._source_of(url), max(loc, 0), lines)
        known = next((page for page in self.pages if page.url == url and not page.is_found), None)
        place = here.places.get(target, 0)
        start = loc if loc >= 0 else place - BEFORE if place > BEFORE else place
        return self._shown(known or self.source.page(url), start, lines)

    def find(self, pattern: str, cursor: int = -1) -> str:
        page = self._page(cursor)
        if page.is_found:
            raise ToolError("Cannot run `find` on search results page or find results page")
        lines = without_links("\n".join(wrapped(page.text))).split("\n")
        sought, at = pattern.lower(), 0
        parts: list[str] = []
        places: dict[int, int] = {}
        while at < len(lines) and len(parts) < MOST_MATCHES:
            if sought in lines[at].lower():
                places[len(parts)] = at
                parts.append("\n".join([f"# 【{len(parts)}†match at L{at}】", *lines[at : at + MATCH_LINES]]))
                at += MATCH_LINES
            else:
                at += 1
        text = "\n\n".join(parts) or f"No `find` results for pattern: `{pattern}`"
        title = f"Find results for text: `{pattern}` in `{page.title}`"
        url = f"{page.url}/find?pattern={quote(pattern)}"
        return self._shown(Page(url, title, text, [page.url] * len(parts), places, is_found=True))

    def citations(self, answer: str) -> list[Citation]:
        """The sources that an answer names, of the pages of this conversation."""
        return [
            Citation(match.start(), match.end(), page.url, page.title, match[2])
            for match in CITATION.finditer(answer)
            if int(match[1]) < len(self.pages) and (page := self.pages[int(match[1])]).url
        ]

    def _source_of(self, url: str) -> Page:
        return page_of_text(self.source.raw(url), f"view-source:{url}", f"view-source:{url}")

    def _page(self, cursor: int) -> Page:
        if not self.pages:
            raise ToolError("No pages to access!")
        if cursor >= len(self.pages):
            raise ToolError(f"Cursor `{cursor}` is out of range. Available cursor indices: [0 - {len(self.pages) - 1}].")
        return self.pages[cursor if cursor >= 0 else -1]

    def _shown(self, page: Page, start: int = 0, most: int = -1) -> str:
        """The page from a line on, as it is shown, with a new cursor."""
        lines = wrapped(page.text)
        if start >= len(lines):
            raise ToolError(f"Invalid location parameter: `{start}`. Cannot exceed page maximum of {len(lines) - 1}.")
        if len(self.pages) >= MOST_PAGES:
            raise ToolError(f"{MOST_PAGES} pages were opened, and no more can be")
        self.pages.append(page)
        shown: list[str] = []
        room = MAX_OUTPUT
        for number, line in zip(count(start), lines[start : start + most if most > 0 else None], strict=False):
            room -= len(line) + 8
            if room < 0 and shown:
                break
            shown.append(f"L{number}: {line}")
        url = unquote(page.url)
        head = f"{page.title[:300]} ({url[:1021] + '...' if len(url) > 1024 else url})" if url else page.title[:300]
        where = f"**viewing lines [{start} - {start + len(shown) - 1}] of {len(lines) - 1}**"
        return "\n".join([f"[{len(self.pages) - 1}] {head}", where, "", *shown])


class BrowserTool(Tool):
    """One of the browser's three tools."""

    def __init__(self, schema: Mapping[str, Any], browser: Browser) -> None:
        self.schema, self.browser = schema, browser

    def fresh(self, made: dict[int, Any]) -> Tool:
        browser = made.setdefault(id(self.browser), Browser(self.browser.source))
        return BrowserTool(self.schema, browser)

    def run(self, arguments: Mapping[str, Any]) -> str:
        if self.schema is SEARCH:
            return self.browser.search(arguments["query"], _whole(arguments, "topn", RESULTS))
        if self.schema is FIND:
            return self.browser.find(arguments["pattern"], _whole(arguments, "cursor"))
        target = arguments.get("id", -1)
        return self.browser.open(
            target if isinstance(target, str) else _whole(arguments, "id"),
            _whole(arguments, "cursor"),
            _whole(arguments, "loc"),
            _whole(arguments, "num_lines"),
            bool(arguments.get("view_source")),
        )


def browser_tools(source: Source) -> list[Tool]:
    """The three tools, which share what they have opened."""
    browser = Browser(source)
    return [BrowserTool(schema, browser) for schema in (SEARCH, OPEN, FIND)]


def wrapped(text: str) -> list[str]:
    """The lines of a text, none longer than WIDTH."""
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) > LONGEST_LINE or re.search(rf"\S{{{LONGEST_WORD}}}", line):  # textwrap would take too long
            lines += [line[at : at + WIDTH] for at in range(0, len(line), WIDTH)]
        else:
            lines += textwrap.wrap(line, WIDTH, replace_whitespace=False, drop_whitespace=False) or [""]
    return lines


def _whole(arguments: Mapping[str, Any], name: str, default: int = -1) -> int:
    value = arguments.get(name, default)
    if value != int(value) or abs(value) > 1 << 31:
        raise ToolError(f"argument {name!r} must be a whole number")
    return int(value)
