"""The rules that a caption must keep, and the answer format by which a model says which objects it named.

A model answers with one JSON object and nothing else:

    {"objects": [2, 1], "caption": "A red car <pose6D> stands behind a bicycle <pose6D>."}

``objects`` are the numbers of the prompt, in the order of their `<pose6D>`. A background that no category of the taxonomy
has a name for ("a tree") is no object here: only a person could say whether it is there.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.pose import categories
from llava_pose.pose.categories import Category
from llava_pose.utils.openai_client import BadAnswer

MOST_WORDS = 150
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control signs, halves of letters, and ends of lines and paragraphs


class Mismatch(BadAnswer):
    """A caption that breaks a rule or does not fit the records; the message says why, in words that a model may be sent."""


def expect(condition: object, reason: str) -> None:
    """Raise :class:`Mismatch` unless a condition holds."""
    if not condition:
        raise Mismatch(reason)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# They mean other things, too: "the car can be seen", "a sign of rust". Named only right after an article.
_OFTEN_OTHER = _words(
    "bed bow can cap cone fan iron key lighter mouse pan plate pot sign sink skate speaker tank train watch"
)
_INDEFINITE = _words("a an another one two three four several some many few more other no any every each")
_DEFINITE = _words("the this that these those its their both first second third fourth")
_ARTICLES = _words("a an another the this that one two three four")
_TOKEN_FOLLOWS = re.compile(rf"\s*(?:at\s+|\(\s*)?{re.escape(POSE_TOKEN)}")
_NUMBERS = (
    (re.compile(r"°|\bdeg(?:ree)?s?\b|\bradians?\b|\bo['’]clock\b", re.I), "an angle of its own"),
    (re.compile(r"\b(?:azimuth|elevation|theta|in-plane|yaw)\b", re.I), "the name of an angle"),
    (re.compile(r"\bangles?\b[^.]{0,20}\d", re.I), "an angle of its own"),
    (re.compile(r"\d[.,]\d|\[\s*\d"), "numbers from the annotation"),
)


@dataclass(frozen=True)
class ModelCaption:
    """A model's answer that keeps the rules."""

    caption: str
    objects: tuple[ObjectRecord, ...]


def read_answer(text: str | None, objects: Sequence[ObjectRecord]) -> ModelCaption:
    """Read a model's answer and check it.

    Args:
        objects: those of the prompt; number 1 is the first.

    Raises:
        Mismatch: what is wrong with it, in words that the model may be sent.
    """
    expect(text is not None and text.strip(), "the answer is empty")
    assert text is not None
    body = re.sub(r"\A```(?:json)?\s*\n(.*)\n```\Z", r"\1", text.strip(), flags=re.DOTALL)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Mismatch("the answer is not one JSON object and nothing else") from error
    expect(
        isinstance(value, dict) and value.keys() == {"objects", "caption"},
        "the JSON object must have the keys 'objects' and 'caption' and no others",
    )
    numbers, caption = value["objects"], value["caption"]
    expect(
        isinstance(numbers, list) and numbers and all(type(number) is int for number in numbers),
        "'objects' must be a list of object numbers that is not empty",
    )
    for number in numbers:
        expect(1 <= number <= len(objects), f"there is no object {number}; the objects are 1 to {len(objects)}")
    expect(len(set(numbers)) == len(numbers), "'objects' has a number twice")
    expect(isinstance(caption, str), "'caption' must be text")
    caption = caption.strip()
    chosen = tuple(objects[number - 1] for number in numbers)
    check_words(caption, chosen)
    return ModelCaption(caption, chosen)


def check_words(caption: str, objects: Sequence[ObjectRecord], *, names: bool = True) -> None:
    """Check that a caption names the objects in their order, each with its own `<pose6D>`, and breaks no other rule.

    Args:
        names: hold the words that objects are called by against their categories, and allow no other objects.

    Raises:
        Mismatch
    """
    expect(caption, "the caption is empty")
    expect("\n" not in caption, "the caption must be one paragraph")
    strange = next((sign for sign in caption if unicodedata.category(sign) in _NO_TEXT), None)
    expect(strange is None, f"the caption holds {strange!r}, which is no text")
    expect(len(caption.split()) <= MOST_WORDS, f"the caption has more than {MOST_WORDS} words")
    tokens = caption.count(POSE_TOKEN)
    expect(tokens == len(objects), f"the caption has {tokens} {POSE_TOKEN}, but declares {len(objects)} objects")
    plain = caption.replace(POSE_TOKEN, "")
    expect("<" not in plain and ">" not in plain, f"the caption holds a mark in angle brackets other than {POSE_TOKEN}")
    for pattern, what in _NUMBERS:
        found = pattern.search(plain)
        expect(
            found is None, f"the caption holds {what} ({found and found.group()!r}); {POSE_TOKEN} stands for all of it"
        )
    if names:
        _check_names(caption, objects)


