"""The lines of captions.jsonl, one a picture, which ``llava-pose caption`` writes and ``instruct`` reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llava_pose.data.jsonl import read_jsonl
from llava_pose.errors import InputError

OK, FAILED = "ok", "failed"
GRAMMAR = "grammar"  # the writer of captions that no model wrote


@dataclass(frozen=True)
class CaptionLine:
    """The caption of one picture.

    Attributes:
        image: the picture, relative to the prepared folder.
        status: OK, or FAILED if no answer passed the checks.
        caption: with a `<pose6D>` for each of ``objects``; "" if it failed.
        objects: ids of the records, in the order of their tokens.
        writer: GRAMMAR or the model's name.
        attempts: answers that were asked for.
        prompt_tokens, completion_tokens: of all attempts, as the server counts them.
        reason: why it failed.
        any_nouns: objects may be called, and spoken of, by words that the records do not have.
    """

    image: str
    status: str
    caption: str
    objects: tuple[str, ...]
    writer: str
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: str = ""
    any_nouns: bool = False

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "objects": list(self.objects)}
        return values if self.any_nouns else {k: v for k, v in values.items() if k != "any_nouns"}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> CaptionLine:
        """Make a line of what JSON holds.

        Raises:
            InputError: a field is missing, unknown or malformed; ``where`` names the place.
        """
        for name, kind in (("image", str), ("status", str), ("caption", str), ("objects", list), ("writer", str)):
            if not isinstance(value.get(name), kind):
                raise InputError(f"{where}: '{name}' is missing or malformed; make the file with llava-pose caption")
        if value["status"] not in (OK, FAILED):
            raise InputError(f"{where}: 'status' must be {OK} or {FAILED}, not {value['status']!r}")
        try:
            return cls(**{**value, "objects": tuple(map(str, value["objects"]))})
        except TypeError as error:
            raise InputError(f"{where}: {error}; make the file with llava-pose caption") from error


def read_captions(path: str | os.PathLike[str]) -> dict[str, CaptionLine]:
    """Read the lines of a file, by picture.

    Raises:
        InputError: the file cannot be read, a line is malformed, or a picture stands on two lines.
    """
    lines: dict[str, CaptionLine] = {}
    for where, value in read_jsonl(path, whole_lines_only=True):
        line = CaptionLine.from_dict(value, where=where)
        if line.image in lines:
            raise InputError(f"{where}: the picture {line.image!r} stands on two lines; delete one of them")
        lines[line.image] = line
    return lines
