"""Other people's data sets in the raw layout: prepared, each point of the object lies where it was drawn."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from data_prep.import_.command import ImportConfig, import_dataset, main
from data_prep.import_.pascal3d import read_record
from data_prep.import_.recognise import raw_root, recognise
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.raw.imagenet3d import RawLayout, read_annotation
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Prediction, read_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import project_points
from tests.data_prep import foreign
from tests.data_prep.foreign import AHEAD, PLACE, SIZE, YAWS, corners, pixels


def options(kind: str, root: Path) -> dict[str, str]:
    return {
        "coco": {
            "source": str(root / "instances.json"),
            "images": str(root / "photos"),
            "angles_file": str(root / "angles.csv"),
            "angles": "degrees",
        },
        "pascal3d": {"source": str(root)},
        "objectnet3d": {"source": str(root)},
        "bop": {"source": str(root)},
        "omni3d": {"source": str(root / "omni.json"), "images": str(root / "pictures")},
        "objectron": {"source": str(root / "car_1.json"), "images": str(root / "frames")},
        "opencv": {
            "source": str(root / "poses.jsonl"),
            "images": str(root / "pictures"),
            "kind": "poses",
            "from_format": "opencv",
        },
    }[kind]


MAKERS = {
    "coco": foreign.make_coco,
    "pascal3d": foreign.make_pascal3d,
    "objectnet3d": foreign.make_objectnet3d,
    "bop": foreign.make_bop,
    "omni3d": foreign.make_omni3d,
    "objectron": foreign.make_objectron,
}


def made(kind: str, folder: Path) -> Path:
    root = folder / "source"
    root.mkdir()
    {**MAKERS, "opencv": foreign.make_opencv}[kind](root)
    return root


def imported(made_as: str, folder: Path, **changes) -> Path:
    root = folder / "source" if (folder / "source").exists() else made(made_as, folder)
    return import_dataset(ImportConfig(out=str(folder / "raw"), **{**options(made_as, root), **changes}))


def prepared(raw: Path, splits: str = "train,val", crop: str = "whole") -> list[ObjectRecord]:
    out = raw.with_name(f"prepared_{crop}")
    known = {"size": 320, "workers": 1, "allow_custom_categories": True}
    prepare(PrepareConfig(str(raw), str(out), splits=splits, crop=crop, **known))
    return [record for split in splits.split(",") for record in read_records(out, split)]


def rejects(raw: Path) -> Counter[str]:
    return Counter(json.loads(line)["reason"] for line in (raw / "rejects.jsonl").read_text().splitlines())


SPLITS = {"coco": "train", "omni3d": "train", "objectron": "train", "opencv": "train"}


@pytest.mark.parametrize("kind", [*MAKERS, "opencv"])
@pytest.mark.parametrize("crop", ["whole", "box", "pose"])
def test_each_corner_of_the_object_lies_where_it_was_drawn(kind, crop, tmp_path):
    raw = imported(kind, tmp_path)
    records = prepared(raw, SPLITS.get(kind, "train,val"), crop)
    assert len(records) == (6 if kind == "objectnet3d" else 3)
    assert rejects(raw) == {}
    yaws = [YAWS[0]] * 3 if kind == "objectron" else [yaw for yaw in YAWS for _ in range(len(records) // 3)]
    for record, yaw in zip(sorted(records, key=lambda record: record.id), sorted_as(kind, yaws), strict=True):
        points = corners(yaw)
        place = AHEAD if kind in ("coco", "pascal3d", "objectnet3d") else PLACE
        drawn = (pixels(points, yaw, place) - [record.crop["left"], record.crop["top"]]) * record.crop["scale"]
        unit = 1.0 if kind == "coco" else np.linalg.norm(SIZE)
        pose = {**vars(record.pose), "viewport": record.viewport, "focal": record.focal}
        seen = project_points(points / unit, **pose)
        across = np.ptp(drawn, axis=0).max()
        if kind == "coco":
            seen, drawn = (p - p.mean(0) for p in (seen, drawn))
            seen *= np.linalg.norm(drawn) / np.linalg.norm(seen)
        assert np.abs(seen - drawn).max() < (0.03 if kind == "coco" else 0.012) * across, record.id


def sorted_as(kind: str, yaws: list[float]) -> list[float]:
    """BOP's names begin with the folder, of which test comes before train."""
    return [yaws[2], *yaws[:2]] if kind == "bop" else yaws


