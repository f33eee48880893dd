"""The browser against real servers on this machine: a SearXNG's stand-in, a site, a folder; and what it must not reach."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from oss_tools.chat.tools.base import Tool, ToolError
from oss_tools.chat.tools.browser import BrowserTool, wrapped
from oss_tools.chat.tools.choice import fresh, open_tools
from oss_tools.chat.tools.fetching import MOST_BYTES, Fetcher, Place, is_public
from oss_tools.chat.tools.html_text import page_of_html
from oss_tools.errors import BadRequest

Answers = dict[str, tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]]
HTML = {"Content-Type": "text/html; charset=utf-8"}
GUIDE = """<html><head><title>The guide</title></head><body><h1>Doses</h1>
<p>Adults take <b>500 mg</b> of paracetamol. See <a href="/more">more of it</a> and <a href="https://example.org/x">elsewhere</a>.</p>
<script>ignore("<p>this</p>")</script><ul><li>one</li><li>two</li></ul></body></html>"""


class Site:
    """A server on loopback that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                answer = site.answers.get(self.path, site.answers.get(urlsplit(self.path).path, (404, {}, b"")))
                if callable(answer):
                    answer(self)
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def other() -> Iterator[Site]:
    """A server that nobody has named."""
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def searx(site: Site, results: list[dict[str, Any]]) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        assert query["format"] == ["json"]
        body = json.dumps({"query": query["q"][0], "results": results}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    site.answers["/search"] = answer


def browser(folder: Path, **entry: Any) -> dict[str, Tool]:
    file = folder / "browser.yaml"
    file.write_text(json.dumps({"browser": entry}))
    return open_tools(str(file))


def say(tools: dict[str, Tool], name: str, **arguments: Any) -> str:
    return tools[f"browser.{name}"].call(arguments)


def test_search_open_find_and_cite(site: Site, other: Site, tmp_path: Path) -> None:
    searx(other, [{"url": f"{site.address}/guide", "title": "A guide", "content": "About doses."}])
    site.answers |= {"/guide": (200, HTML, GUIDE.encode()), "/more": (200, HTML, b"<p>Nothing more.</p>")}
    tools = browser(tmp_path, search=other.address, private=[f"127.0.0.1:{site.port}"])

    domain = f"127.0.0.1:{site.port}"
    assert say(tools, "search", query="doses") == (
        f"[0] doses\n**viewing lines [0 - 2] of 2**\n\nL0: # Search Results\nL1: \nL2:   * 【0†A guide†{domain}】 About doses."
    )
    assert say(tools, "open", id=0) == (
        f"[1] The guide ({site.address}/guide)\n**viewing lines [0 - 6] of 6**\n\n"
        "L0: # Doses\n"
        "L1: \n"
        "L2: Adults take 500 mg of paracetamol. See 【0†more of it】 and \n"
        "L3: 【1†elsewhere†example.org】.\n"
        "L4: \n"
        "L5:   * one\n"
        "L6:   * two"
    )
    assert "# 【0†match at L2】\nL1: Adults take 500 mg" in say(tools, "find", pattern="PARACETAMOL")
    assert "[3] The guide" in say(tools, "open", id=0)  # the match, in its page, which is not fetched again
    assert "Nothing more." in say(tools, "open", cursor=1, id=0)
    assert site.asked == ["/guide", "/more"]

    tool = tools["browser.open"]
    assert isinstance(tool, BrowserTool)
    answer = "Adults take 500 mg 【1†L2】, and no more 【4†L0-L1】, so they say 【0†L2】【99†L1】."
    cited = tool.browser.citations(answer)
    assert [(c.url, c.lines) for c in cited] == [(f"{site.address}/guide", "L2"), (f"{site.address}/more", "L0-L1")]
    assert answer[cited[0].start : cited[0].stop] == "【1†L2】"


def test_a_page_is_shown_in_parts(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(f"line {i} of many" for i in range(3000)))
    tools = open_tools(f"browser:{tmp_path}")
    first = say(tools, "open", id="file:///long.txt")
    assert len(first) < 4500
    assert first.splitlines()[3] == "L0: line 0 of many"
    assert say(tools, "open", loc=2990, num_lines=2).splitlines()[3:] == [
        "L2990: line 2990 of many",
        "L2991: line 2991 of many",
    ]
    assert say(tools, "open", loc=5000) == "error: Invalid location parameter: `5000`. Cannot exceed page maximum of 2999."
    assert say(tools, "find", pattern="line 7") .count("match at") > 5  # fmt: skip


def test_faults_are_told_to_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\n[b](b.md)")
    tools = open_tools(f"browser:{tmp_path}")
    assert say(tools, "open") == "error: No pages to access!"
    assert "【0†A】" in say(tools, "search", query="a")
    assert say(tools, "find", pattern="x").startswith("error: Cannot run `find` on search results page")
    assert say(tools, "open", id=3) == "error: Invalid link id `3`."
    assert say(tools, "open", cursor=7, id=0).startswith("error: Cursor `7` is out of range")
    assert say(tools, "open", id=0.5) == "error: argument 'id' must be a whole number"
    assert say(tools, "search", query="nothing").endswith("\n**viewing lines [0 - 0] of 0**\n\nL0: No results for `nothing`")
    assert say(tools, "open", cursor=0, id=0, view_source=True).startswith("error: ")


def test_a_folder_is_all_that_is_opened(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the secret word")
    (docs / "sub" / "b.html").write_text("<title>B</title><p>fever and <a href='../a.md'>A</a>")
    (docs / "a.md").write_text("# A\n\nSee [B](sub/b.html), [out](../../secret.txt), [far](http://example.org/).")
    (docs / "link.txt").symlink_to(tmp_path / "secret.txt")
    (docs / "folder").symlink_to(tmp_path)
    (docs / ".hidden.txt").write_text("the secret word")
    tools = open_tools(f"browser:{docs}")
    assert "No results" in say(tools, "search", query="secret")
    assert "fever" in say(tools, "open", id="file:///sub/b.html")
    assert "[2] A (file:///a.md)" in say(tools, "open", id=0)
    for address in ("file:///../secret.txt", "file:///etc/passwd", f"file://{tmp_path}/secret.txt", "file:///link.txt"):
        assert say(tools, "open", id=address).startswith("error: there is no page")
    assert say(tools, "open", cursor=2, id=1).startswith("error: there is no page")
    assert say(tools, "open", cursor=2, id=2).startswith("error: there is no page http://example.org/")


def test_words_are_found_by_their_weight(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text("the usual words of every page " * 20)
    (tmp_path / "rare.txt").write_text("the usual words, and asthma\n\nAsthma is treated so.")
    tools = open_tools(f"browser:{tmp_path}")
    found = say(tools, "search", query="the words of asthma", topn=3).splitlines()
    assert "rare.txt" in found[5]
    assert sum("【" in line for line in found) == 3


def test_a_site_is_read_below_its_address_only(site: Site, other: Site, tmp_path: Path) -> None:
    link = f'<a href="two.html">two</a> <a href="/outside">out</a> <a href="{other.address}/x">other</a>'
    site.answers |= {
        "/docs/": (200, HTML, f"<title>One</title>{link}".encode()),
        "/docs/two.html": (200, HTML, b"<title>Two</title><p>The word is heron."),
        "/outside": (200, HTML, b"<p>heron"),
    }
    tools = browser(tmp_path, site=f"{site.address}/docs/")
    assert "【0†Two" in say(tools, "search", query="heron")
    assert "The word is heron." in say(tools, "open", id=0)
    assert site.asked == ["/docs/", "/docs/two.html"]
    assert not other.asked
    assert say(tools, "open", id=f"{site.address}/outside").startswith("error: there is no page")


def test_another_conversation_sees_nothing_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("private matters")
    tools = open_tools(f"browser:{tmp_path},calculator")
    say(tools, "search", query="private")
    others = fresh(tools)
    assert say(others, "open") == "error: No pages to access!"
    assert others["calculator"].call({"expression": "1"}) == "1"
    assert "[0]" in say(others, "search", query="matters")
    assert "[1]" in say(others, "open", id=0)  # its three tools share what they open


# ---- what must not be reached ---------------------------------------------------------------------------------------


def elsewhere(port: int) -> list[str]:
    return [
        f"http://127.0.0.1:{port}/", f"http://localhost:{port}/", f"http://[::1]:{port}/", f"http://[::ffff:127.0.0.1]:{port}/",
        f"http://2130706433:{port}/", f"http://0x7f.1:{port}/", f"http://0:{port}/", f"http://127.1:{port}/",
        f"http://user@127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.0.1/",
        "http://[fe80::1]/", "file:///etc/passwd", "ftp://127.0.0.1/", "http://127.0.0.1\\@example.org/", "http:///x", "//",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_lead_nowhere_that_was_not_named(site: Site, other: Site, status: int) -> None:
    fetcher = Fetcher([Place("127.0.0.1", site.port, private=True)], public=True, seconds=5)
    for i, target in enumerate(elsewhere(other.port)):
        site.answers[f"/{i}"] = (status, {"Location": target}, b"")
        with pytest.raises(ToolError):
            fetcher.get(f"{site.address}/{i}")
    assert not other.asked
    site.answers["/ok"] = (status, {"Location": "/there"}, b"")
    site.answers["/there"] = (200, {"Content-Type": "text/plain"}, b"here")
    assert fetcher.get(f"{site.address}/ok").text == "here"
    site.answers["/loop"] = (status, {"Location": "/loop"}, b"")
    with pytest.raises(ToolError, match="more than 5 redirects"):
        fetcher.get(f"{site.address}/loop")


def test_public_pages_are_no_private_ones(other: Site) -> None:
    fetcher = Fetcher(public=True, seconds=5)
    for address in elsewhere(80):
        with pytest.raises(ToolError):
            fetcher.get(address.replace(":80/", "/"))
    with pytest.raises(ToolError, match="an address of this machine or its network"):
        fetcher.get("http://localhost/")
    with pytest.raises(ToolError, match="not among the pages"):
        fetcher.get(f"http://example.org:{other.port}/")  # services stand on other ports
    with pytest.raises(ToolError, match="not among the pages that may be opened: none"):
        Fetcher().get("http://example.org/")


def resolved(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names lead to these addresses, one list after another; returns the names that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(ToolError, match=r"leads to 127\.0\.0\.1"):
        Fetcher([Place("example.org")]).get("http://example.org/")
    with pytest.raises(ToolError, match=r"leads to 127\.0\.0\.1"):
        Fetcher(public=True).get("https://example.org/")


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolved(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    met: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        met.append(address)
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"connect": connect}))
    with pytest.raises(ToolError, match="refused"):
        Fetcher(public=True).get("http://example.org/")
    assert (asked, met) == (["example.org"], [("93.184.216.34", 80)])


def test_what_is_no_text_too_large_or_too_slow_is_refused(site: Site) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b".")
                time.sleep(0.05)

    plain = {"Content-Type": "text/plain"}
    site.answers |= {
        "/pdf": (200, {"Content-Type": "application/pdf"}, b"%PDF"),
        "/large": (200, plain, b"x" * (MOST_BYTES + 1)),
        "/bomb": (200, {**plain, "Content-Encoding": "gzip"}, gzip.compress(bytes(64 << 20))),
        "/packed": (200, {**plain, "Content-Encoding": "br"}, b"x"),
        "/broken": (200, {**plain, "Content-Encoding": "gzip"}, b"x" * 50),
        "/slow": drip,
        "/error": (500, plain, b""),
        "/fine": (200, {**plain, "Content-Encoding": "gzip"}, gzip.compress("für alle".encode())),
    }
    place = Place("127.0.0.1", site.port, private=True)
    fetcher = Fetcher([place], seconds=100.0)
    for path in ("pdf", "large", "bomb", "packed", "broken", "error", "missing"):
        with pytest.raises(ToolError) as refused:
            fetcher.get(f"{site.address}/{path}")
        assert "\n" not in str(refused.value)
    with pytest.raises(ToolError, match=r"no answer within 0\.5 seconds"):
        Fetcher([place], seconds=0.5).get(f"{site.address}/slow")
    assert fetcher.get(f"{site.address}/fine").text == "für alle"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False), ("::1", False), ("::", False),
        ("0.0.0.0", False), ("10.1.2.3", False), ("172.16.0.1", False), ("100.64.0.1", False), ("169.254.169.254", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False), ("2001:0:7f00:1::", False), ("::127.0.0.1", False), ("fec0::1", False), ("no address", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "entry",
    [
        {}, [], {"search": 7}, {"serch": "http://x"}, {"search": "ftp://x"}, {"search": "http://u:p@x"}, {"folder": "nowhere"},
        {"search": "http://x", "folder": "."}, {"pages": "all"}, {"pages": ["http://x/"]}, {"pages": [7]},
        {"private": ["x:99999"]}, {"folder": ".", "pages": "public"}, {"site": "x"},
    ],
)  # fmt: skip
def test_a_file_that_names_no_place_is_refused(entry: Any, tmp_path: Path) -> None:
    (tmp_path / "browser.yaml").write_text(json.dumps({"browser": entry}))
    with pytest.raises(BadRequest) as refused:
        open_tools(str(tmp_path / "browser.yaml"))
    assert "\n" not in str(refused.value)


# ---- pages as text --------------------------------------------------------------------------------------------------


def test_odd_pages() -> None:
    def text(html: str) -> str:
        return page_of_html(html, "http://h/a/").text

    assert text("<p>a<p>b<br>c") == "a\n\nb\nc"
    assert text("a < b &amp; c &lt;p&gt; 【1†x】") == "a < b & c <p> 〖1†x〗"
    assert text("<!-- <p>no</p> --><a href='x\"y>'>q</a> <!-- open") == "【0†q】"
    assert text("<pre>a\n  b\n\nc</pre>d") == "a\n  b\n\nc\n\nd"
    assert text("<a href=javascript:x()>s</a><a href='mailto:x'>m</a><a href='#f'>f</a><a>n</a>") == "smfn"
    assert text("<img alt='a cat'><img src=x>") == "[Image 0: a cat][Image 1]"
    assert text("<style>p{}</style><p>x</p><script>while(1){'</p>'}</SCRIPT>y") == "x\n\ny"
    page = page_of_html("<base href='/b/'><a href=c>C</a><a href='//o.org/d'>D</a><a href=c>again</a>", "http://h/a/")
    assert page.links == ["http://h/b/c", "http://o.org/d"]
    assert page.text == "【0†C】【1†D†o.org】【0†again】"


@pytest.mark.parametrize(
    "piece",
    ["<", "<!--", "<a ", "<a href='", '<a href="', "<script>", "<p", "&", "<pre>\n", "<li>", "<a href=x>y", "\t "],
)
def test_a_page_is_read_in_a_time_that_grows_with_its_length(piece: str) -> None:
    """The square of a page's length would be a day's work."""
    html = piece * ((1 << 20) // len(piece))
    assert all(len(line) <= 80 for line in wrapped(page_of_html(html, "http://h/").text))


def test_lines_are_wrapped_as_gpt_oss_s_browser_wraps_them() -> None:
    text = (
        "A first line-that-is-hyphenated and goes on for a good while, until it is longer than 80.\n\n  * an item\n"
        + "x" * 200
    )
    wanted = [
        part
        for line in text.split("\n")
        for part in (textwrap.wrap(line, 80, replace_whitespace=False, drop_whitespace=False) if line else [""])
    ]
    assert wrapped(text) == wanted
    assert all(len(line) <= 80 for line in wrapped("y" * 50_000 + "\n" + "a b " * 20_000))
