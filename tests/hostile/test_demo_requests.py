"""What strangers send to the demo, over real HTTP: files of the server, addresses, wrong types, endless bodies, odd texts.

Each gets a sentence that tells nothing of the server, and a visitor who asks as one should is answered afterwards.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from llava_pose.errors import InputError
from llava_pose.serve.demo_gate import Gate, Uploads
from llava_pose.serve.desk import Desk
from llava_pose.serve.session import ChatSession
from tests.llava_pose.demo_server import API, META, REPOSITORY, Server, Stranger, ask

gradio = pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'llava-pose[demo]'")
pytest.importorskip("gradio_client", reason="the tests of the demo need gradio_client")

QUESTION = "What is the pose of the car?"
NOT_HERE = "the picture is not here, or no longer: give it again"


@pytest.fixture(scope="module")
def private(taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the server that nobody has given to the demo."""
    path = tmp_path_factory.mktemp("home") / "private.png"
    shutil.copy(taught.picture, path)
    return path


@pytest.fixture(autouse=True)
def nothing_is_told(server: Server) -> Iterator[None]:
    """No traceback and no control character reaches the terminal of whoever runs the demo."""
    before = len(server.log)
    yield
    assert server.process.poll() is None
    said = "".join(server.log[before:])
    assert "Traceback" not in said
    assert "\x1b" not in said


# Files


def _folder_of(upload: str) -> Path:
    return Path(upload).parent.parent


def _other_path(kind: str, private: Path, upload: str, folder: Path) -> str:
    uploads = _folder_of(upload)
    paths = {
        "a picture": private,
        "the password file": "/etc/passwd",
        "no file": private.with_name("absent.png"),
        "a folder": private.parent,
        "the root": "/",
        "nothing": "",
        "a device": "/dev/zero",
        "its own descriptor": "/proc/self/fd/0",
        "up and out": f"{upload}/../../../../{private}",
        "out by dots": os.path.join(uploads, os.path.relpath(private, uploads)),
        "a file beside the uploads": uploads / "beside.png",
        "the upload with dots": f"{uploads}/./{Path(upload).parent.name}/{Path(upload).name}",
        "a fifo": folder / "fifo.png",
        "a fifo beside the uploads": uploads / "fifo.png",
        "a link beside the uploads": uploads / "link.png",
        "NUL": f"{upload}\0",
        "300 letters": "x" * 300,
        "a web address": "http://127.0.0.1:1/picture.png",
        "a file address": f"file://{private}",
        "the demo's own file address": f"/gradio_api/file={upload}",
    }
    path = str(paths[kind])
    if "fifo" in kind and not os.path.exists(path):
        os.mkfifo(path)
    elif kind == "a file beside the uploads":
        shutil.copy(private, path)
    elif kind == "a link beside the uploads" and not os.path.lexists(path):
        os.symlink(private, path)
    return path


PATHS = (
    *("a picture", "the password file", "no file", "a folder", "the root", "nothing", "a device", "its own descriptor"),
    *("up and out", "out by dots", "a file beside the uploads", "the upload with dots", "a fifo"),
    *(
        "a fifo beside the uploads",
        "a link beside the uploads",
        "NUL",
        "300 letters",
        "a web address",
        "a file address",
    ),
    "the demo's own file address",
)


@pytest.mark.parametrize("meta", [None, META, {"_type": "other"}, "text"], ids=["none", "gradio", "other", "text"])
@pytest.mark.parametrize("kind", PATHS)
def test_only_an_upload_is_opened(stranger, good, private, tmp_path, kind, meta):
    """All paths get one and the same sentence, so that nobody learns which of them are there."""
    path = _other_path(kind, private, stranger.upload(good), tmp_path)
    picture = {"path": path, "meta": meta} if meta is not None else {"path": path}
    status, text = stranger.ask(picture, QUESTION)
    assert (status, json.loads(text)) == (422, {"detail": f"{NOT_HERE}, at /gradio_api/upload"})


