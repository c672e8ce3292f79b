"""Names and queries of a request to the demo: short and plain ones are taken, nothing is kept of others, and each is answered
with a sentence.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.llava_pose.demo_server import API, Server, Stranger, ask, start

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'llava-pose[demo]'")
pytest.importorskip("gradio_client", reason="the tests of the demo need gradio_client")

QUESTION = "What is the pose of the car?"
LONG = "a" * 50_000
NAMES = {
    "long": LONG,
    "65 letters": "a" * 65,
    "a NUL": "%00",
    "a line end": "%0a",
    "no UTF-8": "%ed%a0%80",
    "a dot": "a.b",
    "markup": "%3Cscript%3E",
}


@pytest.fixture(autouse=True)
def nothing_is_said(server: Server) -> Iterator[None]:
    before = len(server.log)
    yield
    assert server.process.poll() is None
    said = "".join(server.log[before:])
    assert "Traceback" not in said
    assert "ASGI" not in said


def _opened_and_closed(server: Server, path: str) -> bytes:
    """The first bytes of the answer to a request whose connection is closed before the answer has ended."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        answer = connection.recv(4000)
    time.sleep(0.7)  # the server notices that it is closed
    return answer


@pytest.mark.parametrize("path", ["/", "/config"])
@pytest.mark.parametrize("name", ["host", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix"])
@pytest.mark.parametrize("value", [b"\x01", b"[", b"a b", b"a:b:c", b"\xff", b"a" * 5000], ids=lambda v: repr(v[:6]))
def test_an_address_in_a_header_that_is_none_is_no_traceback(server: Server, name: str, value: bytes, path: str):
    address = urlsplit(server.url)
    host = b"" if name == "host" else b"Host: a\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"GET %b HTTP/1.0\r\n%b%b: %b\r\n\r\n" % (path.encode(), host, name.encode(), value))
        status = connection.recv(4000).split()[1]
    assert status in (b"200", b"400")


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", ["heartbeat/{}", "call/ask/{}", "call/{}/abc"])
def test_a_name_in_a_path_is_short_and_plain(server: Server, kind: str, place: str):
    answer = _opened_and_closed(server, f"{API}/{place.format(NAMES[kind])}")
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400", b"HTTP/1.1 414")), answer[:100]


def test_a_heartbeat_that_ends_is_no_traceback(server: Server):
    assert _opened_and_closed(server, f"{API}/heartbeat/abc").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", NAMES)
def test_a_session_in_a_query_is_short_and_plain(stranger: Stranger, kind: str):
    status, body = stranger.get(f"{API}/queue/data?session_hash={NAMES[kind]}")
    assert (status, json.loads(body)) == (422, {"detail": "session_hash must be at most 64 letters, digits, - and _"})


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("", 422, "session_hash must be"),
        ("?session_hash=unknown", 404, "nothing was asked in this session"),
        ("?" + "&".join(f"a{n}=1" for n in range(20)), 400, "the request cannot be understood"),
    ],
    ids=["none", "unknown", "many"],
)
def test_answers_that_nobody_asked_for_are_a_sentence(stranger: Stranger, query: str, status: int, sentence: str):
    answered, body = stranger.get(f"{API}/queue/data{query}")
    assert answered == status
    assert json.loads(body)["detail"].startswith(sentence)


CALLS = {
    "nothing": {},
    "a list": [],
    "a number": 5,
    "an event of a list": {"event_id": ["a"], "session_hash": "a", "fn_index": 0},
    "an event of markup": {"event_id": "<b>", "session_hash": "a", "fn_index": 0},
    "half a pair": {"event_id": "\ud800", "session_hash": "\ud800", "fn_index": 0},
    "a long event": {"event_id": LONG, "session_hash": "a", "fn_index": 0},
}


@pytest.mark.parametrize("way", ["cancel", "reset"])
@pytest.mark.parametrize("kind", CALLS)
def test_the_end_of_a_question_of_the_wrong_types_is_a_sentence(stranger: Stranger, kind: str, way: str):
    response = stranger.post(way, CALLS[kind])
    assert response.status_code == 422
    assert response.json() == {"detail": "event_id must be at most 64 letters, digits, - and _"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"session_hash": 5}, "session_hash must be at most 64 letters"),
        ({"session_hash": LONG}, "session_hash must be at most 64 letters"),
        ({"fn_index": "a"}, "fn_index must be the number of a question"),
        ({"fn_index": 10**400}, "fn_index must be the number of a question"),
    ],
    ids=["a number", "long", "text", "large"],
)
def test_a_cancelled_question_is_named(stranger: Stranger, change: dict, sentence: str):
    response = stranger.post("cancel", {"event_id": "a", "session_hash": "a", "fn_index": 0, **change})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(sentence)


def test_a_question_that_nobody_waits_for_can_be_cancelled(stranger: Stranger):
    assert stranger.post("reset", {"event_id": "abc"}).json() == {"success": True}
    assert stranger.post("cancel", {"event_id": "abc", "session_hash": "abc", "fn_index": 0}).status_code == 200


def _memory(server: Server) -> float:
    """MB that the demo's process holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def test_nothing_is_kept_of_long_queries(server: Server, stranger: Stranger, good: bytes):
    def send(number: int) -> None:
        name = f"{number:06d}{LONG}"
        assert stranger.get(f"{API}/upload_progress?upload_id={name}")[0] == 200
        response = stranger.http.post(f"{API}/upload", params={"upload_id": name}, files={"files": ("a.png", good)})
        assert response.status_code == 200

    for number in range(20):
        send(number)
    before = _memory(server)
    for number in range(20, 320):
        send(number)
    assert _memory(server) - before < 15  # of 30 MB of names


def _tiff(good: bytes) -> bytes:
    """A compressed TIFF whose bytes are wrong, of which libtiff speaks on stderr."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(good)).convert("RGB").save(stream, "TIFF", compression="tiff_lzw")
    content = bytearray(stream.getvalue())
    content[400:900] = bytes((n * 37) % 256 for n in range(500))
    return bytes(content)


def test_what_the_decoder_says_is_not_passed_on(stranger: Stranger, good: bytes):
    said = stranger.conversation({"path": stranger.upload(_tiff(good)), "orig_name": "a.tif"}, QUESTION)[-1]
    assert said.startswith("a.tif: ")
    assert "\n" not in said
    assert "LZW" not in said
    assert "TIFF" not in said.partition(";")[0].removeprefix("a.tif")


def test_a_file_name_of_many_lines_is_one_line(stranger: Stranger):
    said = stranger.conversation({"path": stranger.upload(b"x"), "orig_name": "a\nb\tc \x1b[2J" * 9}, QUESTION)[-1]
    assert said.startswith("a b c ")
    assert "\n" not in said


def test_a_visitor_is_answered_afterwards(server: Server, taught):
    assert ask(server.client(), taught.picture, QUESTION).angles


@pytest.mark.parametrize("at_ctrl_c", [signal.SIG_DFL, signal.SIG_IGN])  # a script's background ignores it
def test_pictures_are_deleted_whoever_ends_the_demo(taught, tmp_path: Path, good: bytes, at_ctrl_c):
    running = start(taught, tmp_path, at_ctrl_c=at_ctrl_c)
    upload = Path(Stranger(running).upload(good))
    assert upload.is_file()
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert "Traceback" not in "".join(running.log)
    assert not list((tmp_path / "uploads").rglob("*.png"))
    assert not list((tmp_path / "uploads").glob("llava-pose-demo-*"))
