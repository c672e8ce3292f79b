"""The processed layout: what published loaders read of it, and that every raw field comes back from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.export import ExportConfig, export, main
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.raw.imagenet3d import filter_reason, read_annotation
from data_prep.raw.processed import raw_annotation, read_processed
from llava_pose.data.records import ObjectRecord, read_records, write_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import project_points

POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))
PUBLISHED = {  # the keys that the published preprocessing writes
    *("name", "bbox", "bbox_original", "principal", "principal_original", "px", "py", "px_original", "py_original"),
    *("distance", "distance_original", "azimuth", "elevation", "theta", "cad_index", "focal", "viewport"),
    *("padding_params", "cropping_params", "resize_rate", "class"),
}


def prepared_from(dataset: Any, out: Path, **options: Any) -> Path:
    values = {"workers": 1, "splits": "train", "size": 128, **options}
    return prepare(PrepareConfig(data_root=str(dataset.root), out=str(out), **values))


def published_samples(root: Path, split: str, category: str) -> list[dict[str, Any]]:
    """What the published loader does with a category, without its networks: names, picture, pose."""
    names = (root / split / "lists" / category / "mesh01.txt").read_text().strip().split("\n")
    samples = []
    for name in names:
        with Image.open(root / split / "images" / category / f"{name}.JPEG") as picture:
            pixels = np.array(picture.convert("RGB"))
        annotation = dict(np.load(root / split / "annotations" / category / f"{name}.npz", allow_pickle=False))
        pose = {field: float(annotation[field]) for field in ("azimuth", "elevation", "theta", "distance")}
        samples.append({"name": name, "img": pixels, "annotation": annotation, **pose})
    return samples


def assert_same_raw(found: Any, raw: Any) -> None:
    """Of equal type and, numbers to float precision, of equal value."""
    if isinstance(raw, dict):
        assert found.keys() == raw.keys()
        for name in raw:
            assert_same_raw(found[name], raw[name])
    elif isinstance(raw, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == raw.dtype
        np.testing.assert_allclose(found, raw, rtol=1e-12, atol=1e-9)
    elif isinstance(raw, bool | str | list | type(None)):
        assert found == raw
        assert type(found) is type(raw)
    elif isinstance(raw, np.uint16 | int):
        assert type(found) is type(raw)
        assert found == raw
    else:
        assert type(found) is type(raw)
        assert found == pytest.approx(raw, rel=1e-12, abs=1e-9)


RAW_VARIANTS: dict[str, dict[str, Any]] = {
    "today's": {},
    "the older one": {"object_status": ..., "ignore": False},
    "both": {"ignore": True, "object_status": "status_barely"},
    "with everything": {
        **{"source": "web", "instance": "golf 3", "note": {"by": ["a", 1.5]}, "weather": "rain", "cad_index": 7},
        **{"dense": "dense_yes", "viewport": 1850.25, "focal": 1.125, "class": "bus"},
    },
    "with little": dict.fromkeys(("class", "cad_index", "dense", "viewport", "focal", "principal", "height"), ...),
    "principal alone": {"px": ..., "py": ..., "principal": np.array([321.123456789, 222.987654321])},
    "principal apart": {"principal": np.array([1.5, 2.5])},
    "odd principal": {"principal": np.array([1.0, 2.0, 3.0])},
    "near": {"distance": 1.2345678901},
    "over the edge": {"bbox": np.array([-31.4159, 10.1, 700.7, 470.9])},
    "status partially": {"object_status": "status_partially"},
    "letters": {"instance": "café, 王", "note": "line\nend"},
}


@pytest.fixture
def variants(raw_dataset: Any) -> Any:
    for index, changes in enumerate(RAW_VARIANTS.values()):
        exact = {"azimuth": 0.1 + index / 7, "elevation": -0.3 + index / 31, "theta": 6.1 + index / 97}
        shared = raw_dataset.object(object_status="status_bad")  # comes first, so that indices have a gap
        raw_dataset.add(f"v.{index}", objects=[shared, raw_dataset.object(**{**exact, **changes})])
    return raw_dataset


@pytest.mark.parametrize("crop", ["pose", "box", "whole"])
@pytest.mark.parametrize("published_distance", [False, True])
def test_every_raw_field_comes_back(variants: Any, tmp_path: Path, crop: str, published_distance: bool) -> None:
    """raw -> prepared -> raw, and raw -> prepared -> processed -> raw."""
    prepared = prepared_from(variants, tmp_path / "prepared", crop=crop)
    records = read_records(prepared, "train")
    assert len(records) == len(RAW_VARIANTS)
    out = export(ExportConfig(str(prepared), str(tmp_path / "out"), published_distance=published_distance))
    exported = {record.id: record for record in read_processed(out, "train")}
    assert set(exported) == {record.id for record in records}
    for record in records:
        _, name, index = record.id.split("/")
        raw = read_annotation(variants.layout.annotation("car", name))[int(index)]
        for found in (record, exported[record.id]):
            assert_same_raw(raw_annotation(found), raw)


def test_records_come_back_as_they_were(variants: Any, tmp_path: Path) -> None:
    prepared = prepared_from(variants, tmp_path / "prepared", crop="box")
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    exported = {record.id: record for record in read_processed(out, "train")}
    for record in read_records(prepared, "train"):
        found = exported[record.id]
        assert found.source == record.source
        assert (found.category, found.object_status, found.width) == (record.category, record.object_status, 128)
        assert found.pose.angles == record.pose.angles
        np.testing.assert_allclose(found.bbox, record.bbox, atol=1e-9)
        numbers = [found.pose.distance, found.pose.px, found.pose.py, found.viewport, found.focal]
        expected = [record.pose.distance, record.pose.px, record.pose.py, record.viewport, record.focal]
        np.testing.assert_allclose(numbers, expected, rtol=1e-12, atol=1e-9)
        picture = out / "train" / found.file_name
        assert picture.read_bytes() == (prepared / "train" / record.file_name).read_bytes()


def test_published_loaders_read_it(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(), raw_dataset.object(px=200.0, distance=2.5)])
    raw_dataset.add("n2")
    raw_dataset.add("m", category="trolley_bus", objects=[raw_dataset.object(**{"class": "trolleybus"})])
    raw_dataset.add("v", split="val")
    prepared = prepared_from(raw_dataset, tmp_path / "prepared", splits="train,val", size=512)
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    assert sorted(path.name for path in out.iterdir()) == ["export.yaml", "train", "val"]
    samples = published_samples(out, "train", "car")
    assert [sample["name"] for sample in samples] == ["n1_00", "n1_01", "n2_00"]
    assert [sample["name"] for sample in published_samples(out, "val", "car")] == ["v_00"]
    # an object stands in its folder by the folder's own spelling
    assert [sample["name"] for sample in published_samples(out, "train", "trolley_bus")] == ["m_00"]
    for sample, record in zip(samples, read_records(prepared, "train"), strict=False):
        annotation = sample["annotation"]
        assert annotation.keys() >= PUBLISHED
        assert all(array.dtype != object for array in annotation.values())
        assert sample["img"].shape == (512, 512, 3)
        assert (sample["azimuth"], sample["elevation"], sample["theta"]) == record.pose.angles
        assert str(annotation["class"]) == "car"
        np.testing.assert_allclose(annotation["principal"], [256, 256])
        # padding and cropping say where the crop was: prepared = raw * rate + padding - cropping
        shift = annotation["padding_params"] - annotation["cropping_params"]
        rate = annotation["resize_rate"]
        np.testing.assert_allclose(annotation["px_original"] * rate + shift[2], annotation["px"], atol=1e-9)
        np.testing.assert_allclose(annotation["py_original"] * rate + shift[0], annotation["py"], atol=1e-9)
        np.testing.assert_allclose(640 * rate + shift[2] + shift[3], 512, atol=1e-9)
        np.testing.assert_allclose(annotation["bbox_original"][3] * rate + shift[0], annotation["bbox"][3], atol=1e-9)


def test_units_of_distance(raw_dataset: Any, tmp_path: Path) -> None:
    raw = raw_dataset.object(distance=2.0, viewport=1900.0)
    raw_dataset.add("n1", objects=[raw])
    prepared = prepared_from(raw_dataset, tmp_path / "prepared", size=512)
    (record,) = read_records(prepared, "train")
    true = export(ExportConfig(str(prepared), str(tmp_path / "true")))
    published = export(ExportConfig(str(prepared), str(tmp_path / "published"), published_distance=True))
    (ours,), (theirs,) = published_samples(true, "train", "car"), published_samples(published, "train", "car")
    # published: distance / resize rate, which brings every object to distance 4, and the raw viewport
    assert (theirs["distance"], float(theirs["annotation"]["viewport"])) == (pytest.approx(4.0), pytest.approx(1900.0))
    assert (ours["distance"], float(ours["annotation"]["viewport"])) == (2.0, pytest.approx(950.0))
    for sample in (ours, theirs):
        assert float(sample["annotation"]["distance_original"]) == 2.0
        assert float(sample["annotation"]["viewport_original"]) == pytest.approx(1900.0)

    def projected(sample: dict[str, Any]) -> np.ndarray:
        names = ("azimuth", "elevation", "theta", "distance", "px", "py", "viewport", "focal")
        return project_points(POINTS, **{name: float(sample["annotation"][name]) for name in names})

    raw_pixels = project_points(
        POINTS, **{n: raw[n] for n in ("azimuth", "elevation", "theta", "distance", "px", "py", "viewport", "focal")}
    )
    mapped = (raw_pixels - (record.crop["left"], record.crop["top"])) * record.crop["scale"]
    np.testing.assert_allclose(projected(ours), mapped, atol=1e-9)
    assert 5 < np.abs(projected(theirs) - mapped).max() < 200, "which is why it is asked for by name"


def test_objects_of_other_folders_do_not_take_each_others_names(raw_dataset: Any, tmp_path: Path) -> None:
    bus = raw_dataset.object(**{"class": "bus"})
    raw_dataset.add("same", category="car", objects=[bus, raw_dataset.object()])
    raw_dataset.add("same", category="bus", objects=[bus])
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    assert [sample["name"] for sample in published_samples(out, "train", "bus")] == ["same_00", "car_same_00"]
    assert [sample["name"] for sample in published_samples(out, "train", "car")] == ["same_01"]
    assert sorted(record.id for record in read_processed(out, "train")) == ["bus/same/0", "car/same/0", "car/same/1"]


def test_a_name_with_a_folder_in_front_may_be_another_objects_own(raw_dataset: Any, tmp_path: Path) -> None:
    car = raw_dataset.object(**{"class": "car"})
    for name, category in (("n1", "car"), ("truck_n1", "car"), ("n1", "truck")):
        raw_dataset.add(name, category=category, objects=[car])
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    names = [sample["name"] for sample in published_samples(out, "train", "car")]
    assert sorted(names) == ["n1_00", "truck_n1_00", "truck_truck_n1_00"]
    assert sorted(record.id for record in read_processed(out, "train")) == ["car/n1/0", "car/truck_n1/0", "truck/n1/0"]


def test_running_again_writes_only_what_has_changed(raw_dataset: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        raw_dataset.add(name, objects=[raw_dataset.object(), raw_dataset.object(px=300.0)])
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    config = ExportConfig(str(prepared), str(tmp_path / "out"))
    out = export(config)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(files) == 1 + 4 + 4 + 1
    # what a killed run leaves: a file that is not there, half a one, and one under a temporary name
    (out / "train/images/car/a_01.JPEG").unlink()
    (out / "train/annotations/car/b_00.npz").write_bytes(b"half")
    (out / "train/annotations/car/.b_01.npz.12.tmp").write_bytes(b"half")
    untouched = (out / "train/images/car/a_00.JPEG").stat().st_ino
    export(config)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert (out / "train/images/car/a_00.JPEG").stat().st_ino == untouched

    from data_prep.raw.imagenet3d import write_annotation

    write_annotation(raw_dataset.layout.annotation("car", "b"), [raw_dataset.object(azimuth=1.0)])
    prepared_from(raw_dataset, prepared)
    export(config)
    samples = published_samples(out, "train", "car")
    assert [(s["name"], s["azimuth"]) for s in samples] == [("a_00", 0.7), ("a_01", 0.7), ("b_00", 1.0)]
    assert not (out / "train/images/car/b_01.JPEG").exists()


def test_files_of_the_published_code_are_read(tmp_path: Path) -> None:
    """An object 640 px wide image at distance 2: halved, cut around its centre, its box as the published code has it."""
    name, rate = "n1_00", 0.5
    padding, cropping = np.array([136, 136, 89, 103, 0, 0]), np.zeros(6, dtype=int)
    values = {
        **{"name": name, "bbox": np.array([185.0, 208.0, 345.0, 304.0]), "class": "bed", "cad_index": 3},
        **{"bbox_original": np.array([192.0, 144.0, 512.0, 336.0]), "principal": np.array([256.0, 256.0])},
        **{"principal_original": np.array([334.0, 240.0]), "px": 256.0, "py": 256.0, "px_original": 334.0},
        **{"py_original": 240.0, "distance": 4.0, "distance_original": 2.0, "azimuth": 0.5, "elevation": 0.1},
        **{"theta": 6.2, "focal": 1.0, "viewport": 2000.0, "padding_params": padding, "cropping_params": cropping},
        "resize_rate": rate,
    }
    root = tmp_path / "processed"
    for kind in ("images", "annotations", "lists"):
        (root / "train" / kind / "bed").mkdir(parents=True)
    np.savez(root / "train/annotations/bed/n1_00", **values)
    Image.new("RGB", (512, 512)).save(root / "train/images/bed/n1_00.JPEG")
    (root / "train/lists/bed/mesh01.txt").write_text("n1_00")
    (record,) = read_processed(root, "train")
    assert isinstance(record, ObjectRecord)
    assert record.pose.to_dict() == {
        **{"azimuth": 0.5, "elevation": 0.1, "theta": 6.2, "distance": 2.0},
        **{"px": 256.0, "py": 256.0},
    }
    assert record.viewport == 1000.0
    assert record.bbox == (185.0, 208.0, 345.0, 304.0)
    assert (record.category, record.id, record.width) == ("bed", "bed/n1_00/0", 512)
    raw = raw_annotation(record)
    assert (raw["distance"], raw["viewport"], raw["px"], raw["cad_index"]) == (2.0, 2000.0, 334.0, 3)


def test_what_is_wrong_is_said(raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_dataset.add("n1")
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    with pytest.raises(InputError, match="there is no such folder; make it with: llava-pose prepare"):
        export(ExportConfig(str(tmp_path / "none"), str(tmp_path / "out")))
    with pytest.raises(InputError, match="prepared: there is no split val in it, but train"):
        export(ExportConfig(str(prepared), str(tmp_path / "out"), splits="val"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds something that export did not write"):
        export(ExportConfig(str(prepared), str(raw_dataset.root)))
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    with pytest.raises(InputError, match="was begun with published_distance False, not True; choose another --out"):
        export(ExportConfig(str(prepared), str(out), published_distance=True))
    with pytest.raises(InputError, match=r"val/lists: no <category>/mesh01\.txt in it"):
        list(read_processed(out, "val"))
    npz = out / "train/annotations/car/n1_00.npz"
    np.savez(npz, azimuth=1.0)
    with pytest.raises(InputError, match=r"n1_00\.npz: has no 'resize_rate'; export it again"):
        list(read_processed(out, "train"))
    arrays = np.array([{"azimuth": 1}], dtype=object)
    np.savez(npz, crop=arrays)
    with pytest.raises(InputError, match=r"n1_00\.npz: 'crop' must be 3 numbers"):
        list(read_processed(out, "train"))
    (out / "train/images/car/n1_00.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match=r"n1_00\.JPEG: cannot read the picture"):
        list(read_processed(out, "train"))
    (prepared / "train/car/n1_00.JPEG").unlink()
    assert main(["--data", str(prepared), "--out", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "n1_00.JPEG: cannot read the picture (No such file or directory); run llava-pose prepare again" in said


def test_a_split_without_objects_is_said(
    raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    raw_dataset.add("n1")
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    write_records(prepared, "val", [])
    words = ["--data", str(prepared), "--out", str(tmp_path / "out")]
    assert main([*words, "--splits", "train,val"]) == 2
    sentence = f"error: {prepared / 'val' / 'metadata.jsonl'}: there is no object in it; choose other --splits"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.INFO):
        assert main(words) == 0  # all there are: what is there is exported, and what is not is said
    assert f"{prepared / 'val'}: there is no object in it; nothing is exported of it" in caplog.text
    assert "1 objects of train are in" in caplog.text
    write_records(prepared, "train", [])
    assert main(words) == 2


def test_command_line(raw_dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw_dataset.add("n1")
    prepared = prepared_from(raw_dataset, tmp_path / "prepared")
    with caplog.at_level(logging.INFO):
        assert main(["--data", str(prepared), "--out", str(tmp_path / "out"), "--published-distance"]) == 0
    assert "1 objects of train are in" in caplog.records[-1].getMessage()
    assert published_samples(tmp_path / "out", "train", "car")[0]["distance"] == pytest.approx(16.0), "4 at 512 pixels"


def test_real_photographs_come_back(photos: Path, tmp_path: Path) -> None:
    from data_prep.raw.imagenet3d import write_list

    root = tmp_path / "raw"
    root.mkdir()
    for name in ("images", "annotations"):
        (root / name).symlink_to(photos / name)
    for path in (photos / "lists").glob("*_val.txt"):
        write_list(root / "lists" / path.name, path.read_text().split()[::20])
    prepared = prepare(
        PrepareConfig(data_root=str(root), out=str(tmp_path / "prepared"), splits="val", workers=1, crop="whole")
    )
    out = export(ExportConfig(str(prepared), str(tmp_path / "out")))
    count = 0
    for record in read_processed(out, "val"):
        folder, name, index = record.id.split("/")
        raw = read_annotation(photos / "annotations" / folder / f"{name}.npz")[int(index)]
        assert filter_reason(raw) is None
        found = raw_annotation(record)
        assert found.keys() == raw.keys()
        for field, value in raw.items():
            if isinstance(value, str):
                assert found[field] == value
            else:
                np.testing.assert_allclose(
                    np.asarray(found[field], dtype=float), np.asarray(value, dtype=float), rtol=1e-9, atol=1e-9
                )
        count += 1
    assert count == json.loads((prepared / "summary.json").read_text())["total"]["written"] > 40
