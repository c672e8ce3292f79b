"""A server of the chat completions API on loopback that answers as it is told: a line of a script for each request."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

GOOD = "good"


@dataclass
class Script:
    """What the server does, and what it has seen.

    Attributes:
        steps: one for each request, GOOD after the last. A string is the model's answer; an int a status; (status,
            headers) the same with headers; a dict the whole reply; "cut", "slow", "no json", "html" and GOOD are by name.
        good: the answer to a request that goes well.
        finish_reason: of every answer; "length" for one that was cut off.
        requests: (time, headers, body) as they came.
    """

    good: Callable[[dict[str, Any]], str]
    steps: list[Any] = field(default_factory=list)
    requests: list[tuple[float, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    running: int = 0
    most_at_once: int = 0
    delay: float = 0.0
    url: str = ""
    finish_reason: str = "stop"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_step(self) -> Any:
        with self.lock:
            return self.steps.pop(0) if self.steps else GOOD


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            step = script.next_step()
            with script.lock:
                script.requests.append(
                    (time.monotonic(), {name.lower(): value for name, value in self.headers.items()}, body)
                )
                script.running += 1
                script.most_at_once = max(script.most_at_once, script.running)
            try:
                time.sleep(script.delay)
                self._answer(step, body)
            except OSError:  # the client has gone away, as it may
                self.close_connection = True
            finally:
                with script.lock:
                    script.running -= 1

        def _answer(self, step: Any, body: dict[str, Any]) -> None:
            if step == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
            elif step == "slow":
                time.sleep(3)
                self._send(200, {}, b"{}")
            elif step == "no json":
                self._send(200, {}, b"<html>Bad gateway</html>")
            elif step == "html":
                self._send(200, {}, b"<html>Sign in</html>", kind="text/html")
            elif isinstance(step, dict):
                self._send(200, {}, json.dumps(step).encode())
            elif isinstance(step, int):
                self._send(step, {}, b'{"error": {"message": "told to fail, key sk-secret"}}')
            elif isinstance(step, tuple):
                self._send(step[0], step[1], b'{"error": {"message": "told to wait"}}')
            else:
                content = script.good(body) if step == GOOD else step
                self._send(200, {}, json.dumps(self._completion(content)).encode())

        @staticmethod
        def _completion(content: str | None) -> dict[str, Any]:
            return {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": script.finish_reason,
                        "message": {"role": "assistant", "content": content},
                    }
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }

        def _send(self, status: int, headers: dict[str, str], body: bytes, *, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kill_at_line(command: list[str], out: Path, lines: int) -> None:
    """Start a command and kill it with -9 once the file that it writes has so many lines."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < lines):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