@pytest.mark.parametrize("kind", MAKERS)
def test_the_command_is_given_by_what_the_folder_looks_like(kind, tmp_path, caplog):
    root = made(kind, tmp_path)
    found = recognise(root)
    assert found is not None
    assert found.kind == {"objectnet3d": "pascal3d"}.get(kind, kind)
    assert "llava-pose import" in found.sentence
    assert f"--kind {found.kind}" in found.sentence
    nested = recognise(tmp_path)
    assert nested is not None
    assert nested.kind == found.kind, "also in the folder above"


def test_a_nested_imagenet3d_and_other_folders_are_recognised(tmp_path, raw_dataset):
    raw_dataset.add("n1")
    above = tmp_path / "download"
    above.mkdir()
    raw_dataset.root.rename(above / "imagenet3d_v1")
    found = recognise(above)
    assert found.kind == "imagenet3d"
    assert found.path == above / "imagenet3d_v1"
    assert f"llava-pose prepare --data-root {above / 'imagenet3d_v1'}" in found.sentence
    prepared(above / "imagenet3d_v1", "train")
    assert recognise(above / "prepared_whole").kind == "prepared"
    (tmp_path / "photos").mkdir()
    raw_dataset.picture().save(tmp_path / "photos" / "a.jpg")
    assert recognise(tmp_path / "photos").kind == "pictures"
    (tmp_path / "empty").mkdir()
    assert recognise(tmp_path / "empty") is None
    assert recognise(tmp_path / "no such folder") is None


