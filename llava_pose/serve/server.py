"""`llava-pose serve`: poses over HTTP, for programs that speak OpenAI's protocol and for batches.

- ``POST /v1/chat/completions``: a chat about one picture (a data URI), streamed if asked for; the poses of its `<pose6D>`
  tokens stand in the message's ``poses``.
- ``POST /v1/pose``: poses of named objects of one picture or of many.
- ``GET /v1/models``, ``/health``, ``/metrics`` (Prometheus's text format).

One thread owns the model. Questions of ``/v1/pose`` that wait together are answered in one forward pass.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import io
import json
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.pose.conventions import CONVENTIONS
from llava_pose.serve.json_body import json_of, valid
from llava_pose.serve.limits import Refused
from llava_pose.serve.session import require_plain, require_short
from llava_pose.utils.files import printable

if TYPE_CHECKING:
    from PIL import Image
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from llava_pose.inference.answers import ChatAnswer, PoseAnswer
    from llava_pose.inference.pipeline import Asked, PosePipeline

logger = logging.getLogger(__name__)
_MAX_PICTURES = 64  # of a request
_MAX_MESSAGES = 64
_BODIES_AT_ONCE = 4  # of the largest size, of all requests that are not answered yet
_KEPT_PIXELS = 1 << 29  # of the pictures of all requests that are not answered yet: 1.6 GB
_DECODED_AT_ONCE = 4  # requests whose pictures are
_JOINED_SECONDS = 0.003  # that the first question of a batch waits for others
_IN_DATA = "data:image/"


@dataclass(frozen=True)
class ServerLimits:
    """The limits of the server: what one request may ask for, and how many may wait.

    Attributes:
        body_bytes: of a request.
        pixels: of a picture.
        new_tokens: of an answer.
        seconds: of an answer, and of waiting for one.
        waiting: questions that wait, in all.
        batch: objects of a forward pass.
    """

    body_bytes: int = 32 << 20
    pixels: int = 1 << 25
    new_tokens: int = 256
    seconds: float = 60.0
    waiting: int = 64
    batch: int = 16


# What requests hold

_Name = Annotated[str, Field(max_length=200)]


class _Part(BaseModel):
    type: str
    text: str | None = None
    image_url: dict[str, Any] | str | None = None


class _Message(BaseModel):
    role: str
    content: str | list[_Part]


class ChatRequest(BaseModel):
    """The fields of OpenAI's chat completions that have a meaning here; others are passed over."""

    model_config = ConfigDict(extra="ignore")
    messages: Annotated[list[_Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    model: str | None = None
    stream: bool = False
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None


class PoseRequest(BaseModel):
    """Pictures as data URIs, what they show, and where.

    Attributes:
        category: one, several to choose from, or "auto"; or a list of these, one a picture, as ``categories``.
        boxes: left, top, right and bottom in pixels, or null, a picture.
    """

    model_config = ConfigDict(extra="forbid")
    images: Annotated[list[str], Field(min_length=1, max_length=_MAX_PICTURES)]
    category: _Name | Annotated[list[_Name], Field(max_length=1000)] = "auto"
    boxes: list[list[float] | None] | None = None
    flip: bool = False
    convention: str = "opencv"


# The thread that owns the model


@dataclass
class _Job:
    """Objects to ask about together, or a chat; ``answer`` gets what came of it."""

    asked: Sequence[Asked] = ()
    flip: bool = False
    chat: Callable[[], ChatAnswer] | None = None
    answer: Future[Any] = field(default_factory=Future)


class ModelThread:
    """The one thread that asks the model. Its queue is bounded, and what waits together is answered together."""

    def __init__(self, pipe: PosePipeline, limits: ServerLimits):
        self.pipe = pipe
        self._limits = limits
        self._jobs: queue.Queue[_Job | None] = queue.Queue(limits.waiting)
        self._kept: _Job | None = None  # taken from the queue, and not fit for the batch that was being filled
        self._closed = False
        self.passes = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def submit(self, job: _Job) -> Future[Any]:
        """Queue a job.

        Raises:
            Refused: as many as may wait are waiting.
        """
        try:
            self._jobs.put_nowait(job)
        except queue.Full as error:
            raise Refused(429, "too many questions are waiting; ask again in a moment") from error
        return job.answer

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._answer_next():  # a call of its own forgets its pictures before the next question is waited for
            pass

    def _answer_next(self) -> bool:
        """Answer what comes next, and return whether anything did."""
        job = self._next()
        if job is None:
            return False
        if not job.answer.cancelled() and job.answer.set_running_or_notify_cancel():
            jobs = [job] if job.chat is not None else self._joined(job)
            self._give(jobs, partial(self._ask, jobs) if job.chat is None else partial(_one, job.chat))
        return True

    def _next(self) -> _Job | None:
        if self._kept is not None:
            job, self._kept = self._kept, None
            return job
        return None if self._closed else self._jobs.get()

    def _joined(self, first: _Job) -> list[_Job]:
        """Return the job and those that wait and can be answered in the same pass."""
        jobs, count, until = [first], len(first.asked), time.monotonic() + _JOINED_SECONDS
        while count < self._limits.batch:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            fits = job is not None and job.chat is None and job.flip == first.flip
            if job is None:
                self._closed = True
                break
            if not fits or count + len(job.asked) > self._limits.batch:
                self._kept = job
                break
            if job.answer.set_running_or_notify_cancel():
                jobs.append(job)
                count += len(job.asked)
        return jobs

    def _ask(self, jobs: Sequence[_Job]) -> list[list[PoseAnswer]]:
        asked = [one for job in jobs for one in job.asked]
        answers: list[PoseAnswer] = []
        for start in range(0, len(asked), self._limits.batch):
            answers += self.pipe.ask(asked[start : start + self._limits.batch], flip=jobs[0].flip)
        parts, start = [], 0
        for job in jobs:
            parts.append(answers[start : start + len(job.asked)])
            start += len(job.asked)
        return parts

    def _give(self, jobs: Sequence[_Job], work: Callable[[], Sequence[Any]]) -> None:
        self.passes += 1
        try:
            results = work()
        except Exception as error:  # noqa: BLE001 (it belongs to whoever asked)
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, result in zip(jobs, results, strict=True):
            job.answer.set_result(result)


def _one(chat: Callable[[], ChatAnswer]) -> list[ChatAnswer]:
    return [chat()]


# The application


class _Share:
    """An amount of something that requests which are not answered yet may hold all together."""

    def __init__(self, most: int):
        self._most = most
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take so much, to be given back.

        Raises:
            Refused: others hold too much of it.
        """
        with self._lock:
            if self._held + count > self._most:
                raise Refused(429, "too many pictures are waiting; ask again in a moment, or send fewer of them")
            self._held += count

    def give_back(self, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._held -= count


class Application:
    """The addresses of the server. :meth:`build` gives them to Starlette."""

    def __init__(self, model: ModelThread, *, name: str, limits: ServerLimits, api_key: str | None = None):
        self._model = model
        self._name = name
        self._limits = limits
        self._key = api_key
        self._counts: dict[tuple[str, int], int] = {}
        self._seconds = 0.0
        self._bytes, self._pixels = _Share(_BODIES_AT_ONCE * limits.body_bytes), _Share(_KEPT_PIXELS)
        self._decoding = asyncio.Semaphore(_DECODED_AT_ONCE)

    def build(self) -> Starlette:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/health", self._guarded(self.health, keyed=False)),
                Route("/metrics", self._guarded(self.metrics)),
                Route("/v1/models", self._guarded(self.models)),
                Route("/v1/pose", self._guarded(self.pose), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            ]
        )

    def _guarded(
        self, respond: Callable[[Request], Awaitable[Response]], *, keyed: bool = True
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that asks for the key, counts, and answers what is wrong in OpenAI's form."""

        async def endpoint(request: Request) -> Response:
            began = time.monotonic()
            try:
                if keyed:
                    self._require_key(request)
                with ExitStack() as request.state.held:
                    response = await respond(request)
            except (Refused, InputError) as error:
                response = _error(error.status if isinstance(error, Refused) else 400, str(error))
            except Exception:
                logger.exception("%s was not answered", request.scope["path"])
                response = _error(500, "the server failed at this request; its log says why")
            key = (request.scope["path"], response.status_code)  # request.url holds what the request names as its host
            self._counts[key] = self._counts.get(key, 0) + 1
            self._seconds += time.monotonic() - began
            return response

        return endpoint

    def _require_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self._key is not None and not hmac.compare_digest(given, self._key.encode()):
            raise Refused(401, "the API key is missing or wrong; send it as: Authorization: Bearer KEY")

    async def health(self, request: Request) -> Response:
        """Say that the server lives, and how many questions wait."""
        return _json({"status": "ok", "waiting": self._model.waiting})

    async def models(self, request: Request) -> Response:
        """Name the one model, and the categories that it knows."""
        model = {"id": self._name, "object": "model", "owned_by": "llava-pose"}
        return _json({"object": "list", "data": [{**model, "categories": self._model.pipe.predictor.categories}]})

    async def metrics(self, request: Request) -> Response:
        """Count requests by address and status, forward passes, and seconds, for Prometheus."""
        from starlette.responses import PlainTextResponse

        lines = ["# TYPE llava_pose_requests_total counter"]
        lines += [
            f'llava_pose_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self._counts.items())
        ]
        lines += [
            "# TYPE llava_pose_request_seconds_total counter",
            f"llava_pose_request_seconds_total {self._seconds:.3f}",
        ]
        lines += ["# TYPE llava_pose_passes_total counter", f"llava_pose_passes_total {self._model.passes}"]
        lines += ["# TYPE llava_pose_waiting gauge", f"llava_pose_waiting {self._model.waiting}", ""]
        return PlainTextResponse("\n".join(lines))

    async def pose(self, request: Request) -> Response:
        """Answer with a pose for each picture."""
        asked_for = valid(PoseRequest, await self._body(request))
        if asked_for.convention not in CONVENTIONS:
            raise Refused(400, f"convention: choose one of {', '.join(CONVENTIONS)}")
        boxes = asked_for.boxes or [None] * len(asked_for.images)
        if len(boxes) != len(asked_for.images):
            raise Refused(
                400, f"boxes: there are {len(boxes)} for {len(asked_for.images)} images; give one, or null, an image"
            )
        names = self._model.pipe.known(asked_for.category)

        def look() -> list[Asked]:
            asked = []
            for uri, box in zip(asked_for.images, boxes, strict=True):
                asked.append(self._model.pipe.asked(self._picture(uri), names, box))
                self._hold(asked[-1].seen, request.state.held)
            return asked

        async with self._decoding:
            asked = await asyncio.to_thread(look)
        answers: list[PoseAnswer] = await self._answered(_Job(asked=asked, flip=asked_for.flip))
        return _json(
            {"model": self._name, "poses": [_finite(answer.to_dict(asked_for.convention)) for answer in answers]}
        )

    def _hold(self, picture: Image.Image, held: ExitStack) -> None:
        """Count the pixels of a picture until its request is answered."""
        count = math.prod(picture.size)
        self._pixels.take(count)
        held.callback(self._pixels.give_back, count)

    async def chat(self, request: Request) -> Response:
        """Answer a chat, whole or as a stream."""
        asked_for = valid(ChatRequest, await self._body(request))
        async with self._decoding:
            picture, messages = await asyncio.to_thread(self._messages, asked_for.messages)
        if picture is not None:
            self._hold(picture, request.state.held)
        most = asked_for.max_completion_tokens or asked_for.max_tokens or self._limits.new_tokens
        most = min(most, self._limits.new_tokens)

        def ask(on_text: Callable[[str], None] | None = None) -> ChatAnswer:
            return self._model.pipe.predictor.chat(
                picture, messages, max_new_tokens=most, max_seconds=self._limits.seconds, on_text=on_text
            )

        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._name}
        if asked_for.stream:
            return await self._stream(ask, head, request.state.held)
        answer = await self._answered(_Job(chat=ask))
        message = {"role": "assistant", "content": answer.text, "poses": _poses(answer)}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if answer.complete else "length"}
        return _json({**head, "object": "chat.completion", "choices": [choice]})

    async def _stream(self, ask: Callable[..., ChatAnswer], head: Mapping[str, Any], held: ExitStack) -> Response:
        from starlette.responses import StreamingResponse

        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        job = _Job(chat=lambda: ask(lambda text: loop.call_soon_threadsafe(texts.put_nowait, text) and None))
        answer = self._model.submit(job)
        kept = held.pop_all()  # for longer than this call
        answer.add_done_callback(lambda _: kept.close())
        answer.add_done_callback(lambda _: loop.call_soon_threadsafe(texts.put_nowait, None))

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

        async def events() -> AsyncIterator[str]:
            try:
                yield chunk({"role": "assistant", "content": ""})
                sent = ""
                while (text := await texts.get()) is not None:
                    # a token may change what stands before it (half a letter of several bytes): only what stays is sent
                    if text.startswith(sent) and text != sent and not text.endswith("\ufffd"):
                        yield chunk({"content": text[len(sent) :]})
                        sent = text
                try:
                    whole: ChatAnswer = answer.result()
                except InputError as error:
                    yield f"data: {json.dumps({'error': {'message': str(error), 'type': 'invalid_request_error'}})}\n\n"
                    return
                rest = whole.text.removeprefix(sent) if whole.text.startswith(sent) else ""
                yield chunk({"content": rest, "poses": _poses(whole)}, "stop" if whole.complete else "length")
                yield "data: [DONE]\n\n"
            finally:
                answer.cancel()  # who has gone does not wait

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _answered(self, job: _Job) -> Any:
        answer = self._model.submit(job)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answer), 2 * self._limits.seconds)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise Refused(503, "the answer took too long; ask for less, or again later") from error

    async def _body(self, request: Request) -> Any:
        """Return a request's JSON. Its bytes are counted until it is answered."""
        count = 0
        request.state.held.callback(lambda: self._bytes.give_back(count))

        def take(more: int) -> None:
            nonlocal count
            self._bytes.take(more)
            count += more

        return await json_of(request, self._limits.body_bytes, take)

    def _picture(self, uri: str) -> Image.Image:
        """Return the picture of a data URI.

        Raises:
            Refused: it is another kind of address, or too large.
            InputError: it is no picture that can be read.
        """
        if not uri.startswith(_IN_DATA):
            raise Refused(
                400, f"a picture must be a data URI ({_IN_DATA}png;base64,…); nothing is fetched, no file opened"
            )
        _, _, content = uri.partition(",")
        try:
            raw = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "a picture's data URI is not valid base64") from error
        remedy = "send a JPEG, PNG or WebP picture"
        return load_rgb(
            io.BytesIO(raw), upright=True, name="the picture", remedy=remedy, max_pixels=self._limits.pixels
        )

    def _messages(self, messages: Sequence[_Message]) -> tuple[Image.Image | None, list[dict[str, Any]]]:
        """Return the picture of a chat and its turns as text."""
        pictures, turns = [], []
        for message in messages:
            if message.role == "system":
                continue  # the model was taught none
            if message.role not in ("user", "assistant"):
                raise Refused(400, f"messages: the role {printable(message.role)[:40]!r} is not known here")
            parts = [_Part(type="text", text=message.content)] if isinstance(message.content, str) else message.content
            for part in parts:
                if part.type == "image_url":
                    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
                    pictures.append(str(url or ""))
                elif part.type != "text":
                    raise Refused(400, f"messages: a part is text or image_url, not {printable(part.type)[:40]!r}")
            text = "\n".join(part.text or "" for part in parts if part.type == "text").strip()
            text = text.encode(errors="replace").decode()  # half a surrogate pair is no text
            require_short(text)
            if message.role == "user":
                require_plain(text)
            turns.append({"role": message.role, "content": text})
        if len(pictures) > 1:
            raise Refused(400, "a chat is about one picture; ask about others in chats of their own, or at /v1/pose")
        return (self._picture(pictures[0]) if pictures else None), turns


def _poses(answer: ChatAnswer) -> list[dict[str, Any]]:
    return [_finite({k: v for k, v in one.to_dict().items() if k != "category"}) for one in answer.objects()]


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """Return an answer, or refuse one that is no pose."""
    if not all(math.isfinite(angle) for angle in value["degrees"].values()):
        raise InputError("the checkpoint answers with a pose that is no number; it is damaged or its training diverged")
    return value


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status)


def _error(status: int, sentence: str) -> Response:
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    return _json(
        {"error": {"message": sentence, "type": kinds.get(status, "invalid_request_error"), "code": status}}, status
    )
