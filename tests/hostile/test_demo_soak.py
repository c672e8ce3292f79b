"""The demo under many visitors, a tenth of them hostile: every good one is answered, and memory does not grow."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.llava_pose.demo_server import API, META, Server, Stranger, start

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'llava-pose[demo]'")

QUESTION = "What is the pose of the car?"
VISITORS = 8
AT_ONCE = 3
GROWTH = 128 << 10  # KiB from the first third to the end: what an allocator keeps; leaked pictures are gigabytes


def memory(server: Server) -> int:
    """What the server holds, KiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


def _saved(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _drop(stranger: Stranger, path: str, body: bytes, kind: str) -> None:
    """Begin a request and hang up in its midst."""
    address = urlsplit(stranger.server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = f"POST {API}/{path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\nContent-Length: 900000\r\n\r\n"
        connection.sendall(head.encode() + body)


def _leave(stranger: Stranger, good: bytes) -> None:
    """Ask, and do not wait for the answer."""
    picture = {"path": stranger.upload(good)}
    event = stranger.post("call/ask", {"data": [picture, QUESTION]}).json()["event_id"]
    address = urlsplit(stranger.server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"GET {API}/call/ask/{event} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        connection.recv(16)


def _hostile(good: bytes) -> list[Callable[[Stranger], object]]:
    bomb = _saved(Image.new("1", (13000, 13000)))
    large = _saved(Image.new("L", (8000, 8000)))
    half = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + good[:5000]
    return [
        lambda s: s.ask({"path": s.upload(good[: len(good) // 2])}, QUESTION),
        lambda s: s.ask({"path": s.upload(bomb)}, QUESTION),
        lambda s: s.ask({"path": s.upload(large)}, QUESTION),
        lambda s: s.ask({"path": "/etc/passwd", "meta": META}, QUESTION),
        lambda s: s.ask({"path": s.upload(good)}, "x" * 1_000_000),
        lambda s: s.post("call/ask", {"data": {"a": 5}}),
        lambda s: s.post("queue/join", b'{"data": ' + b"[" * 5000),
        lambda s: s.get(f"{API}/file=/dev/zero"),
        lambda s: _drop(s, "upload", half, "multipart/form-data; boundary=x"),
        lambda s: _drop(s, "call/ask", b'{"data": [', "application/json"),
        lambda s: _leave(s, good),
        lambda s: s.ask({"path": s.upload(good)}, "\ud800 <script>\x1b[2J </s> {{7*7}}"),
    ]


@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.slow)])
def test_good_requests_are_answered_among_hostile_ones(taught, tmp_path, count):
    server = start(taught, tmp_path, "--visitors", str(VISITORS))
    try:
        _soak(server, taught.picture, count)
    finally:
        server.process.kill()
        server.process.wait()


def _soak(server: Server, picture: Path, count: int) -> None:
    taught = Image.open(picture).convert("RGB")
    large = taught.resize((1600, 1600), Image.Resampling.BICUBIC)  # as large as any that is kept
    hostile = _hostile(picture.read_bytes())
    held: list[int] = []
    answered: list[bool] = []
    lock = threading.Lock()

    def visit(index: int) -> None:
        stranger = Stranger(server)
        if index % 10 == 9 or (count < 100 and index % 2):
            hostile[index // (2 if count < 100 else 10) % len(hostile)](stranger)
            return
        shown = (large if index % 4 == 0 else taught).copy()
        shown.putpixel((0, 0), (index % 256, index // 256, 0))  # each visitor has a file of its own
        status, events = stranger.ask({"path": stranger.upload(_saved(shown)), "orig_name": "a.png"}, QUESTION)
        with lock:
            answered.append(status == 200 and "azimuth" in events)
            held.append(memory(server))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(visit, range(count)):
            pass
    assert len(answered) > 0.4 * count
    assert all(answered)
    if count >= 100:
        third = held[len(held) // 3 : len(held) // 2]
        last = held[-len(third) :]
        print(json.dumps({"KiB": held[:: max(1, len(held) // 20)]}))
        assert sorted(last)[len(last) // 2] - sorted(third)[len(third) // 2] < GROWTH, held
    assert httpx.get(server.url, timeout=60).status_code == 200
    assert "Traceback" not in "".join(server.log), "".join(server.log)


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    """The folder of uploads and drawings stays within its bounds, and what was left behind by hung-up uploads goes as well."""
    from llava_pose.serve import demo_gate as gate

    class Page:
        temp_file_sets: list[set[str]]

    monkeypatch.setattr(gate, "KEPT_FILES", 3)
    page = Page()
    paths = []
    for index in range(6):
        path = tmp_path / f"{index}" / "picture.png" if index % 2 else tmp_path / f"left{index}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        paths.append(path)
        time.sleep(0.02)
    page.temp_file_sets = [set(map(str, paths))]
    gate.Uploads(tmp_path, page).make_room()
    assert [path.exists() for path in paths] == [False] * 3 + [True] * 3
    assert page.temp_file_sets == [set(map(str, paths[3:]))]
    assert not paths[1].parent.exists()
    monkeypatch.setattr(gate, "KEPT_BYTES", 150)
    gate.Uploads(tmp_path, page).make_room()
    assert [path.exists() for path in paths] == [False] * 5 + [True]
