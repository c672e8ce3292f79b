"""One prepared picture with all the annotated objects it shows, and the words that point at one of them.

Records that share a ``file_name`` are objects of one picture (whole-image data). Records of crops that come from one
raw image are neighbours: an object whose box lies in another one's crop is seen there too, and its record, moved into
that crop, joins the scene. What is seen only in part is a bystander: nothing is asked about it, but "the car" is no
longer one car.

A box in a text is ``[x1, y1, x2, y2]`` as shares of the picture's width and height, two decimals, clipped to the picture.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from llava_pose.data.conversation import object_words
from llava_pose.data.records import ObjectRecord, category_of
from llava_pose.pose.geometry import crop_principal

logger = logging.getLogger(__name__)
_SEEN_WHOLE = 0.85  # share of a neighbour's box inside the picture, from which it may be asked about
_SAME_VIEWPORT = 1e-6  # relative; a sample has one viewport for all its poses
_APART = 0.15  # of the width: two box centres that are called left and right
_SMALLEST_BOX = 0.03  # of either side: two decimals tell no less
_DECIMALS = 9  # of what is compared with an edge, so that a mirrored picture falls on the same side of it
_IN_BOX = " in the box "

Box = tuple[float, float, float, float]


def noun(record: ObjectRecord) -> str:
    """Return what goes after "the": "dining table", "pair of scissors"."""
    return object_words(category_of(record))["object"]


def shares(record: ObjectRecord) -> Box:
    """Return the record's box as shares of its picture, clipped to it."""
    x1, y1, x2, y2 = record.bbox
    values = (x1 / record.width, y1 / record.height, x2 / record.width, y2 / record.height)
    return tuple(min(max(value, 0.0), 1.0) for value in values)  # type: ignore[return-value]


def box_text(record: ObjectRecord) -> str:
    """Write the record's box as "[0.12, 0.30, 0.55, 0.81]"."""
    return f"[{', '.join(f'{value:.2f}' for value in shares(record))}]"


def has_clear_box(record: ObjectRecord) -> bool:
    """Return whether its box is large enough for two decimals to point at it."""
    x1, y1, x2, y2 = shares(record)
    return round(min(x2 - x1, y2 - y1), _DECIMALS) >= _SMALLEST_BOX


@dataclass(frozen=True)
class Scene:
    """One picture with its objects.

    Attributes:
        objects: by id; each with pose, box and viewport in this picture's pixels.
        bystanders: seen in part, or with a camera of another viewport.
        owners: ids of the objects whose records name the picture: one for a crop, which is about this object.
    """

    objects: tuple[ObjectRecord, ...]
    bystanders: tuple[ObjectRecord, ...]
    owners: tuple[str, ...]

    @cached_property
    def by_id(self) -> Mapping[str, ObjectRecord]:
        return {record.id: record for record in self.objects}

    @cached_property
    def distinct(self) -> tuple[ObjectRecord, ...]:
        """The objects without those that have the name and the pose of another, the first owner's or the first by id.

        They are one object that was annotated twice, or cannot be told from one: a sentence names the first alone.
        """
        named: dict[tuple[object, ...], ObjectRecord] = {}
        for record in sorted(self.objects, key=lambda record: record.id not in self.owners):
            numbers = (value if value is None else round(value, 6) for value in record.pose.to_dict().values())
            named.setdefault((noun(record), *numbers), record)
        kept = {record.id for record in named.values()}
        return tuple(record for record in self.objects if record.id in kept)

    @cached_property
    def references(self) -> Mapping[str, tuple[str, ...]]:
        """The phrases that point at each record, by its id, and at nothing else in the picture; "the" goes before each.

        The name alone comes first where there is but one of the kind. None at all: its box is too small to tell.
        """
        return {record.id: tuple(self._phrases(record)) for record in self.objects}

    def _phrases(self, record: ObjectRecord) -> Iterable[str]:
        name = noun(record)
        same = [other for other in (*self.objects, *self.bystanders) if noun(other) == name and other.id != record.id]
        if not same:
            yield name
        if len(same) == 1 and same[0] in self.objects:
            offset = round(centre(record) - centre(same[0]), _DECIMALS)
            if abs(offset) >= _APART and _beside(shares(record), shares(same[0])):
                yield f"{name} on the {'left' if offset < 0 else 'right'}"
        if self.is_clear(record):
            yield f"{name}{_IN_BOX}{box_text(record)}"

    def is_clear(self, record: ObjectRecord) -> bool:
        """Return whether the record's box points at it and not as well at another object."""
        others = (other for other in (*self.objects, *self.bystanders) if other.id != record.id)
        return has_clear_box(record) and all(_overlap(shares(record), shares(other)) < 0.7 for other in others)


