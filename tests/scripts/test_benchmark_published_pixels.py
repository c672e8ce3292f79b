"""scripts/benchmarks/published_pixels.py: the five ways to save a crop differ where they say, and nowhere else."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_prep.prepare.crop import Crop, RawImage
from llava_pose.data.images import PADDING_COLOUR
from scripts.benchmarks.published_pixels import WAYS


def test_the_ways_differ_where_they_say():
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(content, "PNG")
    raw, crop = RawImage(content.getvalue(), None), Crop(-30.0, -20.0, 0.5, 64)
    pictures = {name: np.asarray(cut(raw, crop)) for name, (cut, _) in WAYS.items()}
    ours, black = pictures["as prepare does"], pictures["black outside"]
    outside = np.ones((64, 64), dtype=bool)
    outside[10:55, 15:] = False  # 120 x 90 pixels at half the size
    assert (ours[outside] == PADDING_COLOUR).all()
    assert (black[outside] == 0).all()
    np.testing.assert_array_equal(black[~outside], ours[~outside])
    np.testing.assert_array_equal(pictures["JPEG 75"], ours)
    aliased = pictures["resized without antialiasing"]
    assert (aliased[outside] == PADDING_COLOUR).all()
    assert aliased[~outside].std() > 1.3 * ours[~outside].std(), "noise that antialiasing takes away stays"
    np.testing.assert_array_equal(pictures["all three"][~outside], aliased[~outside])
    assert (pictures["all three"][outside] == 0).all()
    sizes = {}
    for name, (cut, saved) in WAYS.items():
        file = io.BytesIO()
        cut(raw, crop).save(file, "JPEG", **saved)
        sizes[name] = len(file.getvalue())
    assert sizes["JPEG 75"] < sizes["as prepare does"]
