from __future__ import annotations

import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.prepare.command import PrepareConfig, main, prepare
from data_prep.prepare.crop import Crop, RawImage, box_crop, pose_crop
from data_prep.raw.imagenet3d import read_annotation, write_annotation, write_list
from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import project_points

POINTS = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3))


def run(dataset: Any, out: Path, **options: Any) -> Path:
    return prepare(
        PrepareConfig(data_root=str(dataset.root), out=str(out), **{"workers": 1, "splits": "train", **options})
    )


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def tree(out: Path) -> dict[str, bytes]:
    """Every file that prepare promises, without what a stopped run goes on from."""
    paths = (path for path in out.rglob("*") if path.is_file() and ".prepare" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(paths)}


def dotted(width: int, height: int, dots: list[tuple[float, float]], sigma: float) -> Image.Image:
    """Gaussian dots at points given in edge coordinates, white on black."""
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    bell = [(np.exp(-((y - v) ** 2) / (2 * sigma**2)), np.exp(-((x - u) ** 2) / (2 * sigma**2))) for u, v in dots]
    canvas = sum(np.outer(*parts) for parts in bell)
    return Image.fromarray((np.clip(canvas, 0, 1) * 250).astype(np.uint8)).convert("RGB")


def centroid(image: Image.Image, near: tuple[float, float], radius: float) -> tuple[float, float]:
    """The centre of brightness around a point, in edge coordinates."""
    values = np.asarray(image.convert("L")).astype(float)
    y, x = np.mgrid[: image.height, : image.width] + 0.5
    weight = np.maximum(values - 20, 0) * ((x - near[0]) ** 2 + (y - near[1]) ** 2 < radius**2)
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


@pytest.mark.parametrize("crop", ["pose", "box"])
def test_the_prepared_pose_projects_where_the_mapping_sends_the_raw_projection(
    raw_dataset: Any, tmp_path: Path, crop: str
) -> None:
    raw = raw_dataset.object(viewport=1850.0, focal=1.1, distance=3.7)
    raw_dataset.add("n1", objects=[raw])
    (record,) = read_records(run(raw_dataset, tmp_path / "out", crop=crop), "train")

    angles = {name: raw[name] for name in ("azimuth", "elevation", "theta", "distance", "focal")}
    raw_pixels = project_points(POINTS, **angles, px=raw["px"], py=raw["py"], viewport=raw["viewport"])
    pose = record.pose
    assert (pose.azimuth, pose.elevation, pose.theta, pose.distance) == tuple(
        raw[name] for name in ("azimuth", "elevation", "theta", "distance")
    )
    prepared_pixels = project_points(POINTS, **angles, px=pose.px, py=pose.py, viewport=record.viewport)
    mapped = (raw_pixels - (record.crop["left"], record.crop["top"])) * record.crop["scale"]
    np.testing.assert_allclose(prepared_pixels, mapped, atol=1e-9)
    corners = (raw["bbox"].reshape(2, 2) - (record.crop["left"], record.crop["top"])) * record.crop["scale"]
    np.testing.assert_allclose(record.bbox, corners.reshape(-1), atol=1e-9)
    # and back: nothing of the annotation is lost
    np.testing.assert_allclose(pose.px / record.crop["scale"] + record.crop["left"], raw["px"], atol=1e-9)
    np.testing.assert_allclose(record.viewport / record.crop["scale"], raw["viewport"], rtol=1e-12)


def test_crop_pose_is_the_published_protocol(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=4.0, px=301.5, py=200.25)])
    raw_dataset.add("n2", objects=[raw_dataset.object(distance=8.0, px=301.5, py=200.25)])
    near, far = read_records(run(raw_dataset, tmp_path / "out", size=512), "train")
    assert near.crop == {"left": 301.5 - 256, "top": 200.25 - 256, "scale": 1.0}
    assert far.crop == {"left": 301.5 - 128, "top": 200.25 - 128, "scale": 2.0}
    assert (near.pose.px, near.pose.py) == (256.0, 256.0)
    assert (near.width, near.height) == Image.open(tmp_path / "out/train" / near.file_name).size == (512, 512)


