"""`llava-pose inspect …`: statistics, a page of samples, a comparison, sheets of CAD models (rooms in data_prep/inspect/)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from data_prep.inspect.subcommand import Subcommand
from llava_pose.utils.config import command
from llava_pose.utils.files import printable

ROOMS = {  # first word -> module, imported only when it is asked for
    "stats": "data_prep.inspect.stats",
    "page": "data_prep.inspect.page",
    "diff": "data_prep.inspect.diff",
    "align": "data_prep.inspect.align_sheet",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``inspect stats``, ``page``, ``diff`` or ``align``; without such a word, ``stats``. (A folder that is called
    "page" is ``./page``.)

    Returns:
        0 done, 2 bad input or usage, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    room = words.pop(0) if words and words[0] in ROOMS else "stats"
    asked: Subcommand = import_module(ROOMS[room]).SUBCOMMAND

    def run(config: Any) -> None:
        sys.stdout.write(printable(asked.run(config) or ""))

    return command(
        asked.config_class,
        run,
        prog=asked.prog,
        description=asked.description,
        example=asked.example,
        positional=asked.positional,
    )(words)


if __name__ == "__main__":
    raise SystemExit(main())
