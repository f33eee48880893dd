"""An OpenAI-compatible server on loopback whose answers are scripted."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Action = str | int | tuple[int, dict[str, str]]  # "met", "unmet", "malformed", …; a status; a status with headers


class ScriptedGrader:
    """Grades a criterion as met if it contains "[+]". What is scripted for a criterion comes first, one action a request.

    Attributes:
        url: as for --grader-url.
        requests: the bodies that were posted, and `headers` of each, in order.
        asked: how often each criterion was asked for, by its text.
        script: part of a criterion's text → actions, first one first.
        delay: seconds before each answer.
        refuses: fields of a request that the server does not know.
    """

    def __init__(
        self, script: dict[str, Sequence[Action]] | None = None, delay: float = 0.0, refuses: Sequence[str] = ()
    ) -> None:
        self.script = {part: list(actions) for part, actions in (script or {}).items()}
        self.delay, self.refuses = delay, refuses
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.asked: Counter[str] = Counter()
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        criterion = prompt.partition("<criterion>")[2].partition("</criterion>")[0].strip()
        with self.lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
            self.asked[criterion] += 1
            queue = next((actions for part, actions in self.script.items() if part in prompt), [])
            action: Action = queue.pop(0) if queue else ("met" if "[+]" in criterion else "unmet")
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay)
            self._act(handler, action, body)
        finally:
            with self.lock:
                self._at_once -= 1

    def _act(self, handler: BaseHTTPRequestHandler, action: Action, body: dict[str, Any]) -> None:
        unknown = next((name for name in self.refuses if name in body), None)
        if unknown:
            hint = " Use 'max_completion_tokens' instead." if unknown == "max_tokens" else ""
            self._send(handler, 400, {"error": {"message": f"Unsupported parameter: '{unknown}'.{hint}"}})
        elif isinstance(action, int):
            self._send(handler, action, {"error": {"message": "scripted"}})
        elif isinstance(action, tuple):
            self._send(handler, action[0], {"error": {"message": "scripted"}}, action[1])
        elif action == "timeout":
            time.sleep(3)
        elif action == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)  # `close` would wait for the handler's own file of it
        elif action == "trickle":
            self._trickle(handler)
        elif action == "no completion":
            self._send(handler, 200, {"detail": "proxy in trouble"})
        elif action == "malformed":
            self._complete(handler, "I would say that this is met.")
        elif action == "half":
            self._complete(handler, '{"explanation": "it')
        elif action == "not a boolean":
            self._complete(handler, '{"explanation": "x", "criteria_met": "yes"}')
        elif action == "fenced":
            self._complete(
                handler, '<think>{"criteria_met": false}</think>\n```json\n{"explanation": "x", "criteria_met": true}\n```'
            )
        elif action == "parts":
            reasoning, text = {"type": "reasoning", "text": "?"}, '{"explanation": "in parts", "criteria_'
            self._complete(handler, [reasoning, {"type": "text", "text": text}, {"type": "text", "text": 'met": True}'}])
        elif action == "refusal":
            self._complete(handler, None)
        else:
            self._complete(handler, json.dumps({"explanation": "as scripted", "criteria_met": action == "met"}))

    def _complete(self, handler: BaseHTTPRequestHandler, text: Any) -> None:
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self._send(handler, 200, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def _trickle(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte now and then, which no timeout between bytes would notice."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)


@contextmanager
def serving(grader: ScriptedGrader) -> Iterator[ScriptedGrader]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                if self.path == "/v1/chat/completions":
                    grader.answer(self)
                else:
                    self.send_error(404)
            except (BrokenPipeError, ConnectionResetError, OSError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients break off, or are killed."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    grader.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield grader
    finally:
        server.shutdown()
        server.server_close()
