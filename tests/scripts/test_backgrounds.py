"""scripts/backgrounds.py: what lies beside the objects of training photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pose.errors import InputError
from scripts.backgrounds import BackgroundsConfig, backgrounds

RED, GREY = (200, 30, 30), (120, 120, 120)


def photograph(box: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (400, 300), GREY)
    picture.paste(RED, box)
    return picture


def test_backgrounds_show_nothing_of_the_objects(raw_dataset, tmp_path: Path) -> None:
    box = (100, 80, 380, 240)
    raw_dataset.add("a", image=photograph(box), objects=[raw_dataset.object(400, 300, bbox=np.array(box, float))])
    raw_dataset.add("held_out", split="val")
    out = tmp_path / "out"
    assert backgrounds(BackgroundsConfig(photos=[str(raw_dataset.root)], out=str(out))) == 3
    sizes = sorted(Image.open(path).size for path in out.iterdir())
    assert sizes == [(100, 300), (400, 59), (400, 80)]  # what is right of it is too narrow
    for path in out.iterdir():
        assert np.asarray(Image.open(path), dtype=int)[..., 0].max() < 160


def test_a_bad_photograph_is_left_out_and_the_others_are_cut(raw_dataset, tmp_path: Path, caplog) -> None:
    box = (200, 0, 400, 300)
    raw_dataset.add("bad", image=b"no picture")
    raw_dataset.add("good", image=photograph(box), objects=[raw_dataset.object(400, 300, bbox=np.array(box, float))])
    assert backgrounds(BackgroundsConfig(photos=[str(raw_dataset.root)], out=str(tmp_path / "out"))) == 1
    assert "car/bad is left out" in caplog.text


def test_photographs_that_their_objects_fill_are_refused(raw_dataset, tmp_path: Path) -> None:
    box = np.array([0.0, 0.0, 400.0, 300.0])
    raw_dataset.add("a", image=photograph((0, 0, 400, 300)), objects=[raw_dataset.object(400, 300, bbox=box)])
    with pytest.raises(InputError, match="no photograph has room"):
        backgrounds(BackgroundsConfig(photos=[str(raw_dataset.root)], out=str(tmp_path / "out")))