def names_before_tokens(caption: str, expected: Iterable[Category]) -> list[frozenset[str] | None]:
    """Return the categories that the name right before each `<pose6D>` may mean; None where no name of one stands there.

    Args:
        expected: categories that a caption may name beside those of the taxonomy.
    """
    ends = {
        m.end(): mention.categories for mention in _mentions(caption, expected) if (m := _token_after(caption, mention))
    }
    return [ends.get(match.end()) for match in re.finditer(re.escape(POSE_TOKEN), caption)]


def _token_after(caption: str, mention: _Mention) -> re.Match[str] | None:
    return _TOKEN_FOLLOWS.match(caption, mention.end)


def _check_names(caption: str, objects: Sequence[ObjectRecord]) -> None:
    expected = [category_of(record) for record in objects]
    named: list[str] = []
    for mention in _mentions(caption, expected):
        if mention.is_viewer and not _TOKEN_FOLLOWS.match(caption, mention.end):
            continue
        if _TOKEN_FOLLOWS.match(caption, mention.end):
            index = len(named)
            expect(index < len(expected), f"{mention.text!r} is one object more than declared")
            right = expected[index]
            expect(
                right.name in mention.categories,
                f"{POSE_TOKEN} number {index + 1} follows {mention.text!r}, but object number {index + 1} of 'objects' is "
                f"{right.indefinite}",
            )
            named.append(right.name)
        elif mention.is_surely_one or mention.categories & {category.name for category in expected}:
            expect(
                mention.categories & {category.name for category in expected},
                f"{mention.text!r} is not among the objects: name no others",
            )
            expect(
                mention.categories & set(named) and not mention.is_indefinite,
                f"{mention.text!r} is named without its {POSE_TOKEN} directly after the name",
            )
    expect(
        len(named) == len(expected),
        f"a {POSE_TOKEN} does not stand directly after an object's name (as in 'a car {POSE_TOKEN}' or 'a car at "
        f"{POSE_TOKEN}'); call the objects by the names that were given",
    )


@dataclass(frozen=True)
class _Mention:
    text: str
    end: int
    categories: frozenset[str]
    before: tuple[str, ...]  # words before it in its clause, the nearest last

    @property
    def is_viewer(self) -> bool:
        """ "the camera", as in "it faces the camera", is the one that took the picture."""
        return self.text.lower() == "camera" and self.before[-1:] == ("the",)

    @property
    def is_surely_one(self) -> bool:
        """Say whether an object is meant, and not another sense of the word."""
        if self.text.lower() in _OFTEN_OTHER:
            return bool(self.before) and self.before[-1] in _ARTICLES
        return True

    @property
    def is_indefinite(self) -> bool:
        """ "a car", "two old cars": an object that the caption has not spoken of before."""
        for word in reversed(self.before[-4:]):
            if word in _DEFINITE:
                return False
            if word in _INDEFINITE:
                return True
        return False


def _mentions(caption: str, expected: Iterable[Category]) -> list[_Mention]:
    """Return every name of a category in the text, longest names first: "dining table" is no table."""
    custom = {name: frozenset([c.name]) for c in expected if categories.find(c.name) is None for name in _names(c)}
    names = {**_taxonomy_names(), **custom}
    longest_first = _longest_first(names)
    pattern = _pattern() if not custom else _compile(names)
    found = []
    for match in pattern.finditer(caption):
        clause = re.split(r"[.,;:!?()]", caption[: match.start()].replace(POSE_TOKEN, ","))[-1]
        words = tuple(re.findall(r"[\w'-]+", clause.lower()))
        found.append(_Mention(match.group(), match.end(), names[longest_first[cast(int, match.lastindex) - 1]], words))
    return found


@functools.cache
def _taxonomy_names() -> dict[str, frozenset[str]]:
    names: dict[str, set[str]] = {}
    for category in categories.all_categories():
        for name in _names(category):
            names.setdefault(name, set()).add(category.name)
    return {name: frozenset(found) for name, found in names.items()}


def _names(category: Category) -> set[str]:
    """Return what a text may call an object of the category, in lower case if there is one."""
    words = [category.name, category.display_name, category.plural, *category.aliases]
    words.append(category.indefinite.split(" ", 1)[1])
    return {_lower(word.replace("_", " ")) for word in words}


def _lower(word: str) -> str:
    """Return a word in lower case, or as it is where that has other letters: a pattern for the two of "İ" finds no "İ"."""
    return word.lower() if len(word.lower()) == len(word) else word


@functools.cache
def _pattern() -> re.Pattern[str]:
    return _compile(_taxonomy_names())


def _longest_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (-len(name), name))


def _compile(names: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern with a group for each name, since the text does not tell which one it was: "ſink" is a sink to a
    pattern that does not mind the case, and nothing that ``lower`` gives."""
    groups = "|".join(f"({re.escape(name)})" for name in _longest_first(names))
    return re.compile(rf"(?<![\w-])(?:{groups})(?![\w-])", re.IGNORECASE)