@pytest.mark.parametrize(
    "shape",
    [
        lambda path: {"url": f"file://{path}", "meta": META},
        lambda path: {"path": None, "url": path},
        lambda path: {"path": {"path": path, "meta": META}},
        lambda path: {"path": [path]},
        lambda path: [{"path": path, "meta": META}],
        lambda path: path,
        lambda path: {"image": {"path": path, "meta": META}},
        lambda path: {"path": 5},
        lambda path: 7,
        lambda path: True,
    ],
    ids=["url", "url alone", "nested", "list of paths", "list", "text", "another name", "number", "7", "true"],
)
def test_a_path_in_another_shape_is_not_opened(stranger, private, shape):
    status, text = stranger.ask(shape(str(private)), QUESTION)
    assert (status, json.loads(text)) == (422, {"detail": f"{NOT_HERE}, at /gradio_api/upload"})


def _index(stranger: Stranger, name: str) -> int:
    config = stranger.http.get("/config").json()
    return next(item["id"] for item in config["dependencies"] if item["api_name"] == name)


@pytest.mark.parametrize("way", ["call/ask", "call/v2/ask", "run/ask", "api/ask", "run/predict", "queue/join"])
def test_no_way_leads_to_a_file(stranger, private, way):
    data = [{"path": str(private), "meta": META}, QUESTION, None]
    body: dict[str, Any] = {"data": data, "session_hash": "abc", "fn_index": _index(stranger, "ask")}
    if way == "call/v2/ask":
        body = {"picture": data[0], "question": QUESTION}
    response = stranger.post(way, body)
    assert response.status_code in (404, 422)
    assert str(private) not in response.text


def test_what_was_drawn_for_another_is_no_upload(stranger, good):
    """A visitor's drawing can be seen by whoever has its unguessable name, but is not taken for a picture."""
    _, events = stranger.ask({"path": stranger.upload(good)}, QUESTION)
    drawn = json.loads(events.split("data: ")[-1])[1]["path"]
    assert stranger.get(f"{API}/file={quote(drawn)}")[0] == 200
    assert stranger.ask({"path": drawn, "meta": META}, QUESTION)[0] == 422


def test_an_upload_that_was_changed_for_a_link_is_not_followed(stranger, private, good):
    upload = stranger.upload(good, "linked.png")
    assert stranger.get(f"{API}/file={quote(upload)}")[0] == 200
    os.unlink(upload)
    os.symlink(private, upload)
    assert stranger.ask({"path": upload, "meta": META}, QUESTION)[0] == 422
    assert stranger.get(f"{API}/file={quote(upload)}")[0] == 404


def test_an_upload_that_is_gone_is_a_sentence(stranger, good):
    upload = stranger.upload(good, "gone.png")
    os.unlink(upload)
    said = stranger.conversation({"path": upload}, QUESTION)
    assert said == [QUESTION, NOT_HERE]


@pytest.mark.parametrize("kind", PATHS)
def test_only_what_belongs_to_visitors_is_served(stranger, good, private, tmp_path, kind):
    path = _other_path(kind, private, stranger.upload(good), tmp_path)
    status, body = stranger.get(f"{API}/file={quote(path)}")
    assert (status, json.loads(body)) == (404, {"detail": NOT_HERE})


@pytest.mark.parametrize(
    "path",
    [
        "/static/{up}{private}",
        "/assets/{up}{private}",
        "/svelte/{up}{private}",
        "/static/{private}",
        "/static//etc/passwd",
        f"{API}/file/{{private}}",
        f"{API}/custom_component/1/client/component/{{up}}{{private}}",
        f"{API}/proxy=http://127.0.0.1:1/",
        f"{API}/stream/a/b/1/playlist.m3u8",
        f"{API}/vibe-code/",
        f"{API}/run-history/buckets",
        f"{API}/runs",
        f"{API}/user",
        "/gradio_api/deep_link?session_hash=abc",
        "/monitoring",
        "/openapi.json",
        "/docs",
        "/pwa_icon/512",
    ],
)
def test_other_addresses_give_nothing(stranger, private, path):
    for up in ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12):
        status, body = stranger.get(path.format(up=up, private=str(private).lstrip("/")))
        assert status in (403, 404)
        assert private.read_bytes() not in body
        assert b"root:" not in body


def _flat(routes: Any) -> Iterator[Any]:
    for route in routes:
        router = getattr(route, "original_router", None)  # FastAPI holds routers that were included, not their routes
        yield from [route] if router is None else _flat(router.routes)


