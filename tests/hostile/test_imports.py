"""One bad item of an imported data set stops nothing: it is listed, and the good one beside it is taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.import_.command import ImportConfig, import_dataset
from llava_pose.errors import InputError

UNIT = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]


def coco(folder: Path, *, picture: dict | None = None, **annotation: Any) -> ImportConfig:
    """A good annotation, and one that is changed."""
    Image.new("RGB", (64, 48)).save(folder / "a.jpg")
    Image.new("RGB", (70_000, 4)).save(folder / "wide.png")
    good = {"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg", **(picture or {})}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{**good, "id": 1}, {**good, "id": 2, "image_id": 2, **annotation}],
    }
    (folder / "boxes.json").write_text(json.dumps(data))
    table = folder / "angles.csv"
    table.write_text("annotation_id,azimuth,elevation,theta\n1,10,5,0\n2,10,5,0\n")
    return ImportConfig(
        source=str(folder / "boxes.json"),
        kind="coco",
        angles_file=str(table),
        angles="degrees",
        images=str(folder),
        out=str(folder / "raw"),
    )


def bop(folder: Path, *, scene: bytes = b"000002", image: str = "0", camera: list[float] | None = None) -> ImportConfig:
    """A good scene, and one that is changed."""
    k = [100.0, 0, 32, 0, 100, 24, 0, 0, 1]
    for name, key, numbers in ((b"000001", "0", k), (scene, image, camera or k)):
        place = folder / "bop" / "train" / os.fsdecode(name)
        (place / "rgb").mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(place / "rgb" / "000000.png")
        thing = {"obj_id": 1, "cam_R_m2c": UNIT, "cam_t_m2c": [0, 0, 500]}
        (place / "scene_gt.json").write_text(json.dumps({key: [thing]}))
        (place / "scene_camera.json").write_text(json.dumps({key: {"cam_K": numbers}}))
    (folder / "bop" / "models").mkdir()
    (folder / "bop" / "models" / "models_info.json").write_text(
        json.dumps({"1": {"size_x": 50, "size_y": 50, "size_z": 50}})
    )
    return ImportConfig(source=str(folder / "bop"), kind="bop", out=str(folder / "raw"))


IMPORTS: dict[str, Callable[[Path], ImportConfig]] = {
    "a box of integers beyond every float": lambda f: coco(f, bbox=[10**400] * 4),
    "a picture wider than 16 bits say": lambda f: coco(f, picture={"file_name": "wide.png"}),
    "an image that is a digit of other letters": lambda f: bop(f, image="²"),
    "an image of 5,000 digits": lambda f: bop(f, image="9" * 5000),
    "a folder whose name is no text": lambda f: bop(f, scene=b"\xff\xfe"),
    "a folder of terminal codes": lambda f: bop(f, scene=b"\x1b[2J"),
    "a camera of zeros": lambda f: bop(f, camera=[0.0] * 9),
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_one_bad_item_of_an_import_is_listed(kind: str, tmp_path: Path) -> None:
    import_dataset(IMPORTS[kind](tmp_path))
    listed = [path.read_text().split() for path in (tmp_path / "raw" / "lists").iterdir()]
    assert [len(names) for names in listed] == [1]
    rejects = (tmp_path / "raw" / "rejects.jsonl").read_text()
    assert len(rejects.splitlines()) == 1
    assert "\x1b" not in rejects


def test_a_table_whose_first_line_has_no_end_is_a_sentence(tmp_path: Path) -> None:
    config = coco(tmp_path)
    Path(str(config.angles_file)).write_text("a" * 200_000)
    with pytest.raises(InputError, match="not a CSV file"):
        import_dataset(config)
