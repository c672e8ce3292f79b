"""scripts/mix.py: one prepared folder of renders and photographs, each as often as it is to be met."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Pose, read_records
from llava_pose.errors import InputError
from scripts.mix import MixConfig, mix


def record(name: str, category: str, azimuth: float, source: str) -> ObjectRecord:
    return ObjectRecord(
        file_name=f"{category}/{name}.JPEG",
        id=f"{category}/{name}/0",
        category=category,
        pose=Pose(azimuth, 0.1, 0.0, 4.0, 8.0, 8.0),
        viewport=100.0,
        width=16,
        height=16,
        bbox=(1.0, 1.0, 15.0, 15.0),
        source={"source": source},
    )


def prepared(folder: Path, split: str, records: list[ObjectRecord]) -> Path:
    for item in records:
        path = folder / split / item.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (len(item.id), 0, 0)).save(path, "JPEG")
    write_jsonl(folder / split / METADATA_FILE, (item.to_dict() for item in records))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    renders = [record(f"r{i}", "shoe", 0.5, "CAD") for i in range(9)] + [record("b", "bottle", 2.0, "CAD")]
    renders.append(record("t", "diningtable", math.radians(170), "CAD"))
    rendered = prepared(tmp_path / "rendered", "train", renders)
    taken = [record(f"p{i}", "shoe", 0.5, "web") for i in range(3)]
    taken += [record(f"c{i}", "car", 0.5, "web") for i in range(20)]
    photographs = prepared(tmp_path / "photographs", "train", taken)
    prepared(photographs, "val", [record("v", "bottle", 2.0, "web")])
    return rendered, photographs


def mixed(folders: tuple[Path, Path], out: Path, **options: int) -> Path:
    return mix(MixConfig(out=str(out), rendered=[str(folders[0])], photographs=[str(folders[1])], **options))


def test_photographs_are_listed_until_they_are_as_many_as_the_renders(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    records = read_records(mixed(folders, tmp_path / "out", most=12), "train")
    counts = Counter((item.category, item.source["source"]) for item in records)
    assert counts["shoe", "CAD"] == 9
    assert counts["shoe", "web"] == 9  # three photographs, three times each
    assert counts["car", "web"] == 12  # of twenty, with no render
    assert len({item.id for item in records}) == len(records)
    assert all((tmp_path / "out" / "train" / item.file_name).is_file() for item in records)


def test_a_photograph_is_listed_no_more_often_than_asked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    records = read_records(mixed(folders, tmp_path / "out", repeat=2), "train")
    assert Counter(item.category for item in records if item.source["source"] == "web") == {"shoe": 6, "car": 20}


def test_renders_of_what_turns_into_itself_face_the_front_and_photographs_are_left_alone(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = mixed(folders, tmp_path / "out")
    azimuth = {item.category: item.pose.azimuth for item in read_records(out, "train")}
    assert azimuth["bottle"] == 0
    assert azimuth["diningtable"] == pytest.approx(math.radians(350))
    assert azimuth["shoe"] == pytest.approx(0.5)
    (bottle,) = read_records(out, "val")
    assert bottle.pose.azimuth == 2.0


def test_the_same_folders_give_the_same_mixture_again(folders: tuple[Path, Path], tmp_path: Path) -> None:
    first = (mixed(folders, tmp_path / "out", most=5) / "train" / METADATA_FILE).read_bytes()
    assert (mixed(folders, tmp_path / "out", most=5) / "train" / METADATA_FILE).read_bytes() == first


def test_folders_of_one_name_and_none_at_all_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one name"):
        mixed((folders[0], folders[0]), tmp_path / "out")
    with pytest.raises(InputError, match="nothing to join"):
        mix(MixConfig(out=str(tmp_path / "out")))


def test_what_is_listed_again_is_another_picture_with_the_same_pose(folders: tuple[Path, Path], tmp_path: Path) -> None:
    records = [item for item in read_records(mixed(folders, tmp_path / "out"), "train") if "p0" in item.file_name]
    assert len(records) == 3
    assert len({item.file_name for item in records}) == 3
    assert {item.pose for item in records} == {records[0].pose}
