"""The gate before the demo's server lets through what the page needs, and nothing else.

Gradio has some eighty addresses, a few of which fetch what a visitor names, hand uploads to other programs or take bodies
of any length. Here each request has one of the addresses of :data:`PAGES`, is a file that a visitor uploaded or that was
drawn for one, is an upload of bounded length, or is a question whose parts have the right types. Every name in it, of a
session, an event or a function, is short and plain, whether it stands in the path, the query or the body.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from starlette.requests import ClientDisconnect

from llava_pose.serve.limits import (
    CALL_BYTES,
    KEPT_BYTES,
    KEPT_FILES,
    RECEIVING_SECONDS,
    UPLOAD_BYTES,
    UPLOADS_AT_ONCE,
    Refused,
)

logger = logging.getLogger(__name__)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api"
# Gradio keeps names, of sessions and more, and one that is long, no UTF-8 or holds a control character would stay or break it
NAME = r"[A-Za-z0-9_-]{1,64}"
PAGES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/[A-Za-z0-9_./@+~-]*"
    rf"|{API}/(info|app_id|startup-events|theme\.css|queue/data|heartbeat/{NAME}|call/{NAME}/{NAME})/?"
)
_WITHOUT_QUERY = re.compile(r"/|/config/?")  # theirs would name states that were saved
_MOST_FIELDS = 8
ANSWERS = f"{API}/queue/data"
FILES = f"{API}/file="
UPLOAD = f"{API}/upload"
PROGRESS = f"{API}/upload_progress"
CALL = re.compile(rf"{API}/(?P<way>call|run|api)/(?P<name>{NAME})/?|{API}/queue/join/?")
# what Gradio and its parsers raise; the last of them at a header that is to name the demo's own address
_AT_BAD_REQUESTS = (OSError, ValueError, TypeError, LookupError, RuntimeError, httpx.InvalidURL)
CANCEL = re.compile(rf"{API}/(?P<way>cancel|reset)/?")
_NAMES_ARE = "must be at most 64 letters, digits, - and _"
_LARGEST_NUMBER = 2**31
_LARGEST_ANGLE = 360
_CLOSE = (b"connection", b"close")
NOT_HERE = "the picture is not here, or no longer: give it again"


class Uploads:
    """The files that the demo keeps for its visitors, in a folder of its own.

    Args:
        folder: which Gradio stores them in, each under a name that nobody can guess who has not its content.
        blocks: the page, which knows what was uploaded.
        examples: copies of pictures of the demo's own, which visitors may ask about as about their uploads.
    """

    def __init__(self, folder: str | os.PathLike[str], blocks: Any, examples: Iterable[str] = ()):
        self._folder = Path(folder)
        self._examples = frozenset(examples)
        self._blocks = blocks
        self._making_room = threading.Lock()

    def holds(self, path: object) -> bool:
        """Return whether a path is, to the letter, that of a file which Gradio stored for an upload, or of an example."""
        if not isinstance(path, str) or not (path in self._blocks.upload_file_set or path in self._examples):
            return False
        return self._is_inside(path)

    def may_be_read(self, path: str) -> bool:
        """Return whether a path is, to the letter, that of an upload or of a picture that was drawn for a visitor."""
        return any(path in files for files in self._blocks.temp_file_sets) and self._is_inside(path)

    def _is_inside(self, path: str) -> bool:
        """A link in the folder leads nowhere else."""
        return Path(path).resolve().is_relative_to(self._folder.resolve())

    def make_room(self) -> None:
        """Delete the oldest files, so that all together stay within :data:`KEPT_BYTES` and :data:`KEPT_FILES`."""
        with self._making_room:
            found = sorted(self._files(), key=lambda item: item[1].st_ctime, reverse=True)  # the newest first
            size = 0
            for count, (path, status) in enumerate(found, start=1):
                size += status.st_size
                if size > KEPT_BYTES or count > KEPT_FILES:
                    path.unlink(missing_ok=True)
                    for files in self._blocks.temp_file_sets:
                        files.discard(str(path))
                    if path.parent != self._folder:
                        with suppress(OSError):  # it is not empty, or gone
                            path.parent.rmdir()

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for root, _, names in os.walk(self._folder):
            for path in (Path(root, name) for name in names):
                try:
                    if path.is_file():
                        yield path, path.lstat()
                except FileNotFoundError:  # deleted since, by Gradio or by the thread of another request
                    continue


class Gate:
    """ASGI middleware around Gradio's application."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, blocks: Any, uploads: Uploads):
        self._app = app
        self._blocks = blocks
        self._uploads = uploads
        self._uploading = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._pass_on(scope, receive, note_start)
        except ClientDisconnect:
            return None
        except Refused as refusal:
            if not started:
                await _answer(send, refusal.status, str(refusal))
        except _AT_BAD_REQUESTS as error:
            logger.warning("a request was not answered: %s %s (%r)", scope["method"], scope["path"][:80], error)
            if not started:
                await _answer(send, 400, "the request cannot be understood")

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if method == "GET" and path.rstrip("/") == PROGRESS:  # which Gradio keeps a note of, for ever
            return await _send(send, 200, b"text/event-stream", b'data: {"msg": "done"}\n\n')
        if method in ("GET", "HEAD"):
            if path.startswith(FILES):
                if not self._uploads.may_be_read(path.removeprefix(FILES)):
                    raise Refused(404, NOT_HERE)
            elif not PAGES.fullmatch(path):
                raise Refused(404, "there is no such page")
            return await self._app(self._with_query(scope), receive, send)
        if method == "POST" and path.rstrip("/") == UPLOAD:
            return await self._upload(scope, receive, send)
        if method == "POST" and (cancel := CANCEL.fullmatch(path)):
            body = self._checked_cancel(_json(await _whole_body(receive)), cancel["way"])
            return await self._pass_on_body(body, scope, receive, send)
        if method == "POST" and (call := CALL.fullmatch(path)):
            body = self._checked(_json(await _whole_body(receive)), call["way"], call["name"])
            return await self._pass_on_body(body, scope, receive, send)
        raise Refused(404, "there is no such page")

    async def _pass_on_body(self, body: dict[str, Any], scope: Message, receive: Receive, send: Send) -> None:
        content = json.dumps(body).encode()
        headers = [header for header in scope["headers"] if header[0] not in (b"content-length", b"content-type")]
        headers += [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
        await self._app({**scope, "headers": headers, "query_string": b""}, _replay(content, receive), send)

    def _with_query(self, scope: Message) -> Message:
        """Return a request with a query of names alone, or none."""
        if _WITHOUT_QUERY.fullmatch(scope["path"]):
            return {**scope, "query_string": b""}
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=_MOST_FIELDS))
        if scope["path"].rstrip("/") != ANSWERS:
            are_names = all(map(_is_name, (*given, *given.values())))
            return scope if are_names else {**scope, "query_string": b""}
        session = given.get("session_hash")
        if not _is_name(session):
            raise Refused(422, f"session_hash {_NAMES_ARE}")
        if session not in self._blocks._queue.pending_messages_per_session:
            raise Refused(404, "nothing was asked in this session, or its answers were fetched already")
        return {**scope, "query_string": f"session_hash={session}".encode()}

    def _checked_cancel(self, body: Any, way: str) -> dict[str, Any]:
        """Return the end of a question with nothing in it but what was checked."""
        event, session, index = (
            body.get(key) if isinstance(body, dict) else None for key in ("event_id", "session_hash", "fn_index")
        )
        if not _is_name(event):
            raise Refused(422, f"event_id {_NAMES_ARE}")
        if way == "reset":
            return {"event_id": event}
        if not _is_name(session):
            raise Refused(422, f"session_hash {_NAMES_ARE}")
        if type(index) is not int or index not in self._blocks.fns:
            raise Refused(422, "fn_index must be the number of a question that can be asked")
        return {"event_id": event, "session_hash": session, "fn_index": index}

    async def _upload(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._uploading >= UPLOADS_AT_ONCE:
            raise Refused(503, "too many pictures are coming in; give it again in a moment")
        self._uploading += 1
        try:
            await asyncio.to_thread(self._uploads.make_room)
            receive, send = _body_first(_counted(receive, UPLOAD_BYTES), send)
            await asyncio.wait_for(self._app({**scope, "query_string": b""}, receive, send), RECEIVING_SECONDS)
        except asyncio.TimeoutError as error:
            raise Refused(408, "the picture took too long to come in; give a smaller one") from error
        finally:
            self._uploading -= 1

    def _checked(self, body: Any, way: str | None, name: str | None) -> dict[str, Any]:
        """Return a call with nothing in it but what was checked."""
        if not isinstance(body, dict):
            raise Refused(422, 'a call is a JSON object, such as {"data": [picture, question]}')
        index, session, trigger = (body.get(key) for key in ("fn_index", "session_hash", "trigger_id"))
        if name is not None and index is None:
            index = next((i for i, fn in self._blocks.fns.items() if fn.api_name == name), None)
        if type(index) is not int or index not in self._blocks.fns:
            raise Refused(404, "there is no such question to ask: the page has /ask and /new_chat")
        function = self._blocks.fns[index]
        if way in ("run", "api") and function.queue:
            raise Refused(404, "questions wait in a queue: ask at /gradio_api/call/ask")
        if session is not None and not _is_name(session):
            raise Refused(422, f"session_hash {_NAMES_ARE}")
        if trigger is not None and not (type(trigger) is int and abs(trigger) < _LARGEST_NUMBER):
            raise Refused(422, "trigger_id must be a whole number of 32 bits")
        data = body.get("data")
        if not isinstance(data, list):
            raise Refused(422, "data must be a list, such as [picture, question]")
        checked = {"data": self._checked_data(data, function.inputs), "session_hash": session}
        if function.collects_event_data:
            checked["event_data"] = _checked_click(body.get("event_data"))
        return {**checked, "fn_index": index, "trigger_id": trigger}

    def _checked_data(self, data: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """Return the parts of a call, each of the type of its component; those that are left out are None."""
        if not inputs:
            return []
        if len(data) > len(inputs):
            raise Refused(422, "data has more parts than the call takes; /ask takes [picture, question, box]")
        checks = {"image": self._checked_picture, "textbox": _checked_text, "slider": _checked_number}
        checks |= {"radio": _checked_number, "state": _checked_state}
        checked = [
            None if value is None else checks[component.get_block_name()](value)
            for value, component in zip(data, inputs, strict=False)
        ]
        return checked + [None] * (len(inputs) - len(data))

    def _checked_picture(self, picture: Any) -> dict[str, Any]:
        if not isinstance(picture, dict) or not self._uploads.holds(picture.get("path")):
            raise Refused(422, f"{NOT_HERE}, at {UPLOAD}")
        name = picture.get("orig_name")
        return {
            "path": picture["path"],
            "orig_name": _text(name)[:255] if isinstance(name, str) else None,
            "meta": {"_type": "gradio.FileData"},
        }


def _checked_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused(422, "the question must be text")
    return _text(value)


def _checked_number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_ANGLE:
        raise Refused(422, f"an angle must be a number of at most {_LARGEST_ANGLE} degrees")
    return float(value)


def _checked_state(value: Any) -> None:
    raise Refused(422, "what the demo remembers of a visitor cannot be given; send null")


def _checked_click(data: Any) -> dict[str, Any]:
    """Return the place of a click on a picture, and nothing else."""
    place = data.get("index") if isinstance(data, dict) else None
    if not isinstance(place, list) or len(place) != 2 or not all(type(v) is int and 0 <= v < 1 << 16 for v in place):
        raise Refused(422, 'event_data must be a place in the picture, {"index": [x, y]}')
    return {"index": place, "value": None}


def _body_first(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return the two so that an answer begins after the body has ended: Gradio may answer before, and what is still coming in
    would then end the connection, and the answer with it.
    """
    ended = False

    async def note_end() -> Message:
        nonlocal ended
        message = await receive()
        ended = not message.get("more_body", False)
        return message

    async def after_body(message: Message) -> None:
        try:
            while not ended:
                await note_end()
        except Refused:  # it has no end
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
        await send(message)

    return note_end, after_body


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def _text(value: str) -> str:
    """Return a text without halves of surrogate pairs, which JSON can hold and nothing else can."""
    return value.encode(errors="replace").decode()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(422, "the call is not valid JSON") from error


async def _whole_body(receive: Receive) -> bytes:
    async def read() -> bytes:
        parts, counted, more = [], _counted(receive, CALL_BYTES), True
        while more:
            message = await counted()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the connection was closed")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(read(), RECEIVING_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused(408, "the call took too long to come in") from error


def _counted(receive: Receive, most: int) -> Receive:
    count = 0

    async def count_bytes() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise Refused(413, f"more than {most >> 20} MB are not taken; give less")
        return message

    return count_bytes


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then whatever else the connection says."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _answer(send: Send, status: int, sentence: str) -> None:
    # what was refused may still be coming in, without end: the connection is closed
    await _send(send, status, b"application/json", json.dumps({"detail": sentence}).encode(), _CLOSE)


async def _send(send: Send, status: int, kind: bytes, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
