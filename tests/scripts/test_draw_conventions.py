"""The figures of the conventions: each is drawn, and shows its axes in their colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from llava_pose.pose.conventions import CONVENTIONS
from tests.conftest import REPOSITORY


def test_a_figure_shows_six_axes_and_is_as_large_as_the_one_in_the_documentation(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    from draw_conventions import draw

    draw(CONVENTIONS["unity"], tmp_path / "unity.png")
    drawn = Image.open(tmp_path / "unity.png").convert("RGB")
    kept = Image.open(REPOSITORY / "docs" / "images" / "conventions" / "unity.png").convert("RGB")
    assert drawn.size == kept.size
    for image in (drawn, kept):
        pixels = np.asarray(image).astype(int)
        for channel in range(3):
            others = np.delete(pixels, channel, axis=-1).max(-1)
            assert (pixels[..., channel] - others > 60).sum() > 150, "two arrows of that colour"
