"""Axes on pictures: where they fall, how they look end on, and on real photographs."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.drawing import (
    AXES,
    AXIS_COLOURS,
    draw_axes,
    draw_caption,
    project_axes,
    project_cube,
    project_from_afar,
)
from llava_pose.inference.wires import Wires, first_models
from llava_pose.pose.geometry import project_points

PHOTOS = Path(__file__).parents[3].parent / "shared" / "data" / "photos"
SIZE = (200, 160)


def coloured(image: Image.Image, name: str) -> np.ndarray:
    """(k, 2) pixel centres (u, v) of an axis's own colour."""
    distance = np.abs(np.asarray(image, dtype=int) - AXIS_COLOURS[name]).sum(-1)
    return np.argwhere(distance < 30)[:, ::-1] + 0.5


def test_the_tips_are_the_projected_axes():
    pose = Pose(0.7, 0.3, -0.2, 4.0, 90.0, 70.0)
    axes = project_axes(pose, SIZE, viewport=500.0, focal=1.5, length=0.3)
    expected = project_points(
        np.array(list(AXES.values())) * 0.3,
        azimuth=0.7,
        elevation=0.3,
        theta=-0.2,
        distance=4.0,
        px=90.0,
        py=70.0,
        viewport=500.0,
        focal=1.5,
    )
    np.testing.assert_allclose(list(axes.tips.values()), expected, atol=1e-9)
    np.testing.assert_allclose(axes.origin, (90.0, 70.0), atol=1e-9)


def test_the_cube_has_a_diagonal_of_one_object_unit():
    """Seen along an axis from far away it is a square of 1/sqrt(3) units a side round the object's origin."""
    corners, farthest = project_cube(Pose(0.0, 0.0, 0.0, 1000.0, 90.0, 70.0), SIZE, viewport=100_000.0)
    np.testing.assert_allclose(np.abs(corners - (90.0, 70.0)), 50 / math.sqrt(3), atol=0.1)
    corners, farthest = project_cube(Pose(0.5, 0.6, 0.0, 3.0, 90.0, 70.0), SIZE, viewport=100.0)
    rear_right_below = (-1, 1, -1)
    assert farthest == 2, f"the camera sees front, left and top, so {rear_right_below} is farthest"


def test_a_cube_and_a_number_are_drawn_round_the_axes():
    plain = Image.new("RGB", (300, 300), (90, 90, 90))
    pose = Pose(0.5, 0.3, 0.0, 2.0, 150.0, 150.0)
    bare, boxed = (np.asarray(draw_axes(plain, pose, 300.0, cube=cube)) for cube in (False, True))
    numbered = np.asarray(draw_axes(plain, pose, 300.0, number=3))
    assert (bare != boxed).any(-1).mean() > 0.03
    changed = np.argwhere((bare != numbered).any(-1)) - 150
    assert len(changed) > 0
    assert np.abs(changed).max() < 20


