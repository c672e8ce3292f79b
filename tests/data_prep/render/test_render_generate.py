"""The stage: the layout on disk, the same files for the same seed, going on after a stop, bad input."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.raw.safe_npz import read_npz
from data_prep.render.generate import main, render
from data_prep.render.options import RenderConfig
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import project_points

ROOT = Path(__file__).resolve().parents[3]


def small(out: Path, **other) -> RenderConfig:
    settings = {
        "categories": ["car", "cup"],
        "train_instances": 2,
        "val_instances": 1,
        "views": 2,
        "size": 72,
        "workers": 1,
        **other,
    }
    return RenderConfig(out=str(out), **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"}


def annotation(path: Path) -> dict:
    (entry,) = read_npz(path)["annotations"].tolist()
    return entry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("render") / "set"
    result = render(small(out))
    assert (result.rendered, result.skipped, result.out) == (12, 0, out)
    assert sum(result.statuses.values()) == 12
    return out


def test_the_layout_is_imagenet3ds(data: Path) -> None:
    files = set(files_of(data))
    names = {"car": ["car_t001", "car_t002", "car_v001"], "cup": ["cup_t001", "cup_t002", "cup_v001"]}
    expected = {"render.yaml", "meshes.jsonl"}
    for category, instances in names.items():
        expected |= {f"lists/{category}_imagenet_{split}.txt" for split in ("train", "val")}
        expected |= {f"CAD/{category}/{number:02d}.off" for number in (1, 2, 3)}
        for name in (f"{instance}_{view:03d}" for instance in instances for view in (0, 1)):
            expected |= {f"images/{category}/{name}.JPEG", f"annotations/{category}/{name}.npz"}
    assert files == expected
    assert (data / "lists/car_imagenet_val.txt").read_text() == "car_v001_000\ncar_v001_001\n"
    train = (data / "lists/car_imagenet_train.txt").read_text().split()
    assert train == ["car_t001_000", "car_t001_001", "car_t002_000", "car_t002_001"]


def test_annotations_have_the_fields_and_describe_the_image(data: Path) -> None:
    for path in data.glob("annotations/*/*.npz"):
        entry = annotation(path)
        with Image.open(data / "images" / path.parent.name / f"{path.stem}.JPEG") as image:
            assert image.mode == "RGB"
            assert image.size == (entry["width"], entry["height"])
        assert type(entry["height"]) is type(entry["width"]) is np.uint16
        assert entry["class"] == path.parent.name
        assert path.stem.startswith(entry["instance"])
        assert entry["object_status"] in ("status_good", "status_partially", "status_barely")
        assert 0.35 <= entry["visible_fraction"] <= 1
        assert (entry["focal"], entry["viewport"], entry["dense"]) == (1.0, 2000.0, "dense_no")
        np.testing.assert_array_equal(entry["principal"], [entry["px"], entry["py"]])
        for name in ("azimuth", "elevation", "theta"):
            assert isinstance(entry[name], float)
            assert 0 <= entry[name] < 2 * np.pi

        cad = trimesh.load(data / f"CAD/{path.parent.name}/{entry['cad_index']:02d}.off", process=False)
        names = ("azimuth", "elevation", "theta", "distance", "px", "py", "viewport", "focal")
        points = project_points(cad.vertices, **{name: entry[name] for name in names})
        extent = np.concatenate([points.min(axis=0), points.max(axis=0)])
        edges = np.array([entry["width"], entry["height"]] * 2, dtype=float)
        assert entry["bbox"].dtype == np.float64
        np.testing.assert_allclose(entry["bbox"], np.clip(extent, 0, edges), atol=1.01)


def test_train_and_val_hold_different_objects(data: Path) -> None:
    of_split = {
        split: {
            (annotation(data / f"annotations/{path.name.split('_')[0]}/{name}.npz")["class"], name.rsplit("_", 1)[0])
            for path in data.glob(f"lists/*_{split}.txt")
            for name in path.read_text().split()
        }
        for split in ("train", "val")
    }
    assert not of_split["train"] & of_split["val"]
    cads = [path.read_bytes() for path in data.glob("CAD/*/*.off")]
    assert len(set(cads)) == len(cads) == 6


def test_workers_do_not_change_a_byte_and_seeds_do(data: Path, tmp_path: Path) -> None:
    render(small(tmp_path / "two", workers=2))
    assert files_of(tmp_path / "two") == files_of(data)
    render(small(tmp_path / "other", seed=1))
    same = files_of(tmp_path / "other").items() & files_of(data).items()
    lists = {f"lists/{c}_imagenet_{s}.txt" for c in ("car", "cup") for s in ("train", "val")}
    assert {name for name, _ in same} == {*lists, "meshes.jsonl"}


def test_going_on_makes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "set"
    render(small(out))
    before = files_of(out)
    lost = out / "annotations/cup/cup_t001_001.npz"
    lost.unlink()
    (out / "images/cup/cup_t001_001.JPEG").write_bytes(b"half")
    (out / "CAD/car/03.off").unlink()
    untouched = (out / "images/car/car_t001_000.JPEG").stat().st_mtime_ns
    result = render(small(out))
    assert (result.rendered, result.skipped) == (1, 11)
    assert files_of(out) == before
    assert (out / "images/car/car_t001_000.JPEG").stat().st_mtime_ns == untouched


def test_killed_in_the_middle_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    words = [
        "--categories",
        "hammer",
        "--train-instances",
        "10",
        "--val-instances",
        "2",
        "--views",
        "6",
        "--size",
        "128",
    ]

    def start(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "data_prep.render.generate", "--out", str(out), "--workers", "1", *words]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("annotations/*/*.npz"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 8 <= len(list((tmp_path / "killed").glob("annotations/*/*.npz"))) < 48
    assert not (tmp_path / "killed/lists").exists()

    for out in (tmp_path / "killed", tmp_path / "undisturbed"):
        process = start(out)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0
        assert b"next: llava-pose prepare" in errors.splitlines()[-1]
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")


def test_photographs_stand_behind_the_objects(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "deep"
    folder.mkdir(parents=True)
    Image.new("RGB", (200, 150), (0, 255, 0)).save(folder / "green.png")
    (folder / "notes.txt").write_text("not a photograph")
    out = tmp_path / "set"
    render(small(out, categories=["hammer"], train_instances=1, val_instances=0, backgrounds=str(tmp_path / "photos")))
    for path in out.glob("images/*/*.JPEG"):
        pixels = np.asarray(Image.open(path), dtype=int)
        green = (pixels[..., 1] > 180) & (pixels[..., 0] < 60) & (pixels[..., 2] < 60)
        assert green.mean() > 0.4
    assert (out / "lists/hammer_imagenet_val.txt").read_text() == ""


def test_natural_poses_keep_to_the_elevations_and_the_tilt_that_are_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "set"
    render(small(out, elevation=[-60.0, -50.0, -40.0], tilt=0.0, categories=["car"]))
    for path in (out / "annotations/car").iterdir():
        entry = annotation(path)
        assert -60 <= np.degrees(entry["elevation"]) - 360 <= -40
        assert entry["theta"] == 0


def test_occluders_are_drawn_as_often_as_asked(tmp_path: Path) -> None:
    fractions = {}
    for probability in (0.0, 1.0):
        out = tmp_path / str(probability)
        render(small(out, views=4, occlusion=probability, truncation=0.0))
        fractions[probability] = [annotation(path)["visible_fraction"] for path in out.glob("annotations/*/*.npz")]
    assert min(fractions[0.0]) == 1
    assert np.mean(np.array(fractions[1.0]) < 1) > 0.6
    assert min(fractions[1.0]) >= 0.35


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"out": ""}, "--out"),
        ({"views": 0}, "--views: must be over 0, not 0"),
        ({"size": 8}, "--size: must be at least 16, not 8"),
        ({"size": 70000}, "--size: must be at most 65535, not 70000"),
        ({"occlusion": 1.5}, "--occlusion: must be at most 1, not 1.5"),
        ({"seed": -1}, "--seed: must be at least 0, not -1"),
        ({"categories": ["car", "unicorn"]}, "unicorn.*choose from aeroplane"),
        ({"categories": ["car", "car"]}, "twice"),
        ({"train_instances": 0, "val_instances": 0}, "nothing to render"),
        ({"elevation": [10.0, 0.0, 50.0]}, "--elevation 10 0 50: give three angles"),
        ({"tilt": -1.0}, "--tilt: must be at least 0, not -1"),
        ({"backgrounds": "/no/such/folder"}, "/no/such/folder does not exist"),
    ],
)
def test_values_that_cannot_work_are_named(change: dict, sentence: str, tmp_path: Path) -> None:
    config = small(tmp_path / "set")
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(InputError, match=sentence):
        render(config)
    assert not (tmp_path / "set").exists()


def test_a_folder_of_other_settings_or_other_things_is_not_mixed_into(data: Path, tmp_path: Path) -> None:
    before = files_of(data)
    with pytest.raises(InputError, match="was begun with size 72, not 80"):
        render(small(data, size=80))
    assert files_of(data) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something that render did not write"):
        render(small(tmp_path))


def test_backgrounds_that_are_no_photographs_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no photograph"):
        render(small(tmp_path / "set", backgrounds=str(folder)))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing follows")
    with pytest.raises(InputError, match=r"broken\.jpg: cannot read the picture .*remove it"):
        render(small(tmp_path / "set", backgrounds=str(folder)))


def test_the_command_line_ends_with_0_or_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "set"), "--categories", "cup", "--train-instances", "1", "--val-instances", "0"]
    assert main([*words, "--views", "1", "--size", "32", "--workers", "1"]) == 0
    assert len(list((tmp_path / "set/images/cup").iterdir())) == 1
    assert main([*words, "--views", "0"]) == 2
    assert "--views: must be over 0, not '0'" in capsys.readouterr().err


def test_what_comes_next_takes_the_categories_that_were_rendered(tmp_path: Path, caplog) -> None:
    (tmp_path / "own" / "gadget").mkdir(parents=True)
    (tmp_path / "own" / "gadget" / "1.off").write_text(
        "OFF\n4 4 0\n0 0 0\n0.5 0 0\n0 0.5 0\n0 0 0.5\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    )
    out = tmp_path / "rendered"
    with caplog.at_level(logging.INFO):
        render(RenderConfig(out=str(out), sources=[str(tmp_path / "own")], views=2, size=32, workers=1))
    assert caplog.messages[-1].endswith(f"--data-root {out} --out {out}_prepared --allow-custom-categories")
    prepare(
        PrepareConfig(str(out), f"{out}_prepared", workers=1, size=32, splits="train", allow_custom_categories=True)
    )
    assert [record.category for record in read_records(f"{out}_prepared", "train")] == ["gadget"] * 2
