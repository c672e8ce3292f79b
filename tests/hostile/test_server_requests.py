"""Hostile requests to llava-pose serve: memory is bounded over all that wait, and every part of a request is."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from typing import Any

import pytest
from PIL import Image

from llava_pose.data.images import MAX_SQUARE
from llava_pose.data.records import Pose
from llava_pose.inference.answers import PoseAnswer
from llava_pose.inference.pipeline import PosePipeline
from llava_pose.serve.listening import listen
from tests.llava_pose.conftest import free_port


def png(width: int, height: int) -> str:
    """A picture of one colour as a data URI; its file is a thousandth of its pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


class Slow:
    """A predictor that answers once it may, and counts the pixels that it is shown."""

    categories = ("car", "cup")

    def __init__(self) -> None:
        self.may = threading.Event()
        self.pixels: list[int] = []

    def predict(self, pictures: Any, objects: Any, **options: Any) -> list[PoseAnswer]:
        assert self.may.wait(60)
        self.pixels += [picture.width * picture.height for picture in pictures]
        return [PoseAnswer(Pose(0.1, 0.2, 0.3, 1.0, 2.0, 3.0), 0.5, name, viewport=10.0) for name in objects]


@pytest.fixture
def slow() -> Any:
    return Slow()


@pytest.fixture
def client(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Any:
    testclient = pytest.importorskip("starlette.testclient")
    from llava_pose.serve import server
    from llava_pose.serve.server import Application, ModelThread, ServerLimits

    monkeypatch.setattr(server, "_KEPT_PIXELS", 8 * MAX_SQUARE**2)
    limits = ServerLimits(body_bytes=2 << 20)
    model = ModelThread(PosePipeline(slow), limits)  # type: ignore[arg-type]
    with testclient.TestClient(Application(model, name="slow", limits=limits).build()) as client:
        yield client
        slow.may.set()
        model.close()


def test_pictures_that_wait_are_no_larger_than_a_model_sees(client: Any, slow: Slow) -> None:
    slow.may.set()
    answer = client.post("/v1/pose", json={"images": [png(5000, 5000)] * 4, "category": "car"})
    assert answer.status_code == 200
    assert slow.pixels == [MAX_SQUARE**2] * 4


def test_pictures_that_wait_have_a_bound_together(client: Any, slow: Slow) -> None:
    picture = {"images": [png(2500, 2500)] * 4, "category": "car"}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(client.post("/v1/pose", json=picture).status_code))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while not statuses:
        threads[0].join(0.1)
    assert statuses == [429]
    slow.may.set()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [200, 200, 429]
    assert client.post("/v1/pose", json=picture).status_code == 200  # all was given back


LONG = {
    "a category": ("/v1/pose", {"images": [png(8, 8)], "category": "a" * 1_000_000}),
    "a thousand categories": ("/v1/pose", {"images": [png(8, 8)], "category": ["car"] * 1001}),
    "a box": ("/v1/pose", {"images": [png(8, 8)], "category": "car", "boxes": [[1.0] * 100_000]}),
    "JSON of lists": ("/v1/pose", {"images": [[]] * 300_000}),
    "a question": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x " * 500_000}]}),
    "an answer": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "x " * 500_000},
                {"role": "user", "content": "x"},
            ]
        },
    ),
}


@pytest.mark.parametrize("kind", LONG)
def test_parts_of_a_request_without_an_end_are_a_short_sentence(kind: str, client: Any) -> None:
    path, body = LONG[kind]
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert len(answer.text) < 500


def test_bodies_that_are_read_have_a_bound_together(client: Any) -> None:
    """A body of the largest size is taken again and again: each gives back what it held."""
    for _ in range(12):
        assert client.post("/v1/pose", content=b" " * (2 << 20)).status_code == 400


def require_broken_off_is_answered(application: Any, path: str) -> None:
    """A request whose sender has gone in the middle of it is a bad one, and no failure of the server."""
    sent: list[Any] = []
    came = iter([{"type": "http.request", "body": b'{"im', "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(came)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b"", "root_path": ""}
    asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == 400


def test_a_body_that_is_broken_off_is_no_failure_of_the_server(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    require_broken_off_is_answered(client.app, "/v1/pose")
    assert "Traceback" not in caplog.text


def test_a_host_is_no_part_of_what_is_counted(client: Any) -> None:
    """Some versions of starlette put it in front of the path, so that each name would be a line, and kept for ever."""
    for number in range(3):
        assert client.get("/health", headers={"host": f'x/{number}",status="0"}} 1?'}).status_code == 200
    assert 'requests_total{path="/health",status="200"} 3' in client.get("/metrics").text


def _connected(port: int) -> socket.socket:
    until = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_headers_without_an_end_are_refused_whatever_parser_is_installed(client: Any) -> None:
    port = int(free_port())
    threading.Thread(target=listen, args=(client.app, "127.0.0.1", port), daemon=True).start()
    with _connected(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (200 << 10))
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
