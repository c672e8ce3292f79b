"""What is prepared and exported as the published ImageNet3D code does it: which objects are kept, their pixels, their fields.

The rules are written here a second time, from the published preprocessing's own steps.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.export import ExportConfig, export
from data_prep.prepare.command import PrepareConfig, main, prepare
from data_prep.prepare.crop import RawImage, published_crop
from data_prep.raw.imagenet3d import RawLayout, read_annotation, read_list, write_list
from data_prep.raw.processed import raw_annotation, read_processed
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.records import read_records
from llava_pose.errors import InputError


def published_keeps(annotation: dict[str, Any]) -> bool:
    """The two conditions of the published preprocessing."""
    return annotation.get("object_status", "status_bad") != "status_bad" and annotation["distance"] > 0


def prepared(dataset: Any, out: Path, **options: Any) -> Path:
    return prepare(PrepareConfig(data_root=str(dataset.root), out=str(out), splits="train", workers=1, **options))


@pytest.fixture
def quirky(raw_dataset: Any) -> Any:
    """Objects of every quirk that ImageNet3D's annotations have, four of them not kept by the published preprocessing."""
    make = raw_dataset.object
    raw_dataset.add(
        "n1",
        objects=[
            make(),
            make(bbox=np.array([500.0, 100.0, 100.0, 300.0])),  # swapped
            make(bbox=np.array([100.0, 100.0, 100.0, 300.0])),  # empty
            make(bbox=np.array([-90.0, -90.0, -5.0, -5.0])),  # outside of the image
            make(px=5000.0),  # a crop that shows nothing
            make(distance=400.0),  # a box of 50 times the crop
            make(object_status="status_of_its_own"),
            make(object_status="status_bad"),
            make(object_status=..., ignore=False),  # the older field counts for nothing
            make(distance=0.0),
            make(distance=-3.0),
        ],
    )
    raw_dataset.add("n2", image=raw_dataset.picture(600, 400), objects=[make()])  # annotated at 640 x 480
    raw_dataset.add("n3", objects=[make(), make(width=np.uint16(320), height=np.uint16(240))])
    turned = raw_dataset.picture(640, 480)
    turned.getexif()[0x0112] = 6
    stream = io.BytesIO()
    turned.save(stream, "JPEG", exif=turned.getexif())
    raw_dataset.add("n4", image=stream.getvalue(), objects=[make(width=..., height=...)])
    raw_dataset.add("n5", category="boat", objects=[make(**{"class": "yacht"})])
    return raw_dataset


def kept_ids(dataset: Any) -> set[str]:
    """The ids of all objects that the published preprocessing keeps."""
    return {
        f"{path.parent.name}/{path.stem}/{index}"
        for path in dataset.root.glob("annotations/*/*.npz")
        for index, annotation in enumerate(read_annotation(path))
        if published_keeps(annotation)
    }


