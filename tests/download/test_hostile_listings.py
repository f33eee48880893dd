"""Hubs that attack: listings without end, packed answers, strange JSON."""

import gzip
import json
import zlib
from typing import Any

import pytest
from hub_server import Handler, Hub

from oss_tools.download import repositories
from oss_tools.download.repositories import MAX_FILES
from oss_tools.download.web import MAX_DOCUMENT
from oss_tools.errors import BadSource, Unreachable
from tests.download.hostile_hub import instead, listed

pytestmark = pytest.mark.usefixtures("with_a_token")


def page_of(number: int, size: int) -> list[dict[str, Any]]:
    return [{"type": "file", "path": f"{number}/{i}.json", "size": 1, "oid": "b" * 40} for i in range(size)]


@pytest.mark.parametrize(("size", "pages"), [(1000, MAX_FILES // 1000 + 1), (0, 20)])
def test_a_listing_without_end_ends(size: int, pages: int, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "MAX_PAGES", 20)

    def page(handler: Handler) -> None:
        number = len(hub.requests)
        handler.json(page_of(number, size), {"Link": f'<{hub.url}{handler.path}{number}>; rel="next"'})

    instead(hub, "/tree/", page)
    with pytest.raises(BadSource, match="more than"):
        listed(hub)
    assert len([request for request in hub.requests if "/tree/" in request.path]) == pages


def test_a_listing_that_goes_round_in_circles(hub: Hub) -> None:
    def page(handler: Handler) -> None:
        there = "a" if "cursor=b" in handler.path else "b"
        handler.json([], {"Link": f'<{hub.url}/x?cursor={there}>; rel="next"'})

    instead(hub, "/tree/", page)
    with pytest.raises(BadSource, match="comes back to a page that was there"):
        listed(hub)
    assert len(hub.requests) == 4


def bomb(coding: str) -> bytes:
    data = b"[" + b" " * (8 * MAX_DOCUMENT) + b"]"
    return {
        "gzip": lambda: gzip.compress(data),
        "gzip, gzip": lambda: gzip.compress(gzip.compress(data)),
        "deflate": lambda: zlib.compress(data),
    }.get(coding, lambda: b"\x1b" * 100)()


@pytest.mark.parametrize("part", ["/tree/", "/revision/"])
@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip", "deflate", "br", "zstd", "x" * 300])
def test_packed_answers_are_unpacked_within_limits(coding: str, part: str, hub: Hub) -> None:
    packed = bomb(coding)
    assert len(packed) < 100_000
    instead(hub, part, lambda handler: handler.answer(200, packed, {"Content-Encoding": coding}))
    said = "more than 4 MiB" if coding == "gzip" else "which was not asked for"
    with pytest.raises(BadSource, match=said):
        listed(hub)


def test_an_honest_gzip_is_read(hub: Hub) -> None:
    body = gzip.compress(json.dumps(page_of(1, 3)).encode())
    instead(hub, "/tree/", lambda handler: handler.answer(200, body, {"Content-Encoding": "GZIP"}))
    assert len(listed(hub).files) == 3


@pytest.mark.parametrize(
    "body",
    [b"no gzip at all", gzip.compress(b"[]")[:-9], b"", gzip.compress(b"") * 1000],
    ids=["none", "cut", "nothing", "many"],
)
def test_a_broken_gzip_ends_in_a_line(body: bytes, hub: Hub) -> None:
    instead(hub, "/tree/", lambda handler: handler.answer(200, body, {"Content-Encoding": "gzip"}))
    with pytest.raises((BadSource, Unreachable), match=r"no gzip|ended early|no JSON"):
        listed(hub)


def test_an_answer_without_end_is_not_kept(hub: Hub) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(64):  # of a MiB: the client leaves after four
            handler.wfile.write(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
            handler.request_log.sent += 1

    instead(hub, "/tree/", endless)
    with pytest.raises(BadSource, match="more than 4 MiB"):
        listed(hub)
    assert hub.requests[-1].sent < 64


@pytest.mark.parametrize("part", ["/tree/", "/revision/"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"7",
        b'"x"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b"\xff\xfe",
        b"NaN",
        b"<html>",
        b'[{"',
        b"{}",
        b"[0]",
    ],
)
def test_strange_json_ends_in_a_line(body: bytes, part: str, hub: Hub) -> None:
    instead(hub, part, lambda handler: handler.answer(200, body))
    with pytest.raises(BadSource, match=r"does not answer as a hub|names no commit|is damaged"):
        listed(hub)


GOOD = {"type": "file", "path": "a.json", "size": 1, "oid": "b" * 40}


@pytest.mark.parametrize(
    "change",
    [
        {"size": -1},
        {"size": True},
        {"size": 1.5},
        {"size": 10**17},
        {"size": "1"},
        {"size": float("nan")},
        {"path": 7},
        {"path": None},
        {"path": "a" * 5000},
        {"oid": "b" * 39},
        {"oid": ["b" * 40]},
        {"lfs": {"oid": "c" * 63, "size": 1}},
        {"lfs": {"size": 1}},
    ],
)
def test_damaged_entries_are_refused(change: dict[str, Any], hub: Hub) -> None:
    instead(hub, "/tree/", lambda handler: handler.json([GOOD | change]))
    with pytest.raises(BadSource, match="is damaged") as refused:
        listed(hub)
    assert len(str(refused.value)) < 300