def make_scenes(records: Iterable[ObjectRecord]) -> dict[str, Scene]:
    """Make the scene of each record's picture, by the record's id; it does not depend on the order of the records."""
    by_source: dict[object, list[ObjectRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.id):
        by_source[record.source.get("image") or record.file_name].append(record)
    scenes: dict[str, Scene] = {}
    for relatives in by_source.values():
        pictures: dict[tuple[str, float], list[ObjectRecord]] = defaultdict(list)
        for record in relatives:
            pictures[record.file_name, round(record.viewport * record.focal, 6)].append(record)
        for (file_name, _), owners in pictures.items():
            scene = _scene(owners, [r for r in relatives if r not in owners], file_name)
            scenes.update((record.id, scene) for record in owners)
    doubled = sorted(
        {record.id for scene in scenes.values() for record in scene.objects if record not in scene.distinct}
    )
    if doubled:
        logger.warning(
            "%d objects have the name and the pose of another object of their picture, which is then named alone; the "
            "first: %s (llava-pose inspect lists them)",
            len(doubled),
            doubled[0],
        )
    return scenes


def _scene(owners: list[ObjectRecord], relatives: list[ObjectRecord], file_name: str) -> Scene:
    objects, bystanders = list(owners), []
    target = owners[0]
    for relative in relatives:
        same_picture = relative.file_name == file_name
        moved = relative if same_picture else _moved(relative, target)
        if moved is None:
            continue
        inside = 1.0 if same_picture else _share_inside(moved)
        camera, own = moved.viewport * moved.focal, target.viewport * target.focal
        if inside >= _SEEN_WHOLE and abs(camera - own) <= _SAME_VIEWPORT * own:
            objects.append(moved)
        elif inside > 0:
            bystanders.append(moved)
    objects.sort(key=lambda record: record.id)
    return Scene(tuple(objects), tuple(bystanders), tuple(record.id for record in owners))


def _moved(record: ObjectRecord, target: ObjectRecord) -> ObjectRecord | None:
    """Return a record in the pixels of another crop of the same raw image; None where a crop is not known."""
    names = ("left", "top", "scale")
    if any(name not in crop for crop in (record.crop, target.crop) for name in names):
        return None
    own, other = record.crop, target.crop
    scale = other["scale"] / own["scale"]
    left = (other["left"] - own["left"]) * own["scale"]
    top = (other["top"] - own["top"]) * own["scale"]
    pose = record.pose
    if pose.px is None or pose.py is None:
        return None
    px, py, viewport = crop_principal(pose.px, pose.py, record.viewport, left=left, top=top, scale=scale)
    x1, y1, x2, y2 = record.bbox
    return replace(
        record,
        file_name=target.file_name,
        width=target.width,
        height=target.height,
        pose=replace(pose, px=float(px), py=float(py)),
        viewport=float(viewport),
        bbox=((x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale),
        crop=dict(other),
    )


def _share_inside(record: ObjectRecord) -> float:
    x1, y1, x2, y2 = record.bbox
    area = max(x2 - x1, 0.0) * max(y2 - y1, 0.0)
    width = min(x2, record.width) - max(x1, 0.0)
    height = min(y2, record.height) - max(y1, 0.0)
    return max(width, 0.0) * max(height, 0.0) / area if area > 0 else 0.0


def centre(record: ObjectRecord) -> float:
    """Return where the middle of its box stands, as a share of the picture's width."""
    x1, _, x2, _ = shares(record)
    return round((x1 + x2) / 2, _DECIMALS)


def _beside(a: Box, b: Box) -> bool:
    """Return whether neither covers half of the other's width: a table as wide as the picture is on no side of it."""
    both = min(a[2], b[2]) - max(a[0], b[0])
    return round(both - 0.5 * min(a[2] - a[0], b[2] - b[0]), _DECIMALS) < 0


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes over their union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return round(both / either, _DECIMALS) if either > 0 else 0.0
