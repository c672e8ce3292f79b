"""`llava-pose predict PHOTOS…`: from photographs without annotations to poses that other programs read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pose import cli
from llava_pose.data.poses.formats import read_poses


@pytest.fixture
def photos(taught, tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture = Image.open(taught.picture).convert("RGB")
    for name in ("a.png", "b.jpg", "more/c.jpg"):
        picture.save(folder / name)
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(taught, tmp_path, capsys, monkeypatch):
    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(
            ["predict", *map(str, words), "--checkpoint", str(taught.folder), "--device", "cpu", "--batch-size", "2"]
        )
        return code, capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    return run


def lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows(path: str | Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


def test_a_folder_becomes_a_line_a_photograph(run, photos):
    code, error = run("photos", "--category", "car", "--out", "poses.jsonl")
    assert code == 0, error
    found = lines("poses.jsonl")
    assert [line["file_name"] for line in found] == ["photos/a.png", "photos/b.jpg", "photos/more/c.jpg"]
    assert {line["category"] for line in found} == {"car"}
    for line in found:
        assert np.radians(line["degrees"]["azimuth"]) % (2 * np.pi) == pytest.approx(
            line["pose"]["azimuth"] % (2 * np.pi)
        )


def test_csv_holds_the_same_and_both_are_read_by_convert(run, photos):
    assert run("photos", "--category", "car", "--out", "poses.jsonl")[0] == 0
    assert run("photos/*.png", "photos/b.jpg", "photos/more", "--category", "car", "--out", "poses.csv")[0] == 0
    found = rows("poses.csv")
    assert len(found) == 3
    for row, line in zip(found, lines("poses.jsonl"), strict=True):
        assert float(row["azimuth_degrees"]) == line["degrees"]["azimuth"]
        assert [float(row[f"q{letter}"]) for letter in "wxyz"] == line["quaternion"]
        assert float(row["r23"]) == line["matrix"][1][2]
    for name in ("poses.csv", "poses.jsonl"):
        items, faults = read_poses(name, "llava-pose")
        assert (len(items), faults) == (3, [])
        assert cli.main(["convert", name, "--to-format", "unity", "--out", f"{name}.unity.jsonl"]) == 0
    assert items[0].pose.azimuth == lines("poses.jsonl")[0]["pose"]["azimuth"]


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(run, photos):
    for name in ("poses.jsonl", "poses.csv"):
        assert run("photos", "--category", "car", "--out", name)[0] == 0
        whole = Path(name).read_bytes()
        for end in (len(whole) - 9, len(whole) // 2, 3):
            Path(name).write_bytes(whole[:end])
            code, error = run("photos", "--category", "car", "--out", name)
            assert code == 0, error
            assert Path(name).read_bytes() == whole


def test_other_settings_are_refused(run, photos):
    assert run("photos", "--category", "car", "--out", "poses.csv")[0] == 0
    code, error = run("photos", "--category", "cup", "--out", "poses.csv")
    assert (code, "category" in error) == (2, True)


def test_new_photographs_join_the_file(run, photos):
    assert run("photos/a.png", "--category", "car", "--out", "poses.csv")[0] == 0
    assert run("photos", "--category", "car", "--out", "poses.csv")[0] == 0
    assert len(rows("poses.csv")) == 3


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_boxes_are_asked_about_one_by_one(form, run, photos):
    boxes = [
        ("a.png", (10, 10, 120, 120), "car"),
        ("a.png", (0, 20, 150, 160), "cup"),
        ("photos/more/c.jpg", (5, 5, 90, 90), "car"),
    ]
    if form == "csv":
        text = "".join(f"{name},{','.join(map(str, box))},{category}\n" for name, box, category in boxes)
        Path("boxes.csv").write_text(f"file_name,x1,y1,x2,y2,category\n{text}")
    else:
        coco = {
            "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "photos/more/c.jpg"}],
            "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "cup"}],
            "annotations": [
                {"image_id": 1 if name == "a.png" else 2, "category_id": 1 if category == "car" else 2}
                | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                for name, box, category in boxes
            ],
        }
        Path("boxes.json").write_text(json.dumps(coco))
    file = "boxes.csv" if form == "csv" else "boxes.json"
    code, error = run("photos", "--boxes", file, "--category", "car", "--out", "poses.jsonl", "--overlays", "drawn")
    assert code == 0, error
    found = lines("poses.jsonl")
    assert [(line["id"], line["category"]) for line in found] == [
        ("photos/a.png#0", "car"),
        ("photos/a.png#1", "cup"),
        ("photos/more/c.jpg#0", "car"),
    ]
    assert [tuple(line["box"]) for line in found] == [box for _, box, _ in boxes]
    assert sorted(str(path) for path in Path("drawn").rglob("*.jpg")) == ["drawn/a.jpg", "drawn/more/c.jpg"]
    drawn, plain = (
        np.asarray(Image.open(path).convert("RGB"), int) for path in ("drawn/more/c.jpg", "photos/more/c.jpg")
    )
    changed = np.abs(drawn - plain).max(-1) > 40
    assert changed[5:90, 4:7].any(axis=1).mean() > 0.9, "the left edge of the box"
    assert changed[6:16, 8:60].mean() > 0.1, "the name, in the corner of the box"
    assert not changed[100:, 120:].any()


def test_a_category_of_ones_own_that_the_checkpoint_was_taught_is_asked_for(taught, photos, tmp_path, capsys):
    own = shutil.copytree(taught.folder, tmp_path / "own")
    config = json.loads((own / "pose_config.json").read_text())
    (own / "pose_config.json").write_text(json.dumps({**config, "categories": ["my_gadget"]}))
    words = [
        "predict",
        str(photos),
        "--checkpoint",
        str(own),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "poses.jsonl"),
    ]
    assert cli.main([*words, "--category", "your_gadget"]) == 2
    assert "--category: unknown category 'your_gadget'" in capsys.readouterr().err
    assert cli.main([*words, "--category", "my_gadget"]) == 0
    assert {line["category"] for line in lines(tmp_path / "poses.jsonl")} == {"my_gadget"}


def test_bad_photographs_and_boxes_are_listed_and_stop_nothing(run, photos):
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:400])
    (photos / "none.jpg").write_text("no picture")
    shutil.copy(photos / "b.jpg", os.fsencode(photos) + b"/\xff.jpg")
    Path("boxes.csv").write_text(
        "file_name,x1,y1,x2,y2\na.png,0,0,100,100\nb.jpg,900,900,950,950\nb.jpg,0,0,50,50\nbroken.jpg,0,0,9,9\n"
        "nowhere.jpg,0,0,9,9\nb.jpg,0,0,x,9\nnone.jpg,0,0,9,9\n"
    )
    code, error = run("photos", "--boxes", "boxes.csv", "--category", "car", "--out", "poses.csv")
    assert code == 2
    assert "6 photographs or boxes could not be used" in error
    assert "Traceback" not in error
    assert [row["id"] for row in rows("poses.csv")] == ["photos/a.png#0", "photos/b.jpg#1"]


def test_panoramas_turned_deep_and_moving_pictures(run, photos):
    Image.new("RGB", (4000, 20), (10, 200, 30)).save(photos / "panorama.jpg")
    turned = Image.open(photos / "b.jpg")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photos / "turned.jpg", exif=exif)
    Image.fromarray(np.full((40, 60), 30000, np.uint16)).save(photos / "deep.png")
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    code, error = run("photos", "--category", "car", "--out", "poses.csv", "--overlays", "drawn")
    assert code == 0, error
    assert len(rows("poses.csv")) == 7


REFUSED = {
    "no photographs": (["empty", "--category", "car", "--out", "p.csv"], "no picture in this folder"),
    "nothing there": (["nowhere.jpg", "--category", "car", "--out", "p.csv"], "nowhere.jpg: there is no such file"),
    "another suffix": (["photos", "--category", "car", "--out", "p.txt"], ".csv or .jsonl"),
    "an unknown category": (["photos", "--category", "caar", "--out", "p.csv"], "caar"),
    "a checkpoint that does not say": (["photos", "--out", "p.csv"], "does not say which categories it knows"),
    "a box file of something else": (
        ["photos", "--boxes", "notes.json", "--category", "car", "--out", "p.csv"],
        "no lists 'images' and 'annotations'",
    ),
    "the boxes as output": (
        ["photos", "--boxes", "boxes.csv", "--category", "car", "--out", "boxes.csv"],
        "is one of the files that are read",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_one_sentence(kind, run, photos):
    Path("empty").mkdir()
    Path("notes.json").write_text("[]")
    Path("boxes.csv").write_text("file_name,x1,y1,x2,y2\na.png,0,0,100,100\n")
    words, message = REFUSED[kind]
    code, error = run(*words)
    assert (code, message in error) == (2, True), error
    assert message in error.strip().splitlines()[-1]
    assert "Traceback" not in error


def test_overlays_do_not_replace_the_photographs(run, photos):
    shutil.copy(photos / "b.jpg", photos / "kept.jpg")
    before = (photos / "b.jpg").read_bytes()
    code, error = run("photos", "--category", "car", "--out", "poses.csv", "--overlays", "photos")
    assert (code, "is one of the files that are read" in error) == (2, True), error
    assert (photos / "b.jpg").read_bytes() == before
