"""What each of `llava-pose inspect`'s commands is; data_prep.inspect.command runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Subcommand(NamedTuple):
    """Arguments of :func:`llava_pose.utils.config.command`, and what is to be run."""

    config_class: type
    run: Callable[[Any], str | None]  # gives the text that the command answers with, if it answers
    prog: str
    description: str
    example: str
    positional: str | None = None
