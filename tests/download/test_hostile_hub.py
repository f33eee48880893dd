"""Hubs that attack: odd headers, slow and lying bodies; settings that cannot be."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from hub_server import COMMIT, LARGE, Content, Fault, Handler, Hub

from oss_tools.download import bodies, failures, headers, library, transfer
from oss_tools.download.download import carry_out, make_plan
from oss_tools.download.web import Web, retry_after
from oss_tools.errors import BadCheckpoint, BadSource, Unreachable
from tests.download.conftest import Run
from tests.download.hostile_hub import FILES, REPO, instead, listed, raw

pytestmark = pytest.mark.usefixtures("with_a_token")

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
