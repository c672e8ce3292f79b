"""Facts are held against the projection, and against objects that stand on one ground before one camera."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from data_prep.scene import relations
from data_prep.scene.facts import ASKS_FRONT, PREDICATES, between, correction
from data_prep.scene.topics import TOPICS
from llava_pose.data.conversation import mirror_sides
from llava_pose.data.records import Pose
from llava_pose.pose import categories
from llava_pose.pose.geometry import flip_pose, project_points

FRONT, UP, OWN_LEFT = np.array([0.0, -1, 0]), np.array([0.0, 0, 1]), np.array([1.0, 0, 0])


def poses(n: int = 500, seed: int = 0) -> list[Pose]:
    low, high = [0, -math.pi / 2, -math.pi], [2 * math.pi, math.pi / 2, math.pi]
    angles = np.random.default_rng(seed).uniform(low, high, (n, 3))
    angles[::2, 2] *= 0.1  # half of them nearly upright
    return [Pose(*row) for row in angles.tolist()]


def degrees(azimuth: float, elevation: float = 0.0, theta: float = 0.0, distance: float | None = None) -> Pose:
    return Pose(math.radians(azimuth), math.radians(elevation), math.radians(theta), distance)


def flipped(pose: Pose) -> Pose:
    a, e, t, _ = flip_pose(*pose.angles, 0.0, 1.0)
    return Pose(float(a), float(e), float(t), pose.distance)


def pixel(point: np.ndarray, pose: Pose) -> tuple[float, float, float]:
    """x to the right and y up in the picture, and depth, of a point, seen from afar."""
    a, e, t = pose.angles
    far = {"azimuth": a, "elevation": e, "theta": t, "distance": 1000.0, "px": 0, "py": 0, "viewport": 1000.0}
    u, v = project_points(point, **far)
    # a nearer point is drawn wider apart: two points at right angles to the view tell the depth
    u2, v2 = project_points(point * 1.001, **far)
    return float(u), -float(v), float(math.hypot(u2 - u, v2 - v))


def visible(normal: np.ndarray, pose: Pose) -> bool:
    """Whether the face of a cube with that normal keeps its sense of rotation in the picture."""
    a, e, t = pose.angles
    first = np.roll(np.abs(normal), 1)
    second = np.cross(normal, first)
    corners = np.array([normal + i * first + j * second for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]) / 2
    u, v = project_points(corners, azimuth=a, elevation=e, theta=t, distance=100, px=0, py=0, viewport=1000).T
    return float(np.sum(u * -np.roll(v, -1) - np.roll(u, -1) * -v)) > 0


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("shows front", FRONT),
        ("shows rear", -FRONT),
        ("shows left", OWN_LEFT),
        ("shows right", -OWN_LEFT),
        ("from above", UP),
        ("from below", -UP),
        ("faces the camera", FRONT),
        ("faces away", -FRONT),
    ],
)
def test_what_is_turned_to_the_camera_is_seen(name, normal):
    truths = [(PREDICATES[name].truth(pose), visible(normal, pose)) for pose in poses()]
    assert all(seen for truth, seen in truths if truth)
    assert {truth for truth, _ in truths} == {True, False, None}
    if name.startswith("shows"):
        assert not any(seen for truth, seen in truths if truth is False)


@pytest.mark.parametrize(
    ("name", "direction", "sign"),
    [("faces left", FRONT, -1), ("faces right", FRONT, 1), ("leans left", UP, -1), ("leans right", UP, 1)],
)
def test_directions_are_those_of_the_picture(name, direction, sign):
    for pose in poses():
        if PREDICATES[name].truth(pose):
            assert sign * pixel(direction, pose)[0] > 0
    assert any(PREDICATES[name].truth(pose) for pose in poses())


def test_upright_is_up_in_the_picture():
    for pose in poses():
        if PREDICATES["upright"].truth(pose):
            right, up, _ = pixel(UP, pose)
            assert up > 5 * abs(right)


@pytest.mark.parametrize(
    ("name", "yes", "unsure", "no"),
    [
        ("from above", degrees(0, 20), degrees(0, 7), degrees(0, 0)),
        ("from below", degrees(0, -20), degrees(0, -7), degrees(0, 5)),
        ("level", degrees(0, 5), degrees(0, 10), degrees(0, 20)),
        ("steeply", degrees(0, 60), degrees(0, 35), degrees(0, 10)),
        ("faces the camera", degrees(20), degrees(45), degrees(70)),
        ("shows left", degrees(90), degrees(10), degrees(-5)),
        ("upright", degrees(0, 0, 3), degrees(0, 0, 10), degrees(0, 0, 30)),
    ],
)
def test_margins(name, yes, unsure, no):
    assert [PREDICATES[name].truth(pose) for pose in (yes, unsure, no)] == [True, None, False]


def test_between_has_its_edges_on_the_side_of_the_words():
    assert [between(x, 3, 11) for x in (2, 3, 5, 11, 12)] == [False, False, None, True, True]
    assert [between(x, 55, 35) for x in (60, 55, 40, 35, 0)] == [False, False, None, True, True]


def test_a_mirror_image_has_mirrored_facts():
    swapped = {"left": "right", "right": "left"}
    edges = [degrees(a, e, t) for a in range(0, 360, 15) for e, t in ((-40, 0), (0, 13), (10, -30))]
    for pose in poses(150) + edges:
        mirror = flipped(pose)
        for name, predicate in PREDICATES.items():
            first, _, last = name.rpartition(" ")
            other = f"{first} {swapped[last]}" if last in swapped else name
            assert PREDICATES[other].truth(mirror) == predicate.truth(pose), (name, pose)
            assert mirror_sides(predicate.question) == PREDICATES[other].question
            if predicate.truth(pose) is False:
                assert correction(PREDICATES[other], mirror) == mirror_sides(correction(predicate, pose))
        for topic in TOPICS.values():
            truth = topic.truth(pose)
            assert topic.truth(mirror) == (None if truth is None else mirror_sides(truth)), (topic.name, pose)
            assert set(topic.wrong(mirror)) == set(map(mirror_sides, topic.wrong(pose)))


def test_a_correction_never_says_what_was_denied():
    denied = {
        "faces the camera": "faces the camera",
        "faces away": "away",
        "from above": "above",
        "from below": "below",
    }
    for pose in poses():
        for name, words in denied.items():
            if PREDICATES[name].truth(pose) is False:
                assert words not in correction(PREDICATES[name], pose)


def test_a_right_option_is_never_among_the_wrong_ones():
    seen = {name: set() for name in TOPICS}
    for pose in poses():
        for name, topic in TOPICS.items():
            truth = topic.truth(pose)
            if truth is not None:
                assert truth not in topic.wrong(pose)
                seen[name].add(truth)
    assert {name: len(found) for name, found in seen.items()} == {"side": 8, "direction": 10, "height": 7, "tilt": 4}


@pytest.mark.parametrize(
    ("name", "front", "up"),
    [
        ("car", True, True),
        ("bottle", False, True),  # any turn about z
        ("diningtable", False, True),  # half a turn about z
        ("frisbee", False, True),
        ("cup", False, True),  # front and rear are mirror images of each other
        ("my_own_thing", True, True),
    ],
)
def test_what_a_symmetry_takes_away(name, front, up):
    category = categories.get(name, allow_custom=True)
    assert (category.has_front, category.has_up) == (front, up)
    can = {predicate.name for predicate in PREDICATES.values() if predicate.can_be_asked(category)}
    assert ("faces the camera" in can) == front == ASKS_FRONT["needs_front"] * front
    assert ("from above" in can) == up


# Two objects


def standing(heading: float, camera: float, elevation: float, distance: float = 5.0) -> Pose:
    """An object on the ground with its front turned by ``heading`` degrees, counter-clockwise from above, before a camera
    that stands at the azimuth ``camera`` of an object of heading 0."""
    return degrees(camera - heading, elevation, 0.0, distance)


def test_relations_of_objects_on_one_ground():
    rng = np.random.default_rng(0)
    answers = {True: 0, False: 0, None: 0}
    for _ in range(500):
        first, second, camera = rng.uniform(0, 360, 3).tolist()
        elevation = float(rng.uniform(-20, 50))
        a, b = standing(first, camera, elevation), standing(second, camera, elevation)
        turn = (first - second + 180) % 360 - 180  # from b to a, to b's own left
        left = relations.turned_left(a, b)
        answers[left] += 1
        if left is not None:
            assert left == (turn > 0)
            assert relations.turned_left(b, a) == (not left)
            assert relations.turned_left(flipped(a), flipped(b)) == (not left)
        same, opposite = relations.same_way(a, b), relations.opposite_ways(a, b)
        if same is not None:
            assert same == (abs(turn) < 45)
        assert same == relations.same_way(b, a)
        if opposite:
            assert abs(turn) > 145
        more = relations.faces_camera_more(a, b)
        if more is not None:
            assert more == (abs((camera - first + 180) % 360 - 180) < abs((camera - second + 180) % 360 - 180))
            assert relations.faces_camera_more(b, a) == (not more)
    assert min(answers.values()) > 40


def test_left_turn_by_hand():
    # both seen from their front; the first has turned its front to its own left, which is the viewer's right
    a, b = degrees(-60, 10), degrees(0, 10)
    assert PREDICATES["faces right"].truth(a)
    assert relations.turned_left(a, b) is True
    assert relations.turned_left(a, replace(b, elevation=1.2)) is None, "they do not stand on one ground"


def test_nearness_and_height():
    near, far = degrees(0, 10, 0, 3.0), degrees(0, 40, 0, 5.0)
    assert relations.nearer(near, far) is True
    assert relations.nearer(far, near) is False
    assert relations.nearer(near, degrees(0, 0, 0, 3.5)) is None
    assert relations.nearer(near, degrees(0)) is None
    assert relations.seen_more_from_above(far, near) is True
    assert relations.seen_more_from_above(near, degrees(0, 20)) is None
