"""Orient Anything's angles in our convention, held against the axes that its own code draws."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from eval.systems.orient_anything import OrientAnythingConfig, convert, main, pose_from_orient_anything
from llava_pose.data.records import read_predictions, read_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import geodesic_angle, project_points, rotation_matrix
from tests.data_prep.made_scenes import make_prepared, make_record

# all octants of the view, rotations of both signs, both poles
AZIMUTHS, POLARS, ROTATIONS = (0, 20, 90, 110, 180, 200, 270, 290), (-90, -40, 0, 35, 90), (-135, -30, 0, 45, 180)
ANGLES = list(itertools.product(AZIMUTHS, POLARS, ROTATIONS))


def drawn_axes(azimuth, polar, rotation):
    """Front, right and top in the picture (x right, y up), (3, 2): version 1's ``utils.get_proj2D_XYZ``, without its scale.

    Its app calls it with phi and theta in radians and gamma = minus the rotation.
    """
    phi, theta, gamma = np.radians(azimuth), np.radians(polar), np.radians(-rotation)
    sp, cp, st, ct, sg, cg = (f(x) for x in (phi, theta, gamma) for f in (np.sin, np.cos))
    return np.array(
        [
            [-sp * cg - cp * st * sg, sp * sg - cp * st * cg],
            [-cp * cg + sp * st * sg, cp * sg + sp * st * cg],
            [ct * sg, ct * cg],
        ]
    )


def turned_object(azimuth, elevation, rotation):
    """Front, left and top in the camera's frame, as columns (3, 3): version 2's ``Rx(rot) Ry(ele) Rz(-azi)``.

    Its object has front +x and top +z, hence left +y, and stands before a camera on +x that sees +y on its right.
    """
    a, e, t = (math.radians(x) for x in (-azimuth, elevation, rotation))
    rz = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    ry = np.array([[math.cos(e), 0, math.sin(e)], [0, 1, 0], [-math.sin(e), 0, math.cos(e)]])
    rx = np.array([[1, 0, 0], [0, math.cos(t), -math.sin(t)], [0, math.sin(t), math.cos(t)]])
    to_camera = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # x right, y up, z to the viewer
    return to_camera @ rx @ ry @ rz


def our_axes(angles):
    """Front (-y), right (-x) and top (+z) of the object in our camera frame (x right, y up, z to the viewer), (3, 3) rows."""
    rotation = rotation_matrix(*pose_from_orient_anything(*angles))
    return np.stack([-rotation[:, 1], -rotation[:, 0], rotation[:, 2]])


def test_our_axes_lie_where_theirs_are_drawn():
    for angles in ANGLES:
        axes = our_axes(angles)
        np.testing.assert_allclose(axes[:, :2], drawn_axes(*angles), atol=1e-12, err_msg=str(angles))
        # two of three components and the right-handed order of the axes leave one rotation only
        np.testing.assert_allclose(np.cross(axes[1], axes[0]), axes[2], atol=1e-12, err_msg=str(angles))


def test_version_2_turns_the_object_as_we_do():
    for angles in ANGLES:
        front, left, top = turned_object(*angles).T
        np.testing.assert_allclose(our_axes(angles), [front, -left, top], atol=1e-12, err_msg=str(angles))


def test_the_middle_of_the_view_is_what_counts():
    """A car seen from its own left, 20 degrees from above and leaning: its nose projects to where theirs is drawn."""
    angles = (90, 20, 30)
    azimuth, elevation, theta = (float(angle) for angle in pose_from_orient_anything(*angles))
    camera = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "distance": 1e6, "px": 0.0, "py": 0.0}
    nose, roof = project_points(np.array([[0, -1.0, 0], [0, 0, 1.0]]), **camera, viewport=1e6)
    front, _, top = drawn_axes(*angles)
    np.testing.assert_allclose(nose, front * [1, -1], atol=1e-5)
    np.testing.assert_allclose(roof, top * [1, -1], atol=1e-5)
    assert nose[0] < 0, "its front points to the left of the picture"


def test_round_trip_over_the_whole_range():
    """Any rotation that their angles can say comes back as the same angles, or at a pole as the same rotation."""
    azimuth, polar, rotation = (np.array(angles, dtype=float) for angles in zip(*ANGLES, strict=True))
    back = np.degrees(pose_from_orient_anything(azimuth, polar, rotation))
    assert ((back[0] >= 0) & (back[0] < 360) & (np.abs(back[1]) <= 90) & (back[2] >= -180) & (back[2] < 180)).all()
    regular = np.abs(polar) < 90
    wrapped = np.where(rotation == 180, -180, rotation)
    np.testing.assert_allclose(back[:, regular], np.stack([azimuth, polar, wrapped])[:, regular], atol=1e-9)
    turned = [rotation_matrix(*np.radians(angles)) for angles in ((azimuth, polar, rotation), back)]
    assert geodesic_angle(*turned).max() < 1e-9


# ------------------------------------------------------------------ files


@pytest.fixture
def prepared(tmp_path):
    rng = np.random.default_rng(0)
    return make_prepared(tmp_path / "prepared", [make_record("car", i, 0, rng) for i in range(4)], "val")


def answered(tmp_path, prepared, text, name="answers.jsonl"):
    (tmp_path / name).write_text(text)
    out = tmp_path / "predictions.jsonl"
    convert(OrientAnythingConfig(answers=str(tmp_path / name), data=str(prepared), out=str(out)))
    return read_predictions(out)


IDS = [f"car/n{i:03d}/0" for i in range(4)]


def test_csv_and_json_lines_say_the_same(tmp_path, prepared, caplog):
    """Of four objects one is answered in full, one without confidence, one has empty angles and one no line."""
    caplog.set_level("INFO")
    table = f"id,azimuth,polar,rotation,confidence\n{IDS[0]},90,20,-30,0.75\n{IDS[1]},359,0,0,\n{IDS[2]},,,,0.1\n"
    values = [
        {"id": IDS[0], "azimuth": 90, "polar": 20, "rotation": -30, "confidence": 0.75},
        {"id": IDS[1], "ref_az_pred": 359, "ref_el_pred": 0, "ref_ro_pred": 0},  # the names of version 2
        {"id": IDS[2], "azimuth": None, "polar": None, "rotation": None, "confidence": 0.1},
    ]
    from_csv = answered(tmp_path, prepared, table, "answers.csv")
    assert from_csv == answered(tmp_path, prepared, "".join(json.dumps(value) + "\n" for value in values))
    assert [p.id for p in from_csv] == IDS
    assert {p.system for p in from_csv} == {"Orient-Anything"}
    assert from_csv[0].pose.angles == pytest.approx([math.pi / 2, math.pi / 9, -math.pi / 6])
    assert [p.confidence for p in from_csv] == [0.75, None, 0.1, None]
    assert [p.pose is None for p in from_csv] == [False, False, True, True]
    assert "4 predictions of Orient-Anything are in" in caplog.messages[-2], "the last says what comes next"
    assert "2 of them without a pose" in caplog.messages[-2]


def test_an_angle_that_is_no_number_is_a_failure_of_that_object(tmp_path, prepared):
    (first, *_) = answered(tmp_path, prepared, f"id,azimuth,polar,rotation\n{IDS[0]},nan,0,0\n", "a.csv")
    assert not math.isfinite(first.pose.azimuth)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,azimuth,polar\ncar/n000/0,1,2\n", r"a\.csv:2: there is no 'rotation'; give id, azimuth, polar"),
        ("id,azimuth,polar,rotation\nbus/1/0,1,2,3\n", r"a\.csv:2: the id 'bus/1/0' is no object of .*val"),
        ("id,azimuth,polar,rotation\ncar/n000/0,1,2,3\ncar/n000/0,1,2,3\n", r"a\.csv:3: the id .* stands on two lines"),
        (
            "id,azimuth,polar,rotation\ncar/n000/0,1,120,3\n",
            r"'polar' is 120, not in -90 to 90 .* not the numbers of its bins",
        ),
        ("id,azimuth,polar,rotation\ncar/n000/0,left,2,3\n", r"'azimuth' must be a number, not 'left'"),
        ("id,azimuth,polar,rotation\n", "there is no answer in it"),
    ],
)
def test_bad_answers_are_named(tmp_path, prepared, text, match):
    with pytest.raises(InputError, match=match):
        answered(tmp_path, prepared, text, "a.csv")
    assert not (tmp_path / "predictions.jsonl").exists()


def test_the_order_of_symmetry_of_version_2_is_kept(tmp_path, prepared):
    names = {"azimuth": "ref_az_pred", "polar": "ref_el_pred", "rotation": "ref_ro_pred", "order": "ref_alpha_pred"}
    answers = tmp_path / "answers.jsonl"
    id_ = read_records(prepared, "val")[0].id
    line = {"id": id_, names["azimuth"]: 10, names["polar"]: 5, names["rotation"]: 0, names["order"]: 4.0}
    answers.write_text(json.dumps(line))
    out = convert(OrientAnythingConfig(answers=str(answers), data=str(prepared), out=str(tmp_path / "oa.jsonl")))
    assert {p.id: p.symmetry_order for p in read_predictions(out)}[id_] == 4
    answers.write_text(json.dumps({**line, names["order"]: 3}))
    with pytest.raises(InputError, match=r"answers\.jsonl:1: 'ref_alpha_pred' is 3, and must be one of 0, 1, 2, 4"):
        convert(OrientAnythingConfig(answers=str(answers), data=str(prepared), out=str(tmp_path / "other.jsonl")))


def test_a_missing_file_ends_with_exit_code_2(tmp_path, prepared, capsys):
    argv = ["--data", str(prepared), "--out", str(tmp_path / "p.jsonl"), "--answers", str(tmp_path / "no.csv")]
    assert main(argv) == 2
    assert "cannot read the file" in capsys.readouterr().err
