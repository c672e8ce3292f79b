"""Servers of uvicorn: the port is looked at and the packages are asked for before anything is loaded, then they listen."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from llava_pose.errors import InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette


def require_free(host: str, port: int) -> None:
    """Refuse a port that is taken before a checkpoint is loaded, which takes minutes for a large one.

    Raises:
        InputError: nothing can listen there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as candidate:
            # as the server: one just ended is no obstacle
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(address)
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def require_uvicorn(what: str) -> None:
    """Refuse to start a server whose packages are not installed.

    Raises:
        InputError: uvicorn or starlette is not there, which ``what`` needs.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"the {what} needs uvicorn and starlette: pip install 'llava-pose[serve]'") from error


def listen(application: Starlette, host: str, port: int, *, connections: int | None = None) -> None:
    """Serve an application until Ctrl-C or SIGTERM.

    Args:
        connections: more at a time are answered that the server is busy; None takes any number.

    Raises:
        InputError: nothing can listen there.
    """
    import uvicorn

    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=5,
        limit_concurrency=connections,
        http="h11",  # uvicorn's other parser, httptools, takes headers of any length
        ws="none",
    )
    try:
        uvicorn.Server(config).run()
    except OSError as error:
        raise cannot_listen(host, port, error) from error


def cannot_listen(host: str, port: int, error: OSError) -> InputError:
    """Return the error of a server that cannot listen."""
    return InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error}); choose another")
