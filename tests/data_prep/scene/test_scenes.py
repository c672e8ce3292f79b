"""Scenes: which objects a picture shows, and words that point at one of them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from data_prep.scene.scenes import Scene, box_text, make_scenes, noun
from llava_pose.data.conversation import mirror_sides
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.pose.geometry import project_points
from tests.data_prep.made_scenes import make_records
from tests.data_prep.questions.reading import in_box, mirrored, parse_box, resolve, same_box


def record(index: int, box=(10, 20, 60, 80), category: str = "car", **changes) -> ObjectRecord:
    fields = {
        "file_name": "car/a.JPEG",
        "id": f"car/a/{index}",
        "category": category,
        "pose": Pose(0.3, 0.1, 0.0, 5.0, (box[0] + box[2]) / 2, 50.0),
        "viewport": 300.0,
        "width": 200,
        "height": 100,
        "bbox": tuple(map(float, box)),
        "source": {"image": "images/car/a.JPEG"},
    }
    return ObjectRecord(**{**fields, **changes})


def scene_of(*records: ObjectRecord) -> Scene:
    return make_scenes(records)[records[0].id]


# Boxes


def test_a_box_is_shares_of_the_picture_clipped_to_it():
    assert box_text(record(0)) == "[0.05, 0.20, 0.30, 0.80]"
    assert box_text(record(0, (-20, -5, 260, 100))) == "[0.00, 0.00, 1.00, 1.00]"
    assert parse_box("[0.05, 0.20, 0.30, 0.80]") == (0.05, 0.2, 0.3, 0.8)
    assert parse_box("[0.05, 0.20, 0.30]") is None
    assert parse_box("see [0.05, 0.20, 0.30, 0.80]") is None


def test_a_mirrored_text_has_the_mirrored_box():
    for made in make_records(40, seed=3):
        flipped = replace(made, bbox=(240 - made.bbox[2], made.bbox[1], 240 - made.bbox[0], made.bbox[3]))
        assert same_box(flipped, parse_box(mirror_sides(box_text(made))))


# References


def test_one_of_a_kind_is_called_by_its_name_or_by_its_box():
    scene = scene_of(record(0), record(1, (120, 20, 180, 80), "chair"))
    assert scene.references["car/a/0"] == ("car", "car in the box [0.05, 0.20, 0.30, 0.80]")
    assert resolve(scene, "chair").id == "car/a/1"
    assert resolve(scene, "bus") is None


def test_two_of_a_kind_are_left_and_right():
    scene = scene_of(record(0), record(1, (120, 20, 180, 80)))
    assert [scene.references[f"car/a/{i}"][0] for i in (0, 1)] == ["car on the left", "car on the right"]
    assert resolve(scene, "car on the right").id == "car/a/1"
    assert resolve(scene, "car") is None


def test_two_that_stand_before_each_other_and_three_have_their_boxes_only():
    scene = scene_of(record(0), record(1, (20, 20, 75, 60)))
    assert all("in the box" in phrase for phrases in scene.references.values() for phrase in phrases)
    wide = scene_of(record(0), record(1, (0, 60, 200, 100)))
    assert all("in the box" in phrase for phrases in wide.references.values() for phrase in phrases)
    three = scene_of(record(0), record(1, (120, 20, 180, 80)), record(2, (70, 20, 110, 80)))
    assert all(len(phrases) == 1 and "in the box" in phrases[0] for phrases in three.references.values())


def test_what_no_box_can_tell_apart_has_no_reference():
    scene = scene_of(record(0), record(1, (11, 20, 61, 80)), record(2, (100, 20, 101, 80)))
    assert scene.references == {"car/a/0": (), "car/a/1": (), "car/a/2": ()}
    assert in_box(scene, "[0.05, 0.20, 0.30, 0.80]") is None


def test_a_box_points_at_its_own_kind_only():
    scene = scene_of(record(0))
    assert resolve(scene, "car in the box [0.05, 0.20, 0.30, 0.80]").id == "car/a/0"
    assert resolve(scene, "bus in the box [0.05, 0.20, 0.30, 0.80]") is None
    assert resolve(scene, "car in the box [0.06, 0.20, 0.30, 0.80]") is None


def test_every_reference_points_back_also_in_the_mirror():
    for scene in make_scenes(make_records(60)).values():
        for view, mirror in ((scene, str), (mirrored(scene), mirror_sides)):
            for name, phrases in scene.references.items():
                for phrase in phrases:
                    assert resolve(view, mirror(phrase)).id == name
                    assert phrase.startswith(noun(scene.by_id[name]))


# Which objects are in a picture


def test_scenes_do_not_depend_on_the_order_of_the_records():
    records = make_records(30)
    shuffled = random.Random(1).sample(records, len(records))
    assert make_scenes(shuffled) == make_scenes(records)


def test_another_camera_is_seen_and_not_asked_about():
    scenes = make_scenes([record(0), record(1, (120, 20, 180, 80), viewport=500.0)])
    assert [r.id for r in scenes["car/a/0"].objects] == ["car/a/0"]
    assert [r.id for r in scenes["car/a/0"].bystanders] == ["car/a/1"]
    assert scenes["car/a/0"].references["car/a/0"][0].startswith("car in the box"), "there are two cars"


def crop_of(raw: ObjectRecord, left: float, top: float, scale: float, side: int) -> ObjectRecord:
    x1, y1, x2, y2 = raw.bbox
    pose = raw.pose
    return replace(
        raw,
        file_name=f"car/{raw.id[-1]}.JPEG",
        width=side,
        height=side,
        viewport=raw.viewport * scale,
        pose=replace(pose, px=(pose.px - left) * scale, py=(pose.py - top) * scale),
        bbox=((x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale),
        crop={"left": left, "top": top, "scale": scale},
    )


def test_a_neighbour_moves_into_the_crop_of_another_with_its_pose():
    first, second = record(0), record(1, (70, 30, 90, 60), "chair")
    crops = [crop_of(first, 0.0, 5.0, 1.28, 128), crop_of(second, 50.0, 25.0, 3.2, 128)]
    scene = make_scenes(crops)["car/a/0"]
    assert scene.owners == ("car/a/0",)
    moved = scene.by_id["car/a/1"]
    np.testing.assert_allclose(moved.bbox, [70 * 1.28, 25 * 1.28, 90 * 1.28, 55 * 1.28])
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 3))

    def pixels(r: ObjectRecord) -> np.ndarray:
        a, e, t = r.pose.angles
        p = r.pose
        return project_points(
            points, azimuth=a, elevation=e, theta=t, distance=p.distance, px=p.px, py=p.py, viewport=r.viewport
        )

    np.testing.assert_allclose(pixels(moved), (pixels(second) - (0.0, 5.0)) * 1.28)
    # the car is far too large for the chair's crop, but seen there
    assert [r.id for r in make_scenes(crops)["car/a/1"].bystanders] == ["car/a/0"]


@pytest.mark.parametrize("missing", ["left", "scale"])
def test_a_neighbour_of_an_unknown_crop_is_left_alone(missing):
    crops = [crop_of(record(0), 0.0, 5.0, 1.28, 128), crop_of(record(1, (70, 30, 90, 60)), 60.0, 25.0, 3.2, 128)]
    del crops[1].crop[missing]
    assert [r.id for r in make_scenes(crops)["car/a/0"].objects] == ["car/a/0"]