def test_the_first_model_of_each_known_category_is_taken(tmp_path):
    for name in ("car/02.off", "car/01.off", "violin/01.off", "boat/01.off"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 {int(name[-5])} 0\n3 0 1 2\n")
    taken = first_models(tmp_path, {"car", "boat", "cup"})
    assert set(taken) == {"car", "boat"}
    assert taken["car"].vertices.max() == 1, "of the first"
    assert set(first_models(tmp_path, set())) == {"car", "violin", "boat"}, "nothing is said to be known"
    with pytest.raises(InputError, match="of a category that the checkpoint was taught"):
        first_models(tmp_path, {"cup"})


@pytest.mark.parametrize("corner", [(0.0, 0.0), (500.0, 300.0), (-9.0, 150.0)])
def test_a_caption_stays_in_its_picture(corner):
    plain = Image.new("RGB", (300, 200), (90, 90, 90))
    short, long = plain.copy(), plain.copy()
    draw_caption(short, "car, 97% sure", corner)
    draw_caption(long, "bicycle built for two, 97% sure of a pose of it", corner)
    for drawn in (short, long):
        rows, columns = np.nonzero((np.asarray(drawn) != np.asarray(plain)).any(-1))
        assert len(rows) > 100
        assert 0 < columns.min() < columns.max() < 299, "no letter is cut off"
        assert 0 < rows.min() < rows.max() < 199


def test_wires_are_drawn_where_the_edges_of_a_model_fall():
    plain = Image.new("RGB", (300, 300), (90, 90, 90))
    pose = Pose(0.5, 0.3, 0.2, 2.0, 150.0, 150.0)
    ends = np.array([(-0.3, -0.4, 0.3), (0.3, 0.4, 0.35)])
    bare = np.asarray(draw_axes(plain, pose, 600.0, length=0.05))
    wired = np.asarray(draw_axes(plain, pose, 600.0, length=0.05, cube=True, wires=Wires(ends, np.array([[0, 1]]))))
    (start, end), depth = project_from_afar(ends, pose, plain.size, 600.0)
    assert depth[0] > depth[1], "the end at the front is nearer"
    places = np.argwhere((bare != wired).any(-1))[:, ::-1] + 0.5
    along, normal = end - start, np.array([start[1] - end[1], end[0] - start[0]])
    assert np.abs((places - start) @ normal / np.linalg.norm(normal)).max() < 2, "nothing but the line: no cube"
    assert set(range(1, 100)) <= set(np.round((places - start) @ along / (along @ along) * 100).astype(int))


@pytest.mark.parametrize(
    ("azimuth", "side"),
    [(math.pi / 2, -1), (3 * math.pi / 2, 1)],
)
def test_the_front_points_to_the_side_that_the_object_faces(azimuth, side):
    """Seen from +x (azimuth pi/2) an object that faces -y faces the viewer's left."""
    axes = project_axes(Pose(azimuth, 0.0, 0.0), SIZE)
    assert np.sign(axes.tips["front"][0] - axes.origin[0]) == side
    assert axes.tips["up"][1] < axes.origin[1] - 20


def test_towards_tells_a_front_from_a_back_view():
    assert project_axes(Pose(0.0, 0.0, 0.0), SIZE).towards["front"] == pytest.approx(1.0)
    assert project_axes(Pose(math.pi, 0.0, 0.0), SIZE).towards["front"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "pose",
    [
        Pose(0.5, 0.2, 0.0),
        Pose(0.5, 0.2, 0.0, distance=math.nan, px=math.nan, py=math.inf),
        Pose(0.5, 0.2, 0.0, distance=0.0),
        Pose(0.5, 0.2, 0.0, distance=-1.0),
    ],
)
def test_what_a_pose_lacks_is_made_up_for(pose):
    axes = project_axes(pose, SIZE, viewport=2000.0)
    np.testing.assert_allclose(axes.origin, (100.0, 80.0))
    assert 30 < np.hypot(*(axes.tips["up"] - axes.origin)) < 80


def test_a_tip_stays_before_the_camera():
    axes = project_axes(Pose(0.0, 0.0, 0.0, 0.2, 100.0, 80.0), SIZE, viewport=100.0, length=5.0)
    assert axes.length < 0.2
    assert np.isfinite(axes.tips["front"]).all()


def test_the_picture_holds_the_axes_and_is_otherwise_unchanged():
    image = Image.new("L", SIZE, 128)
    drawn = draw_axes(image, Pose(math.pi / 2, 0.2, 0.0, 2.0, 100.0, 80.0), viewport=2000.0)
    assert (drawn.mode, drawn.size, image.getpixel((100, 80))) == ("RGB", SIZE, 128)
    front, up = coloured(drawn, "front"), coloured(drawn, "up")
    assert len(front) > 100
    assert front[:, 0].mean() < 90  # faces the viewer's left
    assert up[:, 1].mean() < 60
    assert drawn.getpixel((5, 155)) == (128, 128, 128)


def test_end_on_the_front_is_a_disc_with_a_dot_or_a_cross():
    towards, away = (draw_axes(Image.new("RGB", SIZE), Pose(a, 0.0, 0.0)) for a in (0.0, math.pi))
    for drawn in (towards, away):
        front = coloured(drawn, "front")
        np.testing.assert_allclose((front.min(0) + front.max(0)) / 2, (100, 80), atol=1.5)
    assert not np.array_equal(np.asarray(towards), np.asarray(away))


def test_dashed_axes_have_gaps_and_less_ink():
    pose = Pose(math.pi / 2, 0.3, 0.0)
    solid = coloured(draw_axes(Image.new("RGB", SIZE), pose, labels=False), "front")
    dashed = coloured(draw_axes(Image.new("RGB", SIZE), pose, dashed=True), "front")
    assert 0 < len(dashed) < 0.7 * len(solid)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (5000, 40)])
def test_any_size_can_be_drawn_on(size):
    assert draw_axes(Image.new("RGB", size), Pose(1.0, 0.2, 0.1), viewport=2000.0).size == size


def test_an_origin_outside_the_picture_draws_nothing_there():
    image = Image.new("RGB", SIZE, (9, 9, 9))
    drawn = draw_axes(image, Pose(0.3, 0.1, 0.0, 5.0, 1e7, -1e7), viewport=2000.0, labels=False)
    assert np.array_equal(np.asarray(drawn), np.asarray(image))


def test_a_pose_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not all finite"):
        draw_axes(Image.new("RGB", SIZE), Pose(math.nan, 0.0, 0.0))


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs of ../shared/data/photos are not here")
@pytest.mark.parametrize(
    ("category", "name", "side"),
    [
        ("car", "n02958343_103703", 1),  # which way each faces was seen on its photograph
        ("car", "n02958343_106190", -1),
        ("car", "n02958343_107805", 1),
        ("car", "n02958343_102546", -1),
    ],
)
def test_on_photographed_cars_the_front_arrow_points_out_of_the_front(category, name, side):
    from data_prep.raw.imagenet3d import RawLayout, parse_object, read_annotation

    layout = RawLayout(PHOTOS)
    with Image.open(layout.image(category, name)) as picture:
        image = picture.convert("RGB")
    raw = parse_object(read_annotation(layout.annotation(category, name))[0])
    pose = Pose(raw.azimuth, raw.elevation, raw.theta, raw.distance, raw.px, raw.py)
    drawn = draw_axes(image, pose, raw.viewport, raw.focal, labels=False)
    changed = np.abs(np.asarray(drawn, dtype=int) - np.asarray(image)).sum(-1) > 60
    front, up = coloured(drawn, "front"), coloured(drawn, "up")
    assert changed.mean() > 0.005
    assert np.sign(front[:, 0].mean() - raw.px) == side
    assert up[:, 1].mean() < raw.py - 10