def test_crop_box_is_the_square_around_the_bbox_with_its_margin(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(bbox=np.array([100.0, 50.0, 300.0, 150.0]))])
    (record,) = read_records(run(raw_dataset, tmp_path / "out", crop="box", margin=0.05), "train")
    np.testing.assert_allclose([record.crop[name] for name in ("left", "top", "scale")], [90, -10, 256 / 220])
    np.testing.assert_allclose((record.bbox[0], 256 - record.bbox[2]), (256 * 10 / 220,) * 2)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1501, 1127), (2999, 2001), (4003, 3005)])
@pytest.mark.parametrize("suffix", [".png", ".JPEG"])
@pytest.mark.parametrize("crop", ["pose", "box"])
def test_pixels_are_where_the_mapping_says(
    raw_dataset: Any, tmp_path: Path, width: int, height: int, suffix: str, crop: str
) -> None:
    """At every reduction that the JPEG decoder offers, with sizes that it has to round."""
    scale = width / 640
    dots = [(0.32 * width + 0.3, 0.38 * height + 0.7), (0.7 * width + 0.45, 0.6 * height + 0.15)]
    image = dotted(width, height, dots, sigma=6 * scale)
    raw = raw_dataset.object(width, height, distance=5.0 / scale)
    raw_dataset.add("n1", image=image, objects=[raw], suffix=suffix)
    (record,) = read_records(run(raw_dataset, tmp_path / "out", crop=crop, size=256), "train")
    prepared = Image.open(tmp_path / "out/train" / record.file_name)
    left, top, factor = (record.crop[name] for name in ("left", "top", "scale"))
    for u, v in dots:
        expected = (u - left) * factor, (v - top) * factor
        found = centroid(prepared, expected, radius=16)
        np.testing.assert_allclose(found, expected, atol=0.03)


def test_reduced_decoding_gives_the_picture_of_whole_decoding(photos: Path) -> None:
    path = next(p for p in sorted((photos / "images/chair").iterdir()) if Image.open(p).size[0] >= 490)
    content = path.read_bytes()
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = whole.size
    png = io.BytesIO()
    whole.save(png, "PNG")
    for scale in (0.5, 0.37, 0.25, 0.2, 0.125):
        crop = Crop(width * 0.1 + 0.3, height * 0.1 + 0.6, scale, int(0.7 * min(width, height) * scale))
        reduced = RawImage(content, (width, height)).crops([crop])[0]
        exact = RawImage(png.getvalue(), (width, height)).crops([crop])[0]
        difference = np.abs(np.asarray(reduced).astype(float) - np.asarray(exact).astype(float))
        assert difference.mean() < 4, f"scale {scale}"
        shifted = np.abs(np.asarray(reduced).astype(float)[:, 1:] - np.asarray(exact).astype(float)[:, :-1])
        assert difference.mean() < 0.5 * shifted.mean(), f"scale {scale}: as far off as a pixel's shift"


