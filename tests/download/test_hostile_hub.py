"""Hubs that attack: where the token goes, listings without end, packed answers, odd headers, slow and lying bodies."""

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hub_server import COMMIT, LARGE, Content, Fault, Handler, Hub

from oss_tools.download import bodies, failures, headers, library, repositories, transfer, web
from oss_tools.download.download import carry_out, make_plan
from oss_tools.download.names import understand
from oss_tools.download.repositories import MAX_FILES
from oss_tools.download.sources import Source, look_up
from oss_tools.download.web import MAX_DOCUMENT, Web, retry_after
from oss_tools.errors import BadCheckpoint, BadSource, OssToolsError, Unreachable
from tests.download.conftest import Run

REPO = "someone/model"
TOKEN = "hf_secret"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(8192)}


@pytest.fixture(autouse=True)
def with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(failures.time, "sleep", lambda seconds: None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers and documents have 0.9 seconds."""
    monkeypatch.setattr(library.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.15)


def listed(hub: Hub) -> Source:
    return look_up(understand(REPO, "", hub.url), Web(hub.url))


def instead(hub: Hub, part: str, answer: Callable[[Handler], object]) -> None:
    """Has requests answered otherwise whose path contains a part."""

    def special(handler: Handler) -> bool:
        return part in handler.path and answer(handler) is not False

    hub.instead = special
    hub.add(REPO, FILES)


def raw(*lines: str, body: bytes = b"") -> Callable[[Handler], None]:
    """An answer to the byte, after which the connection is closed."""

    def answer(handler: Handler) -> None:
        handler.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        handler.close_connection = True

    return answer


def tokens(requests: list[Any], server: str) -> set[str | None]:
    return {{k.lower(): v for k, v in r.headers.items()}.get("authorization") for r in requests if r.server == server}


# ---- the token ------------------------------------------------------------------------------------------------------


class Elsewhere:
    """A client whose requests go nowhere: `answers` say, by address, where they are sent on."""

    def __init__(self, answers: dict[str, str]) -> None:
        library_of_client = sys.modules[type(library.get_session()).__module__.partition(".")[0]]
        self.sent: list[tuple[str, str | None]] = []

        def handle(request: Any) -> Any:
            self.sent.append((str(request.url), request.headers.get("Authorization")))
            target = answers.get(str(request.url))
            headers = {"Location": target} if target is not None else {"Content-Range": "bytes 0-0/1"}
            status = 302 if target is not None else 206
            return library_of_client.Response(status, headers=headers, stream=library_of_client.ByteStream(b"x"))

        self.client = library_of_client.Client(transport=library_of_client.MockTransport(handle))


@pytest.mark.parametrize(
    "target",
    [
        "https://hub.example:8443/x",  # another port
        "https://cdn.hub.example/x",  # a host below
        "https://example/x",
        "https://hub.example.evil.example/x",
        "https://hub.example./x",
        "//evil.example/x",
        "https://hub.example%2eevil.example/x",
    ],
)
def test_the_token_goes_to_one_origin(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    try:
        Web("https://hub.example").read("https://hub.example/a", 0, 1)
    except OssToolsError:
        assert len(elsewhere.sent) == 1
    assert elsewhere.sent[0] == ("https://hub.example/a", f"Bearer {TOKEN}")
    assert [token for _, token in elsewhere.sent[1:]] in ([], [None])


@pytest.mark.parametrize("target", ["/b", "https://HUB.example/b", "https://hub.example:443/b"])
def test_the_same_origin_in_other_words_is_the_hub(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    Web("https://hub.example").read("https://hub.example/a", 0, 1)
    assert [token for _, token in elsewhere.sent] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://hub.example/b", "redirects from https to http://hub.example/b; refused"),
        ("https://me:word@hub.example/b", "a user name or password"),
        ("https://hub.example\\@evil.example/b", "a user name or password"),
        ("file:///etc/passwd", "not an address|from https to file"),
        ("http://[::1/b", "no address"),
        ("https://hub.example:99999/b", "its port is no number"),
    ],
)
def test_redirects_that_are_refused(target: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Elsewhere({"https://hub.example/a": target})
    monkeypatch.setattr(web, "get_session", lambda: elsewhere.client)
    with pytest.raises(BadSource, match=said) as refused:
        Web("https://hub.example").read("https://hub.example/a", 0, 1)
    assert len(elsewhere.sent) == 1
    assert "word" not in str(refused.value).replace("password", "")


def test_the_token_does_not_follow_the_api_elsewhere(hub: Hub) -> None:
    def moved(handler: Handler) -> None:
        path = f"{hub.cdn}{handler.path}"
        handler.answer(307, b"", {"Location": path}) if handler.name == "hub" else handler.json({"sha": COMMIT})

    instead(hub, "/revision/", moved)
    assert listed(hub).commit == COMMIT
    assert tokens(hub.requests, "cdn") == {None}
    assert tokens(hub.requests, "hub") == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("link", ["{cdn}/api/more?cursor=1", "{cdn}/api/more", "//{cdn}/x?y", "/etc/passwd", "file:///x"])
def test_nothing_is_asked_of_a_server_that_a_listing_names(link: str, hub: Hub) -> None:
    def page(handler: Handler) -> None:
        more = {"Link": f'<{link.format(cdn=hub.cdn)}>; rel="next"'}
        handler.json([{"type": "file", "path": "a", "size": 1, "oid": "b" * 40}], {} if "cursor=" in handler.path else more)

    instead(hub, "/tree/", page)
    with contextlib.suppress(BadSource):  # what has a cursor is asked of the hub itself
        listed(hub)
    assert {request.server for request in hub.requests} == {"hub"}
    assert all(request.path.startswith("/api/models/") for request in hub.requests)


def test_a_netrc_is_not_read(hub: Hub, run: Run, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password word\n")
    hub.add(REPO, FILES)
    places = {"NETRC": str(tmp_path / ".netrc"), "HOME": str(tmp_path)}
    assert run("download", REPO, "--to", "here", env=places).returncode == 0
    assert tokens(hub.requests, "hub") == tokens(hub.requests, "cdn") == {None}


def test_the_hub_is_not_asked_what_to_look_for_in_the_environment(hub: Hub, run: Run) -> None:
    def patterns(handler: Handler) -> None:
        handler.json({"standardEnvVars": [], "harnesses": {"found-it": {"envVars": {"MY_SECRET": "12345"}}}})

    instead(hub, "/api/agent", patterns)
    assert run("download", REPO, "--to", "here", env={"MY_SECRET": "12345", "HF_HUB_DISABLE_TELEMETRY": ""}).returncode == 0
    assert not [request.path for request in hub.requests if "/api/agent" in request.path]
    assert not [request for request in hub.requests if "found-it" in str(request.headers)]


@pytest.mark.parametrize("token", ["hf_sécret", "hf_one hf_two", "hf_one\x7f", "hf_one\x1b[2J"])
def test_a_token_that_cannot_be_one_is_not_shown(token: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadSource, match="characters that no token has") as refused:
        Web(hub.url)
    assert "hf_" not in str(refused.value)


def test_a_token_that_travels_in_clear_is_remarked() -> None:
    said: list[str] = []
    for endpoint in ("http://127.0.0.1:1", "http://localhost", "http://[::1]:5", "https://mirror.example"):
        Web(endpoint, said.append)
    assert said == []
    Web("http://mirror.example/hub", said.append)
    assert said == [
        "http://mirror.example/hub: the token for the hub goes there without encryption; use https, or unset HF_TOKEN"
    ]


OTHERS = """
import sys
from huggingface_hub import HfApi
from oss_tools.harness.hub import _hold_token
_hold_token()
try:
    list(HfApi().list_repo_tree("someone/model", recursive=True))
except Exception as error:
    print(type(error).__name__)
"""


def test_the_token_stays_when_data_sets_are_fetched_by_other_libraries(hub: Hub, environment: dict[str, str]) -> None:
    link = {"Link": f'<{hub.cdn}/api/more>; rel="next"'}
    instead(hub, "/tree/", lambda handler: handler.json([], link))
    subprocess.run([sys.executable, "-c", OTHERS], env=environment | {"HF_TOKEN": TOKEN}, check=True, timeout=100)
    assert tokens(hub.requests, "cdn") == {None}
    assert f"Bearer {TOKEN}" in tokens(hub.requests, "hub")


# ---- listings -------------------------------------------------------------------------------------------------------


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


# ---- headers --------------------------------------------------------------------------------------------------------

STRANGE_HEADERS = {
    "a negative length": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/8", "Content-Length: -1"),
    "two lengths": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/8", "Content-Length: 1", "Content-Length: 2"),
    "a length that is none": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/8", "Content-Length: \xb2"),
    "a length of thousands of digits": ("HTTP/1.1 200 OK", "Content-Length: " + "9" * 5000),
    "a file of exabytes": ("HTTP/1.1 200 OK", "Content-Length: " + "9" * 18),
    "a range of exabytes": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/" + "9" * 18, "Content-Length: 1"),
    "a range of thousands of digits": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/" + "9" * 5000, "Content-Length: 1"),
    "a range of other digits": ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/\xb2", "Content-Length: 1"),
    "no range": ("HTTP/1.1 206 OK", "Content-Length: 1"),
    "another range": ("HTTP/1.1 206 OK", "Content-Range: bytes 5-5/8", "Content-Length: 1"),
    "chunks that are none": ("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "zz"),
    "no HTTP": ("SSH-2.0-OpenSSH_9.9",),
    "a status that is none": ("HTTP/1.1 999999 OK",),
    "an unknown status": ("HTTP/1.1 600 What",),
    "headers without end": ("HTTP/1.1 200 OK", *(f"X-{i}: {'x' * 1000}" for i in range(300))),
    "a redirect to nowhere": ("HTTP/1.1 302 Found", "Content-Length: 0"),
    "a redirect to no address": ("HTTP/1.1 302 Found", "Location: http://[", "Content-Length: 0"),
    "a redirect to a port beyond": ("HTTP/1.1 302 Found", "Location: http://127.0.0.1:99999/", "Content-Length: 0"),
    "a redirect to odd letters": ("HTTP/1.1 302 Found", "Location: http://xn--\xb2\xff/", "Content-Length: 0"),
    "a redirect of 70,000 letters": ("HTTP/1.1 302 Found", "Location: /" + "x" * 70_000, "Content-Length: 0"),
    "a wait that is none": ("HTTP/1.1 503 Busy", "Retry-After: \xb2", "Content-Length: 0"),
    "a wait until the year 1": ("HTTP/1.1 503 Busy", "Retry-After: Mon, 01 Jan 0001 00:00:00 -0000", "Content-Length: 0"),
}


@pytest.mark.parametrize("what", STRANGE_HEADERS)
def test_odd_headers_end_in_a_line(what: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    for name in [n for n in os.environ if n.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    instead(hub, "/resolve/", raw(*STRANGE_HEADERS[what]))
    with pytest.raises((BadSource, Unreachable)) as ended:
        Web(hub.url).read(f"{hub.url}/{REPO}/resolve/{COMMIT}/config.json", 0, 1)
    assert len(str(ended.value)) < 600
    assert "\n" not in str(ended.value)


def test_an_etag_that_no_header_takes_is_none(hub: Hub) -> None:
    for etag in ("\xb2\xff", "x" * 5000):
        headers = ("HTTP/1.1 206 OK", "Content-Range: bytes 0-0/8", "Content-Length: 1", f'ETag: "{etag}"')
        instead(hub, "/resolve/", raw(*headers, body=b"x"))
        with Web(hub.url).open(f"{hub.url}/{REPO}/resolve/{COMMIT}/config.json", 0, 1) as answer:
            assert answer.etag == ""


@pytest.mark.parametrize(
    "said",
    [
        "\xb2",
        "9" * 400,
        "-1",
        "1e9",
        "nan",
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Mon, 32 Foo 99999 99:99:99",
        "\x00",
        "0x10",
        "١",
    ],
)
def test_waits_that_are_none(said: str) -> None:
    assert retry_after({"Retry-After": said}) in (None, 0.0)


# ---- slow servers ---------------------------------------------------------------------------------------------------


def trickle(handler: Handler, pieces: Iterator[bytes]) -> None:
    """A byte now and then, sooner than a timeout between two of them would notice; until the client has left."""
    handler.close_connection = True
    for piece in pieces:
        if handler.client_has_left():
            return
        try:
            handler.wfile.write(piece)
        except OSError:
            return
        handler.hub.allowed.acquire()
        handler.hub.allowed.wait(0.05)
        handler.hub.allowed.release()


def forever(text: bytes, then: bytes) -> Iterator[bytes]:
    yield text
    for _ in range(2000):
        yield then


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("part", ["/revision/", "/tree/"])
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n[", b""])
def test_a_hub_that_sends_a_byte_now_and_then_is_left(head: bytes, part: str, hub: Hub) -> None:
    instead(hub, part, lambda handler: trickle(handler, forever(head, b" " if b"\r\n\r\n" in head else b"x")))
    with pytest.raises(Unreachable, match=r"in time|no whole answer"):
        listed(hub)


@pytest.mark.usefixtures("impatient")
def test_so_is_a_file_that_comes_so(hub: Hub) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-99999/100000\r\nContent-Length: 100000\r\n\r\n"
    instead(hub, "/resolve/", lambda handler: trickle(handler, forever(head, b"x")))
    with pytest.raises(Unreachable, match=r"the server sent \d+ bytes in \d+ s"):
        Web(hub.url).read(f"{hub.url}/{REPO}/resolve/{COMMIT}/model.safetensors", 0, 100_000)


def test_what_comes_too_late_is_thrown_away() -> None:
    ours, theirs = socket.socketpair()
    thrown: SimpleQueue[bytes] = SimpleQueue()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            bodies.in_time(lambda: ours.recv(1), 0.01, thrown.put)
        theirs.send(b"x")
        assert thrown.get(timeout=60) == b"x"
    assert bodies.in_time(lambda: 7, 60, thrown.put) == 7
    with pytest.raises(ZeroDivisionError):
        bodies.in_time(lambda: 1 / 0, 60, thrown.put)
    assert thrown.empty()


def test_ten_bytes_an_answer_are_no_progress(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, FILES)
    hub.faults = [Fault("model.safetensors", "cut", times=10_000, after=10, server="cdn")]
    monkeypatch.setattr(transfer, "Patience", lambda where, say, sleep: failures.Patience(where, say, lambda pause: None))
    asking = Web(hub.url)
    plan = make_plan(listed(hub), web=asking, to=tmp_path / "here")
    with pytest.raises(Unreachable, match="6 times in a row"):
        carry_out(plan, asking)
    assert len(hub.bodies("model.safetensors")) == 6


# ---- bodies that lie ------------------------------------------------------------------------------------------------


def test_more_bytes_than_were_announced_never_reach_the_disk(hub: Hub, run: Run, tmp_path: Path) -> None:
    size = 3 * LARGE

    def flood(handler: Handler) -> object:
        if "model.safetensors" not in handler.path or handler.name != "cdn":
            return False
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
            handler.request_log.sent += 1
        return True

    instead(hub, "", flood)
    hub.repos[REPO]["model.safetensors"] = Content.of(bytes(size))
    done = run("download", REPO, "--to", "here")
    assert done.returncode == 1, done.stderr
    assert "model.safetensors: sha256" in done.stderr
    assert max(request.sent for request in hub.requests) < 1000
    assert sum(path.stat().st_size for path in (tmp_path / "here").rglob("*") if path.is_file()) < size


def test_a_server_without_ranges_is_not_read_through_for_a_stretch_at_the_end(hub: Hub) -> None:
    head = raw("HTTP/1.1 200 OK", f"Content-Length: {1 << 40}", body=b"x")
    instead(hub, "/resolve/", head)
    with pytest.raises(BadSource, match="no stretches of files"):
        Web(hub.url).read(f"{hub.url}/{REPO}/resolve/{COMMIT}/model.gguf", 1 << 39, (1 << 39) + 8)


def test_headers_of_gigabytes_are_not_mirrored(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [f"model-{number:05d}-of-00009.safetensors" for number in range(1, 10)]
    header = (200_000).to_bytes(8, "little") + b"{" + b" " * 199_998 + b"}"
    hub.add(REPO, {"config.json": b"{}", **dict.fromkeys(parts, header)})
    monkeypatch.setattr(headers, "MOST", 1_000_000)
    asking = Web(hub.url)
    plan = make_plan(listed(hub), web=asking, to=tmp_path / "here")
    with pytest.raises(BadCheckpoint, match="its headers have more than"), headers.mirrored(plan, asking):
        pass
    assert len({request.path for request in hub.bodies(".safetensors")}) < len(parts)


# ---- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["download", "inspect"])
@pytest.mark.parametrize(
    "setting",
    [
        {"HF_ENDPOINT": "http://127.0.0.1:99999"},
        {"HF_ENDPOINT": "http://[::1"},
        {"HF_ENDPOINT": "https://me:word@hub.example"},
        {"HF_ENDPOINT": "https://hub.example/?token=word"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
    ],
)
def test_settings_that_cannot_be_are_one_line(setting: dict[str, str], verb: str, run: Run) -> None:
    done = run(verb, REPO, env=setting)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "HF_" in done.stderr
    assert "word" not in done.stderr.replace("password", "")
