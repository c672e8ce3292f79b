"""Viewpoint words are held against the projection: what they say is what the camera sees."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from data_prep.scene.viewpoint_captions import caption_templates, offline_caption
from llava_pose.data.conversation import POSE_TOKEN, mirror_sides
from llava_pose.data.records import Pose
from llava_pose.data.viewpoint_words import SIDES, describe_viewpoint
from llava_pose.pose import categories
from llava_pose.pose.geometry import flip_pose, project_points
from tests.data_prep.questions.reading import mirrored_pose

FRONT, UP = np.array([0.0, -1, 0]), np.array([0.0, 0, 1])
OWN_LEFT = np.cross(UP, FRONT)  # a person who looks along FRONT, head up, has the left hand there
NORMALS = {"front": FRONT, "rear": -FRONT, "left": OWN_LEFT, "right": -OWN_LEFT, "above": UP, "below": -UP}


def poses(n: int = 2000, seed: int = 0) -> list[Pose]:
    angles = np.random.default_rng(seed).uniform(
        [0, -math.pi / 2, -math.pi], [2 * math.pi, math.pi / 2, math.pi], (n, 3)
    )
    return [Pose(*row) for row in angles.tolist()]


def degrees(azimuth: float, elevation: float = 0.0, theta: float = 0.0) -> Pose:
    return Pose(math.radians(azimuth), math.radians(elevation), math.radians(theta))


def pixels(points: np.ndarray, pose: Pose) -> np.ndarray:
    azimuth, elevation, theta = pose.angles
    return project_points(
        points, azimuth=azimuth, elevation=elevation, theta=theta, distance=100, px=0, py=0, viewport=1000
    )


def visible_faces(pose: Pose) -> set[str]:
    """The faces of a unit cube that the camera sees: those whose outline keeps its sense of rotation in the image."""
    seen = set()
    for name, normal in NORMALS.items():
        first = np.roll(np.abs(normal), 1)  # some axis at right angles to the normal
        second = np.cross(normal, first)
        corners = [normal + a * first + b * second for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        u, v = pixels(np.array(corners) / 2, pose).T
        if np.sum(u * -np.roll(v, -1) - np.roll(u, -1) * -v) > 0:  # counter-clockwise from outside, pixel y turned up
            seen.add(name)
    return seen


def test_the_own_left_is_plus_x():
    np.testing.assert_array_equal(OWN_LEFT, [1, 0, 0])


@pytest.mark.parametrize(("azimuth", "side"), zip(range(0, 360, 45), SIDES, strict=True))
def test_sides_by_azimuth(azimuth, side):
    for offset in (-22, 0, 22, 360, -720):
        assert describe_viewpoint(degrees(azimuth + offset, 20)).side == side


def test_the_camera_sees_the_sides_that_the_words_name():
    for pose in poses():
        words = describe_viewpoint(pose)
        seen = visible_faces(pose)
        if words.side is not None:
            assert set(words.side.split("-")) <= seen
        for direction in ("above", "below"):
            if direction in words.height:
                assert direction in seen


def test_front_left_is_the_front_and_the_own_left():
    pose = degrees(40, 20)
    assert describe_viewpoint(pose).side == "front-left"
    assert visible_faces(pose) == {"front", "left", "above"}


@pytest.mark.parametrize(
    ("elevation", "height", "seen"),
    [
        (0, "at its own height", "seen from its front, at its own height"),
        (9, "at its own height", "seen from its front, at its own height"),
        (20, "slightly from above", "seen from its front, slightly from above"),
        (60, "from high above", "seen from its front, from high above"),
        (80, "from straight above", "seen from straight above"),
        (-20, "slightly from below", "seen from its front, slightly from below"),
        (-60, "from far below", "seen from its front, from far below"),
        (-90, "from straight below", "seen from straight below"),
    ],
)
def test_heights(elevation, height, seen):
    words = describe_viewpoint(degrees(0, elevation))
    assert (words.height, words.seen) == (height, seen)


def test_facing_is_where_the_front_points_in_the_picture():
    named = set()
    for pose in poses():
        facing = describe_viewpoint(pose).facing
        (u, v), (u_far, v_far) = pixels(np.array([FRONT * 0.0, FRONT]), pose)
        right, up = u_far - u, v - v_far
        for word, says in (("left", right < 0), ("right", right > 0), ("up", up > 0), ("down", up < 0)):
            if re.search(rf"\b{word}\b", facing):
                assert says, (pose, facing)
                named.add(word)
        if "camera" in facing:
            seen = visible_faces(pose)
            assert ("rear" if "away" in facing else "front") in seen
            named.add(facing)
    assert named == {"left", "right", "up", "down", "faces the camera", "faces away from the camera"}


@pytest.mark.parametrize(
    ("pose", "facing"),
    [
        (degrees(0), "faces the camera"),
        (degrees(180, 10), "faces away from the camera"),
        (degrees(90), "faces the viewer's left"),  # seen from its own left, its front is on the viewer's left
        (degrees(270, 30), "faces the viewer's right"),
        (degrees(0, 85), "points down in the picture"),
        (degrees(90, 0, 180), "faces the viewer's right"),
        (degrees(90, 0, 45), "points down and to the viewer's left"),
    ],
)
def test_facing_by_hand(pose, facing):
    assert describe_viewpoint(pose).facing == facing


def test_tilt_is_where_the_top_leans_in_the_picture():
    for pose in poses():
        tilt = describe_viewpoint(pose).tilt
        (u, v), (u_top, v_top) = pixels(np.array([UP * 0.0, UP]), pose)
        if "left" in tilt:
            assert u_top < u
        elif "right" in tilt:
            assert u_top > u
        elif tilt == "upside down":
            assert v_top > v
    words = [describe_viewpoint(degrees(30, 10, theta)).tilt for theta in (-5, 5, 30, -30, 180, 351)]
    assert words == ["", "", "tilted to the viewer's left", "tilted to the viewer's right", "upside down", ""]


def test_the_words_of_a_flipped_pose_are_the_mirrored_words():
    for pose in poses():
        azimuth, elevation, theta, _ = flip_pose(*pose.angles, 0.0, 1.0)
        flipped = describe_viewpoint(Pose(float(azimuth), float(elevation), float(theta)))
        plain = describe_viewpoint(pose)
        assert flipped.side == (None if plain.side is None else mirror_sides(plain.side))
        assert [flipped.height, flipped.facing, flipped.tilt] == [
            mirror_sides(words) for words in (plain.height, plain.facing, plain.tilt)
        ]


def test_words_do_not_depend_on_how_the_rotation_is_written():
    for pose in poses(500):
        azimuth, elevation, theta = pose.angles
        other = Pose(azimuth + math.pi, math.pi - elevation, theta - math.pi)
        assert describe_viewpoint(other) == describe_viewpoint(pose)


def test_a_pose_that_is_not_finite_has_no_words():
    with pytest.raises(ValueError, match="finite"):
        describe_viewpoint(Pose(math.nan, 0, 0))


# Captions


def test_captions_hold_one_pose_before_the_words_that_tell_it():
    rng = random.Random(0)
    for pose in poses(300):
        for name in ("car", "bottle", "scissors"):
            caption = offline_caption(pose, categories.get(name), rng)
            before, after = caption.split(POSE_TOKEN)
            assert categories.get(name).indefinite in before.lower()
            assert "seen" in after, name
            assert not re.search(r"\b(seen|front|rear|left|right|above|below|faces|points|tilted)\b", before)
            assert "{" not in caption
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert "  " not in caption


def test_all_phrasings_of_captions_come():
    rng = random.Random(0)
    pose = degrees(45, 20, 30)
    for name in ("car", "bottle", "bow", "pillow"):
        templates = caption_templates(categories.get(name))
        captions = {offline_caption(pose, categories.get(name), rng) for _ in range(200)}
        assert len(captions) == len(set(templates)) == len(templates) >= 3


def test_the_caption_says_what_the_pose_is():
    captions = {offline_caption(degrees(45, 20, 30), categories.get("car"), random.Random(i)) for i in range(50)}
    assert (
        "A car at <pose6D>. It points down and to the viewer's left and is seen from its front-left, "
        "slightly from above, tilted to the viewer's left." in captions
    )


def test_a_bottle_has_no_sides():
    for pose in poses(300):
        caption = offline_caption(pose, categories.get("bottle"), random.Random(1))
        assert not re.search(r"\b(front|rear|faces|points|its)\b", caption.replace("its own height", ""))


def test_what_a_symmetry_takes_away_is_not_told():
    for category in categories.all_categories():
        group = category.symmetry_group.sampled(45)
        front_is_one = np.allclose(group[:, :, 1], (0, 1, 0))  # every turn of the group leaves it where it is
        words = " ".join(caption_templates(category))
        front_shows = front_is_one and category.mirror_axis != "y"
        assert ("{facing}" in words) == front_shows, category.name
        assert ("{seen}" in words) == ("{tilt}" in words) == category.has_up, category.name
    table = offline_caption(degrees(100, 20, 0), categories.get("diningtable"), random.Random(0))
    assert "slightly from above" in table
    assert not re.search(r"\b(front|rear|left|right|faces|points)\b", table)
    assert offline_caption(degrees(100, 20, 30), categories.get("pillow"), random.Random(0)) in {
        "A pillow at <pose6D>.",
        "A picture of a pillow at <pose6D>.",
        "The picture shows a pillow at <pose6D>.",
    }


def test_what_is_its_own_mirror_image_from_front_to_rear_is_told_no_side():
    """No picture of a cup with its handle to the side shows which half is the front."""
    pose = degrees(45, 20, 30)
    for name in ("cup", "teapot", "kettle", "hammer"):
        an_object = categories.get(name).indefinite
        assert {offline_caption(pose, categories.get(name), random.Random(i)) for i in range(50)} == {
            f"A{an_object[1:]} at <pose6D>, seen slightly from above, tilted to the viewer's left.",
            f"A picture of {an_object} at <pose6D>, seen slightly from above, tilted to the viewer's left.",
            f"The picture shows {an_object} at <pose6D>, seen slightly from above, tilted to the viewer's left.",
        }


def test_a_tilt_on_the_edge_has_the_words_of_its_mirror_image():
    # 190 degrees with an elevation beyond the pole is a tilt of 10 degrees, up to rounding
    pose = degrees(282, 247, 190)
    assert [describe_viewpoint(degrees(30, 10, t)).tilt[-5:] for t in (10, 350, -10)] == [" left", "right", "right"]
    words = describe_viewpoint(pose)
    assert words.tilt == mirror_sides(describe_viewpoint(mirrored_pose(pose, 200.0)).tilt) != ""
