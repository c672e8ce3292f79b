"""The addresses that the page asks: photographs and models by number, labels, and the checkpoint's answers.

Nothing is opened by a path of a request. A request must name the host that the server listens at, so that no other site's name
that was made to lead here (DNS rebinding) reaches it, and what changes something must be JSON, which another site cannot send.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from data_prep.annotate.labels import Label, Labels
from data_prep.import_.items import rough_place
from data_prep.raw.imagenet3d import DEFAULT_VIEWPORT
from llava_pose.data.images import assumed_viewport
from llava_pose.errors import InputError
from llava_pose.inference.wires import wires_of
from llava_pose.pose import categories
from llava_pose.serve.json_body import json_of, valid
from llava_pose.serve.limits import Refused
from llava_pose.utils.files import printable

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from llava_pose.inference.pipeline import PosePipeline

logger = logging.getLogger(__name__)
_MOST_BYTES = 1 << 20  # of a request
_AT_ONCE = 4  # requests that a photograph is decoded for, or a model read
_HERE = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; frame-ancestors 'none'"
Handler = Callable[["Request"], Awaitable["Response"]]


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid")
    objects: Annotated[list[Label], Field(max_length=500)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    category: str | None = None
    bbox: tuple[float, float, float, float] | None = None


class Application:
    """The addresses. :meth:`build` gives them to Starlette.

    Args:
        models: as :func:`llava_pose.inference.wires.list_models` gives them.
        pipe: the checkpoint to start from, if there is one.
        host: what the server listens at.
    """

    def __init__(
        self, labels: Labels, models: Mapping[str, Mapping[int, Path]], *, pipe: PosePipeline | None, host: str
    ) -> None:
        self._labels = labels
        self._models = models
        self._pipe = pipe
        self._asking = threading.Lock()  # one question at a time
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._hosts = None if host in _EVERYWHERE else {host.lower(), *_HERE}

    def build(self) -> Starlette:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(
            routes=[
                Route("/", self._guarded(self.page)),
                Route("/annotate.js", self._guarded(self.script)),
                Route("/api/state", self._guarded(self.state)),
                Route("/api/pictures/{index}", self._guarded(self.picture)),
                Route("/api/labels/{index}", self._guarded(self.labels)),
                Route("/api/labels/{index}", self._guarded(self.save), methods=["POST"]),
                Route("/api/predict/{index}", self._guarded(self.predict), methods=["POST"]),
                Route("/api/models/{category}/{number}", self._guarded(self.model)),
            ]
        )

    def _guarded(self, respond: Handler) -> Handler:
        """Return an endpoint that looks at the host, and answers what is wrong with a sentence."""
        from starlette.responses import JSONResponse

        async def endpoint(request: Request) -> Response:
            try:
                self._require_host(request)
                response = await respond(request)
            except (Refused, InputError) as error:
                status = error.status if isinstance(error, Refused) else 400
                response = JSONResponse({"error": printable(str(error))}, status)
            except Exception:
                logger.exception("%s was not answered", request.scope["path"])
                response = JSONResponse({"error": "the server failed at this request; its log says why"}, 500)
            response.headers["content-security-policy"] = _POLICY
            response.headers["x-content-type-options"] = "nosniff"
            response.headers["cross-origin-resource-policy"] = "same-origin"
            response.headers["cache-control"] = "no-store"
            return response

        return endpoint

    def _require_host(self, request: Request) -> None:
        try:
            named = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            named = None
        if self._hosts is not None and named not in self._hosts:
            raise Refused(
                421, "the page is asked for by another name than this server's; open the address that it printed"
            )

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        from starlette.responses import HTMLResponse

        return HTMLResponse(_file("page.html"))

    async def script(self, request: Request) -> Response:
        """Answer with the page's script."""
        from starlette.responses import Response

        return Response(_file("annotate.js"), media_type="text/javascript")

    async def state(self, request: Request) -> Response:
        """Answer with the photographs, how far each is labelled, the categories and the models."""
        counts = await asyncio.to_thread(self._labels.counts)
        pictures = [{"name": printable(name), "count": n} for name, n in zip(self._labels.names, counts, strict=True)]
        return _json(
            {
                "pictures": pictures,
                "categories": [category.name for category in categories.all_categories()],
                "models": {name: list(of) for name, of in self._models.items()},
                "has_checkpoint": self._pipe is not None,
            }
        )

    async def picture(self, request: Request) -> Response:
        """Answer with a photograph as it is seen."""
        from starlette.responses import Response

        return Response(await self._apart(self._jpeg, self._index(request)), media_type="image/jpeg")

    def _jpeg(self, index: int) -> bytes:
        stream = io.BytesIO()
        self._labels.picture(index).save(stream, "JPEG", quality=92)
        return stream.getvalue()

    async def labels(self, request: Request) -> Response:
        """Answer with the labels of a photograph."""
        return _json({"objects": await asyncio.to_thread(self._labels.objects, self._index(request))})

    async def save(self, request: Request) -> Response:
        """Save the labels of a photograph; none say that it was looked at and left out."""
        index, saved = self._index(request), valid(_Saved, await _body(request))
        return _json({"count": await self._apart(self._labels.save, index, saved.objects)})

    async def predict(self, request: Request) -> Response:
        """Answer with what the checkpoint sees in a box of a photograph, whole or of one category."""
        index, asked = self._index(request), valid(_Asked, await _body(request))
        return _json(await self._apart(self._predict, index, asked))

    def _predict(self, index: int, asked: _Asked) -> dict[str, Any]:
        if self._pipe is None:
            raise Refused(404, "no checkpoint was given; start with --checkpoint to begin from its answers")
        picture = self._labels.picture(index)
        with self._asking:
            answer = self._pipe(picture, category=asked.category or "auto", box=asked.bbox)
        if not all(map(math.isfinite, answer.pose.angles)):
            raise InputError("the checkpoint's answer is no pose, for its numbers are not finite")
        pose = answer.pose
        bbox = asked.bbox or (0.0, 0.0, float(picture.width), float(picture.height))
        place = rough_place(bbox)
        if pose.px is not None and pose.py is not None:  # what a head does not know of the place is left as it is
            place |= {"px": pose.px, "py": pose.py}
        if pose.distance is not None:
            # as large as by the assumed camera, and from as far as by that of all labels: from less than a length of the
            # object, nobody could lay wires over a photograph
            place["distance"] = pose.distance * place["viewport"] / assumed_viewport(picture)
        angles = dict(zip(("azimuth", "elevation", "theta"), pose.angles, strict=True))
        return {"category": answer.category, "bbox": list(bbox), **angles, **place, "confidence": answer.confidence}

    async def model(self, request: Request) -> Response:
        """Answer with the lines of a CAD model."""
        path = self._models.get(request.path_params["category"], {}).get(_number(request, "number"))
        if path is None:
            raise Refused(404, "there is no such model")
        wires = await self._apart(wires_of, path)
        return _json({"vertices": wires.vertices.tolist(), "edges": wires.edges.tolist()})

    async def _apart(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Await a call that takes much memory, in a thread, a few of them at a time."""
        async with self._free:
            return await asyncio.to_thread(call, *arguments)

    def _index(self, request: Request) -> int:
        index = _number(request, "index")
        if not 0 <= index < len(self._labels.names):
            raise Refused(404, "there is no such photograph")
        return index


def _number(request: Request, name: str) -> int:
    """Return a number of a request's address; -1, which nothing has, for what is none."""
    text = request.path_params[name]
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else -1


def _file(name: str) -> str:
    text = resources.files("data_prep.annotate").joinpath(name).read_text(encoding="utf-8")
    return text.replace("{{viewport}}", f"{DEFAULT_VIEWPORT:g}")


async def _body(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "a request must be JSON, and say so")
    return await json_of(request, _MOST_BYTES)


def _json(value: Any) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value)