def test_large_jpegs_are_decoded_at_reduced_size(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, decoded = io.BytesIO(), []
    Image.new("RGB", (1601, 1203), (90, 120, 30)).save(stream, "JPEG")
    cut = RawImage._cut
    monkeypatch.setattr(
        RawImage, "_cut", lambda self, image, *rest: decoded.append(image.size) or cut(self, image, *rest)
    )
    for scale, expected in (
        (0.6, (1601, 1203)),
        (0.5, (801, 602)),
        (0.3, (801, 602)),
        (0.25, (401, 301)),
        (0.1, (201, 151)),
    ):
        image = RawImage(stream.getvalue(), (1601, 1203))
        image.crops([Crop(0, 0, scale, 64), Crop(10, 10, scale / 2, 64)])
        assert decoded[-1] == expected


def test_outside_of_the_image_is_padded_with_one_colour(raw_dataset: Any, tmp_path: Path) -> None:
    white = Image.new("RGB", (200, 200), (255, 255, 255))
    raw = raw_dataset.object(200, 200, px=0.0, py=100.0, distance=4.0, bbox=np.array([10.0, 10.0, 50.0, 50.0]))
    raw_dataset.add("n1", image=white, objects=[raw])
    (record,) = read_records(run(raw_dataset, tmp_path / "out", size=512), "train")
    pixels = np.asarray(Image.open(tmp_path / "out/train" / record.file_name)).astype(int)
    # the image fills columns 256 to 456 and rows 156 to 356
    inside = np.zeros((512, 512), bool)
    inside[156:356, 256:456] = True
    assert np.abs(pixels[~inside] - PADDING_COLOUR).max() < 40, "JPEG ringing at the edge"
    assert np.abs(np.median(pixels[~inside], axis=0) - PADDING_COLOUR).max() <= 1
    assert np.median(pixels[inside]) == 255
    assert (pixels[160:350, 257:455] > 230).all()
    assert (np.abs(pixels[160:350, 250] - PADDING_COLOUR) < 40).all()


def test_crops_that_reach_over_every_edge_have_the_right_size() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (31, 17), (255, 255, 255)).save(stream, "PNG")
    image = RawImage(stream.getvalue(), (31, 17))
    rng = np.random.default_rng(0)
    crops = [
        Crop(*rng.uniform(-40, 40, 2), scale=float(np.exp(rng.uniform(-4, 4))), size=int(rng.integers(16, 64)))
        for _ in range(300)
    ]
    for crop, picture in zip(crops, image.crops(crops), strict=True):
        assert picture.size == (crop.size, crop.size)
        x1, y1, x2, y2 = crop.visible(31, 17)
        white = (np.asarray(picture) == 255).all(-1)
        assert white.sum() == max(0, x2 - x1) * max(0, y2 - y1)


def test_crops_of_the_two_kinds() -> None:
    assert pose_crop(100, 50, 4.0, 512) == Crop(-156.0, -206.0, 1.0, 512)
    assert box_crop((0, 0, 100, 50), 0.0, 200) == Crop(0.0, -25.0, 2.0, 200)


def test_several_objects_of_other_classes_in_one_image(raw_dataset: Any, tmp_path: Path) -> None:
    objects = [
        raw_dataset.object(),
        raw_dataset.object(object_status="status_bad"),
        raw_dataset.object(**{"class": "bus"}, object_status="status_partially", px=200.0),
        raw_dataset.object(**{"class": ...}),
    ]
    raw_dataset.add("n.1", objects=objects)
    out = run(raw_dataset, tmp_path / "out")
    records = read_records(out, "train")
    assert [record.id for record in records] == ["car/n.1/0", "car/n.1/2", "car/n.1/3"]
    assert [record.category for record in records] == ["car", "bus", "car"]
    assert [record.file_name for record in records] == [f"car/n.1_{k:02d}.JPEG" for k in (0, 2, 3)]
    assert [record.occluded for record in records] == [False, True, False]
    assert [record.source["class"] for record in records] == ["car", "bus", ""]
    total = summary_of(out)["total"]
    assert total == {"images": 1, "read": 4, "written": 3, "filtered": 1, "rejected": 0}


def test_nothing_of_the_annotation_is_lost(raw_dataset: Any, tmp_path: Path) -> None:
    raw = raw_dataset.object(source="web", instance="golf 3", note={"by": ["a"]}, cad_index=np.int64(4), viewport=...)
    raw_dataset.add("n1", objects=[raw])
    (record,) = read_records(run(raw_dataset, tmp_path / "out"), "train")
    source = record.source
    assert source["image"] == "images/car/n1.JPEG"
    assert source["annotation"] == "annotations/car/n1.npz"
    assert (source["width"], source["height"], source["object_index"]) == (640, 480, 0)
    assert (source["source"], source["instance"], source["cad_index"], source["dense"]) == (
        "web",
        "golf 3",
        4,
        "dense_no",
    )
    assert json.loads(source["extra"]) == {"note": {"by": ["a"]}}
    assert source["absent"].split() == ["viewport", "source", "instance"][:1]
    assert record.viewport == pytest.approx(2000 * record.crop["scale"])
    assert summary_of(tmp_path / "out")["splits"]["train"]["absent_fields"] == {"viewport": 1}


