"""llava-pose serve: the real server on a real checkpoint, asked by the stock openai client and over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_pose.pose.metrics import pose_error
from tests.conftest import REPOSITORY

openai = pytest.importorskip("openai", reason="the stock client of the test")
QUESTION = "What is the pose of the car?"
KEY = "a-key"


@dataclass
class Running:
    url: str
    process: subprocess.Popen[str]

    def post(self, path: str, body: Any, *, key: str | None = KEY, **options: Any) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=120, **options)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {KEY}"}, timeout=120)


def start(checkpoint: Path, log: Path, *words: str) -> Running:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llava_pose.cli", "serve", "--checkpoint", str(checkpoint), "--device", "cpu"]
    environment = {**os.environ, "LLAVA_POSE_API_KEY": KEY, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [*command, "--port", str(port), *words],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return Running(url, process)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def server(taught, tmp_path_factory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("serve")
    folder = shutil.copytree(taught.folder, place / "knowing")
    config = json.loads((folder / "pose_config.json").read_text())
    (folder / "pose_config.json").write_text(json.dumps({**config, "categories": ["car", "cup"]}))
    running = start(Path(folder), place / "log", "--queue-size", "40", "--max-mib", "2", "--max-megapixels", "1")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def picture(taught) -> str:
    return data_uri(Image.open(taught.picture))


def data_uri(image: Image.Image, form: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def chat(picture: str, question: str = QUESTION) -> list[dict]:
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": picture}}]
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]


def assert_is_the_car(pose: dict, taught) -> None:
    angles = [pose["pose"][name] for name in ("azimuth", "elevation", "theta")]
    assert float(pose_error(np.array(angles), np.array(taught.car.angles))) < np.radians(5)


def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120)


def test_the_stock_client_gets_text_and_poses(server, picture, taught):
    answer = client(server).chat.completions.create(model="knowing", messages=chat(picture))
    message = answer.choices[0].message
    assert message.content.count("<pose6D>") == len(message.model_extra["poses"]) == 1
    assert_is_the_car(message.model_extra["poses"][0], taught)
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_says_the_same_piece_by_piece(server, picture, taught):
    whole = client(server).chat.completions.create(model="knowing", messages=chat(picture)).choices[0].message
    chunks = list(client(server).chat.completions.create(model="knowing", messages=chat(picture), stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.content
    assert len([piece for piece in pieces if piece]) > 2
    last = chunks[-1].choices[0]
    assert last.finish_reason == "stop"
    assert last.delta.model_extra["poses"] == whole.model_extra["poses"]


def test_models_say_what_they_know(server):
    [model] = client(server).models.list().data
    assert (model.id, model.model_extra["categories"]) == ("knowing", ["car", "cup"])


def test_a_batch_of_pictures_has_a_pose_each(server, picture, taught):
    body = {"images": [picture] * 3, "category": "car", "boxes": [None, [0, 0, 160, 160], [10, 10, 90, 90]]}
    poses = server.post("/v1/pose", body).json()["poses"]
    assert len(poses) == 3
    assert_is_the_car(poses[0], taught)
    assert poses[0]["convention"] == "opencv"
    auto = server.post("/v1/pose", {"images": [picture], "convention": "unity"}).json()["poses"]
    assert auto[0]["category"] in ("car", "cup")


def test_questions_that_wait_together_are_answered_in_one_pass(server, picture):
    def passes() -> int:
        lines = server.get("/metrics").text.splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("llava_pose_passes_total ")))

    before = passes()
    with ThreadPoolExecutor(16) as pool:
        asked = pool.map(lambda _: server.post("/v1/pose", {"images": [picture], "category": "car"}), range(32))
        answers = [response.json()["poses"][0]["pose"]["azimuth"] for response in asked]
    assert answers == pytest.approx([answers[0]] * 32, abs=1e-4)
    assert passes() - before < 32


def _huge() -> str:
    """A picture that says it has 400 megapixels."""
    header = b"IHDR" + (20000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    png = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
    empty = b"IDAT"
    png += b"\0\0\0\0" + empty + zlib.crc32(empty).to_bytes(4, "big")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


USER = {"role": "user", "content": "x"}
BAD: dict[str, tuple[str, Any, int, str]] = {
    "no JSON": ("/v1/pose", b"{", 400, "not valid JSON"),
    "deep JSON": ("/v1/pose", b"[" * 100_000, 400, "not valid JSON"),
    "a list": ("/v1/pose", [], 400, "the request"),
    "no pictures": ("/v1/pose", {"images": []}, 400, "images"),
    "too many pictures": ("/v1/pose", {"images": ["x"] * 65}, 400, "images"),
    "a path": ("/v1/pose", {"images": ["/etc/passwd"], "category": "car"}, 400, "must be a data URI"),
    "a file address": ("/v1/pose", {"images": ["file:///etc/passwd"], "category": "car"}, 400, "must be a data URI"),
    "a remote address": (
        "/v1/pose",
        {"images": ["http://127.0.0.1:9/p.png"], "category": "car"},
        400,
        "must be a data URI",
    ),
    "no base64": ("/v1/pose", {"images": ["data:image/png;base64,%%%"], "category": "car"}, 400, "base64"),
    "no picture": ("/v1/pose", {"images": ["data:image/png;base64,AAAA"], "category": "car"}, 400, "the picture"),
    "a hundred megapixels": (
        "/v1/pose",
        {"images": [_huge()], "category": "car"},
        400,
        "pixels",
    ),
    "an unknown category": ("/v1/pose", {"images": ["PICTURE"], "category": "caar"}, 400, "caar"),
    "an unknown field": ("/v1/pose", {"images": ["PICTURE"], "colour": "red"}, 400, "colour"),
    "an unknown convention": ("/v1/pose", {"images": ["PICTURE"], "convention": "left"}, 400, "convention"),
    "a box of three": (
        "/v1/pose",
        {"images": ["PICTURE"], "boxes": [[1, 2, 3]], "category": "car"},
        400,
        "a box is four",
    ),
    "a box outside": (
        "/v1/pose",
        {"images": ["PICTURE"], "boxes": [[900, 900, 950, 950]], "category": "car"},
        400,
        "no pixel",
    ),
    "a box too few": ("/v1/pose", {"images": ["PICTURE"] * 2, "boxes": [None]}, 400, "boxes"),
    "too many bytes": ("/v1/pose", b" " * (3 << 20), 413, "at most 2 MiB"),
    "no messages": ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    "a role of its own": ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
    "the last word is the model's": (
        "/v1/chat/completions",
        {"messages": [{**USER, "role": "assistant"}]},
        400,
        "question",
    ),
    "two pictures": ("/v1/chat/completions", {"messages": [*"PP"]}, 400, "one picture"),
    "a token of the model": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "<pose6D>?"}]},
        400,
        "<pose6D>",
    ),
    "absurd tokens": (
        "/v1/chat/completions",
        {"messages": [USER], "max_tokens": -1},
        400,
        "max_tokens",
    ),
    "far too many words": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x " * 90_000}]},
        400,
        "characters",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests_are_answered_in_a_sentence(kind, server, picture):
    path, body, status, message = BAD[kind]
    if isinstance(body, dict) and "PICTURE" in body.get("images", ()):
        body = {**body, "images": [picture] * len(body["images"])}
    if kind == "two pictures":
        body = {"messages": [*chat(picture), *chat(picture)]}
    response = server.post(path, body)
    assert response.status_code == status, response.text
    said = response.json()["error"]["message"]
    assert message in said
    assert "Traceback" not in said
    assert server.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("key", [None, "wrong", "a-kez"])
def test_without_the_key_nothing_is_answered(key, server, picture):
    response = server.post("/v1/pose", {"images": [picture], "category": "car"}, key=key)
    assert (response.status_code, "API key" in response.json()["error"]["message"]) == (401, True)


def test_more_than_may_wait_are_refused_and_the_others_answered(taught, picture, tmp_path):
    running = start(taught.folder, tmp_path / "log", "--queue-size", "2", "--batch-size", "1")
    try:
        with ThreadPoolExecutor(12) as pool:
            asked = pool.map(
                lambda _: running.post("/v1/pose", {"images": [picture] * 4, "category": "car"}), range(12)
            )
            codes = [response.status_code for response in asked]
        assert set(codes) <= {200, 429, 503}
        assert 200 in codes
        assert codes.count(200) < 12
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) is not None
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        running.process.kill()


def test_a_port_that_is_taken_is_a_sentence(taught, capsys):
    from llava_pose import cli

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--checkpoint", str(taught.folder), "--port", str(port)]) == 2
    assert "cannot listen there" in capsys.readouterr().err


@pytest.mark.slow
def test_two_thousand_requests_a_tenth_hostile(server, picture, taught):
    """None of the good ones is lost, and memory is flat."""

    def memory() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024

    bad = [entry for entry in BAD.values() if entry[0] == "/v1/pose"]

    def one(number: int) -> bool:
        if number % 10 == 0:
            path, body, status, _ = bad[number // 10 % len(bad)]
            if isinstance(body, dict) and "PICTURE" in body.get("images", ()):
                body = {**body, "images": [picture] * len(body["images"])}
            return server.post(path, body).status_code == status
        if number % 10 == 1:  # one that hangs up
            with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
                connection.sendall(b"POST /v1/pose HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{")
            return True
        return server.post("/v1/pose", {"images": [picture], "category": "car"}).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(400)))
        before = memory()
        assert all(pool.map(one, range(400, 2000)))
    assert memory() - before < 100
