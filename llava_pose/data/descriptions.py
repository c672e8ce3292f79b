"""Descriptions of categories from a file of one's own, in place of the taxonomy's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llava_pose.data.jsonl import parse_json, read_jsonl
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.files import read_text, shortened

_NAMES, _TEXTS = ("category", "class", "name"), ("description", "caption", "text")
_MOST_LETTERS = 4000


def read_descriptions(path: str | None) -> dict[str, str]:
    """Return canonical category -> description, from a JSON or JSON Lines file; none where there is no file to read.

    The file is an object, category -> text, or category -> an object whose texts are put one after the other (shape, parts,
    use); or a list, or JSON Lines, of objects with ``category`` and ``description`` (or ``caption``). Categories may go by any
    of their names, and may be your own.

    Raises:
        InputError: it cannot be read, holds no description, or one that is empty, endless, marked up, or given twice.
    """
    if path is None:
        return {}
    found: dict[str, str] = {}
    for where, name, text in _entries(path):
        if not isinstance(name, str) or not name.strip(" _") or not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: must have a category's name and its description as text; mend it")
        if "<" in text or ">" in text or len(text) > _MOST_LETTERS:
            raise InputError(
                f"{where}: the description of {shortened(name)} holds angle brackets or is over {_MOST_LETTERS} letters; "
                "give plain sentences"
            )
        category = categories.get(name, allow_custom=True).name
        if category in found:
            raise InputError(f"{where}: {shortened(name)} is described twice; take one out")
        found[category] = " ".join(text.split())
    if not found:
        raise InputError(f"{path}: there is no description in it; write category and text")
    return found


def description_of(category: categories.Category, own: Mapping[str, str]) -> str:
    """Return one's own description of a category, else the taxonomy's; "" where there is neither."""
    return own.get(category.name) or category.description


def _entries(path: str) -> Iterable[tuple[str, Any, Any]]:
    """Yield place, category and text of each entry, unchecked."""
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and not any(isinstance(value.get(name), str) and _text(value) for name in _NAMES):
        for name, one in value.items():
            yield f"{path}: {shortened(name)}", name, one if isinstance(one, str) else _text(one) or _joined(one)
        return
    lines = (
        read_jsonl(path) if not isinstance(value, list) else ((f"{path}: entry {i}", v) for i, v in enumerate(value))
    )
    for where, one in lines:
        name = next((one[key] for key in _NAMES if key in one), None) if isinstance(one, dict) else None
        yield where, name, _text(one)


def _text(entry: Any) -> Any:
    return next((entry[key] for key in _TEXTS if key in entry), None) if isinstance(entry, dict) else None


def _joined(entry: Any) -> Any:
    """Return the texts of an object one after the other, or None where it holds anything else."""
    texts = list(entry.values()) if isinstance(entry, dict) else []
    return " ".join(text.strip() for text in texts) if texts and all(isinstance(t, str) for t in texts) else None