def test_the_older_variant_with_ignore(raw_dataset: Any, tmp_path: Path) -> None:
    kept = raw_dataset.object(object_status=..., ignore=False)
    raw_dataset.add("n1", objects=[kept, raw_dataset.object(object_status=..., ignore=np.bool_(True))])
    raw_dataset.add("n2", objects=[raw_dataset.object(object_status=...)])
    out = run(raw_dataset, tmp_path / "out")
    (record,) = read_records(out, "train")
    assert record.object_status == "status_good"
    assert json.loads(record.source["extra"]) == {"ignore": False}
    account = summary_of(out)["splits"]["train"]
    assert account["filtered_by_reason"] == {"object_status missing": 1, "status_bad": 1}


def test_images_in_both_splits_are_counted(raw_dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = io.BytesIO()
    raw_dataset.picture(seed=9).save(same, "JPEG")
    raw_dataset.add("both", split="train")
    write_list(raw_dataset.layout.list_file("car", "val"), ["both"])
    raw_dataset.add("a", category="bus", split="train", image=same.getvalue())
    raw_dataset.add("b", category="bus", split="val", image=same.getvalue())
    raw_dataset.add("alone", category="bus", split="val", image=raw_dataset.picture(seed=10))
    with caplog.at_level(logging.WARNING):
        out = run(raw_dataset, tmp_path / "out", splits="train,val")
    leaks = summary_of(out)["in_several_splits"]
    assert leaks["images"] == 2
    assert {"train": "bus/a", "val": "bus/b"} in leaks["examples"]
    assert {"train": "car/both", "val": "car/both"} in leaks["examples"]
    assert "2 images stand in several splits" in caplog.text


def test_an_image_listed_twice_is_taken_once_and_unlisted_ones_are_counted(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("a")
    raw_dataset.add("b")
    raw_dataset.add("c")
    write_list(raw_dataset.layout.list_file("car", "train"), ["a", "b", "a"])
    out = run(raw_dataset, tmp_path / "out")
    assert [record.id for record in read_records(out, "train")] == ["car/a/0", "car/b/0"]
    assert summary_of(out)["annotations_not_listed"] == 1


def test_workers_do_not_change_the_output(raw_dataset: Any, tmp_path: Path) -> None:
    for index in range(24):
        raw_dataset.add(f"n{index}", category="car" if index % 2 else "bus", image=b"" if index == 5 else None)
    one = tree(run(raw_dataset, tmp_path / "one", workers=1))
    two = tree(run(raw_dataset, tmp_path / "two", workers=2))
    assert one == two
    assert len(one) == 23 + 4


def test_running_again_does_only_what_changed(raw_dataset: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        raw_dataset.add(name, objects=[raw_dataset.object(), raw_dataset.object(px=200.0)])
    out = run(raw_dataset, tmp_path / "out")
    before = tree(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")}
    run(raw_dataset, out)
    assert tree(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.JPEG")} == times

    write_annotation(raw_dataset.layout.annotation("car", "b"), [raw_dataset.object(azimuth=1.0)])
    (out / "train/car/c_01.JPEG").unlink()
    run(raw_dataset, out)
    records = read_records(out, "train")
    assert [record.id for record in records] == ["car/a/0", "car/a/1", "car/b/0", "car/c/0", "car/c/1"]
    assert records[2].pose.azimuth == 1.0
    assert not (out / "train/car/b_01.JPEG").exists(), "its object is no longer there"
    assert (out / "train/car/c_01.JPEG").read_bytes() == before["train/car/c_01.JPEG"]
    assert (out / "train/car/a_00.JPEG").stat().st_mtime_ns == times[out / "train/car/a_00.JPEG"]


def test_splits_prepared_one_after_the_other_stand_in_one_account(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("a", split="train")
    raw_dataset.add("b", split="val")
    raw_dataset.add("broken", split="train", objects=b"")
    together = tree(run(raw_dataset, tmp_path / "together", splits="train,val"))
    run(raw_dataset, tmp_path / "apart", splits="train")
    apart = tree(run(raw_dataset, tmp_path / "apart", splits="val"))
    assert apart.keys() == together.keys()
    assert summary_of(tmp_path / "apart")["total"] == summary_of(tmp_path / "together")["total"]
    assert apart["rejects.jsonl"] == together["rejects.jsonl"]


def test_other_settings_need_another_folder_or_overwrite(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("a")
    out = run(raw_dataset, tmp_path / "out", size=64)
    with pytest.raises(InputError, match=r"was begun with size 64, not 32; give another folder, or --overwrite"):
        run(raw_dataset, out, size=32)
    assert read_records(out, "train")[0].width == 64
    run(raw_dataset, out, size=32, overwrite=True)
    assert read_records(out, "train")[0].width == 32
    assert Image.open(out / "train/car/a_00.JPEG").size == (32, 32)


def test_a_folder_that_holds_something_else_is_left_alone(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("a")
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something that prepare did not write"):
        run(raw_dataset, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        run(raw_dataset, out / "thesis.tex")


def test_two_runs_at_once_are_refused(raw_dataset: Any, tmp_path: Path) -> None:
    import fcntl

    raw_dataset.add("a")
    out = run(raw_dataset, tmp_path / "out")
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prepare is writing there"):
            run(raw_dataset, out)
    run(raw_dataset, out)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes under /proc")
def test_killed_in_the_middle_and_started_again_nothing_is_lost_or_doubled(raw_dataset: Any, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.effect_noise((1200, 900), 60).convert("RGB").save(stream, "JPEG", quality=90)
    raw_dataset.add("seed", image=stream.getvalue(), objects=[raw_dataset.object(1200, 900)] * 2)
    count = 70
    for index in range(count):
        for path in (raw_dataset.layout.image("car", "seed"), raw_dataset.layout.annotation("car", "seed")):
            shutil.copy(path, path.with_name(f"n{index}{path.suffix}"))
    write_list(raw_dataset.layout.list_file("car", "train"), [f"n{index}" for index in range(count)])
    raw_dataset.layout.annotation("car", "n7").unlink()

    out = tmp_path / "out"
    words = ["--data-root", str(raw_dataset.root), "--out", str(out), "--splits", "train", "--workers", "2"]
    command = [sys.executable, "-m", "data_prep.prepare.command", *words]
    results = out / ".prepare/train/car"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[3])
    while process.poll() is None and len(list(results.glob("*.json"))) < 3:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (out / "summary.json").exists()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while any(_alive(int(pid)) for pid in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    done = len(list(results.glob("*.json")))
    assert 0 < done < count
    # what a kill leaves at the worst moment, and a power cut: half a file, and one of which nothing is there but its length
    (results / ".n9.json.1.tmp").write_text('{"key": "car/n')
    written = sorted(results.glob("*.json"))
    written[0].write_bytes(bytes(written[0].stat().st_size))
    (out / "train/car/.n9_00.JPEG.1.tmp").write_bytes(b"half")

    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    assert f"{done - 1} of {count} images were done already" in result.stderr
    undisturbed = run(raw_dataset, tmp_path / "undisturbed", workers=2)
    assert tree(out) == tree(undisturbed)
    assert len(read_records(out, "train")) == 2 * (count - 1)


def test_datasets_imagefolder_loads_it(raw_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    rich = raw_dataset.object(source="web", instance="golf", note=[1, "a"], weather="rain", shade=1.5)
    poor = raw_dataset.object(**dict.fromkeys(("cad_index", "dense", "class", "viewport", "principal"), ...))
    whole = raw_dataset.object(azimuth=1, distance=np.int64(5), shade="none", bbox=[100, 100, 300, 300])
    for split in ("train", "val"):
        raw_dataset.add(f"a_{split}", split=split, objects=[poor])
        raw_dataset.add(f"b_{split}", split=split, objects=[rich, whole])
        raw_dataset.add(f"c_{split}", split=split, category="bus", objects=[whole])
        raw_dataset.add(f"d_{split}", split=split, category="bus", objects=b"")
    out = run(raw_dataset, tmp_path / "out", splits="train,val", size=64)
    (out / "train.json").write_text("[]")  # where instruct writes
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"))

    assert {name: len(part) for name, part in loaded.items()} == {"train": 4, "validation": 4}
    for split, part in (("train", loaded["train"]), ("val", loaded["validation"])):
        rows = {row["id"]: row for row in part}
        for record in read_records(out, split):
            row = rows[record.id]
            assert row["image"].size == (64, 64)
            assert row["pose"] == record.pose.to_dict()
            assert row["bbox"] == list(record.bbox)
            assert row["source"] == record.source
            assert row["crop"] == record.crop


def test_real_photographs(photos: Path, tmp_path: Path) -> None:
    """A few of each list, by links: what is written can be accounted for, and the CADs fall on the boxes."""
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("images", "annotations"):
        (root / name).symlink_to(photos / name)
    listed = 0
    for path in (photos / "lists").glob("*.txt"):
        names = path.read_text().split()[::25]
        annotations = photos / "annotations" / path.name.split("_imagenet_")[0]
        listed += sum(len(read_annotation(annotations / f"{name}.npz")) for name in names)
        write_list(root / "lists" / path.name, names)
    out = prepare(PrepareConfig(data_root=str(root), out=str(tmp_path / "out"), crop="box", workers=2))
    total = summary_of(out)["total"]
    assert total["read"] == listed == total["written"] + total["filtered"]
    assert total["rejected"] == 0
    overlaps = []
    for record in read_records(out, "train"):
        lines = (photos / "CAD" / record.category / "01.off").read_text().splitlines()
        vertices = np.array([line.split() for line in lines[2 : 2 + int(lines[1].split()[0])]], dtype=float)
        pose = record.pose
        pixels = project_points(
            vertices,
            **{name: getattr(pose, name) for name in ("azimuth", "elevation", "theta", "distance", "px", "py")},
            viewport=record.viewport,
        )
        low, high = pixels.min(0), pixels.max(0)
        x1, y1, x2, y2 = record.bbox
        common = max(0, min(high[0], x2) - max(low[0], x1)) * max(0, min(high[1], y2) - max(low[1], y1))
        union = np.prod(high - low) + (x2 - x1) * (y2 - y1) - common
        overlaps.append(common / union)
    assert len(overlaps) > 200
    assert np.median(overlaps) > 0.75


def test_command_line(raw_dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raw_dataset.add("a")
    words = [
        "--data-root",
        str(raw_dataset.root),
        "--out",
        str(tmp_path / "out"),
        "--splits",
        "train",
        "--workers",
        "1",
    ]
    with caplog.at_level(logging.INFO):
        assert main(words) == 0
    assert "1 objects prepared" in caplog.messages[-2]
    then = f"next: llava-pose instruct --data {tmp_path / 'out'} --out {tmp_path / 'out' / 'train.json'}"
    assert caplog.messages[-1] == then
    for wrong in (["--size", "3"], ["--workers", "-1"], ["--splits", " ,"], ["--margin", "-1"]):
        assert main([*words, *wrong]) == 2
    assert main([*words, "--crop", "oval"]) == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
