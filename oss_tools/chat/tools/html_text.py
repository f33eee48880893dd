"""A page of the web as the text that gpt-oss's browser shows: lines, with links as 【number†text†domain】.

The form is that of openai/gpt-oss (`gpt_oss/tools/simple_browser/page_contents.py`). The page is read in one pass, in a time that
grows with its length, whatever is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from urllib.parse import urljoin, urlsplit

TAG = re.compile(r"</?([a-zA-Z][^\s/>]{0,40})")
GAP = re.compile(r"[\s/]*")
ATTRIBUTE = re.compile(r"""([^\s=>/"']{1,100})(?:\s{0,20}=\s{0,20}("[^"]*"|'[^']*'|[^\s>"']+))?""")
LINK = re.compile(r"【\d+†([^†】]+)(?:†[^†】]+)?】")
MARKDOWN_LINK = re.compile(r"(?<!!)\[([^\[\]\n]{1,300})\]\(([^()\s]{1,1000})\)")
MARKDOWN_TITLE = re.compile(r"^# {1,9}(\S[^\n]{0,199})", re.MULTILINE)
BLANKS = re.compile(r"\s+")
SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "textarea", "select"})
HEADINGS = {f"h{n}": "#" * n + " " for n in range(1, 7)}
APART = frozenset({"blockquote", "dl", "figure", "ol", "p", "pre", "section", "table", "ul", *HEADINGS})  # by an empty line
BLOCKS = APART | {
    *(
        "address",
        "article",
        "aside",
        "body",
        "br",
        "caption",
        "dd",
        "details",
        "div",
        "dt",
        "fieldset",
        "figcaption",
        "footer",
    ),
    *("form", "header", "hr", "html", "li", "main", "nav", "summary", "tbody", "tfoot", "thead", "tr"),
}
MOST_LINKS = 2000
SIGNS = str.maketrans({"【": "〖", "】": "〗", "◼": "◾", "\u200b": ""})  # 【 and 】 are the browser's own


@dataclass
class Page:
    """What the browser shows.

    Attributes:
        url, title: of the page.
        text: with links in it.
        links: where they lead, by their numbers.
        places: of what was found or searched for, by the links' numbers, the line at which it stands.
        is_found: whether this lists what was searched for or found, and is no page of somebody's.
    """

    url: str
    title: str
    text: str
    links: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    is_found: bool = False


def domain_of(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def link(number: int, text: str, url: str = "", here: str = "") -> str:
    """A link as the model sees it; its domain is told if it is another one than `here`."""
    text = BLANKS.sub(" ", text).strip().replace("†", "‡")
    domain = domain_of(url)
    return f"【{number}†{text}†{domain}】" if domain and domain != domain_of(here) else f"【{number}†{text}】"


def without_links(text: str) -> str:
    """The text with links as the words that they stand on."""
    return LINK.sub(r"\1", text)


def page_of_text(text: str, url: str, title: str = "") -> Page:
    """A page of plain text."""
    return Page(url, title or url.rpartition("/")[2] or url, text.translate(SIGNS).replace("\r\n", "\n").replace("\r", "\n"))


def page_of_markdown(text: str, url: str) -> Page:
    """A page of Markdown, which stays as it is but for its links."""
    page = page_of_text(text, url)
    heading = MARKDOWN_TITLE.search(page.text)
    page.title = heading[1].strip() if heading else page.title

    numbers: dict[str, int] = {}

    def linked(found: re.Match[str]) -> str:
        target = "" if found[2].startswith("#") else _joined(url, found[2])
        if not target or (target not in numbers and len(numbers) >= MOST_LINKS):
            return found[0]
        return link(numbers.setdefault(target, len(numbers)), found[1], target, url)

    page.text = MARKDOWN_LINK.sub(linked, page.text)
    page.links = list(numbers)
    return page


def page_of_html(html: str, url: str, title: str = "") -> Page:
    """A page of HTML."""
    reader = _Reader(url)
    for kind, value, attributes in _pieces(html.translate(SIGNS)):
        reader.take(kind, value, attributes)
    found = BLANKS.sub(" ", reader.title).strip()
    return Page(url, title or found or domain_of(url) or url, reader.text(), reader.links)


def _pieces(html: str) -> Iterator[tuple[str, str, str]]:
    """("text", text, ""), ("open", name, attributes as they are written) and ("close", name, "")."""
    at = 0
    while at < len(html):
        start = html.find("<", at)
        if start < 0:
            yield "text", html[at:], ""
            return
        if start > at:
            yield "text", html[at:start], ""
        if html.startswith("<!--", start):
            at = _behind(html, "-->", start + 4)
        elif html.startswith(("<!", "<?"), start):
            at = _behind(html, ">", start)
        elif found := TAG.match(html, start):
            name = found[1].lower()
            at = _tag_end(html, found.end())
            closes = html[start + 1] == "/"
            yield ("close", name, "") if closes else ("open", name, html[found.end() : at - 1])
            if not closes and name in SKIPPED:
                end = re.compile(f"</{name}", re.IGNORECASE).search(html, at)
                at = _behind(html, ">", end.start()) if end else len(html)
        else:
            yield "text", "<", ""
            at = start + 1


def _behind(html: str, mark: str, at: int) -> int:
    found = html.find(mark, at)
    return len(html) if found < 0 else found + len(mark)


def _tag_end(html: str, at: int) -> int:
    """Behind the > of a tag whose name ends at `at`; a > in quotes does not count."""
    while True:
        at = GAP.match(html, at).end()  # type: ignore[union-attr]  # it matches anywhere
        if at >= len(html) or html[at] == ">":
            return min(at + 1, len(html))
        found = ATTRIBUTE.match(html, at)
        at = found.end() if found else at + 1


def _attribute(written: str, *names: str) -> str:
    """The first of these attributes that a tag has."""
    found = {key.lower(): value.strip("\"'") for key, value in ATTRIBUTE.findall(written)}
    return next((unescape(found[name]) for name in names if found.get(name)), "")


class _Reader:
    """Gathers a page's lines."""

    def __init__(self, url: str) -> None:
        self._url = self._base = url
        self._lines: list[str] = []
        self._line: list[str] = []
        self._numbers: dict[str, int] = {}
        self._link: tuple[str, list[str]] | None = None
        self._in_title = False
        self._pre = 0
        self._images = 0
        self.title = ""
        self.links: list[str] = []

    def take(self, kind: str, value: str, attributes: str) -> None:
        if kind == "text":
            self._text(unescape(value))
        elif kind == "open":
            self._open(value, attributes)
        else:
            self._close(value)

    def _text(self, text: str) -> None:
        if self._in_title:
            self.title += text[:500]
        elif self._pre and self._link is None:
            first, *more = text.split("\n")
            self._line.append(first)
            for line in more:
                self._end_line(empty=True)
                self._line.append(line)
        else:
            (self._link[1] if self._link else self._line).append(text)

    def _open(self, name: str, attributes: str) -> None:
        if name == "title" and not self.title:
            self._in_title = True
        elif name == "base":
            self._base = _joined(self._url, _attribute(attributes, "href")) or self._url
        elif name == "a":
            self._end_link()
            self._link = (_attribute(attributes, "href"), [])
        elif name == "img":
            told = _attribute(attributes, "alt", "title")
            self._text(f"[Image {self._images}: {told}]" if told else f"[Image {self._images}]")
            self._images += 1
        elif name in ("td", "th"):
            self._text(" ")
        elif name in BLOCKS:
            self._block(name)
            self._line += [HEADINGS[name]] if name in HEADINGS else ["  * "] if name == "li" else []
            self._pre += name == "pre"

    def _close(self, name: str) -> None:
        if name == "title":
            self._in_title = False
        elif name == "a":
            self._end_link()
        elif name in ("td", "th"):
            self._text(" ")
        elif name in BLOCKS and name not in ("br", "hr"):
            self._block(name)
            if name == "pre":
                self._pre = max(self._pre - 1, 0)

    def _block(self, name: str) -> None:
        self._end_link()
        self._end_line()
        if name in APART and self._lines and self._lines[-1]:
            self._lines.append("")

    def _end_link(self) -> None:
        if self._link is None:
            return
        target, pieces = self._link
        self._link = None
        text = BLANKS.sub(" ", "".join(pieces))
        url = "" if not target or target.startswith("#") else _joined(self._base, target)
        if not text.strip() or not url or (url not in self._numbers and len(self.links) >= MOST_LINKS):
            self._line.append(text)
            return
        if url not in self._numbers:
            self._numbers[url] = len(self.links)
            self.links.append(url)
        self._line.append(link(self._numbers[url], text, url, self._url))

    def _end_line(self, empty: bool = False) -> None:
        """`empty`: also where the line has nothing."""
        text = "".join(self._line)
        self._line = []
        if not self._pre:
            text = BLANKS.sub(" ", text)
            text = f" {text}" if text.startswith(" * ") else text.lstrip()  # of a list, indented by two
        text = text.rstrip()
        if text and text.strip() not in ("*", *map(str.strip, HEADINGS.values())):
            self._lines.append(text)
        elif empty and self._lines and self._lines[-1]:
            self._lines.append("")

    def text(self) -> str:
        self._end_link()
        self._end_line()
        return "\n".join(self._lines).strip("\n")


def _joined(base: str, target: str) -> str:
    """The address that a link leads to; "" if it is none that can be opened."""
    try:
        url = urljoin(base, target.strip()).partition("#")[0]
        return url if urlsplit(url).scheme in ("http", "https", "file") else ""
    except ValueError:
        return ""