def test_every_address_of_gradio_is_closed_unless_the_page_needs_it(stranger):
    """Whatever addresses the installed Gradio has, a few of which start other programs or fetch what a visitor names."""
    with gradio.Blocks() as blocks:
        gradio.Textbox()
    routes = list(_flat(gradio.routes.App.create_app(blocks).routes))
    posts = {route.path for route in routes if "POST" in (getattr(route, "methods", None) or ())}
    gets = {route.path for route in routes if "GET" in (getattr(route, "methods", None) or ())}
    assert len(posts) > 10
    assert len(gets) > 20
    wanted = re.compile(rf"{API}/(upload|queue/join|cancel|reset|(call|run|api)/\{{api_name\}})/?")
    for path in sorted(posts):
        if not wanted.fullmatch(path):
            response = stranger.http.post(re.sub(r"\{.*?\}", "x", path), json={})
            assert response.status_code == 404, path
            assert response.json() == {"detail": "there is no such page"}
    shown = (
        "/",
        "/config",
        "/theme.css",
        "/favicon.ico",
        "/robots.txt",
        "/manifest.json",
        "/static",
        "/assets",
        "/svelte",
    )
    shown += tuple(f"{API}/{name}" for name in ("info", "app_id", "startup-events", "theme.css", "upload_progress"))
    shown += tuple(f"{API}/{name}" for name in ("queue/data", "heartbeat", "call", "file="))
    for path in sorted(gets):
        if not path.startswith(shown[1:]) and path != "/":
            status, body = stranger.get(re.sub(r"\{.*?\}", "x", path))
            assert (status, json.loads(body)) == (404, {"detail": "there is no such page"}), path


@pytest.mark.parametrize("path", ["/", "/config", f"{API}/info", "/?deep_link=../x", "/config?deep_link=abc"])
def test_the_page_tells_nothing_of_the_server(stranger, path):
    status, body = stranger.get(path)
    assert status == 200
    for secret in (str(REPOSITORY), str(Path.home()) + "/", "/tmp/", "llava-pose-demo-"):
        assert secret.encode() not in body


# Types and sizes


def _calls() -> dict[str, Any]:
    deep = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    data = [None, "Hello?"]
    return {
        "no bytes": b"",
        "no JSON": b"data=5",
        "no UTF-8": b'{"data": [null, "\xff\xfe"]}',
        "deeply nested": deep,
        "a number of 10,000 digits": b'{"data": [null, ' + b"9" * 10_000 + b"]}",
        "a list": [None, "Hello?"],
        "a text": '"Hello?"',
        "null": None,
        "no data": {},
        "data is text": {"data": "Hello?"},
        "data is an object": {"data": {"0": None}},
        "data is null": {"data": None},
        "one part": {"data": ["Hello?"]},
        "nine parts": {"data": data * 4 + [None]},
        "a state": {"data": [*data, {"file": "/etc/passwd"}]},
        "the question is a number": {"data": [None, 5]},
        "the question is a list": {"data": [None, ["Hello?"]]},
        "the question is an object": {"data": [None, {"path": "/etc/passwd", "meta": META}]},
        "the question is true": {"data": [None, True]},
        "the wrong order": {"data": ["Hello?", None]},
        "session is a number": {"data": data, "session_hash": 5},
        "session is a list": {"data": data, "session_hash": ["a"]},
        "session is empty": {"data": data, "session_hash": ""},
        "session is half a pair": {"data": data, "session_hash": "\ud800"},
        "session is a control character": {"data": data, "session_hash": "a\n"},
        "session of 1 MB": {"data": data, "session_hash": "a" * 1_000_000},
        "trigger is text": {"data": data, "trigger_id": "a"},
        "function is text": {"data": data, "fn_index": "a"},
        "function is true": {"data": data, "fn_index": True},
        "function is not there": {"data": data, "fn_index": 9999},
        "function is negative": {"data": data, "fn_index": -1},
        "function is infinite": b'{"data": [null, "Hello?"], "fn_index": 1e999}',
    }


@pytest.mark.parametrize("way", ["call/ask", "queue/join"])
@pytest.mark.parametrize("kind", list(_calls()))
def test_a_call_of_the_wrong_types_is_a_sentence(stranger, kind, way):
    body = _calls()[kind]
    if way == "queue/join" and isinstance(body, dict):
        body = {"session_hash": "abc", "fn_index": _index(stranger, "ask"), **body}
    response = stranger.post(way, body)
    assert response.status_code in (404, 422)
    [(key, sentence)] = response.json().items()
    assert key == "detail"
    assert re.fullmatch(r"[^\n]{10,120}", sentence)
    assert "/etc" not in sentence


