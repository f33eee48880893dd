"""Servers that grade, and attack: echoes of the key, redirects, packed and endless answers, slow ones, odd numbers."""

import base64
import gzip
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from oss_tools.endpoints.keys import BLOT, Blotter, read_key
from oss_tools.errors import BadRecipe, BadSource, OssToolsError, Unreachable
from oss_tools.harness.grader import LARGEST_ANSWER, Grade, GradeCache, Grader, GraderSettings, read_grade

KEY = "sk-proj/Ab+9_very-secret=="
GRADE = '{"explanation": "fine", "criteria_met": true}'


class Server:
    """An endpoint on loopback that answers as it is told, and keeps the headers of what it was asked."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.seen: list[dict[str, str]] = []
        self.answer, self.url = answer, ""


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Server]:
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            server.seen.append({name.lower(): value for name, value in self.headers.items()})
            try:
                server.answer(self)
            except OSError:
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients break off."""

    running = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{running.server_port}/v1"
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()


def sending(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def completion(text: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}], **more}).encode()


@pytest.fixture(autouse=True)
def with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADER_KEY", KEY)


def graded(
    answer: Callable[[BaseHTTPRequestHandler], None],
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **how: Any,
) -> tuple[Grade | None, Grader, Server]:
    """One prompt's grade by such a server."""
    with serving(answer) as server:
        settings = GraderSettings(
            server.url, "grader", "GRADER_KEY", **{"tries": 2, "malformed_tries": 2, "timeout": 20.0, **how}
        )
        with Grader(settings, GradeCache(cache), say=say, sleep=lambda seconds: None) as grader:
            return grader.grade(["Is it?"])[0], grader, server


# ---- the key --------------------------------------------------------------------------------------------------------

BEARER = f"Bearer {KEY}"
ECHOES = {
    "plain": KEY,
    "in capitals": KEY.upper(),
    "percent-encoded": quote(KEY, safe=""),
    "hexadecimal": BEARER.encode().hex(),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of the header": base64.b64encode(BEARER.encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(b"x" + KEY.encode() + b"y").decode(),
    "between spaces": f"  {KEY}\n",
    "twice": KEY * 2,
}


def is_in(text: str) -> bool:
    """Whether a part of the key that tells it stands in a text, in whatever spelling."""
    spellings = [KEY[3:-2], quote(KEY, safe="")[6:-6], KEY[3:-2].encode().hex(), KEY.upper()[3:-2]]
    coded = base64.b64encode(b"xyz" + KEY.encode())[8:-8].decode(), base64.b64encode(b"x" + KEY.encode())[8:-8].decode()
    coded += (base64.b64encode(b"xy" + KEY.encode())[8:-8].decode(),)
    return any(part in text for part in (*spellings, *coded, *(c.translate(str.maketrans("+/", "-_")) for c in coded)))


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("form", ["json", "text", "nested"])
def test_an_error_that_echoes_the_key_is_told_without_it(echo: str, form: str) -> None:
    said = f"Incorrect API key provided: {ECHOES[echo]}. You can find it at …"
    bodies = {"json": {"error": {"message": said}}, "text": said, "nested": {"error": {"code": [said]}}}
    body = json.dumps(bodies[form], ensure_ascii=False) if form != "text" else said
    assert is_in(body)
    with pytest.raises(BadSource, match="the grader answers 401: ") as refused:
        graded(sending(body.encode(), 401))
    assert not is_in(str(refused.value))
    assert BLOT in str(refused.value)


@pytest.mark.parametrize(
    "body", ['{"detail": "KEY"}', '["KEY"]', '{"error": {"code": "KEY"}}', '{"error": ["KEY"]}', '"KEY"']
)
def test_escapes_of_json_hide_no_key(body: str) -> None:
    for escaped in (KEY.replace("/", "\\/"), "".join(f"\\u{ord(c):04x}" for c in KEY)):
        with pytest.raises(BadSource, match="answers 400") as refused:
            graded(sending(body.replace("KEY", escaped).encode(), 400))
        assert BLOT in str(refused.value)
        assert escaped not in str(refused.value)