def test_the_raw_layout_is_found_or_the_command_for_it_is_said(tmp_path, raw_dataset):
    raw_dataset.add("n1")
    above = tmp_path / "download"
    above.mkdir()
    assert raw_root(raw_dataset.root) == raw_dataset.root
    raw_dataset.root.rename(above / "imagenet3d_v1")
    assert raw_root(above) == above / "imagenet3d_v1"
    with pytest.raises(InputError, match=r"looks like a BOP data set: llava-pose import .* --kind bop --out"):
        raw_root(made("bop", tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there are no images/, annotations/ and lists/ in it"):
        raw_root(tmp_path / "empty")


def test_our_own_predictions_become_labels(tmp_path):
    raw = imported("pascal3d", tmp_path)
    records = prepared(raw)
    train = read_records(tmp_path / "prepared_whole", "train")
    answers = [
        Prediction.of(r, system="m", pose=r.pose, pred_category=None, confidence=0.2 + 0.5 * i)
        for i, r in enumerate(train)
    ]
    lines = [answer.to_dict() for answer in answers]
    lines.append({**lines[0], "id": "car/none/0"})
    write_jsonl(tmp_path / "predictions.jsonl", lines)
    config = {"source": str(tmp_path / "predictions.jsonl"), "data": str(tmp_path / "prepared_whole")}
    out = import_dataset(ImportConfig(out=str(tmp_path / "labels"), min_confidence=0.5, **config))
    assert rejects(out) == {"confidence too low": 1, "record missing": 1}
    [label] = prepared(out, "train", "box")
    assert label.pose.angles == pytest.approx(train[1].pose.angles)
    assert len(records) == 3


def test_what_photographs_were_predicted_to_show_becomes_labels_of_what_was_asked_about(tmp_path):
    """One object in its box, and one photograph whole; what names no photograph that is there is listed."""
    columns = (
        "id,file_name,category,confidence,x1,y1,x2,y2,azimuth,elevation,theta,distance,px,py,viewport,width,height"
    )
    rows = [
        "a#0,a.jpg,car,0.9,40,30,200,150,1.0,0.2,0.1,2.5,120,90,320,320,240",
        "b#0,b.jpg,chair,0.8,,,,,2.0,0.3,0.0,1.5,150,110,320,320,240",
        "c#0,c.jpg,car,0.1,,,,,2.0,0.3,0.0,1.5,150,110,320,320,240",
        "d#0,d.jpg,car,0.9,,,,,2.0,0.3,0.0,1.5,150,110,320,320,240",
    ]
    (tmp_path / "poses.csv").write_text("\n".join([columns, *rows]) + "\n")
    for name in "abc":
        Image.new("RGB", (320, 240), "grey").save(tmp_path / f"{name}.jpg")
    config = {"kind": "poses", "from_format": "llava-pose", "min_confidence": 0.5}
    out = import_dataset(ImportConfig(source=str(tmp_path / "poses.csv"), out=str(tmp_path / "raw"), **config))
    assert rejects(out) == {"confidence too low": 1, "picture missing": 1}
    car, chair = (
        read_annotation(RawLayout(out).annotation(category, name))[0]
        for category, name in (("car", "a"), ("chair", "b"))
    )
    assert list(car["bbox"]) == [40, 30, 200, 150]
    assert [car[name] for name in ("azimuth", "elevation", "theta", "distance")] == [1.0, 0.2, 0.1, 2.5]
    assert list(chair["bbox"]) == [0, 0, 320, 240]


def test_poses_without_a_place_in_the_picture_are_listed(tmp_path):
    root = made("opencv", tmp_path)
    lines = [json.loads(line) for line in (root / "poses.jsonl").read_text().splitlines()]
    del lines[0]["size"], lines[1]["category"]
    lines[2]["box"] = [50, 40, 20, 90]
    write_jsonl(root / "poses.jsonl", [*lines, {**lines[0], "box": [10, 10, 90, 90]}])
    raw = imported("opencv", tmp_path)
    assert rejects(raw) == {"box missing": 1, "category missing": 1, "pose malformed": 1}


def test_splits_lists_and_fields_are_those_of_the_data_set(tmp_path):
    raw = imported("pascal3d", tmp_path)
    layout = RawLayout(raw)
    assert set(layout.list_files()) == {"train", "val"}
    assert layout.list_file("car", "val").read_text() == "car_imagenet_n02\n"
    [annotation] = read_annotation(layout.annotation("car", "car_imagenet_n00"))
    assert annotation["cad_index"] == 2
    assert (annotation["width"], annotation["height"]) == (320, 240)
    assert annotation["azimuth"] == pytest.approx(2 * math.pi - YAWS[0])
    assert isinstance(annotation["width"], np.uint16), "as ImageNet3D writes it"


def test_the_same_command_writes_the_same_again_and_another_is_refused(tmp_path, capsys):
    raw = imported("coco", tmp_path)
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    imported("coco", tmp_path)
    assert before == {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="was begun with angles 'degrees', not 'radians'"):
        imported("coco", tmp_path, angles="radians")


def test_a_source_of_which_nothing_could_be_taken_may_be_mended_and_tried_again(tmp_path):
    root = made("opencv", tmp_path)
    whole = (root / "poses.jsonl").read_text()
    lines = [{**json.loads(line), "category": ""} for line in whole.splitlines()]
    write_jsonl(root / "poses.jsonl", lines)
    with pytest.raises(InputError, match="no object of it could be taken"):
        imported("opencv", tmp_path)
    (root / "poses.jsonl").write_text(whole)
    raw = imported("opencv", tmp_path)
    assert rejects(raw) == {}
    (root / "poses.jsonl").write_text(whole * 2)
    with pytest.raises(InputError, match="was begun before the source changed"):
        imported("opencv", tmp_path)


def test_train_and_val_come_from_two_files(tmp_path):
    root = made("coco", tmp_path)
    data = json.loads((root / "instances.json").read_text())
    (root / "val.json").write_text(
        json.dumps({**data, "images": data["images"][2:], "annotations": data["annotations"][2:]})
    )
    data["annotations"] = data["annotations"][:2]
    (root / "instances.json").write_text(json.dumps(data))
    raw = imported("coco", tmp_path, val_source=str(root / "val.json"))
    assert [
        len(names.read_text().split()) for s in ("train", "val") for names in RawLayout(raw).list_files()[s].values()
    ] == [2, 1]


def test_objects_of_several_categories_share_their_picture(tmp_path):
    root = made("coco", tmp_path)
    data = json.loads((root / "instances.json").read_text())
    data["categories"].append({"id": 4, "name": "TV set"})
    data["annotations"][1] |= {"image_id": 0, "category_id": 4}
    (root / "instances.json").write_text(json.dumps(data))
    raw = imported("coco", tmp_path, rename={"TV set": "tvmonitor"})
    assert [o["class"] for o in read_annotation(RawLayout(raw).annotation("car", "p0"))] == ["car", "tvmonitor"]


def test_objectrons_frames_are_those_of_its_tutorial(tmp_path):
    """The made data set holds by the formulas of objectron-geometry-tutorial.ipynb, which swap the image's axes."""
    root = made("objectron", tmp_path)
    data = json.loads((root / "car_1.json").read_text())
    thing, camera = data["objects"][0], data["frameAnnotations"][0]["camera"]
    view, projection = (np.reshape(camera[name], (4, 4)) for name in ("viewMatrix", "projectionMatrix"))
    unit_box = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    world = (unit_box * thing["scale"]) @ np.reshape(thing["rotation"], (3, 3)).T + thing["translation"]
    clip = np.column_stack([world, np.ones(8)]) @ view.T @ projection.T
    ndc = clip[:, :2] / clip[:, 3:]
    theirs = np.stack([(1 + ndc[:, 1]) / 2 * foreign.WIDTH, (1 + ndc[:, 0]) / 2 * foreign.HEIGHT], 1)
    ours = pixels(corners(YAWS[0]), YAWS[0])
    np.testing.assert_allclose(theirs[np.lexsort(theirs.T)], ours[np.lexsort(ours.T)], atol=1e-9)
    front = pixels(np.array([[0, -SIZE[1] / 2, 0]]), YAWS[0])[0]
    assert np.linalg.norm(theirs[unit_box[:, 2] > 0].mean(0) - front) < 2, "+z is the front, as box.py has it"


# ---------------------------------------------------------------- units


@pytest.mark.parametrize("unit", ["degrees", "radians"])
def test_degrees_and_radians_give_the_same_labels(unit, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    foreign.make_coco(root, unit=unit)
    raw = imported("coco", tmp_path, angles=unit)
    [annotation] = read_annotation(RawLayout(raw).annotation("car", "p1"))
    assert annotation["azimuth"] == pytest.approx(2 * math.pi - YAWS[1])
    assert annotation["elevation"] == pytest.approx(0.35)


def test_degrees_that_are_called_radians_are_doubted_aloud_and_left_out(tmp_path, caplog, capsys):
    root = made("coco", tmp_path)
    lines = (root / "angles.csv").read_text().splitlines()
    lines[1] = "10,0.5,0.1,0"
    (root / "angles.csv").write_text("\n".join(lines))
    raw = imported("coco", tmp_path, angles="radians")
    assert "2 of 3 lines hold angles beyond 12.6, which cannot be radians" in caplog.text
    assert rejects(raw) == {"azimuth out of range": 2}


@pytest.mark.parametrize("mixed", [False, True])
def test_radians_that_are_called_degrees_are_doubted_aloud(mixed, tmp_path, caplog):
    table = tmp_path / "angles.csv"
    rng = np.random.default_rng(0)
    azimuths = rng.uniform(0, 2 * math.pi, 20)
    azimuths[: 10 if mixed else 0] *= 180 / math.pi
    table.write_text("id,azimuth,elevation,theta\n" + "".join(f"{i},{a},0.1,0\n" for i, a in enumerate(azimuths)))
    from data_prep.import_.coco import read_angles

    read_angles(table, "degrees")
    assert "seems to be in radians" in caplog.text
    assert ("mix both" in caplog.text) is mixed


def test_true_degrees_are_not_doubted(tmp_path, caplog):
    from data_prep.import_.coco import read_angles

    table = tmp_path / "angles.csv"
    rng = np.random.default_rng(0)
    lines = [f"{i};{a:.1f};{e:.1f};0" for i, (a, e) in enumerate(rng.uniform((0, -20), (360, 60), (50, 2)))]
    table.write_text("ID;Azimuth;Elevation;In_plane\n" + "\n".join(lines), encoding="utf-8-sig")
    assert len(read_angles(table, "degrees")) == 50, "with semicolons, capitals and the mark of Windows"
    assert caplog.text == ""


# ---------------------------------------------------------------- what cannot be taken


def test_every_object_that_cannot_be_taken_has_its_reason(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = made("coco", tmp_path)
    data = json.loads((root / "instances.json").read_text())
    good = data["annotations"][0]
    changes = [
        {"image_id": 99},
        {"category_id": 99},
        {"bbox": [1, 2]},
        {"bbox": [10, 10, -5, 5]},
        {"iscrowd": 1},
        {},  # without a line in the table
        {"image_id": 7},  # whose picture is not there
        {"image_id": 8},  # whose picture leads out of the folder
        {"image_id": 9},  # that is no picture
    ]
    data["annotations"] += [{**good, "id": 100 + i, **change} for i, change in enumerate(changes)] + ["text"]
    data["images"] += [
        {"id": 7, "file_name": "no.jpg"},
        {"id": 8, "file_name": "../../x.jpg"},
        {"id": 9, "file_name": "t.jpg"},
    ]
    (root / "photos" / "t.jpg").write_text("no picture")
    (root / "instances.json").write_text(json.dumps(data))
    lines = [f"{100 + i},1,2,3" for i in range(len(changes)) if i != 5] + ["55,1,2,3"]
    with open(root / "angles.csv", "a") as file:
        file.write("\n".join(lines) + "\n")
    raw = imported("coco", tmp_path)
    assert rejects(raw) == {
        "picture missing": 2,
        "category missing": 1,
        "bbox malformed": 2,
        "crowd": 1,
        "angles missing": 1,
        "picture leads out": 1,
        "picture unreadable": 1,
        "annotation malformed": 1,
        "annotation missing": 1,
    }
    assert "3 objects of 3 pictures are in" in caplog.text
    assert "left out: 2, picture missing" in caplog.text


def test_coarse_viewpoints_are_left_out(tmp_path):
    root = made("pascal3d", tmp_path)
    yaw = YAWS[0]
    coarse = foreign.thing(yaw, viewpoint=foreign.viewpoint(yaw, distance=0.0))
    none = foreign.thing(yaw, viewpoint=np.zeros((0, 0)))
    wrong = foreign.thing(yaw, viewpoint=foreign.viewpoint(yaw, azimuth=float("nan")))
    foreign.write_record(
        root / "Annotations" / "car_imagenet" / "n00.mat", "n00.JPEG", [coarse, none, wrong, foreign.thing(yaw)]
    )
    raw = imported("pascal3d", tmp_path)
    assert rejects(raw) == {"viewpoint coarse": 1, "viewpoint missing": 1, "azimuth not finite": 1}
    assert len(read_annotation(RawLayout(raw).annotation("car", "car_imagenet_n00"))) == 1


def test_a_picture_that_exif_turns_needs_its_size(tmp_path):
    """As in prepare: the annotated size tells which way up it was annotated."""
    root = made("coco", tmp_path)
    image = Image.open(root / "photos" / "p0.jpg")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "photos" / "p0.jpg", exif=exif)
    data = json.loads((root / "instances.json").read_text())
    assert len(prepared(imported("coco", tmp_path), "train")) == 3
    del data["images"][0]["width"]
    (root / "instances.json").write_text(json.dumps(data))
    shutil.rmtree(tmp_path / "raw")
    assert rejects(imported("coco", tmp_path)) == {"picture orientation unknown": 1}


def test_another_picture_of_the_name_is_told_by_its_size(tmp_path):
    root = made("coco", tmp_path)
    Image.new("RGB", (100, 50)).save(root / "photos" / "p1.jpg")
    assert rejects(imported("coco", tmp_path)) == {"picture size differs": 1}


def test_pictures_may_be_linked_from_another_disk(tmp_path):
    root = made("omni3d", tmp_path)
    (root / "pictures" / "scene").rename(tmp_path / "disk")
    (root / "pictures" / "scene").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert rejects(imported("omni3d", tmp_path)) == {}


def test_two_pictures_of_one_name_get_two(tmp_path):
    root = made("coco", tmp_path)
    data = json.loads((root / "instances.json").read_text())
    (root / "photos" / "a").mkdir()
    (root / "photos" / "p0.jpg").rename(root / "photos" / "a" / "b.jpg")
    (root / "photos" / "p1.jpg").rename(root / "photos" / "a_b.jpg")
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "a/b.jpg", "a_b.jpg"
    (root / "instances.json").write_text(json.dumps(data))
    raw = imported("coco", tmp_path)
    assert sorted(path.stem for path in (raw / "images" / "car").iterdir()) == ["a_b", "a_b_2", "p2"]


def test_a_category_that_leads_elsewhere_is_no_folder(tmp_path):
    root = made("coco", tmp_path)
    data = json.loads((root / "instances.json").read_text())
    data["categories"].append({"id": 4, "name": "../../evil"})
    data["annotations"][0]["category_id"] = 4
    (root / "instances.json").write_text(json.dumps(data))
    raw = imported("coco", tmp_path)
    assert rejects(raw) == {"category malformed": 1}
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"angles": None}, "--angles is needed"),
        ({"angles_file": None}, "--angles-file is needed"),
        ({"angles_file": "no.csv"}, r"no\.csv: cannot be read"),
        ({"source": "no.json"}, r"no\.json: there is nothing of that name"),
        ({"images": "no"}, "--images no: there is no such folder"),
        ({"split": "../x"}, "cannot name a split"),
        ({"kind": "bop"}, "give the folder of the data set"),
        ({"kind": "poses"}, "--from-format is needed"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(change, match, tmp_path):
    with pytest.raises(InputError, match=match):
        imported("coco", tmp_path, **change)
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").glob("images"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,azimuth,elevation\n1,2,3\n", "there is no column 'theta'"),
        ("id,azimuth,elevation,theta\n10,left,3,4\n", "'azimuth' must be a number, not 'left'"),
        ("id,azimuth,elevation,theta\n10,1,3,4\n10,1,3,4\n", "stands on two lines"),
        ("", "there is no column"),
    ],
)
def test_a_table_that_is_something_else_is_one_sentence(text, match, tmp_path):
    root = made("coco", tmp_path)
    (root / "angles.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        imported("coco", tmp_path)


def test_a_folder_that_is_nothing_of_the_kind_is_said_to_be_so(tmp_path, raw_dataset, capsys):
    raw_dataset.add("n1")
    assert main([str(raw_dataset.root), "--out", str(tmp_path / "out")]) == 2
    assert "looks like ImageNet3D's raw layout: llava-pose prepare" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    assert "is none of coco, pascal3d" in capsys.readouterr().err


# ---------------------------------------------------------------- damaged and hostile files


@pytest.mark.parametrize("kind", ["pascal3d", "bop", "omni3d", "objectron", "coco"])
def test_damaged_files_are_listed_or_refused(kind, tmp_path):
    """Bytes cut off, turned or put in: a sentence, or the objects that are whole; never a traceback."""
    root = made(kind, tmp_path)
    victim = {
        "pascal3d": root / "Annotations" / "car_imagenet" / "n00.mat",
        "bop": root / "train_pbr" / "000001" / "scene_gt.json",
        "omni3d": root / "omni.json",
        "objectron": root / "car_1.json",
        "coco": root / "instances.json",
    }[kind]
    good, said = victim.read_bytes(), []
    rng = np.random.default_rng(0)
    for attempt in range(40):
        bad = bytearray(good)
        if attempt % 2:
            bad = bad[: rng.integers(len(bad))]
        for place in rng.integers(0, max(1, len(bad)), 4):
            bad[place : place + 1] = bytes(rng.integers(32, 127, int(rng.integers(0, 3))).tolist())
        victim.write_bytes(bytes(bad))
        out = tmp_path / f"out{attempt}"
        try:
            import_dataset(ImportConfig(out=str(out), kind=kind, **options(kind, root)))
        except InputError as error:
            said.append(str(error))
    assert not any("\n" in sentence for sentence in said)
    victim.write_bytes(good)


JUNK = [None, 7, "text", [], {}, [[]], [None], {"a": 1}, float("nan"), 1e300, True]


@pytest.mark.parametrize("kind", ["bop", "omni3d", "objectron", "coco"])
def test_any_value_in_the_place_of_any_field_is_taken_or_listed(kind, tmp_path):
    root = made(kind, tmp_path)
    victims = {
        "bop": [root / "train_pbr" / "000001" / f"{n}.json" for n in ("scene_gt", "scene_camera", "scene_gt_info")],
        "omni3d": [root / "omni.json"],
        "objectron": [root / "car_1.json"],
        "coco": [root / "instances.json"],
    }[kind]
    count, said = 0, []
    for victim in victims:
        good = victim.read_text()
        places = list(_places(json.loads(good)))
        rng = np.random.default_rng(1)
        for index in rng.permutation(len(places))[:60]:
            value = json.loads(good)
            *path, last = places[index]
            inner = value
            for step in path:
                inner = inner[step]
            inner[last] = JUNK[int(rng.integers(len(JUNK)))]
            victim.write_text(json.dumps(value))
            count += 1
            try:
                import_dataset(ImportConfig(out=str(tmp_path / f"out{count}"), kind=kind, **options(kind, root)))
            except InputError as error:
                said.append(str(error))
        assert not any("\n" in sentence for sentence in said)
        victim.write_text(good)


def _places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def test_a_matlab_file_that_unfolds_to_gigabytes_is_refused_before_it_does(tmp_path):
    savemat(tmp_path / "bomb.mat", {"record": np.zeros((1, 1))}, do_compression=False)
    head = (tmp_path / "bomb.mat").read_bytes()[:128]
    zeros = zlib.compressobj(9)
    packed = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(200)) + zeros.flush()
    element = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    (tmp_path / "bomb.mat").write_bytes(head + element)
    with pytest.raises(InputError, match="unfolds to more than 32 MiB"):
        read_record(tmp_path / "bomb.mat")


