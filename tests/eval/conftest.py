"""What tests of several baselines are run on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.prepare.command import PrepareConfig, prepare


@pytest.fixture
def cars_and_guitars(raw_dataset) -> Callable[[str], Path]:
    """A prepared folder with the crop that is asked for: four cars and four guitars for training, a car for validation."""

    def make(crop: str) -> Path:
        for index in range(4):
            for category in ("car", "guitar"):
                pose = {"azimuth": 0.4 + 1.5 * index, "elevation": 0.3, "theta": 0.1 * index, "class": category}
                raw_dataset.add(f"{category}{index}", category=category, objects=[raw_dataset.object(**pose)])
        raw_dataset.add("unseen", split="val")
        out = raw_dataset.root.parent / "prepared"
        return prepare(PrepareConfig(str(raw_dataset.root), str(out), crop=crop, size=64, workers=1))

    return make