def test_a_key_at_the_edge_of_what_is_shown_is_not_cut_into_half() -> None:
    with pytest.raises(BadSource) as refused:
        graded(sending(("x" * 190 + KEY).encode(), 403))
    assert KEY[:4] not in str(refused.value)


@pytest.mark.parametrize("echo", ECHOES)
def test_a_grade_that_echoes_the_key_is_kept_without_it(echo: str, tmp_path: Path) -> None:
    text = json.dumps({"explanation": f"I was asked with {ECHOES[echo]}", "criteria_met": True})
    grade, _, _ = graded(sending(completion(text)), tmp_path / "grades.jsonl")
    assert grade is not None
    assert grade.criteria_met
    assert not is_in(grade.explanation)
    assert not is_in((tmp_path / "grades.jsonl").read_text())


def test_words_about_failures_are_told_without_the_key() -> None:
    said: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(f"HTTP/1.1 200 {KEY}\r\nContent-Length: {KEY}\r\n\r\n".encode())
        handler.close_connection = True

    with pytest.raises(Unreachable) as ended:
        graded(answer, say=said.append)
    assert said
    assert not is_in(" ".join([*said, str(ended.value)]))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with serving(sending(completion(GRADE))) as other, pytest.raises(BadSource, match=f"the grader answers {status}"):
        graded(sending(b"", status, Location=f"{other.url}/chat/completions?key={KEY}"))
    assert other.seen == []


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX-Other: 1", "sk-sécret", "sk one", "sk\x00"])
def test_a_key_that_cannot_be_one_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"GRADER_KEY": key})
    with pytest.raises(BadRecipe, match="that no key has") as refused:
        read_key("GRADER_KEY", "https://api.example/v1")
    assert "sk" not in str(refused.value)


@pytest.mark.parametrize("given", [KEY, "gsk_abc123def", "sk-1234", "A" * 100])
def test_a_key_in_the_place_of_a_variables_name_is_not_shown(given: str) -> None:
    with pytest.raises(BadRecipe, match="takes a variable's name, not a key") as refused:
        read_key(given, "https://api.example/v1")
    assert given not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("http://grader.example/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("http://127.0.0.1.example/v1", True),
        ("http://127.0.0.7:8000/v1", False),
        ("http://localhost:8000/v1", False),
        ("https://grader.example/v1", False),
    ],
)
def test_a_key_that_travels_in_clear_is_remarked(url: str, exposed: bool) -> None:
    said: list[str] = []
    Grader(GraderSettings(url, "m", "GRADER_KEY"), say=said.append).close()
    assert ["without encryption" in line for line in said] == [True] * exposed
    Grader(GraderSettings(url.replace("https", "http"), "m"), say=said.append).close()
    assert len(said) == exposed, "without a key there is nothing to say"


@pytest.mark.parametrize("url", ["http://h:99999/v1", "http://[::1/v1", "https://me:word@h/v1", "https://word@h/v1"])
def test_addresses_that_cannot_be_are_refused_without_what_is_secret(url: str) -> None:
    with pytest.raises(BadRecipe, match="--grader-url") as refused:
        GraderSettings(url, "m").endpoint().address()
    assert "word" not in str(refused.value).replace("password", "")


def test_short_keys_are_cleared_as_they_are() -> None:
    assert Blotter("none")("none of None") == f"{BLOT} of None"
    assert Blotter("")("any text") == "any text"


# ---- answers --------------------------------------------------------------------------------------------------------


