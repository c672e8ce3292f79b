"""Distributions of rotations: as photographs of standing objects, uniformly, or like those of a set of annotations."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep.raw.imagenet3d import RawLayout, filter_reason, parse_object, read_annotation, read_list
from llava_pose.data.records import METADATA_FILE, read_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import TWO_PI

from .mesh_folder import category_of

logger = logging.getLogger(__name__)

FITTED_SPREAD = 6.0  # degrees: how far a drawn angle strays from the annotated one that it starts from
LEAST_POSES = 10  # annotated objects below which a category borrows the poses of all
MOST_POSES = 2000  # of each category that are kept

Angles = tuple[float, float, float]


class PoseDistribution(Protocol):
    """A distribution that rotations are drawn from."""

    def draw(self, rng: np.random.Generator, category: str) -> Angles:
        """Return azimuth, elevation and theta, in radians."""
        ...


@dataclass(frozen=True)
class NaturalPoses:
    """A standing object and a camera held about level. Degrees.

    Attributes:
        elevation: least, most likely and greatest of a triangular distribution. Azimuth is uniform.
        tilt: standard deviation of theta, which is cut at three times that.
    """

    elevation: tuple[float, float, float] = (-10.0, 15.0, 50.0)
    tilt: float = 4.0

    def draw(self, rng: np.random.Generator, category: str = "") -> Angles:
        """Return azimuth, elevation and theta, in radians."""
        azimuth = rng.uniform(0, TWO_PI)
        elevation = np.radians(rng.triangular(*self.elevation))
        theta = np.radians(np.clip(rng.normal(0, self.tilt), -3 * self.tilt, 3 * self.tilt))
        return float(azimuth), float(elevation), float(theta)


@dataclass(frozen=True)
class UniformPoses:
    """Uniform over all rotations."""

    def draw(self, rng: np.random.Generator, category: str = "") -> Angles:
        """Return azimuth, elevation and theta, in radians."""
        azimuth, theta = rng.uniform(0, TWO_PI, 2)
        return float(azimuth), float(np.arcsin(rng.uniform(-1, 1))), float(theta)


@dataclass(frozen=True)
class FittedPoses:
    """A kernel estimate over annotated rotations: one of them, each angle moved by a normal of ``spread`` degrees.

    Attributes:
        of_category: (n, 3) float64 azimuth, elevation and theta in radians of each category with enough of them.
        of_all: (n, 3) of all together, for the other categories.
        spread: degrees.
    """

    of_category: dict[str, np.ndarray]
    of_all: np.ndarray
    spread: float = FITTED_SPREAD

    def draw(self, rng: np.random.Generator, category: str) -> Angles:
        """Return azimuth, elevation and theta, in radians."""
        poses = self.of_category.get(category, self.of_all)
        azimuth, elevation, theta = poses[rng.integers(len(poses))] + np.radians(self.spread) * rng.normal(size=3)
        return float(azimuth), float(elevation), float(theta)


def fit_poses(folder: Path) -> FittedPoses:
    """Return the distribution of the annotated poses of a raw-layout or prepared folder, val and test splits left aside.

    Raises:
        InputError: the folder is missing, is of neither kind, or holds no usable pose outside val and test.
    """
    if not folder.is_dir():
        raise InputError(f"--poses-from {folder}: there is no such folder; give a raw-layout or a prepared one.")
    prepared = sorted(path.parent.name for path in folder.glob(f"*/{METADATA_FILE}"))
    raw = RawLayout(folder).list_files()
    if not prepared and not raw:
        raise InputError(
            f"--poses-from {folder}: it holds neither <split>/{METADATA_FILE} nor lists/<category>_imagenet_<split>.txt;"
            " give a prepared folder or one of the raw layout."
        )
    found: dict[str, list[Angles]] = {}
    if prepared:
        for split in _training(prepared):
            for record in read_records(folder, split):
                found.setdefault(category_of(record.category), []).append(record.pose.angles)
    else:
        for split in _training(sorted(raw)):
            for category, path in raw[split].items():
                found.setdefault(category_of(category), []).extend(_raw_poses(folder, category, path))
    arrays = {category: np.array(poses, dtype=np.float64) for category, poses in found.items() if poses}
    if not arrays:
        raise InputError(f"--poses-from {folder}: there is no usable pose in its train split; give other annotations.")
    arrays = {category: _thinned(poses) for category, poses in sorted(arrays.items())}
    fitted = FittedPoses(
        of_category={category: poses for category, poses in arrays.items() if len(poses) >= LEAST_POSES},
        of_all=_thinned(np.concatenate(list(arrays.values()))),
    )
    logger.info("poses fitted to annotations of %d categories in %s", len(arrays), folder)
    return fitted


def _training(splits: list[str]) -> list[str]:
    """Poses are drawn like those that may be looked at: val and test only where there is nothing else."""
    return [split for split in splits if split not in ("val", "validation", "test")] or splits


def _raw_poses(folder: Path, category: str, list_file: Path) -> list[Angles]:
    layout = RawLayout(folder)
    found = []
    for name in read_list(list_file):
        try:
            usable = [raw for raw in read_annotation(layout.annotation(category, name)) if filter_reason(raw) is None]
            parsed = [parse_object(raw) for raw in usable]
        except InputError as error:
            logger.warning("%s/%s does not count: %s", category, name, error)
            continue
        found += [(item.azimuth, item.elevation, item.theta) for item in parsed]
    return found


def _thinned(poses: np.ndarray) -> np.ndarray:
    if len(poses) <= MOST_POSES:
        return poses
    return poses[np.random.default_rng(0).permutation(len(poses))[:MOST_POSES]]