@pytest.mark.parametrize(
    "click", [None, 5, {}, {"index": "a"}, {"index": [1e9, 2]}, {"index": [1]}, {"index": [True, 1]}]
)
@pytest.mark.parametrize("part", [{"path": "/etc/passwd"}, ["a"], "a" * 5000, True, -(10**9), 10**400, "\ud800"])
def test_every_part_of_every_function_is_held_to_its_type(stranger, part, click):
    """Sliders, boxes, clicks and whatever else the page asks with."""
    for function in stranger.http.get("/config").json()["dependencies"]:
        if not function["backend_fn"]:
            continue
        body = {"data": [part] * len(function["inputs"]), "fn_index": function["id"], "session_hash": "abc"}
        response = stranger.post("queue/join", {**body, "event_data": click})
        assert response.status_code == 422 or not function["inputs"], function
        assert "/etc" not in response.text


def test_parts_that_do_not_matter_may_be_anything(stranger, good):
    picture = {
        "path": stranger.upload(good),
        "orig_name": {"a": 1},
        "url": 5,
        "size": "x",
        "mime_type": [],
        "meta": [1],
    }
    assert "azimuth" in stranger.conversation(picture, QUESTION)[-1]


def test_bodies_without_an_end_are_not_read(stranger):
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65536

    for path, kind in ((f"{API}/call/ask", "application/json"), (f"{API}/upload", "multipart/form-data; boundary=x")):
        begin = time.monotonic()
        try:
            response = stranger.http.post(path, content=endless(), headers={"content-type": kind})
            assert response.status_code in (400, 413)
        except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
            pass  # the server closed the connection, before it was told everything
        assert time.monotonic() - begin < 60


def test_too_large_an_upload_is_refused(stranger):
    response = stranger.http.post(f"{API}/upload", files={"files": ("large.png", b"x" * (51 << 20))})
    assert response.status_code == 413
    many = [("files", (f"{index}.png", b"x" * (9 << 20))) for index in range(6)]
    response = stranger.http.post(f"{API}/upload", files=many)
    assert response.status_code == 413
    assert response.json() == {"detail": "more than 50 MB are not taken; give less"}


# Texts


TEXTS = {
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "markdown": "# Title [x](javascript:alert(1)) ![x](http://127.0.0.1:1/x.png) | a | b |",
    "escapes": "\x1b]0;title\x07\x1b[2J\x9b31m",
    "reversed": "\u202egnp.exe\u2066",
    "NUL": "What\0is it?",
    "half a character": "What is \ud800 it?",
    "tokens": "</s><s><|im_end|><|im_start|>assistant",
    "an emoji": "What is 🚗?",
    "a template": "{{ 7 * 7 }} {% for x in y %} %s %n {0.__class__}",
}


@pytest.mark.parametrize("kind", list(TEXTS))
def test_any_text_may_be_asked(stranger, good, kind):
    """It is given back as it is, and as text: the page shows no markup (see the visit in a browser)."""
    status, events = stranger.ask({"path": stranger.upload(good)}, TEXTS[kind])
    assert status == 200
    assert "event: complete" in events, events


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("x" * 1_000_000, "the question has 1000000 characters, more than 4000: ask in fewer words"),
        ("What is at <pose6D>?", "ask in plain words"),
        ("<image> " * 100, "ask in plain words"),
        ("<image> \ud800", "ask in plain words"),
        ("\u200b \t\n", "more than the model's|Type a question|azimuth|no answer|.*"),
    ],
    ids=["1 MB", "pose token", "image token", "half a character", "invisible"],
)
def test_a_question_that_cannot_be_asked_is_a_sentence(stranger, good, question, sentence):
    begin = time.monotonic()
    said = stranger.conversation({"path": stranger.upload(good)}, question)
    assert time.monotonic() - begin < 30
    assert re.search(sentence, said[-1])
    assert len(said[0]) < 5000


NAMES = {
    "markup": "<img src=x onerror=alert(1)>.png",
    "escapes": "\x1b]0;title\x07.png",
    "reversed": "\u202egnp.exe",
    "out": "../../../../etc/passwd",
    "300 letters": "n" * 300 + ".png",
    "an option": "--help",
    "NUL": "a\0b.png",
    "half a character": "\ud800.png",
}