def test_packed_answers_are_unpacked_within_limits() -> None:
    whole = completion(GRADE + " " * (8 * LARGEST_ANSWER))
    with pytest.raises(BadSource, match="more than 4 MiB"):
        graded(sending(gzip.compress(whole), Content_Encoding="gzip"))
    with pytest.raises(BadSource, match="which was not asked for"):
        graded(sending(gzip.compress(gzip.compress(whole)), Content_Encoding="gzip, gzip"))
    grade, _, server = graded(sending(gzip.compress(completion(GRADE)), Content_Encoding="gzip"))
    assert grade == Grade(True, "fine")
    assert server.seen[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n "])
def test_a_server_that_sends_a_byte_now_and_then_is_left(head: bytes) -> None:
    ended = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        while not ended.wait(0.05):
            handler.wfile.write(b" ")

    try:
        with pytest.raises(Unreachable, match=r"no whole answer within 0\.4 s, 2 times in a row"):
            graded(trickle, timeout=0.4)
    finally:
        ended.set()


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens": NaN}',
        '{"prompt_tokens": Infinity}',
        '{"prompt_tokens": -Infinity, "completion_tokens": 1e999}',
        '{"prompt_tokens": ' + "9" * 4000 + "}",
        '{"prompt_tokens": -5, "completion_tokens": true}',
        '{"prompt_tokens": [], "completion_tokens": "7"}',
    ],
)
def test_odd_counts_of_tokens_are_none(usage: str) -> None:
    body = completion(GRADE)[:-1] + f', "usage": {usage}}}'.encode()
    grade, grader, _ = graded(sending(body))
    assert grade == Grade(True, "fine")
    assert (grader.tally.prompt_tokens, grader.tally.tokens) == (0, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"choices":' * 50_000,
        b"9" * 5000,
        b'{"choices": ' + b"9" * 5000 + b"}",
        b"\xff",
        b"NaN",
        b"{}",
    ],
)
def test_answers_that_are_none_end_in_a_line(body: bytes) -> None:
    with pytest.raises(Unreachable, match=r"an answer that is no (JSON|chat completion)"):
        graded(sending(body))


@pytest.mark.parametrize("wait", ["\xb2", "9" * 400, "-1", "Mon, 01 Jan 0001 00:00:00 -0000", "soon", "1e400"])
def test_odd_waits_are_tried_so_often_and_no_more(wait: str) -> None:
    with serving(sending(b"", 429, Retry_After=wait)) as server:
        settings = GraderSettings(server.url, "m", tries=3)
        with Grader(settings, sleep=lambda seconds: None) as grader, pytest.raises(Unreachable, match="3 times in a row"):
            grader.grade(["Is it?"])
    assert len(server.seen) == 3


LONG = ["{", "[", "9", '{"', '{"a":', "{a:", "{'", '{"a":[', '" ,', "{ ", "\\", '{"criteria_met":', "{'a':'b' c", "{'a',   "]


@pytest.mark.parametrize("piece", LONG)
def test_long_answers_are_looked_through_once(piece: str) -> None:
    """A reader that begins anew at each of a million places would not end."""
    assert read_grade(piece * (3_000_000 // len(piece))) is None


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000])
@pytest.mark.parametrize("form", ['{{"a": {}, "criteria_met": true}}', "{{'a': {}, 'criteria_met': True}}"])
def test_numbers_of_thousands_of_digits_are_no_grade(number: str, form: str) -> None:
    assert read_grade(form.format(number)) is None


def test_grades_deep_inside_are_found_however_deep() -> None:
    depth = sys.getrecursionlimit() // 2
    text = '{"x": ' * depth + '{"criteria_met": true}' + "}" * depth
    assert read_grade(text) in (Grade(True, ""), None)
    assert read_grade(text.replace('"x"', '"x": 1, "criteria_met"').replace("true}", "1}")) is None


def test_whatever_goes_wrong_is_an_error_of_ours() -> None:
    for body in (b"\x00" * 100, b"HTTP", gzip.compress(b"x")):
        for status in (200, 204, 299, 400, 418, 500):
            with pytest.raises(OssToolsError):
                graded(sending(body, status))
