"""A stage's work divided among machines: which of the images this one does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from llava_pose.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count``."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str, option: str = "--shard") -> Shard | None:
        """``2/8`` is the second of eight; "" is None, all of the work.

        Raises:
            InputError: anything else.
        """
        if not text:
            return None
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"{option} {text}: give part/parts, such as 1/8 to 8/8 on eight machines")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        return f"{self.index}-of-{self.count}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every ``count``-th, so that each part has its share of every category."""
        return items[self.index - 1 :: self.count]