@pytest.mark.parametrize("record", [{"record": 3}, {"other": 1}, {"record": "text"}])
def test_a_matlab_file_without_a_record_is_refused(record, tmp_path):
    savemat(tmp_path / "a.mat", record)
    with pytest.raises(InputError, match="there is no struct 'record' in it"):
        read_record(tmp_path / "a.mat")


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_files_are_read_as_scipy_reads_them(packed, tmp_path):
    structs = np.array([(1.5, "one"), (2.0, "zwölf")], dtype=[("number", object), ("text", object)])
    values = {
        "record": {
            "objects": structs,
            "cells": np.array([1, "a", np.arange(4)], dtype=object),
            "integers": np.arange(5, dtype=np.int16),
            "large": np.array([2**40, -3]),
            "single": np.float32(0.5),
            "flag": np.array([True, False, True]),
            "grid": np.arange(6.0).reshape(2, 3),
            "nothing": np.zeros((0, 0)),
            "empty": "",
            "inner": {"a": {"b": -1}},
        }
    }
    savemat(tmp_path / "a.mat", values, do_compression=packed)
    theirs = loadmat(tmp_path / "a.mat", simplify_cells=True)["record"]
    ours = read_record(tmp_path / "a.mat")
    assert ours["objects"] == [dict(item) for item in theirs["objects"]]
    assert ours["cells"][:2] == [1, "a"]
    assert ours["cells"][2] == [0, 1, 2, 3]
    assert ours["integers"] == theirs["integers"].tolist()
    assert ours["large"] == theirs["large"].tolist()
    assert ours["flag"] == [True, False, True]
    assert ours["grid"] == theirs["grid"].ravel(order="F").tolist()
    assert (ours["single"], ours["nothing"], ours["empty"], ours["inner"]) == (0.5, None, None, {"a": {"b": -1}})


