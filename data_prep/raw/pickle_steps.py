"""The steps of a pickle, looked at one by one before any of them is taken: those of plain arrays, and no more than they need.

A pickle is a program. Beside the names that it may call, some of its steps alone can fill any memory or never end: an array
of a declared length, sets and mappings that have to compare what is in them, sixty million marks that compress to nothing.
"""

from __future__ import annotations

import pickletools

MOST_STEPS = 250_000  # an annotation takes about a hundred an object
ALLOWED = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    )
)


def refused_step(content: bytes) -> str | None:
    """Return why a pickle must not be read, in words, or None if it may be.

    Raises:
        ValueError: it is damaged: a step is not known, or declares more bytes than there are.
    """
    for count, (step, _, _) in enumerate(pickletools.genops(content)):
        if step.name not in ALLOWED:
            return f"it has a step {step.name}"
        if count >= MOST_STEPS:
            return f"it has more than {MOST_STEPS} steps"
    return None
