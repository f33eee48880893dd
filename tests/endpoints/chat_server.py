"""An OpenAI-compatible server on loopback that answers as a function says."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# JSON; a body as it is; a status; a status and JSON; None drops the connection.
Answer = Mapping[str, Any] | bytes | int | tuple[int, Mapping[str, Any]] | None


class ChatServer:
    """What was asked: (path, body) in order, and the headers."""

    def __init__(self, answer: Callable[[str, dict[str, Any]], Answer]) -> None:
        self.answer, self.url = answer, ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()


def completion(
    text: str | None = "", finish: str = "stop", tokens: int = 7, prompt_tokens: int = 30, **message: Any
) -> dict[str, Any]:
    """A chat completion."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
    said = {"role": "assistant", "content": text, **message}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": said, "finish_reason": finish}], "usage": usage}


def call(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": text}}


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    server = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append((self.path, body))
                server.headers.append(dict(self.headers))
            try:
                self._send(server.answer(self.path, body))
            except OSError:
                self.close_connection = True

        def _send(self, found: Answer) -> None:
            if found is None:
                self.close_connection = True
                return
            if isinstance(found, int):
                found = found, {"error": {"message": "as scripted"}}
            status, content = found if isinstance(found, tuple) else (200, found)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
