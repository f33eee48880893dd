"""A hub on loopback: repository info, file tree, and files that redirect to a second server, the "CDN", on another port.

It speaks what huggingface_hub asks of https://huggingface.co, and misbehaves where a test tells it to.
"""

from __future__ import annotations

import hashlib
import json
import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
POLL = 0.02  # seconds in which a server notes that it is to end
LARGE = 4096  # bytes from which a file is in LFS, and so on the CDN


@dataclass
class Content:
    """A file's bytes, or only where they come from: a function of (start, stop)."""

    size: int
    read: Callable[[int, int], bytes]
    sha256: str = ""
    git_oid: str = ""

    @staticmethod
    def of(data: bytes) -> Content:
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return Content(len(data), lambda a, b: data[a:b], hashlib.sha256(data).hexdigest(), git)

    @staticmethod
    def sparse(path: Path) -> Content:
        """Too large to hash: a checksum is made up."""

        def read(start: int, stop: int) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)

        name = hashlib.sha256(path.name.encode()).hexdigest()
        return Content(path.stat().st_size, read, name, name[:40])


@dataclass
class Request:
    """A request that was served."""

    server: str
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Hub:
    """The servers' state. `faults` decides, before an answer, whether it goes wrong: see `Fault`. `instead` may answer a request
    itself, and says so."""

    repos: dict[str, dict[str, Content]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    listed: dict[str, dict[str, Content]] = field(default_factory=dict)  # what the tree claims, if not the truth
    ranges: bool = True
    redirect_to: str = ""  # where files redirect instead of to the CDN
    rate: float = 0.0  # bytes per second of a file's body
    served: int = 0  # bytes of files' bodies that have been begun to be sent
    allowance: float = math.inf  # of those: behind so many the servers wait, see `allow`
    allowed: threading.Condition = field(default_factory=threading.Condition)
    instead: Callable[[Handler], bool] = lambda handler: False
    page: int = 1000  # entries in a page of the tree
    url: str = ""
    cdn: str = ""

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        self.repos[repo] = {name: Content.of(data) for name, data in files.items()}

    def add_folder(self, repo: str, folder: Path) -> None:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.add(repo, files)

    def allow(self, total: float) -> None:
        """Has the servers stop when so many bytes of files' bodies have been sent, or go on up to there."""
        with self.allowed:
            self.allowance = total
            self.allowed.notify_all()

    def bodies(self, contains: str = "") -> list[Request]:
        """The served requests for file content."""
        return [r for r in self.requests if ("/resolve/" in r.path or r.server == "cdn") and contains in r.path and r.sent]


@dataclass
class Fault:
    """Goes wrong `times` times for paths that contain `where`.

    kind: "status" answers `status`; "cut" closes the connection after `after` bytes of the body; "short" gives a body
    that is shorter, with a Content-Length to match; "wrong" gives other bytes.
    """

    where: str
    kind: str
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0
    server: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    name: str

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client has left
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def serve(self) -> None:
        request = Request(self.name, self.command, self.path, dict(self.headers))
        self.hub.requests.append(request)
        self.request_log = request
        if self.hub.instead(self):
            return
        fault = self.fault("status")
        if fault:
            self.answer(fault.status, b"busy", fault.headers)
            return
        path = unquote(urlsplit(self.path).path)
        if self.name == "cdn":
            repo, _, file = path.removeprefix("/").partition("//")
            content = self.hub.repos.get(repo, {}).get(file)
            self.body(content) if content else self.answer(404, b"")
        elif path.startswith("/api/models/"):
            self.api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self.resolve(path)
        else:
            self.answer(404, b"{}")

    def fault(self, *kinds: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.kind in kinds and fault.times and fault.where in unquote(self.path) and fault.server in ("", self.name):
                fault.times -= 1
                return fault
        return None

    def allowed(self, repo: str) -> bool:
        """Answers the refusal itself."""
        authorized = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repo not in self.hub.repos or (repo in self.hub.private and not authorized):
            self.answer(
                404 if authorized else 401,
                b"{}",
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
            )
            return False
        if repo in self.hub.gated and not authorized:
            status = 403 if "Authorization" in self.headers else 401
            self.answer(status, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."})
            return False
        return True

    def api(self, rest: str) -> None:
        owner, name, *more = rest.split("/", 3)
        repo = f"{owner}/{name}"
        if not self.allowed(repo):
            return
        kind, revision = (more[0], more[1]) if more else ("revision", "main")
        if revision not in ("main", COMMIT):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            self.json(
                {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": False, "siblings": [], "tags": []}
            )
        else:
            self.tree(repo)

    def tree(self, repo: str) -> None:
        entries = []
        for name, content in self.hub.listed.get(repo, self.hub.repos[repo]).items():
            entry = {"type": "file", "path": name, "size": content.size, "oid": content.git_oid}
            if content.size >= LARGE:
                entry["lfs"] = {"oid": content.sha256, "size": content.size, "pointerSize": 135}
            entries.append(entry)
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        headers = {}
        if start + self.hub.page < len(entries):
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.url}{path}?recursive=True&cursor={start + self.hub.page}>; rel="next"'
        self.json(entries[start : start + self.hub.page], headers)

    def resolve(self, path: str) -> None:
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if not self.allowed(repo):
            return
        content = self.hub.repos[repo].get(name)
        if revision not in ("main", COMMIT) or content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif content.size >= LARGE:
            headers = {"X-Linked-ETag": f'"{content.sha256}"', "X-Linked-Size": str(content.size), "X-Repo-Commit": COMMIT}
            target = self.hub.redirect_to or f"{self.hub.cdn}/{repo}//{quote(name)}?signature=abc"
            self.answer(302, b"", headers | {"Location": target})
        else:
            self.body(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{content.git_oid}"'})

    def body(self, content: Content, headers: dict[str, str] | None = None) -> None:
        headers = {"ETag": f'"{content.sha256[:16]}"', **(headers or {})}
        start, stop, status = 0, content.size, 200
        wanted = self.headers.get("Range", "")
        if self.hub.ranges:
            headers["Accept-Ranges"] = "bytes"
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop, status = int(first), min(int(last) + 1 if last else content.size, content.size), 206
                if start >= content.size:
                    self.answer(416, b"", {"Content-Range": f"bytes */{content.size}"})
                    return
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
        fault = self.fault("cut", "short", "wrong")
        length = stop - start if not fault or fault.kind != "short" else max(stop - start - fault.after, 0)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.send_body(content, start, start + length, fault)

    def send_body(self, content: Content, start: int, stop: int, fault: Fault | None) -> None:
        cut = start + fault.after if fault and fault.kind == "cut" else stop
        hub = self.hub
        step = 16 << 10 if hub.rate or hub.allowance < math.inf else 256 << 10
        for at in range(start, min(stop, cut), step):
            piece = content.read(at, min(at + step, stop, cut))
            with hub.allowed:
                hub.allowed.wait_for(lambda: hub.served < hub.allowance)
                if self.client_has_left():  # while this waited
                    self.close_connection = True
                    return
                hub.served += len(piece)
            if fault and fault.kind == "wrong":
                piece = bytes(b ^ 0xFF for b in piece[:1]) + piece[1:]
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            self.request_log.sent += len(piece)
            if hub.rate:
                time.sleep(len(piece) / hub.rate)
        if cut < stop:
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()

    def client_has_left(self) -> bool:
        """Whether the other end of the connection is closed: there is something to be read, and that is its end."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def json(self, content: object, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub and its CDN on two free ports of loopback."""
    hub = Hub()
    servers = []
    for name in ("hub", "cdn"):
        handler = type("Bound", (Handler,), {"hub": hub, "name": name})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(POLL,), daemon=True).start()
        servers.append(server)
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
