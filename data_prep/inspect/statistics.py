"""What a dataset holds, in numbers: counts, angles, boxes, what is missing, what is there twice. Plain JSON types."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from data_prep.inspect.entries import KINDS, Dataset, Entry
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.pose import categories
from llava_pose.pose.geometry import canonicalize
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.files import file_digest, is_regular

BIN_DEGREES = 10
RANGES = {"azimuth": (0, 360), "elevation": (-90, 90), "theta": (-180, 180)}  # degrees, canonical
EXAMPLES = 5
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def statistics(dataset: Dataset, *, compare_pictures: bool = True) -> dict[str, Any]:
    """All that is counted of a dataset.

    Args:
        compare_pictures: read every picture file, to find the same picture under several names.
    """
    entries = dataset.entries
    poses = [pose for entry in entries for pose in entry.poses]
    found: dict[str, Any] = {
        "path": str(dataset.path),
        "kind": dataset.kind,
        "what": KINDS[dataset.kind],
        "entries": len(entries),
        "pictures": len({entry.picture for entry in entries if entry.picture is not None}),
        "poses": len(poses),
        "categories": len({entry.category for entry in entries if entry.category}),
        "by_split": _count(entry.split for entry in entries),
        "by_status": _count(entry.status for entry in entries),
        "by_source": _count(entry.source for entry in entries),
        "by_meta_class": _count(_meta_class(entry.category) for entry in entries),
        "by_category": _by_category(entries),
        "angles": {name: _angles(name, poses) for name in RANGES},
        "distance": _quantiles(pose.distance for pose in poses),
        "picture_size": _picture_sizes(entries),
        "box": _boxes(entries),
        "missing": _count(name for entry in entries for name in entry.missing),
        "problems": _problems(dataset),
        "duplicates": _duplicates(dataset, compare_pictures=compare_pictures),
    }
    if dataset.is_text:
        found["texts"] = _texts(entries)
    if dataset.kind == "predictions":
        found["systems"] = _systems(entries)
    return found


def _count(values: Iterable[str]) -> dict[str, int]:
    """How often each value that is not empty, the most frequent first."""
    counts = Counter(value for value in values if value)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _meta_class(name: str) -> str:
    return categories.get(name, allow_custom=True).meta_class if name.strip(" _") else ""


def _by_category(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        if entry.category:
            counts[entry.category][entry.split or "all"] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _angles(name: str, poses: Sequence[Any]) -> dict[str, Any]:
    """A histogram of canonical angles; azimuth and theta also with their mean direction and how narrow they are."""
    finite = [pose.angles for pose in poses if all(map(math.isfinite, pose.angles))]
    if not finite:
        return {"counts": []}
    values = np.stack(canonicalize(*np.array(finite).T))[list(RANGES).index(name)]
    low, high = RANGES[name]
    edges = np.arange(low, high + BIN_DEGREES, BIN_DEGREES)
    # a tenth of a millionth of a degree: labels at multiples of ten degrees stay in one bin however they were rounded
    counts, _ = np.histogram(np.clip(np.degrees(values) + 1e-7, low, high - 1e-7), bins=edges)
    direction = np.exp(1j * values).mean()
    return {
        "low": low,
        "bin_degrees": BIN_DEGREES,
        "counts": counts.tolist(),
        "mean_degrees": _rounded(math.degrees(float(np.angle(direction))) % 360 if name == "azimuth" else
                                 math.degrees(float(np.angle(direction)))),
        "concentration": _rounded(abs(direction)),  # 0: all round, 1: all the same
        "empty_bins": int(np.count_nonzero(counts == 0)),
    }  # fmt: skip


def _quantiles(values: Iterable[float | None]) -> dict[str, float]:
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return {}
    found = np.percentile(finite, _QUANTILES)
    return {f"p{quantile}": _rounded(value) for quantile, value in zip(_QUANTILES, found, strict=True)}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _picture_sizes(entries: Sequence[Entry]) -> dict[str, dict[str, float]]:
    sizes = [entry.size for entry in entries if entry.size is not None]
    if not sizes:
        return {}
    width, height = np.array(sizes).T
    return {"width": _quantiles(width), "height": _quantiles(height)}


def _boxes(entries: Sequence[Entry]) -> dict[str, Any]:
    """Sizes of boxes in pixels, their share of the picture, and how many reach over its edge."""
    boxed = [entry for entry in entries if entry.bbox is not None]
    if not boxed:
        return {}
    box = np.array([entry.bbox for entry in boxed])
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    found: dict[str, Any] = {
        "longer_side": _quantiles(np.maximum(width, height)),
        "width_by_height": _quantiles(width / np.maximum(height, 1e-9)),
    }
    sized = [number for number, entry in enumerate(boxed) if entry.size is not None]
    if sized:
        size = np.array([boxed[number].size for number in sized], dtype=float)
        box, area = box[sized], (width * height)[sized]
        found["share_of_picture"] = _quantiles(area / np.maximum(size.prod(axis=1), 1e-9))
        outside = (box[:, :2] < -0.5).any(1) | (box[:, 2:] > size + 0.5).any(1)
        found["over_the_edge"] = int(outside.sum())
    return found


def _problems(dataset: Dataset) -> dict[str, dict[str, Any]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for problem in dataset.problems:
        grouped[problem.reason].append(problem.sentence)
    return {
        reason: {"count": len(grouped[reason]), "examples": grouped[reason][:EXAMPLES]}
        for reason in sorted(grouped, key=lambda reason: (-len(grouped[reason]), reason))
    }


# Duplicates


def _duplicates(dataset: Dataset, *, compare_pictures: bool) -> dict[str, dict[str, Any]]:
    """What stands there more than once: ids, objects of one picture, and pictures in several splits or files."""
    entries = dataset.entries
    found = {"same id": _groups(entries, lambda entry: (entry.system, entry.id), lambda entry: entry.id)}
    if dataset.is_text:
        found["same text about the same picture"] = _groups(
            entries, lambda e: (e.picture, e.texts) if e.texts else None, lambda e: e.id
        )
    elif dataset.kind != "predictions":
        found["same object twice in a picture"] = _groups(
            entries,
            lambda e: (e.split, e.picture, e.category, e.bbox, e.poses) if e.poses else None,
            lambda e: e.id,
        )
        found["picture in several splits"] = _in_several_splits(entries)
    if compare_pictures:
        found.update(_same_pictures(entries))
    return {name: {"count": len(groups), "examples": groups[:EXAMPLES]} for name, groups in found.items() if groups}


def _groups(
    entries: Iterable[Entry], key: Callable[[Entry], Hashable | None], name: Callable[[Entry], str]
) -> list[list[str]]:
    """Names of entries that share a key which is not None, where several do."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for entry in entries:
        of_entry = key(entry)
        if of_entry is not None:
            found[of_entry].append(name(entry))
    return [names for names in found.values() if len(names) > 1]