def test_the_published_filter_keeps_exactly_what_the_published_preprocessing_keeps(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out", published_filter=True)
    assert {record.id for record in read_records(out, "train")} == kept_ids(quirky)
    assert list(read_jsonl(out / "rejects.jsonl")) == []
    account = json.loads((out / "summary.json").read_text())["splits"]["train"]
    assert account["filtered_by_reason"] == {
        **{"distance not positive": 2, "object_status missing": 1, "status_bad": 1}
    }
    assert account["kept_faults"] == {
        "bbox malformed": 2,
        "bbox outside image": 1,
        "crop shows nothing": 1,
        "crop shows too little": 1,
        "image orientation unknown": 1,
        "image size differs": 3,
    }
    assert account["classes_by_folder"] == {"yacht": 1}


def test_without_it_what_has_a_fault_is_rejected_with_the_same_reason(quirky: Any, tmp_path: Path) -> None:
    lenient = json.loads((prepared(quirky, tmp_path / "a", published_filter=True) / "summary.json").read_text())
    strict = json.loads((prepared(quirky, tmp_path / "b") / "summary.json").read_text())["splits"]["train"]
    by_reason = strict["rejected_by_reason"]
    assert by_reason.pop("distance not positive") == 2
    assert by_reason == lenient["splits"]["train"]["kept_faults"]


def test_a_swapped_box_is_put_in_order_and_comes_back_as_it_was_annotated(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out", published_filter=True)
    records = {record.id: record for record in read_records(out, "train")}
    x1, y1, x2, y2 = records["car/n1/1"].bbox
    assert x1 < x2
    assert y1 < y2
    assert raw_annotation(records["car/n1/1"])["bbox"].tolist() == [500.0, 100.0, 100.0, 300.0]
    exported = export(ExportConfig(data=str(out), out=str(tmp_path / "exported")))
    again = {record.id: record for record in read_processed(exported, "train")}
    assert raw_annotation(again["car/n1/1"])["bbox"].tolist() == [500.0, 100.0, 100.0, 300.0]


# ------------------------------------------------------------------ the published profile, pixels and fields


def cubic_matrix(size: int, resized: int) -> np.ndarray:
    """(resized, size): the weights of a bicubic resize without antialiasing, Keys' kernel with a = -0.75, edges repeated."""
    matrix = np.zeros((resized, size))
    for row in range(resized):
        place = (row + 0.5) * size / resized - 0.5
        for pixel in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - pixel)
            inner, outer = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
            matrix[row, min(max(pixel, 0), size - 1)] += inner if d <= 1 else outer
    return matrix


def as_published(image: np.ndarray, annotation: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """The published steps on one object: resize all of the image, pad it, cut out the middle, and move the box with it."""
    rate = annotation["distance"] / 4.0
    height, width = (int(side * rate) for side in image.shape[:2])
    rows, columns = cubic_matrix(image.shape[0], height), cubic_matrix(image.shape[1], width)
    tall = np.einsum("rh,hwc->rwc", rows, image.astype(float), optimize=True)
    resized = np.einsum("kw,rwc->rkc", columns, tall, optimize=True)
    resized = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    x, y = int(annotation["px"] * rate), int(annotation["py"] * rate)
    padding = ((max(256 - y, 0), max(256 + y - height, 0)), (max(256 - x, 0), max(256 + x - width, 0)), (0, 0))
    padded = np.pad(resized, padding)
    top, left = max(y - 256, 0), max(x - 256, 0)
    cropping = ((top, max(padded.shape[0] - y - 256, 0)), (left, max(padded.shape[1] - x - 256, 0)), (0, 0))
    box = annotation["bbox"] * rate
    box += np.array([padding[1][0] - left, padding[0][0] - top, padding[1][0] - left, padding[0][1] - top])
    fields = {"padding_params": np.ravel(padding), "cropping_params": np.ravel(cropping), "bbox": box}
    fixed = {"px": 256.0, "py": 256.0, "principal": np.array([256.0, 256.0]), "distance": 4.0, "viewport": 2000.0}
    return padded[top : top + 512, left : left + 512], {**fields, **fixed, "resize_rate": rate}


PLACES = [
    {"distance": 4.0},
    {"distance": 2.3, "px": 333.3, "py": 222.2},
    {"distance": 7.9, "px": 600.0, "py": 30.0},
    {"distance": 1.1, "px": 10.0, "py": 470.0},
    {"distance": 5.0, "px": -300.0, "py": 900.0},
    {"distance": 6.1, "px": 3000.0, "py": 240.0},
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_pixels_and_fields_are_those_of_the_published_steps(
    raw_dataset: Any, tmp_path: Path, place: dict[str, Any]
) -> None:
    annotation = raw_dataset.object(bbox=np.array([120.0, 90.0, 500.0, 400.0]), **{"class": "bus"}, **place)
    stream = io.BytesIO()
    raw_dataset.picture(seed=3).save(stream, "JPEG", quality=95)
    raw_dataset.add("n1", image=stream.getvalue(), objects=[annotation])
    out = prepared(raw_dataset, tmp_path / "out", profile="published")
    exported = export(ExportConfig(data=str(out), out=str(tmp_path / "exported"), profile="published"))
    pixels, fields = as_published(np.asarray(Image.open(stream).convert("RGB")), annotation)
    flat = np.load(exported / "train" / "annotations" / "car" / "n1_00.npz")
    for name, value in fields.items():
        np.testing.assert_allclose(flat[name], value, rtol=1e-12, atol=1e-9, err_msg=name)
    assert str(flat["class"]) == "car", "the folder"
    crop = published_crop(annotation["px"], annotation["py"], annotation["distance"])
    (cut,) = RawImage(stream.getvalue(), None).published_crops([crop])
    assert np.abs(np.asarray(cut).astype(int) - pixels).max() <= 1, "the rounding of float32"
    expected = io.BytesIO()
    cut.save(expected, "JPEG")
    with Image.open(exported / "train" / "images" / "car" / "n1_00.JPEG") as picture, Image.open(expected) as published:
        assert picture.size == (512, 512)
        assert picture.quantization == published.quantization, "quality 75"
        assert np.array_equal(np.asarray(picture), np.asarray(published))


def test_the_record_says_where_the_object_is_in_the_picture(raw_dataset: Any, tmp_path: Path) -> None:
    """Whole pixels move the origin off the middle, by less than a pixel; the record knows, the published label does not."""
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=3.0, px=333.3, py=222.2)])
    (record,) = read_records(prepared(raw_dataset, tmp_path / "out", profile="published"), "train")
    assert record.pose.px == pytest.approx(256 + 333.3 * 0.75 - int(333.3 * 0.75))
    assert (record.width, record.height, record.crop["scale"]) == (512, 512, 0.75)
    assert record.pose.distance == 3.0
    assert record.viewport == pytest.approx(1500)


