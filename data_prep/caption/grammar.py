"""Captions of whole pictures without any model: one or several objects, each at its `<pose6D>`, and what is true of them.

The first sentence names the objects with their poses; the sentences after it say from where each is seen, where it faces,
and how two of them stand to each other. So no pose stands after words that tell it. Every sentence is drawn from the set
of those that are true of the records, and :func:`check_caption` holds a caption against that set.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from data_prep.caption.check import Mismatch, expect
from data_prep.scene import relations
from data_prep.scene.facts import ALL_ASPECTS
from data_prep.scene.scenes import Scene, centre, noun
from data_prep.scene.words import listing, sentence
from llava_pose.data.conversation import POSE_TOKEN, object_words
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.data.viewpoint_words import describe_viewpoint

MOST_OBJECTS = 4
CAPTION_ASPECTS = tuple(sorted(ALL_ASPECTS))

_INTRO_ONE = (
    "{objects}.",
    "A picture of {objects}.",
    "The picture shows {objects}.",
    "There is {objects} here.",
    "In view is {objects}.",
    "This is a photograph of {objects}.",
)
_INTRO_SEVERAL = (
    "{objects}.",
    "A picture of {objects}.",
    "The picture shows {objects}.",
    "Seen here are {objects}.",
    "In view are {objects}.",
    "Together in one picture: {objects}.",
)
_SIDED = (
    "{The} is seen from its {side}, {height}.",
    "{The} {facing}.",
    "{The} {facing} and is seen {height}.",
    "{The} {facing}, so that its {side} is seen, {height}.",
    "{The} is photographed from its {side}, {height}.",
    "Seen from its {side}, {the} {facing}.",
)
_FACING = ("{The} {facing}.",)
_HEIGHT = ("{The} is seen {height}.", "{The} is photographed {height}.")
_UPRIGHT = ("{The} stands upright.", "{The} is upright in the picture.")
_TILTED = ("{The} is {tilt}.", "In the picture {the} is {tilt}.")
_HIDDEN = ("{The} is only partly visible.", "Part of {the} is hidden or cut off.")
_ORDINALS = ("first", "second", "third", "fourth")
_INDEFINITES = ("a", "another", "a third", "a fourth")


def scene_caption(scene: Scene, rng: random.Random, *, most: int = MOST_OBJECTS) -> tuple[str, list[ObjectRecord]]:
    """Write a caption, and return it with the objects that it names, in the order of their `<pose6D>`."""
    objects = list(scene.distinct)
    if len(scene.owners) == 1:  # a crop is about its object; what else is seen in it may be named too
        owner = scene.by_id[scene.owners[0]]
        others = [record for record in objects if record.id != owner.id]
        chosen = [owner, *rng.sample(others, rng.randint(0, min(len(others), most - 1)))]
    else:
        chosen = rng.sample(objects, min(len(objects), rng.randint(2, most)))
    chosen.sort(key=centre)
    if rng.random() < 0.5:
        rng.shuffle(chosen)
    sentences = [rng.choice(list(_intros(chosen)))]
    for index in range(len(chosen)):
        sentences += _draw_details(list(_detail_families(chosen, index)), max(1, 4 - len(chosen)), rng)
    pairs = [family for family in _relation_families(chosen) if family]
    if pairs and rng.random() < 0.7:
        sentences.append(rng.choice(rng.choice(pairs)))
    return " ".join(sentences), chosen


def _draw_details(families: list[list[str]], most: int, rng: random.Random) -> list[str]:
    """Draw sentences of different families; the first family, where the object is seen from, nearly always."""
    if not families:
        return []
    first, *rest = families
    count = rng.randint(0, min(len(rest), most - 1))
    return [rng.choice(first), *(rng.choice(family) for family in rng.sample(rest, count))]


def check_caption(caption: str, objects: Sequence[ObjectRecord]) -> None:
    """Check that every sentence of a caption of this grammar is true.

    Args:
        objects: those that it names, in the order of their `<pose6D>`.

    Raises:
        Mismatch: it names none or one twice, or a sentence is not among the true ones.
    """
    expect(objects, "the caption has no pose")
    expect(len({record.id for record in objects}) == len(objects), "the caption has one object's pose twice")
    rest = _without_start(caption, _intros(objects))
    true = {text for i in range(len(objects)) for family in _detail_families(objects, i) for text in family}
    true |= {text for family in _relation_families(objects) for text in family}
    while rest:
        rest = _without_start(rest.removeprefix(" "), true)


def _without_start(text: str, sentences: Iterable[str]) -> str:
    fitting = [start for start in sentences if text == start or text.startswith(start + " ")]
    if not fitting:
        raise Mismatch(f"the records do not say {text.split('. ')[0]!r}")
    return text[len(max(fitting, key=len)) :]


def _intros(objects: Sequence[ObjectRecord]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    plain, placed = [], []
    for record in objects:
        name = noun(record)
        article = _INDEFINITES[min(seen[name], len(_INDEFINITES) - 1)]
        phrase = object_words(category_of(record))["an_object"] if article == "a" else f"{article} {name}"
        seen[name] += 1
        plain.append(f"{phrase} at {POSE_TOKEN}")
        placed.append(f"{plain[-1]} {_place(record)}")
    for template in _INTRO_ONE if len(objects) == 1 else _INTRO_SEVERAL:
        for phrases in (plain, placed) if len(objects) > 1 else (plain,):
            yield sentence(template.format(objects=listing(phrases)))


def _place(record: ObjectRecord) -> str:
    offset = round(centre(record) - 0.5, 9)
    return "in the middle" if abs(offset) <= 0.12 else f"on the {'left' if offset < 0 else 'right'}"


def _reference(objects: Sequence[ObjectRecord], index: int) -> str:
    name = noun(objects[index])
    same = [i for i, record in enumerate(objects) if noun(record) == name]
    return f"the {name}" if len(same) == 1 else f"the {_ORDINALS[same.index(index)]} {name}"


def _detail_families(objects: Sequence[ObjectRecord], index: int) -> Iterator[list[str]]:
    """Yield lists of sentences about one object; those of one list say much the same."""
    record = objects[index]
    category, words = category_of(record), describe_viewpoint(record.pose)
    the = _reference(objects, index)
    names = [the, "it"] if len(objects) == 1 else [the]

    def written(templates: Sequence[str]) -> list[str]:
        values = {"side": words.side, "height": words.height, "facing": words.facing, "tilt": words.tilt}
        return [t.format(the=name, The=sentence(name), **values) for t in templates for name in names]

    if category.has_front and category.has_up and words.side is not None:
        yield written(_SIDED)
    elif category.has_front:
        yield written((*_FACING, *(_HEIGHT if category.has_up else ())))
    elif category.has_up:
        yield written(_HEIGHT)
    if category.has_up and words.side is not None:
        yield written(_TILTED if words.tilt else _UPRIGHT)
    if record.occluded:
        yield written(_HIDDEN)


def _relation_families(objects: Sequence[ObjectRecord]) -> Iterator[list[str]]:
    for i, a in enumerate(objects):
        for j, b in enumerate(objects):
            if i == j:
                continue
            kinds = category_of(a), category_of(b)
            names = {"a": _reference(objects, i), "b": _reference(objects, j)}
            both = "Both" if len(objects) == 2 else sentence("{a} and {b}".format(**names))
            if all(kind.has_front for kind in kinds):
                if i < j and relations.same_way(a.pose, b.pose):
                    yield [f"{both} face the same way."]
                if i < j and relations.opposite_ways(a.pose, b.pose):
                    yield [f"{both} face in opposite directions."]
                if relations.faces_camera_more(a.pose, b.pose):
                    yield [sentence("{a} faces the camera more than {b}.".format(**names))]
            if kinds[0].name == kinds[1].name and relations.nearer(a.pose, b.pose):
                yield [sentence("{a} is nearer to the camera than {b}.".format(**names))]