def _in_several_splits(entries: Iterable[Entry]) -> list[list[str]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        image = entry.fields.get("source", {})
        image = image.get("image") if isinstance(image, dict) else None
        name = image or (str(entry.picture) if entry.picture is not None else "")
        if name:
            splits[name].add(entry.split)
    return [[f"{split}: {name}" for split in sorted(found)] for name, found in splits.items() if len(found) > 1]


def _same_pictures(entries: Iterable[Entry]) -> dict[str, list[list[str]]]:
    """Files of the same bytes under several names, those of different splits apart from the others."""
    splits: dict[Path, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.picture is not None and is_regular(entry.picture):
            splits[entry.picture].add(entry.split)
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in splits:
        by_size[path.stat().st_size].append(path)
    candidates = [path for paths in by_size.values() if len(paths) > 1 for path in paths]
    by_digest: dict[str, list[Path]] = defaultdict(list)
    for path in tqdm(candidates, desc="comparing pictures", unit="file", delay=2, leave=False, mininterval=0.5):
        by_digest[file_digest(path)].append(path)
    within: list[list[str]] = []
    across: list[list[str]] = []
    for paths in by_digest.values():
        if len(paths) > 1:
            named = sorted(f"{split}: {path}" if split else str(path) for path in paths for split in splits[path])
            (within if len(set.union(*(splits[path] for path in paths))) == 1 else across).append(named)
    return {
        "same picture in several splits, by its bytes": across,
        "same picture twice in a split, by its bytes": within,
    }


# Texts and predictions


def _texts(entries: Sequence[Entry]) -> dict[str, Any]:
    words = [sum(len(text.split()) for text in entry.texts) for entry in entries if entry.texts]
    last = Counter(entry.texts[-1] for entry in entries if entry.texts)
    return {
        "words": _quantiles(words),
        "turns": _count(str(len(entry.texts)) for entry in entries),
        "tokens_of_poses": _count(str(sum(text.count(POSE_TOKEN) for text in entry.texts)) for entry in entries),
        "kinds": _count(kind for entry in entries for kind in entry.kinds),
        "different_texts": len({entry.texts for entry in entries if entry.texts}),
        "most_frequent_last_turns": [{"text": text, "count": count} for text, count in last.most_common(EXAMPLES)],
    }


def _systems(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Per system: answers and failures, and a first look at the errors; `llava-pose score` says it with intervals."""
    found = {}
    for system in sorted({entry.system for entry in entries}):
        of_system = [entry for entry in entries if entry.system == system]
        true = np.array([entry.poses[0].angles for entry in of_system])
        nan = (math.nan,) * 3
        predicted = np.array([nan if entry.predicted is None else entry.predicted.angles for entry in of_system])
        errors = np.degrees(pose_error(predicted, true))  # pi where there is no usable pose
        named = [entry for entry in of_system if entry.pred_category is not None]
        right = [categories.find(cast(str, e.pred_category)) or e.pred_category for e in named]
        found[system] = {
            "predictions": len(of_system),
            "without_pose": sum(entry.predicted is None for entry in of_system),
            "median_error_degrees": _rounded(float(np.median(errors))),
            "within_30_degrees": _rounded(float((errors < 30).mean())),
            "with_category": len(named),
            "category_right": sum(
                answer == (categories.find(entry.category) or entry.category)
                for answer, entry in zip(right, named, strict=True)
            ),
        }
    return found
