"""Measure how the published code's steps change poses, boxes and labels of a data set in the raw layout, without any training.

    python scripts/benchmarks/published.py --data-root ../shared/data/photos --out differences.json

docs/DIFFERENCES.md says what each step is. Everything follows from the annotations; no picture is read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.import_.recognise import raw_root
from data_prep.raw.imagenet3d import (
    AnnotatedObject,
    AnnotationError,
    RawLayout,
    filter_reason,
    parse_object,
    read_annotation,
    read_list,
)
from eval.systems.neural_mesh.grid import nearest_of, published_grid, uniform_grid
from llava_pose.pose import categories
from llava_pose.pose.geometry import project_points, rotation_matrix
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.command import command
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import write_json

SIDE, DISTANCE = 512, 4.0
CUBE = np.array([(x, y, z) for x in (-0.29, 0.29) for y in (-0.29, 0.29) for z in (-0.29, 0.29)])  # of unit diagonal
BIN = 2 * math.pi / 40


@dataclass
class DifferencesConfig:
    """The options of the benchmark, and where the figures go."""

    data_root: str = field(metadata={"help": "The folder of a data set in ImageNet3D's raw layout."})
    out: str | None = field(default=None, metadata={"help": "A JSON file for the figures."})


def differences(config: DifferencesConfig) -> dict[str, Any]:
    """Return the figures by the step that they are of; lengths are pixels of the 512 pixel crop, angles degrees."""
    layout = RawLayout(raw_root(require_folder(config.data_root, "--data-root", "give a raw data set")))
    raw, objects, folders = _read(layout)
    kept = [filter_reason(values) is None for values in raw]
    published = [filter_reason(values, published=True) is None for values in raw]
    angles = np.array([(o.azimuth, o.elevation, o.theta) for o in objects])
    rotations = rotation_matrix(*angles.T)
    kinds = [
        categories.get(o.category or folder, allow_custom=True) for o, folder in zip(objects, folders, strict=True)
    ]
    offsets = np.array([_box_offset(o) for o in objects])
    filed = [categories.get(folder, allow_custom=True) for folder in folders]
    grids = {"published, 144": published_grid(), "uniform, 1152": uniform_grid(1152)}
    away = {name: nearest_of(rotations, grid)[0] for name, grid in grids.items()}
    v1 = [category for category in categories.all_categories() if category.in_v1]
    found: dict[str, Any] = {
        "objects": len(objects),
        "filter": {"kept_by_ours": sum(kept), "kept_by_the_published_code": sum(published)},
        "labels": {"class_is_not_the_folder": sum(a != b for a, b in zip(kinds, filed, strict=True))},
        "box_y2": {"off": float((np.abs(offsets) > 0.5).mean()), **_of_pixels(np.abs(offsets))},
        "distance_divided": _of_pixels(np.array([_divided(o) for o in objects])),
        "whole_pixels": _of_pixels(np.array([_truncated(o) for o in objects])),
        "bins": {
            "floor": _of_angles(pose_error(angles, _decoded(angles, 0))),
            "half a bin shifted": _of_angles(pose_error(angles, _decoded(angles, BIN / 2))),
        },
        "grid": {
            name: {"within_30": float((errors < math.pi / 6).mean()), **_of_angles(errors)}
            for name, errors in away.items()
        },
        "flip_of_everything": {"objects": _flipped(kinds), "categories_of_v1": _flipped(v1)},
    }
    if config.out:
        write_json(config.out, found)
    return found


def _read(layout: RawLayout) -> tuple[list[dict[str, Any]], list[AnnotatedObject], list[str]]:
    """Return all raw objects that the lists name, and those of them that can be used with their folders."""
    raw, objects, folders = [], [], []
    names = {
        (c, name) for lists in layout.list_files().values() for c, file in lists.items() for name in read_list(file)
    }
    for folder, name in sorted(names):
        for values in read_annotation(layout.annotation(folder, name)):
            raw.append(values)
            try:
                objects.append(parse_object(values))
            except AnnotationError:
                continue
            folders.append(folder)
    return raw, objects, folders


def _box_offset(o: AnnotatedObject) -> float:
    """Return by how much the published y2 is off: it is shifted by the padding below in place of that above."""
    rate = o.distance / DISTANCE
    height, centre = int(o.height * rate), int(o.py * rate)
    return max(SIDE // 2 + centre - height, 0) - max(SIDE // 2 - centre, 0)


def _divided(o: AnnotatedObject) -> float:
    """Return how far a corner of a cube of unit diagonal moves at most with the published distance and viewport."""
    rate, place = o.distance / DISTANCE, {"px": SIDE / 2, "py": SIDE / 2, "focal": o.focal}
    angles = {"azimuth": o.azimuth, "elevation": o.elevation, "theta": o.theta}
    true = project_points(CUBE, **angles, **place, distance=o.distance, viewport=o.viewport * rate)
    theirs = project_points(CUBE, **angles, **place, distance=o.distance / rate, viewport=o.viewport)
    return float(np.nanmax(np.hypot(*(true - theirs).T), initial=0.0))


def _truncated(o: AnnotatedObject) -> float:
    """Return how far from the crop's middle, where the published label has it, the object's origin is for whole pixels."""
    rate = o.distance / DISTANCE
    sides = max(o.width, 1), max(o.height, 1)
    true = [p * int(side * rate) / side - int(p * rate) for p, side in zip((o.px, o.py), sides, strict=True)]
    return float(np.hypot(*true))


def _decoded(angles: np.ndarray, shift: float) -> np.ndarray:
    """Return the centre of each angle's bin, of 40 whose edges are shifted."""
    return np.floor((angles % (2 * math.pi) + shift) / BIN) * BIN + BIN / 2 - shift


def _flipped(kinds: Sequence[categories.Category]) -> dict[str, int]:
    """Count what a flip by the published rule spoils: whose mirror image is no such object, and whose label is wrong."""
    axes = [category.mirror_axis for category in kinds]
    return {"chiral": axes.count(None), "label_half_a_turn_wrong": axes.count("y")}


def _of_pixels(values: np.ndarray) -> dict[str, float]:
    return {
        "median_px": float(np.median(values)),
        "p95_px": float(np.quantile(values, 0.95)),
        "most_px": float(values.max()),
    }


def _of_angles(errors: np.ndarray) -> dict[str, float]:
    return {"median_deg": float(np.degrees(np.median(errors))), "most_deg": float(np.degrees(np.max(errors)))}


def _show(config: DifferencesConfig) -> None:
    for name, value in differences(config).items():
        sys.stdout.write(f"{name}: {value}\n")


main = command(
    DifferencesConfig,
    _show,
    prog="python scripts/benchmarks/published.py",
    description="Measure how the published code's steps change poses, boxes and labels of a data set.",
    example="python scripts/benchmarks/published.py --data-root ../shared/data/photos --out differences.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
