"""The 6D profile: whole images, letterboxed, one picture for all the objects in it; and that everything downstream takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.instruct.command import InstructConfig, instruct
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.prepare.crop import Crop, whole_crop
from data_prep.raw.imagenet3d import write_annotation
from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Prediction, read_predictions, read_records
from llava_pose.pose.geometry import project_points

POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
CAMERA = ("azimuth", "elevation", "theta", "distance", "px", "py")


def run(dataset: Any, out: Path, **options: Any) -> Path:
    values = {"workers": 1, "splits": "train", "crop": "whole", "size": 128, **options}
    return prepare(PrepareConfig(data_root=str(dataset.root), out=str(out), **values))


def two_objects(dataset: Any, width: int, height: int) -> list[dict[str, Any]]:
    bus = {"class": "bus", "px": 0.2 * width, "py": 0.6 * height, "distance": 9.0}
    box = np.array([0.1 * width, 0.5 * height, 0.3 * width, 0.7 * height])
    return [
        dataset.object(width, height),
        dataset.object(width, height, bbox=box, object_status="status_barely", **bus),
    ]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (301, 499), (2400, 1801), (90, 60)])
def test_everything_is_exact_in_the_letterboxed_picture(
    raw_dataset: Any, tmp_path: Path, width: int, height: int
) -> None:
    objects = two_objects(raw_dataset, width, height)
    picture = Image.new("RGB", (width, height), (250, 250, 250))
    raw_dataset.add("n1", image=picture, objects=objects, suffix=".png")
    out = run(raw_dataset, tmp_path / "out")
    records = read_records(out, "train")
    assert [record.id for record in records] == ["car/n1/0", "car/n1/1"]
    assert [record.file_name for record in records] == ["car/n1.JPEG"] * 2
    assert [path.name for path in (out / "train/car").iterdir()] == ["n1.JPEG"]
    scale = 128 / max(width, height)
    left, top = (128 - width * scale) / 2, (128 - height * scale) / 2
    for raw, record in zip(objects, records, strict=True):
        angles = {name: raw[name] for name in ("azimuth", "elevation", "theta", "distance", "focal")}
        raw_pixels = project_points(POINTS, **angles, px=raw["px"], py=raw["py"], viewport=raw["viewport"])
        pose = {name: getattr(record.pose, name) for name in CAMERA}
        pixels = project_points(POINTS, **pose, focal=record.focal, viewport=record.viewport)
        np.testing.assert_allclose(pixels, raw_pixels * scale + (left, top), atol=1e-9)
        corners = raw["bbox"].reshape(2, 2) * scale + (left, top)
        np.testing.assert_allclose(record.bbox, corners.ravel(), atol=1e-9)
        assert (record.width, record.height) == (128, 128)
    pixels = np.asarray(Image.open(out / "train/car/n1.JPEG")).astype(int)
    x1, y1, x2, y2 = Crop(**records[0].crop, size=128).visible(width, height)
    assert (pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] > 240).all(), "the whole image is there"
    outside = np.ones((128, 128), bool)
    outside[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = False
    assert np.abs(pixels[outside] - PADDING_COLOUR).max(initial=0) < 12
    assert abs((x2 - x1) / (y2 - y1) - width / height) < 0.05


def test_the_letterbox() -> None:
    assert whole_crop(400, 200, 100) == Crop(0.0, -100.0, 0.25, 100)
    assert whole_crop(200, 400, 100) == Crop(-100.0, 0.0, 0.25, 100)
    assert whole_crop(50, 50, 100) == Crop(0.0, 0.0, 2.0, 100)


def test_an_image_too_narrow_to_show_anything_is_refused(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("good")
    raw_dataset.add("line", image=Image.new("RGB", (3000, 4)), objects=[raw_dataset.object(3000, 4)], suffix=".png")
    out = run(raw_dataset, tmp_path / "out")
    (reject,) = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    assert (reject["reason"], reject["object_index"]) == ("crop shows nothing", 0)
    assert "no pixel of the letterboxed image shows the bbox" in reject["sentence"]


def test_a_second_run_keeps_the_shared_picture_as_long_as_one_object_needs_it(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1", objects=two_objects(raw_dataset, 640, 480))
    raw_dataset.add("n2")
    out = run(raw_dataset, tmp_path / "out")
    before = (out / "train/car/n1.JPEG").stat().st_mtime_ns
    run(raw_dataset, out)
    assert (out / "train/car/n1.JPEG").stat().st_mtime_ns == before, "nothing has changed, nothing is done"
    annotation = raw_dataset.layout.annotation("car", "n1")
    write_annotation(annotation, two_objects(raw_dataset, 640, 480)[1:])
    run(raw_dataset, out)
    assert [record.id for record in read_records(out, "train")] == ["car/n1/0", "car/n2/0"]
    assert (out / "train/car/n1.JPEG").is_file()
    write_annotation(annotation, [raw_dataset.object(object_status="status_bad")])
    run(raw_dataset, out)
    assert not (out / "train/car/n1.JPEG").exists()
    assert json.loads((out / "summary.json").read_text())["total"]["written"] == 1


def test_datasets_imagefolder_loads_a_row_an_object(
    raw_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    raw_dataset.add("n1", objects=two_objects(raw_dataset, 640, 480))
    raw_dataset.add("n2", category="bus", objects=[raw_dataset.object(**{"class": "bus"})])
    out = run(raw_dataset, tmp_path / "out")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    rows = {row["id"]: row for row in loaded}
    assert len(loaded) == len(rows) == 3
    for record in read_records(out, "train"):
        row = rows[record.id]
        expected = Image.open(out / "train" / record.file_name).convert("RGB")
        assert np.array_equal(np.asarray(row["image"].convert("RGB")), np.asarray(expected))
        assert (row["pose"], row["bbox"], row["crop"]) == (record.pose.to_dict(), list(record.bbox), record.crop)


@pytest.fixture
def prepared(raw_dataset: Any, tmp_path: Path) -> Path:
    raw_dataset.add("n1", objects=two_objects(raw_dataset, 640, 480))
    raw_dataset.add("n2", category="bus", objects=[raw_dataset.object(**{"class": "bus"})])
    return run(raw_dataset, tmp_path / "prepared")


def test_instruct_and_the_samples_of_training_take_it(prepared: Path, tiny_base: Path, tmp_path: Path) -> None:
    from llava_pose.data.dataset import PoseDataset, read_samples
    from llava_pose.data.images import load_rgb
    from llava_pose.model.processors import load_processor
    from llava_pose.utils.files import inside, of_split

    result = instruct(InstructConfig(data=str(prepared), out=str(tmp_path / "train.json"), questions_per_object=2))
    samples = read_samples(result.path)
    records = {record.id: record for record in read_records(prepared, "train")}
    by_record = {record: [s for s in samples if s["record"] == record] for record in records}
    assert {len(of) for of in by_record.values()} == {2}
    shown = {
        name: [r.pose.to_dict() for r in records.values() if r.file_name == records[name].file_name] for name in records
    }
    for name, of in by_record.items():
        for sample in of:
            assert sample["image"] == f"train/{records[name].file_name}"
            if sample["kind"] == "caption":  # of the whole picture
                assert sample["poses"] == shown[name] or sample["poses"] == shown[name][::-1]
            else:
                assert sample["poses"] == [records[name].pose.to_dict()]
            assert sample["viewport"] == records[name].viewport * records[name].focal
    pictures = [load_rgb(inside(*of_split(prepared, sample["image"]))) for sample in samples]
    assert all(picture.size == (128, 128) for picture in pictures)
    encoded = PoseDataset(samples, prepared, load_processor(tiny_base), flip=True)
    assert all("pixel_values" in encoded[i].pictures for i in range(len(encoded)))


def test_predict_and_sheet_take_it(prepared: Path, tiny_base: Path, tmp_path: Path) -> None:
    from eval.predict import PredictConfig, predict
    from eval.report.contact_sheet import ContactSheetConfig, contact_sheet

    out = tmp_path / "predictions.jsonl"
    config = {"checkpoint": str(tiny_base), "data": str(prepared), "split": "train", "device": "cpu"}
    predict(PredictConfig(**config, out=str(out)))
    predictions = read_predictions(out)
    records = read_records(prepared, "train")
    assert [prediction.id for prediction in predictions] == [record.id for record in records]
    assert [prediction.true for prediction in predictions] == [record.pose for record in records]
    # the truth as a prediction: axes stand on the objects
    right = [
        Prediction(record.id, "truth", record.category, None, record.pose, record.pose).to_dict() for record in records
    ]
    write_jsonl(tmp_path / "truth.jsonl", right)
    sheet = contact_sheet(
        ContactSheetConfig(
            data=str(prepared),
            predictions=str(tmp_path / "truth.jsonl"),
            split="train",
            out=str(tmp_path / "sheet.png"),
            count=3,
        )
    )
    assert Image.open(sheet).size[0] > 3 * 240
