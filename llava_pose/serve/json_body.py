"""The JSON of a request to one of the servers, read up to a limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from llava_pose.serve.limits import MIB, Refused
from llava_pose.utils.files import printable

if TYPE_CHECKING:
    from starlette.requests import Request

_Kind = TypeVar("_Kind", bound=BaseModel)
_MAX_PARTS = 1 << 18  # lists, mappings and what they hold: a byte each in the request, and a hundred of memory


async def json_of(request: Request, most: int, take: Callable[[int], None] | None = None) -> Any:
    """Return the JSON of a request's body.

    Args:
        most: the bytes that it may have.
        take: is told the bytes of each part as it comes in, and may refuse them.

    Raises:
        Refused: it is too long, is no JSON or has too many parts, or is broken off.
    """
    from starlette.requests import ClientDisconnect

    body = bytearray()
    try:
        async for part in request.stream():
            if take is not None:
                take(len(part))
            body += part
            if len(body) > most:
                raise Refused(413, f"a request has at most {most // MIB} MiB; send less")
    except ClientDisconnect as error:
        raise Refused(400, "the request was broken off") from error
    if sum(map(body.count, (b"[", b"{", b","))) > _MAX_PARTS:
        raise Refused(400, "the request's JSON has too many parts")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the request is not valid JSON") from error


def valid(kind: type[_Kind], value: Any) -> _Kind:
    """Return the JSON of a request as what it is to be.

    Raises:
        Refused: it is something else; the first field that is wrong is named.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][:4])) or "the request"
        raise Refused(400, f"{printable(place)[:80]}: {first['msg']}") from error
