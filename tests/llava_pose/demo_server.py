"""The real demo in a process of its own, and the real client that asks it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
META = {"_type": "gradio.FileData"}
API = "/gradio_api"
PATIENCE = 120.0  # seconds, for an answer
STARTS_WITHIN = 600  # seconds, on a machine that does much else

# Whatever the server asks another machine for is noted, and refused.
_SERVE_AND_WATCH = """
import os, socket, sys
HERE = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in HERE:
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise OSError(f"this machine has no network: {host}")
sys.addaudithook(watch)
from llava_pose.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Server:
    """A running demo.

    Attributes:
        url: of the page.
        asked_for: a line for each other machine that it tried to reach.
    """

    process: subprocess.Popen[str]
    url: str
    asked_for: Path
    log: list[str]

    def client(self) -> Any:
        gradio_client = pytest.importorskip("gradio_client")
        return gradio_client.Client(self.url, verbose=False)


def free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return candidate.getsockname()[1]


def start(taught, folder: Path, *options: str, at_ctrl_c: signal.Handlers = signal.SIG_DFL) -> Server:
    """A demo in a process of its own, once it says where it is.

    Raises:
        AssertionError: it ended instead; the message is what it wrote.
    """
    asked_for = folder / "asked_for"
    asked_for.touch()
    # gradio's own analytics stay as they come: the page must turn them off itself
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADIO_")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ASKED_FOR": str(asked_for)}
    environment |= {"GRADIO_TEMP_DIR": str(folder / "uploads"), "PYTHONUNBUFFERED": "1"}
    words = ["demo", "--checkpoint", str(taught.folder), "--device", "cpu", "--port", str(free_port())]
    words += options
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE_AND_WATCH, *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in the background ignore Ctrl-C, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, at_ctrl_c),
    )
    log: list[str] = []
    found: list[str] = []
    told = threading.Event()

    def read() -> None:
        for line in process.stderr:
            log.append(line)
            match = re.match(r"the demo is at (http://\S+) ", line)
            if match:
                found.append(match[1])
                told.set()
        told.set()

    threading.Thread(target=read, daemon=True).start()
    told.wait(STARTS_WITHIN)
    if not found:
        process.kill()
        process.wait()
        raise AssertionError(f"the demo did not start:\n{''.join(log)}")
    return Server(process, found[0], asked_for, log)


@dataclass
class Answer:
    """What ``/ask`` gives back: the conversation as (role, text), the file with the axes, the rows of angles, the poses with
    all their numbers, and what a second checkpoint says.
    """

    turns: list[tuple[str, str]]
    axes: str | None
    angles: list[list[float]]
    poses: list[dict[str, Any]]
    others: list[Any]


def ask(client: Any, picture: Path | str | None, question: str, box: str = "") -> Answer:
    upload = None if picture is None else pytest.importorskip("gradio_client").handle_file(picture)
    conversation, axes, angles, *others = client.predict(upload, question, box, api_name="/ask")
    turns = []
    for message in conversation:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        turns.append((message["role"], text))
    return Answer(turns, axes, angles["data"], angles["poses"], others)


class Stranger:
    """Somebody who speaks HTTP to the demo, with no client between."""

    def __init__(self, server: Server):
        self.server = server
        self.http = httpx.Client(base_url=server.url.rstrip("/"), timeout=PATIENCE)

    def upload(self, content: bytes, name: str = "picture.png") -> str:
        response = self.http.post(f"{API}/upload", files={"files": (name, content)})
        assert response.status_code == 200, response.text
        return response.json()[0]

    def post(self, way: str, body: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self.http.post(f"{API}/{way}", content=body, headers={"content-type": "application/json"})
        return self.post(way, json.dumps(body).encode())

    def ask(self, picture: Any, question: Any) -> tuple[int, str]:
        """The status and whatever the server says, in the end, to a question."""
        response = self.post("call/ask", {"data": [picture, question]})
        if response.status_code != 200:
            return response.status_code, response.text
        event = response.json()["event_id"]
        return 200, self.http.get(f"{API}/call/ask/{event}").text

    def conversation(self, picture: Any, question: Any) -> list[str]:
        """The texts of the conversation that answers a question."""
        status, events = self.ask(picture, question)
        assert status == 200, events
        assert "event: complete" in events, events
        data = json.loads(events.split("data: ")[-1])
        return ["".join(part["text"] for part in message["content"]) for message in data[0]]

    def get(self, path: str) -> tuple[int, bytes]:
        """A page by exactly that path, which other clients would mend first."""
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
