"""Changed pictures: where a pose says that a point is, the picture has it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval.systems.record_images import RecordImages
from llava_pose.data.augmentation import Augmentation
from llava_pose.data.dataset import EncodedSample, PoseDataset
from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.records import Pose, pose_targets_of, read_records
from llava_pose.model.processors import load_processor
from llava_pose.pose.geometry import geodesic_angle_of_poses, project_points

WIDTH, HEIGHT, VIEWPORT = 160, 120, 700.0
POSE = Pose(0.7, 0.4, -0.2, distance=5.0, px=90.0, py=55.0)
POINTS = np.array([[0.0, 0.0, 0.0], [0.2, -0.1, 0.05], [-0.15, 0.2, 0.1]])


def places(pose: Pose, viewport: float) -> np.ndarray:
    a, e, t = pose.angles
    return project_points(
        POINTS, azimuth=a, elevation=e, theta=t, distance=pose.distance, px=pose.px, py=pose.py, viewport=viewport
    )


def dot(place: np.ndarray) -> Image.Image:
    image = Image.new("RGB", (4 * WIDTH, 4 * HEIGHT))
    x, y = 4 * place
    ImageDraw.Draw(image).ellipse((x - 8, y - 8, x + 8, y + 8), fill="white")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def center_of(image: Image.Image) -> np.ndarray:
    """Of the light, edge coordinates; what is the colour of padding is none."""
    light = np.asarray(image, dtype=float).min(-1)
    light = np.where(light > 150, light, 0)
    y, x = np.mgrid[: image.height, : image.width] + 0.5
    return np.array([(light * x).sum(), (light * y).sum()]) / light.sum()


@pytest.mark.parametrize(
    "change",
    [
        Augmentation(turn=0.25),
        Augmentation(scale=1.15),
        Augmentation(shift=(0.05, -0.04)),
        *(Augmentation.draw(np.random.default_rng(seed)) for seed in range(4)),
    ],
)
def test_every_point_is_where_the_pose_says(change: Augmentation):
    geometric = replace(change, brightness=1.0, contrast=1.0, saturation=1.0)
    pose = geometric.pose(POSE, WIDTH, HEIGHT)
    for before, after in zip(places(POSE, VIEWPORT), places(pose, VIEWPORT * geometric.scale), strict=True):
        np.testing.assert_allclose(center_of(geometric.picture(dot(before))), after, atol=0.3)
    assert (pose.azimuth, pose.elevation, pose.distance) == (POSE.azimuth, POSE.elevation, POSE.distance)


def test_a_positive_turn_is_counter_clockwise_and_a_greater_theta():
    pose = Augmentation(turn=0.3).pose(POSE, WIDTH, HEIGHT)
    assert pose.theta == pytest.approx(0.1)
    above = dot(np.array([WIDTH / 2, HEIGHT / 2 - 40]))  # what is above the centre goes to the left
    assert center_of(Augmentation(turn=0.3).picture(above))[0] < WIDTH / 2 - 8
    assert Augmentation(turn=0.3).pose(replace(POSE, theta=3.0), WIDTH, HEIGHT).theta == pytest.approx(
        3.3 - 2 * math.pi
    )


def test_no_change_leaves_picture_and_pose():
    image = Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB")
    assert Augmentation().picture(image) is image
    assert Augmentation().pose(POSE, WIDTH, HEIGHT) == POSE
    unknown = Pose(0.1, 0.2, 0.3)
    assert Augmentation(turn=0.1, scale=1.1).pose(unknown, WIDTH, HEIGHT).px is None


def test_the_size_stays_and_the_outside_is_padding():
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    changed = Augmentation(scale=0.8).picture(image)
    assert changed.size == image.size
    assert changed.getpixel((1, 1)) == PADDING_COLOUR
    assert changed.getpixel((WIDTH // 2, HEIGHT // 2)) == (255, 255, 255)


def test_what_is_drawn_varies_within_bounds():
    drawn = [Augmentation.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert 0.2 < max(change.turn for change in drawn) <= math.radians(15)
    assert 0.86 <= min(change.scale for change in drawn) < 0.9
    for name in ("brightness", "contrast", "saturation"):
        values = [getattr(change, name) for change in drawn]
        assert 0.65 <= min(values) < 0.7
        assert 1.3 < max(values) <= 1.35
    light = Augmentation.draw(np.random.default_rng(0), geometric=False)
    assert (light.turn, light.scale, light.shift) == (0.0, 1.0, (0.0, 0.0))
    assert light.brightness == drawn[0].brightness


# In training


def pixels_of(item: EncodedSample) -> np.ndarray:
    return item.pictures["pixel_values"].numpy()


def test_samples_have_so_many_changed_pictures_each(training_data, base: Path):
    samples = [s for s in training_data.samples if s.get("flippable")][:2]
    samples[0]["kinds"], samples[1]["kinds"] = ["pose"], ["caption"]
    processor = load_processor(base)
    plain = PoseDataset(samples, training_data.prepared, processor, flip=True)
    changed = PoseDataset(samples, training_data.prepared, processor, flip=True, augment=3)
    assert len(changed) == 3 * len(plain) == 12
    for item in range(12):
        one, again, before = changed[item], changed[item], plain[item % 4]
        np.testing.assert_array_equal(pixels_of(one), pixels_of(again))
        np.testing.assert_array_equal(one.input_ids, before.input_ids)
        assert not np.array_equal(pixels_of(one), pixels_of(before))
        sample = samples[plain.items[item % 4][0]]
        if sample["kinds"] == ["caption"]:  # words may say how it leans: other light alone
            np.testing.assert_array_equal(one.pose_targets, before.pose_targets)
            continue
        change = Augmentation.draw(np.random.default_rng(item))
        pose = Pose.from_dict(sample["poses"][0], where="test")
        if plain.items[item % 4][1]:
            pose = replace(pose, azimuth=-pose.azimuth, theta=-pose.theta, px=sample["width"] - pose.px)
        size = {"width": sample["width"], "height": sample["height"]}
        expected = pose_targets_of(change.pose(pose, **size), **size, viewport=sample["viewport"] * change.scale)
        found = one.pose_targets[0].tolist()
        assert float(geodesic_angle_of_poses(np.array(found[:3]), np.array(expected[:3]))) < 1e-5
        assert found[3:] == pytest.approx(expected[3:], abs=1e-5)
    assert len({pixels_of(one).tobytes() for one in changed}) == 12


def test_a_classifier_sees_so_many_changed_pictures_each(training_data, base: Path):
    records = read_records(training_data.prepared, "train")
    processor = load_processor(base).image_processor
    folder, names = Path(training_data.prepared) / "train", sorted({record.category for record in records})
    plain = RecordImages(records, folder, processor, names, flip=True)
    changed = RecordImages(records, folder, processor, names, flip=True, augment=2)
    assert len(changed) == 2 * len(plain) == len(list(changed))
    for item in (0, len(plain) - 1, len(plain), len(changed) - 1):
        one, before = changed[item], plain[item % len(plain)]
        change = Augmentation.draw(np.random.default_rng(item))
        assert one["category"] == before["category"]
        assert not np.allclose(one["pixel_values"], before["pixel_values"])
        turned = before["angles"].numpy().astype(float)
        turned[2] += change.turn
        assert float(geodesic_angle_of_poses(one["angles"].numpy().astype(float), turned)) < 1e-5
