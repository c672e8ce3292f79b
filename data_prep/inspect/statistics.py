"""The content of a dataset in numbers of plain JSON types: counts, angles, boxes, what is missing or there twice."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from data_prep.inspect.entries import KINDS, Dataset, Entry
from llava_pose.data.conversation import POSE_TOKEN
from llava_pose.pose import categories
from llava_pose.pose.geometry import canonicalize

BIN_DEGREES = 10
RANGES = {"azimuth": (0, 360), "elevation": (-90, 90), "theta": (-180, 180)}  # degrees, canonical
EXAMPLES = 5
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def statistics(dataset: Dataset) -> dict[str, Any]:
    """Count all that is counted of a dataset."""
    entries = dataset.entries
    poses = [pose for entry in entries for pose in entry.poses]
    sizes = [entry.size for entry in entries if entry.size is not None]
    problems: dict[str, list[str]] = defaultdict(list)
    for problem in dataset.problems:
        problems[problem.reason].append(problem.sentence)
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
        "angles": _angles([pose.angles for pose in poses if all(map(math.isfinite, pose.angles))]),
        "distance": _quantiles(pose.distance for pose in poses),
        "picture_size": {name: _quantiles(size[i] for size in sizes) for i, name in enumerate(("width", "height"))},
        "box": _boxes([entry for entry in entries if entry.bbox is not None]),
        "missing": _count(name for entry in entries for name in entry.missing),
        "problems": _examples(dict(sorted(problems.items(), key=lambda pair: (-len(pair[1]), pair[0])))),
        "duplicates": _examples(_duplicates(dataset)),
    }
    if dataset.is_text:
        found["texts"] = _texts(entries)
    if dataset.kind == "predictions":
        found["by_system"] = _count(entry.system for entry in entries)
    return found


def _count(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value that is not empty comes, the most frequent first."""
    counts = Counter(value for value in values if value)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _examples(groups: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"count": len(found), "examples": found[:EXAMPLES]} for name, found in groups.items() if found}


def _meta_class(name: str) -> str:
    return categories.get(name, allow_custom=True).meta_class if name.strip(" _") else ""


def _by_category(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        if entry.category:
            counts[entry.category][entry.split or "all"] += 1
    return {name: dict(sorted(counts[name].items())) for name in sorted(counts)}


def _angles(angles: Sequence[tuple[float, float, float]]) -> dict[str, dict[str, Any]]:
    """Return a histogram of each canonical angle, its mean direction, and how narrow it is about it."""
    found: dict[str, dict[str, Any]] = {name: {"counts": []} for name in RANGES}
    columns = canonicalize(*np.array(angles).T) if angles else ()
    for (name, (low, high)), values in zip(RANGES.items(), columns, strict=bool(angles)):
        # a tenth of a millionth of a degree: labels at multiples of ten degrees stay in one bin however they were rounded
        degrees = np.clip(np.degrees(values) + 1e-7, low, high - 1e-7)
        counts, _ = np.histogram(degrees, bins=np.arange(low, high + BIN_DEGREES, BIN_DEGREES))
        direction = complex(np.exp(1j * values).mean())
        mean = math.degrees(math.atan2(direction.imag, direction.real))
        found[name] = {
            "low": low,
            "bin_degrees": BIN_DEGREES,
            "counts": counts.tolist(),
            "mean_degrees": _rounded(mean % 360 if name == "azimuth" else mean),
            "concentration": _rounded(abs(direction)),  # 0: all round, 1: all the same
            "empty_bins": int(np.count_nonzero(counts == 0)),
        }
    return found


def _quantiles(values: Iterable[float | None]) -> dict[str, float]:
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return {}
    return {f"p{q}": _rounded(value) for q, value in zip(_QUANTILES, np.percentile(finite, _QUANTILES), strict=True)}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _boxes(boxed: Sequence[Entry]) -> dict[str, Any]:
    """Return the sizes of boxes in pixels, their share of the picture, and how many reach over its edge."""
    if not boxed:
        return {}
    x1, y1, x2, y2 = np.array([entry.bbox for entry in boxed]).T
    picture = np.array([entry.size or (math.nan, math.nan) for entry in boxed], dtype=float).T
    width, height = x2 - x1, y2 - y1
    outside = (x1 < -0.5) | (y1 < -0.5) | (x2 > picture[0] + 0.5) | (y2 > picture[1] + 0.5)
    return {
        "longer_side": _quantiles(np.maximum(width, height)),
        "width_by_height": _quantiles(width / np.maximum(height, 1e-9)),
        "share_of_picture": _quantiles(width * height / np.maximum(picture.prod(axis=0), 1e-9)),
        "over_the_edge": int((outside & np.isfinite(picture[0])).sum()),
    }


# What is there more than once


def _duplicates(dataset: Dataset) -> dict[str, list[list[str]]]:
    """Return ids, texts and objects of one picture that stand there again, and pictures of several splits."""
    entries = dataset.entries
    found = {"same id": _groups(entries, lambda entry: (entry.system, entry.id))}
    if dataset.is_text:
        found["same text about the same picture"] = _groups(
            entries, lambda e: (e.picture, e.texts) if e.texts else None
        )
    elif dataset.kind != "predictions":
        found["same object twice in a picture"] = _groups(
            entries, lambda e: (e.split, e.picture, e.category, e.bbox, e.poses) if e.poses else None
        )
        splits: dict[str, set[str]] = defaultdict(set)
        for entry in entries:
            splits[entry.raw_image or str(entry.picture or "")].add(entry.split)
        found["picture in several splits"] = [
            [f"{split}: {name}" for split in sorted(of_picture)]
            for name, of_picture in splits.items()
            if name and len(of_picture) > 1
        ]
    return found


def _groups(entries: Iterable[Entry], key: Callable[[Entry], Hashable | None]) -> list[list[str]]:
    """Return the ids of entries that share a key which is not None, where several do."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for entry in entries:
        if (of_entry := key(entry)) is not None:
            found[of_entry].append(entry.id)
    return [names for names in found.values() if len(names) > 1]


def _texts(entries: Sequence[Entry]) -> dict[str, Any]:
    told = [entry.texts for entry in entries if entry.texts]
    last = Counter(texts[-1] for texts in told).most_common(EXAMPLES)
    return {
        "words": _quantiles(sum(len(text.split()) for text in texts) for texts in told),
        "turns": _count(str(len(entry.texts)) for entry in entries),
        "tokens_of_poses": _count(str(sum(text.count(POSE_TOKEN) for text in entry.texts)) for entry in entries),
        "kinds": _count(kind for entry in entries for kind in entry.kinds),
        "different_texts": len(set(told)),
        "most_frequent_last_turns": [{"text": text, "count": count} for text, count in last],
    }
