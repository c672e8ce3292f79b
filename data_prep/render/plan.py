"""The plan of a run: the instances of all sources together, each in one split, each with its number in CAD/."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_pose.errors import InputError

from .sources import Instance, MeshSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The selection of instances, and of those that go to val.

    Attributes:
        categories: which, in this order; all, as the sources have them, if empty.
        val_share: of each category's meshes that come from files, the share in val. With two or more meshes at least one
            is in either split, unless the share is 0 or 1.
        meshes_per_category: at most so many from files; 0 for all.
        min_meshes: categories with fewer, of all sources together, are left out.
    """

    categories: tuple[str, ...] = ()
    val_share: float = 0.2
    meshes_per_category: int = 0
    min_meshes: int = 1


def plan(sources: Sequence[MeshSource], selection: Selection) -> list[Instance]:
    """Return the instances of all sources, category by category, with their splits and their numbers in CAD/<category>/.

    Which split a mesh is in follows from its source, category and file alone, not from the seed: renderings of the same
    meshes with different seeds never mix train and val.

    Raises:
        InputError: a source has nothing, a category that was asked for is in no source, or nothing is left.
    """
    of_category: dict[str, list[Instance]] = {}
    for source in sources:
        for instance in source.instances():
            of_category.setdefault(instance.category, []).append(instance)
    chosen = selection.categories or tuple(of_category)
    for category in chosen:
        if category not in of_category:
            raise InputError(
                f"--categories {category}: there is no such object in the sources; choose from {', '.join(of_category)}."
            )
    planned: list[Instance] = []
    few, single = [], []
    for category in chosen:
        members = _thinned(of_category[category], selection.meshes_per_category)
        if len(members) < selection.min_meshes:
            few.append(category)
            continue
        members = _split(members, selection.val_share)
        if len(members) == 1 and 0 < selection.val_share < 1:
            single.append(category)
        planned += [replace(instance, cad_index=number) for number, instance in enumerate(members, start=1)]
    if few:
        logger.info("left out, with fewer than %d meshes: %s", selection.min_meshes, ", ".join(few))
    if single:
        logger.info("in train only, because there is one mesh of each: %s", ", ".join(single))
    if not planned:
        raise InputError(f"--min-meshes {selection.min_meshes} leaves no category: give a smaller number.")
    return planned


def _order(instance: Instance) -> bytes:
    """Return a key of a fixed random order: files are often sorted by kind, and names must not decide."""
    return hashlib.sha256(f"{instance.source}/{instance.category}/{instance.file}".encode()).digest()


def _thinned(members: list[Instance], most: int) -> list[Instance]:
    files = sorted((instance for instance in members if not instance.split), key=_order)
    if not most or len(files) <= most:
        return members
    kept = set(files[:most])
    return [instance for instance in members if instance.split or instance in kept]


def _split(members: list[Instance], val_share: float) -> list[Instance]:
    """Return the members with a split, where a source has not given them one."""
    files = sorted((instance for instance in members if not instance.split), key=_order)
    in_val = round(len(files) * val_share)
    if 0 < val_share < 1 and len(files) > 1:
        in_val = min(max(in_val, 1), len(files) - 1)
    elif 0 < val_share < 1:
        in_val = 0
    val = set(files[:in_val])
    return [
        instance if instance.split else replace(instance, split="val" if instance in val else "train")
        for instance in members
    ]


def companions(planned: Sequence[Instance], seed: int, most: int = 3) -> list[tuple[Instance, ...]]:
    """Return for each instance up to ``most`` others of its split and of other categories, to be put beside it.

    Which they are follows from the seed and the two instances, so that it stays when others are added as far as it can.
    """
    groups: dict[str, list[Instance]] = {}
    for instance in planned:
        groups.setdefault(instance.split, []).append(instance)
    several = {split: len({other.category for other in group}) > 1 for split, group in groups.items()}
    found = []
    for instance in planned:
        group = groups[instance.split]
        chosen: list[Instance] = []
        draw = 0
        while several[instance.split] and len(chosen) < most and draw < 20 * most:
            digest = hashlib.sha256(f"{seed}/{instance.name}/{draw}".encode()).digest()
            other = group[int.from_bytes(digest[:8], "big") % len(group)]
            if other.category != instance.category and other not in chosen:
                chosen.append(other)
            draw += 1
        found.append(tuple(chosen))
    return found


def count_by_source(planned: Sequence[Instance]) -> str:
    """Return for the log "12 of parametric, 30 of CAD"."""
    counts = Counter(instance.source for instance in planned)
    return ", ".join(f"{number} of {source}" for source, number in counts.items())
