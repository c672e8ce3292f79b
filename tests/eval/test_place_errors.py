"""Scores of where objects are: distance, principal point, reprojected corners and ADD, against arithmetic of their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compared import Sample
from eval.place_errors import MOST, place_errors, read_shapes
from eval.score import ScoreConfig, main, score
from eval.tables import TablesConfig, tables
from llava_pose.data.records import ObjectRecord, Pose, Prediction, write_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import opencv_camera, project_points

VIEWPORT, SIDE = 900.0, 200
TRUE = Pose(0.7, 0.2, -0.1, 4.0, 95.0, 104.0)
BOX = (60.0, 70.0, 140.0, 130.0)  # the longer side is 80
CUBE = np.array([(x, y, z) for x in (-0.1, 0.1) for y in (-0.4, 0.4) for z in (-0.2, 0.3)])


def record(number: int, category: str = "car", cad_index: int = 1, pose: Pose = TRUE) -> ObjectRecord:
    return ObjectRecord(
        file_name=f"{category}/n{number}.JPEG",
        id=f"{category}/n{number}/0",
        category=category,
        pose=pose,
        viewport=VIEWPORT / 2,
        focal=2.0,
        width=SIDE,
        height=SIDE,
        bbox=BOX,
        source={"image": f"images/{category}/n{number}.JPEG", "cad_index": cad_index},
    )


@pytest.fixture
def cad(tmp_path: Path) -> Path:
    """A car's model, whose vertices are the corners of a box, and a folder of its own by an alias."""
    folder = tmp_path / "CAD" / "car"
    folder.mkdir(parents=True)
    lines = ["OFF", f"{len(CUBE)} 1 0", *(" ".join(map(str, v)) for v in CUBE), "3 0 1 2"]
    (folder / "01.off").write_text("\n".join(lines) + "\n")
    return tmp_path / "CAD"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_records(tmp_path / "prepared", "val", [record(0), record(1, cad_index=7), record(2, "cup")])
    return tmp_path / "prepared"


def errors(prepared: Path, cad: Path | None, poses: list[Pose | None]) -> np.ndarray:
    """The errors of answers for a car with a model, a car without and a cup, (3, 4)."""
    records = [record(0), record(1, cad_index=7), record(2, "cup")]
    samples = [Sample(r.id, r.category, r.pose, r.object_status, "") for r in records]
    answers = [
        Prediction.of(r, system="a", pose=pose, pred_category=None, confidence=None)
        for r, pose in zip(records, poses, strict=True)
    ]
    shapes = read_shapes(str(prepared), "val", None if cad is None else str(cad), samples, {"a": answers})
    found = place_errors(samples, answers, shapes)
    assert found is not None
    return found.to_numpy()


def test_the_true_pose_has_no_error_and_no_model_no_add(prepared: Path, cad: Path) -> None:
    found = errors(prepared, cad, [TRUE] * 3)
    np.testing.assert_allclose(found[:, :3], 0, atol=1e-12)
    assert found[0, 3] == pytest.approx(0, abs=1e-12)
    assert np.isnan(found[1:, 3]).all(), "a cad_index without a file, and a category without a folder"


def test_errors_are_those_of_projecting_and_of_moving_the_model(prepared: Path, cad: Path) -> None:
    pose = Pose(0.9, 0.1, 0.2, 5.0, 101.0, 96.0)
    found = errors(prepared, cad, [pose] * 3)[0]
    assert found[0] == pytest.approx(0.25), "5 for 4"
    assert found[1] == pytest.approx(math.hypot(6, 8) / 80)
    pixels = [project_points(CUBE, **vars(p), viewport=VIEWPORT) for p in (TRUE, pose)]
    assert found[2] == pytest.approx(np.linalg.norm(pixels[0] - pixels[1], axis=1).mean() / 80)
    # OpenCV's form: both objects before the camera whose axis runs through the true principal point
    cameras = [opencv_camera(**vars(p), viewport=VIEWPORT) for p in (TRUE, pose)]
    moved = [CUBE @ camera.rotation.T + camera.translation for camera in cameras]
    ray = np.linalg.inv(cameras[0].intrinsics) @ np.array([101.0, 96.0, 1.0])
    moved[1] += ray * pose.distance - np.array([0, 0, pose.distance])
    diagonal = np.linalg.norm(np.ptp(CUBE, axis=0))
    assert found[3] == pytest.approx(np.linalg.norm(moved[1] - moved[0], axis=1).mean() / diagonal)


def test_a_category_without_models_has_the_corners_of_a_cube_of_unit_diagonal(prepared: Path, cad: Path) -> None:
    pose = Pose(0.7, 0.2, -0.1, 4.0, 99.0, 104.0)
    cube = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) / math.sqrt(3)
    turned = Pose(1.7, 0.2, -0.1, 4.0, 99.0, 104.0)
    assert errors(prepared, cad, [pose] * 3)[2, 2] == pytest.approx(4 / 80), "all corners move with the centre"
    pixels = [project_points(cube, **vars(p), viewport=VIEWPORT) for p in (TRUE, turned)]
    expected = np.linalg.norm(pixels[0] - pixels[1], axis=1).mean() / 80
    assert errors(prepared, cad, [turned] * 3)[2, 2] == pytest.approx(expected)


def test_a_damaged_model_is_named_and_stops_nothing(
    prepared: Path, cad: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cad / "car" / "01.off").write_text("OFF\n3 1 0\n0 0 0\n")
    found = errors(prepared, cad, [TRUE] * 3)
    np.testing.assert_allclose(found[:, :3], 0, atol=1e-12)
    assert np.isnan(found[:, 3]).all()
    assert "01.off" in caplog.text


