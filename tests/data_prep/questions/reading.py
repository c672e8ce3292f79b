"""Questions read back: the slots of a phrasing, the object that a phrase points at, and the picture in a mirror."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from data_prep.scene.scenes import Scene, noun, shares
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.pose.geometry import flip_pose

BOX_TOLERANCE = 0.0051  # two decimals, rounded
_SLOT = re.compile(r"\{(\w+)\}")
_BOX = re.compile(r"\[(\d\.\d\d), (\d\.\d\d), (\d\.\d\d), (\d\.\d\d)\]")
_SAME = 1e-9


class Untrue(Exception):
    """A question and answer that the records do not bear out; the message says what is wrong."""


def expect(condition: object, reason: str) -> None:
    if not condition:
        raise Untrue(reason)


def slots_of(phrasing: str, text: str) -> dict[str, str] | None:
    """The slots of a text, or None if it is not of this phrasing."""
    parts = _SLOT.split(phrasing)
    pattern = "".join(f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    match = re.fullmatch(pattern, text, re.DOTALL)
    return None if match is None else match.groupdict()


def readings(choices: Iterable[str], text: str) -> Iterable[tuple[str, dict[str, str]]]:
    """Every phrasing that the text can be read by, with its slots."""
    for phrasing in choices:
        slots = slots_of(phrasing, text)
        if slots is not None:
            yield phrasing, slots


def expect_slots(
    choices: Iterable[str], question: str, fit: Callable[[dict[str, str]], object] = lambda slots: True
) -> dict[str, str]:
    """The slots of a question by the first phrasing that it can be read by and whose slots fit."""
    slots = next((slots for _, slots in readings(choices, question) if fit(slots)), None)
    if slots is None:
        raise Untrue(f"the question {question!r} is none of the kind")
    return slots


def split_listing(text: str, last: str, start: str) -> list[str]:
    """The parts of ``listing``, each of which begins with the pattern ``start`` ("the ", "an? ")."""
    return re.split(rf"(?:, | {last} )(?={start})", text)


# Objects


def parse_box(text: str) -> tuple[float, ...] | None:
    """The numbers of a box, or None if the whole text is none."""
    match = _BOX.fullmatch(text)
    return None if match is None else tuple(map(float, match.groups()))


def same_box(record: ObjectRecord, box: Sequence[float]) -> bool:
    return all(abs(a - b) <= BOX_TOLERANCE for a, b in zip(shares(record), box, strict=True))


def in_box(scene: Scene, text: str) -> ObjectRecord | None:
    """The object whose box the text gives, or None."""
    box = parse_box(text)
    if box is None:
        return None
    return next((record for record in scene.objects if scene.is_clear(record) and same_box(record, box)), None)


def resolve(scene: Scene, phrase: str) -> ObjectRecord | None:
    """The object that a phrase (without "the") points at, or None."""
    name, _, box = phrase.partition(" in the box ")
    if box:
        found = in_box(scene, box)
        return found if found is not None and noun(found) == name else None
    return next((record for record in scene.objects if phrase in scene.references[record.id]), None)


def resolve_all(scene: Scene, slots: Mapping[str, str], names: Sequence[str]) -> list[ObjectRecord]:
    """The objects that the phrases of some slots point at."""
    found = []
    for name in names:
        record = resolve(scene, slots[name])
        if record is None:
            raise Untrue(f"there is no 'the {slots[name]}' in the picture, or it is not the only one")
        found.append(record)
    return found


def expect_poses(poses: Sequence[Pose], records: Sequence[ObjectRecord]) -> None:
    """The poses are the records', in this order."""
    expect(len(poses) == len(records), f"{len(records)} poses expected, found {len(poses)}")
    for index, (pose, record) in enumerate(zip(poses, records, strict=True)):
        for name in ("azimuth", "elevation", "theta", "distance", "px", "py"):
            found, true = getattr(pose, name), getattr(record.pose, name)
            same = found == true or (None not in (found, true) and abs(found - true) <= _SAME * max(1, abs(true)))
            expect(same, f"pose {index} is not that of {record.id!r}: its {name} is {found}, not {true}")


def expect_answer(answer: str, allowed: Iterable[str]) -> None:
    """The answer is one of the true ones."""
    choices = list(dict.fromkeys(allowed))
    expect(answer in choices, f"the answer is {answer!r}; the records say {' or '.join(map(repr, choices[:3]))}")


# The mirror


def mirrored_pose(pose: Pose, width: float) -> Pose:
    """A pose as training mirrors it."""
    px = 0.0 if pose.px is None else pose.px
    azimuth, elevation, theta, px = (float(x) for x in flip_pose(*pose.angles, px, width))
    return replace(pose, azimuth=azimuth, elevation=elevation, theta=theta, px=None if pose.px is None else px)


def mirrored_record(record: ObjectRecord) -> ObjectRecord:
    x1, y1, x2, y2 = record.bbox
    box = (record.width - x2, y1, record.width - x1, y2)
    return replace(record, pose=mirrored_pose(record.pose, record.width), bbox=box)


def mirrored(scene: Scene) -> Scene:
    """The scene of the horizontally flipped picture (poses are right for what mirrors about x only)."""
    return replace(
        scene,
        objects=tuple(map(mirrored_record, scene.objects)),
        bystanders=tuple(map(mirrored_record, scene.bystanders)),
    )
