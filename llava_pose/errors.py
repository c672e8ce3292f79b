"""The exceptions that end a command with one sentence instead of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)
_NAMED = 10  # faults that one message names; the others are counted


class InputError(ValueError):
    """Bad input or usage. The message is one sentence that names the file, the field and the remedy.

    Command lines end with exit code 2 on it, without a traceback.
    """


class RunError(RuntimeError):
    """The input was right, and what came of it is not: a loss that is no number, weights that a disk lost.

    Command lines end with exit code 1 on it, without a traceback.
    """


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite; the message names the samples of the batch, where they have names."""


def listed(faults: Sequence[object], most: int = _NAMED) -> str:
    """Return faults as the lines of a message that go below its sentence: the first of them, and the count of the rest."""
    lines = [f"\n  {fault}" for fault in faults[:most]]
    if len(faults) > most:
        lines.append(f"\n  and {len(faults) - most} more")
    return "".join(lines)


def joined(faults: Sequence[InputError], what: str) -> InputError:
    """Return one error of several: ``what`` they are, and the list of them. A single one comes back as it is, and
    several are of the kind of the first."""
    return faults[0] if len(faults) == 1 else type(faults[0])(f"{what}:{listed(faults)}")


def left_out(faults: Sequence[InputError], what: str) -> InputError:
    """Return the error of a command that has done all but a few items, for it to raise at its end.

    The log gets the first of them and the count of the rest.

    Args:
        what: is not done, as a sentence that names the file.
    """
    for fault in faults[:_NAMED]:
        logger.warning("%s", fault)
    if len(faults) > _NAMED:
        logger.warning("and %d more", len(faults) - _NAMED)
    return InputError(f"{what}; the first: {faults[0]}")