def test_damaged_matlab_files_are_refused_or_read(tmp_path):
    """scipy's own reader ends the process on some of these."""
    foreign.write_record(tmp_path / "a.mat", "a.JPEG", [foreign.thing(0.3), foreign.thing(1.0)])
    packed = (tmp_path / "a.mat").read_bytes()
    good = packed[:128] + zlib.decompress(packed[136:])
    rng = np.random.default_rng(0)
    words = (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x10", b"\x0e\0\0\0", b"\x01\0\0\0")
    for _ in range(600):
        bad = bytearray(good)
        for place in rng.integers(128, len(good) - 64, int(rng.integers(1, 6))):
            match rng.integers(3):
                case 0:
                    bad[place] = int(rng.integers(256))
                case 1:
                    bad[place : place + 4] = words[rng.integers(len(words))]
                case 2:
                    del bad[place : place + int(rng.integers(1, 9))]
        (tmp_path / "a.mat").write_bytes(bytes(bad))
        with contextlib.suppress(InputError):
            read_record(tmp_path / "a.mat")


def test_a_file_of_the_folder_that_one_stands_in_is_read(tmp_path, monkeypatch):
    foreign.make_coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = [
        "instances.json",
        "--angles-file",
        "angles.csv",
        "--angles",
        "degrees",
        "--images",
        "photos",
        "--out",
        "raw",
    ]
    assert main(words) == 0
    assert len(list(Path("raw").glob("annotations/*/*.npz"))) == len(YAWS)