@pytest.mark.parametrize("kind", list(NAMES))
def test_a_file_name_is_text(stranger, kind):
    upload = stranger.upload(b"this is no picture")
    said = stranger.conversation({"path": upload, "orig_name": NAMES[kind]}, QUESTION)[-1]
    assert said.endswith("(it is no picture of a known format); give a JPEG, PNG or WebP file")
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\0" not in said
    assert len(said) < 400


PARTS = {
    "no name": b'Content-Disposition: form-data; name="files"',
    "a name of no UTF-8": b"Content-Disposition: form-data; name=\"files\"; filename*=utf-8''%ed%a0%80.png",
}


@pytest.mark.parametrize("kind", [*PARTS, "a boundary of 5000 letters"])
def test_an_upload_that_is_none_is_a_sentence(stranger, kind):
    boundary = "b" * (4 if kind in PARTS else 5000)
    body = b"--%b\r\n%b\r\n\r\nabc\r\n--%b--\r\n" % (boundary.encode(), PARTS.get(kind, b""), boundary.encode())
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    response = stranger.http.post(f"{API}/upload", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json() == {"detail": "the request cannot be understood"}


@pytest.mark.parametrize("ranges", ["bytes=0-0,2-3", "bytes=a-b", "bytes=9999999-", "bytes=-0", "lines=1-2"])
def test_parts_of_a_file_are_given_or_refused(stranger, good, ranges):
    response = stranger.http.get(f"{API}/file={stranger.upload(good)}", headers={"range": ranges})
    assert response.status_code in (200, 206, 400, 416)


def test_an_address_of_a_name_that_no_file_can_have(stranger):
    assert stranger.get(f"/static/{'a' * 5000}")[0] == 400
    with stranger.http.stream("GET", f"{API}/call/ask/nobody-asked-this") as response:
        assert response.status_code == 200


def _bomb(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: a kilobyte for each two seconds of a decoder."""
    out = io.BytesIO()
    Image.new("L", (8000, 8000), 9).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    return whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


PICTURES = {
    "truncated": (lambda good: good[:2000], "cannot read the picture"),
    "empty": (lambda good: b"", "no picture of a known format"),
    "EPS": (lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture of a known format"),
    "SVG": (lambda good: b"<svg onload='alert(1)'/>", "no picture of a known format"),
    "13000x13000": (lambda good: _saved(Image.new("1", (13000, 13000)), "PNG"), "more than the 67 million"),
    "30000x30000": (
        lambda good: _saved(Image.new("1", (30000, 30000)), "TIFF", compression="group4"),
        "more pixels than the 67 million",
    ),
    "32 bits": (lambda good: _saved(Image.new("F", (9, 9)), "TIFF"), "save it with 8 or 16 bits"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", list(PICTURES))
def test_a_bad_picture_is_a_sentence(stranger, good, kind):
    make, sentence = PICTURES[kind]
    begin = time.monotonic()
    said = stranger.conversation({"path": stranger.upload(make(good)), "orig_name": "photo.png"}, QUESTION)[-1]
    assert time.monotonic() - begin < 30
    assert said.startswith("photo.png: ")
    assert sentence in said
    assert "/" not in said


def test_a_picture_of_thousands_of_scans_is_refused_at_once(server, stranger, taught):
    upload = stranger.upload(_bomb(20_000))
    assert "scans" in Stranger(server).conversation({"path": upload}, QUESTION)[-1]
    assert ask(server.client(), taught.picture, QUESTION).angles


def test_an_answer_is_given_afterwards(server, taught):
    assert ask(server.client(), taught.picture, QUESTION).angles


def test_a_click_on_a_picture_whose_box_was_refused_is_no_error(tmp_path: Path) -> None:
    """What is left of the box is less than a pixel, so that there is a picture and no chat about it."""
    path = tmp_path / "small.png"
    Image.new("RGB", (20, 20)).save(path)
    uploads = Uploads(tmp_path, SimpleNamespace(upload_file_set=set()), [str(path)])
    desk = Desk()
    with pytest.raises(InputError, match="box"):
        desk.look({"path": str(path)}, "0 0 1 1", uploads, lambda picture, box: (ChatSession(None, picture, box=box),))
    assert desk.mark(5, 5) is None
    assert desk.drawn(0) is None
    assert desk.objects(0) == []


def test_a_web_socket_is_closed() -> None:
    """Where a library for them is installed, the server asks for an answer, and complains of none."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    gate: Any = Gate
    asyncio.run(gate(None, blocks=None, uploads=None)({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close"}]
