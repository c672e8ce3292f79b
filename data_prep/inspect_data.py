"""`llava-pose inspect …`: statistics, a page of samples, a comparison, sheets of CAD models (rooms in data_prep/inspect/)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

KINDS = {  # first word -> module and command, imported only when it is asked for
    "stats": ("data_prep.inspect.stats", "stats_command"),
    "page": ("data_prep.inspect.page", "page_command"),
    "diff": ("data_prep.inspect.diff", "diff_command"),
    "align": ("data_prep.inspect.align_sheet", "align_command"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``inspect stats``, ``page``, ``diff`` or ``align``; without such a word, ``stats``. (A folder that is called
    "page" is ``./page``.)

    Returns:
        0 done, 2 bad input or usage, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    kind = words.pop(0) if words and words[0] in KINDS else "stats"
    module, name = KINDS[kind]
    return getattr(import_module(module), name)(words)


if __name__ == "__main__":
    raise SystemExit(main())