def test_the_profile_keeps_what_the_filter_keeps_and_labels_by_folder(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out", profile="published")
    records = read_records(out, "train")
    assert {record.id for record in records} == kept_ids(quirky)
    assert all(record.category == record.id.split("/")[0] for record in records)
    exported = export(ExportConfig(data=str(out), out=str(tmp_path / "exported"), profile="published"))
    listed = (exported / "train" / "lists" / "car" / "mesh01.txt").read_text().split()
    assert set(listed) == {
        f"{name}_{int(index):02d}"
        for folder, name, index in (i.split("/") for i in kept_ids(quirky))
        if folder == "car"
    }


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop": "box"}, "--profile published: is --crop pose at --size 512"),
        ({"size": 256}, "--profile published: is --crop pose at --size 512"),
    ],
)
def test_the_profile_is_the_published_one_or_none(raw_dataset: Any, tmp_path: Path, options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        prepared(raw_dataset, tmp_path / "out", profile="published", **options)


def test_a_folder_of_another_profile_is_not_exported_as_published(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1")
    out = prepared(raw_dataset, tmp_path / "out")
    with pytest.raises(InputError, match="was prepared otherwise; make it with llava-pose prepare --profile published"):
        export(ExportConfig(data=str(out), out=str(tmp_path / "exported"), profile="published"))


def test_the_published_code_itself_writes_the_same(photos: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Its preprocessing from a checkout that one names: pytest --published-code FOLDER, with opencv-python installed."""
    code = pytestconfig.getoption("--published-code")
    if code is None:
        pytest.skip("the published code is not here: name a checkout of wufeim/imagenet3d_exp with --published-code")
    pytest.importorskip("cv2", reason="the published code needs opencv-python")
    source, raw = RawLayout(photos), RawLayout(tmp_path / "raw")
    for category, listed in source.list_files()["val"].items():
        names = read_list(listed)[:4]
        for name in names:
            for path in (source.image(category, name), source.annotation(category, name)):
                target = raw.root / path.relative_to(photos)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        if names:
            write_list(raw.list_file(category, "val"), names)
    script = Path(code) / "scripts" / "preprocess_data.py"
    words = ["--center_and_resize", "--data_path", str(raw.root), "--save_path", str(tmp_path / "theirs")]
    subprocess.run([sys.executable, str(script), *words, "--num_workers", "1", "--splits", "val"], check=True)
    settings: dict[str, Any] = {"splits": "val", "workers": 1, "profile": "published"}
    out = prepare(PrepareConfig(data_root=str(raw.root), out=str(tmp_path / "prepared"), **settings))
    export(ExportConfig(data=str(out), out=str(tmp_path / "ours"), profile="published"))
    theirs, ours = tmp_path / "theirs" / "val", tmp_path / "ours" / "val"
    files = sorted(path.relative_to(theirs) for path in theirs.glob("*/*/*"))
    assert files == sorted(path.relative_to(ours) for path in ours.glob("*/*/*"))
    for file in files:
        if file.suffix == ".npz":
            a, b = np.load(theirs / file, allow_pickle=True), np.load(ours / file)
            for name in a.files:
                same = np.array_equal(a[name], b[name]) if a[name].dtype.kind == "U" else np.allclose(a[name], b[name])
                assert same, (file, name)
        elif file.suffix == ".JPEG":
            a, b = (np.asarray(Image.open(folder / file)).astype(int) for folder in (theirs, ours))
            assert np.abs(a - b).max() <= 8, file
        else:
            assert (theirs / file).read_text().split() == (ours / file).read_text().split()


def test_what_would_end_the_published_preprocessing_is_still_rejected(raw_dataset: Any, tmp_path: Path) -> None:
    make = raw_dataset.object
    changes = [{"bbox": ...}, {"distance": 1e-6}, {"distance": 1e6}, {"px": math.nan}, {"azimuth": ...}]
    raw_dataset.add("n1", objects=[make(), *(make(**change) for change in changes)])
    out = prepared(raw_dataset, tmp_path / "out", published_filter=True)
    reasons = [reject["reason"] for _, reject in read_jsonl(out / "rejects.jsonl")]
    assert sorted(reasons) == [
        *("azimuth missing", "bbox missing", "distance out of range", "distance out of range", "px not finite")
    ]


def test_the_published_filter_belongs_to_the_published_crop(
    raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--data-root",
        str(raw_dataset.root),
        "--out",
        str(tmp_path / "out"),
        "--published-filter",
        "--crop",
        "box",
    ]
    assert main(words) == 2
    assert "give --crop pose" in capsys.readouterr().err


def test_an_output_without_the_filter_is_not_gone_on_with(quirky: Any, tmp_path: Path) -> None:
    out = prepared(quirky, tmp_path / "out")
    with pytest.raises(InputError, match="published_filter"):
        prepared(quirky, out, published_filter=True)