@pytest.mark.parametrize(
    "pose",
    [None, Pose(0.7, 0.2, -0.1), Pose(math.nan, 0.2, -0.1, 4.0, 95.0, 104.0), Pose(0.7, 0.2, -0.1, -4.0, 95.0, 104.0)],
    ids=["no pose", "angles alone", "not finite", "behind the camera"],
)
def test_a_failure_counts_the_most(prepared: Path, cad: Path, pose: Pose | None) -> None:
    found = errors(prepared, cad, [pose, TRUE, pose])
    assert (found[0] == MOST).all()
    assert found[2, :3].tolist() == [MOST] * 3
    assert np.isnan(found[2, 3])
    assert found[1, 0] == 0


@pytest.mark.filterwarnings("error")
def test_an_answer_beyond_all_measure_counts_the_most_and_nothing_warns(prepared: Path, cad: Path) -> None:
    found = errors(prepared, cad, [Pose(0.7, 0.2, -0.1, 4.0, 1e308, -1e308), TRUE, TRUE])
    assert found[0].tolist() == [0.0, MOST, MOST, MOST]


def write_predictions(path: Path, poses: list[Pose | None], system: str) -> str:
    records = [record(0), record(1, cad_index=7), record(2, "cup")]
    lines = [
        Prediction.of(r, system=system, pose=pose, pred_category=r.category, confidence=None).to_dict()
        for r, pose in zip(records, poses, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def files(tmp_path: Path) -> list[str]:
    """A system that is right but for 8% of the distance, one that fails once, and one that predicts angles alone."""
    near = Pose(0.7, 0.2, -0.1, 4.32, 95.0, 104.0)
    angles = Pose(0.7, 0.2, -0.1)
    answers = {"near": [near] * 3, "fails": [near, None, near], "angles": [angles] * 3}
    return [write_predictions(tmp_path / f"{name}.jsonl", poses, name) for name, poses in answers.items()]  # type: ignore[arg-type]


def scored(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return score(ScoreConfig(predictions=files(tmp_path), out=str(tmp_path / "scores.json"), **options))


def test_scores_have_them_with_intervals_for_systems_that_predict_places(
    tmp_path: Path, prepared: Path, cad: Path
) -> None:
    systems = scored(tmp_path, data=str(prepared), cad=str(cad))["systems"]
    place = systems["near"]["overall"]["place"]
    assert {name: scores["n"] for name, scores in place.items()} == {"distance": 3, "centre": 3, "corners": 3, "add": 1}
    assert place["distance"]["median"]["value"] == pytest.approx(0.08)
    assert place["distance"]["within"] == {"value": 1, "low": 1, "high": 1}
    assert place["add"]["median"]["value"] == pytest.approx(0.32 / np.linalg.norm(np.ptp(CUBE, axis=0)))
    assert systems["fails"]["overall"]["place"]["centre"]["within"]["value"] == pytest.approx(2 / 3)
    assert systems["fails"]["overall"]["place"]["centre"]["within"]["low"] < 2 / 3
    assert "place" not in systems["angles"]["overall"]
    assert systems["near"]["groups"]["category"]["cup"]["place"].keys() == {"distance", "centre", "corners"}
    page = (tmp_path / "scores.html").read_text()
    assert "ADD, % of the model" in page


def test_without_the_data_the_distance_alone_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(tmp_path)
    assert main([*paths, "--out", str(tmp_path / "scores.json")]) == 0
    place = json.loads((tmp_path / "scores.json").read_text())["systems"]["near"]["overall"]["place"]
    assert place.keys() == {"distance"}
    text = capsys.readouterr().out
    assert "distance, % off" in text
    assert "corners" not in text


def test_the_cad_models_are_found_beside_the_raw_data(tmp_path: Path, prepared: Path, cad: Path) -> None:
    for root in (cad.parent, cad.parent.parent):  # also one folder deeper, as an archive unpacks
        (prepared / "prepare.yaml").write_text(f"data_root: {root}\n")
        place = scored(tmp_path, data=str(prepared))["systems"]["near"]["overall"]["place"]
        assert place["add"]["n"] == 1
    (prepared / "prepare.yaml").unlink()
    assert "add" not in scored(tmp_path, data=str(prepared))["systems"]["near"]["overall"]["place"]


def test_tables_show_them_for_every_system_that_predicts_places(tmp_path: Path, prepared: Path, cad: Path) -> None:
    out = tmp_path / "table.md"
    tables(TablesConfig(predictions=files(tmp_path), table=3, out=str(out), data=str(prepared), cad=str(cad)))
    section = out.read_text().split("Where objects are, 6D beside rotation")[1].split("\n\n")[1]
    assert [row.split("|")[1].strip() for row in section.splitlines()[2:]] == ["near", "fails"]
    assert "8.0 (8.0–8.0)" in section


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cad": "x"}, "--cad: is for scores of places; give --data PREPARED, too"),
        ({"data": "nowhere"}, "--data nowhere: there is no such folder"),
        ({"data": "prepared", "split": "test"}, "there is no split test in it, but val"),
        ({"data": "prepared", "cad": "nowhere"}, "--cad nowhere: there is no such folder"),
    ],
)
def test_bad_options_are_one_sentence(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match):
        scored(tmp_path, **options)


def test_other_data_are_refused(tmp_path: Path, prepared: Path) -> None:
    write_records(prepared, "val", [record(9)])
    with pytest.raises(InputError, match="val holds none of the objects that were predicted"):
        scored(tmp_path, data=str(prepared))
    write_records(prepared, "val", [record(0, pose=Pose(1.7, 0.2, -0.1, 4.0, 95.0, 104.0))])
    with pytest.raises(InputError, match=r"its true pose is .* degrees from the data's"):
        scored(tmp_path, data=str(prepared))
