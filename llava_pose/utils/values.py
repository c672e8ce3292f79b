"""A value held against the type and the bounds of its field, with a sentence where it does not fit."""

from __future__ import annotations

import reprlib
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from llava_pose.errors import InputError

Name = Annotated[str, Field(min_length=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def validated(value: Any, hint: Any, where: str) -> Any:
    """The value as its type has it, with words made numbers.

    Raises:
        InputError: it is not of the type, or out of its bounds.
    """
    if value is None and not _may_be_none(hint):
        raise InputError(f"{where} must not be null or empty; give it a value, or leave the line out")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where} holds a NUL character, which no path or name can; mend it")
    if isinstance(value, bool) and not is_boolean(hint):  # which is a number to Python, and no word's to YAML's
        raise InputError(f"{where} must not be {value} (YAML reads yes, no, on and off so; put a word in quotes)")
    _require_64_bits(value, where)
    try:
        valid = _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{where} {_complaint(error, hint)}, not {_shown(value)}") from error
    _require_64_bits(valid, where)
    return valid


def _require_64_bits(value: Any, where: str) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # no numpy or torch integer holds it
        raise InputError(f"{where} must be a number of 64 bits, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as a message shows it, however long or deep it is."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxlong = shown.maxother = 80
    shown.maxlevel = 3
    return shown.repr(value)


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _complaint(error: ValidationError, hint: Any) -> str:
    for detail in error.errors():
        bounds = detail.get("ctx", {})
        for name, words in (("gt", "over"), ("ge", "at least"), ("lt", "less than"), ("le", "at most")):
            if name in bounds:
                bound = bounds[name]
                return f"must be {words} {int(bound) if bound == int(bound) else bound}"
        if detail["type"] == "finite_number":
            return "must be a finite number"
    choices = choices_of(hint)
    return f"must be one of {', '.join(map(str, choices))}" if choices else f"must be {_described(hint)}"


def _described(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Annotated:
        return _described(get_args(hint)[0])
    if _is_union(hint):
        parts = [_described(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    kind = get_origin(hint) or hint
    if kind is list:
        inner = get_args(hint)
        return f"a list, each of it {_described(inner[0])}" if inner else "a list"
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _parts(hint: Any) -> list[Any]:
    """The members of a union, without None and without bounds; of anything else that."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if _is_union(hint):
        return [part for member in get_args(hint) if member is not type(None) for part in _parts(member)]
    return [hint]


def _may_be_none(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _may_be_none(get_args(hint)[0])
    return hint in (None, type(None), Any) or (_is_union(hint) and any(map(_may_be_none, get_args(hint))))


def is_boolean(hint: Any) -> bool:
    return bool in _parts(hint)


def takes_list(hint: Any) -> bool:
    return all((get_origin(part) or part) is list for part in _parts(hint))


def holds_mappings(hint: Any) -> bool:
    """Say whether only YAML can give it."""
    return all(
        (get_origin(part) or part) is dict or (takes_list(part) and dict in _parts((get_args(part) or (str,))[0]))
        for part in _parts(hint)
    )


def choices_of(hint: Any) -> tuple[Any, ...]:
    return tuple(choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part))
