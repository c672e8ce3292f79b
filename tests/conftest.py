"""Fixtures that tests of several rooms share: a small raw dataset made on the spot, and the photographs beside the repo."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.imagenet3d import RawLayout, write_annotation, write_list

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTOS = REPOSITORY.parent / "shared" / "data" / "photos"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that prove a claim at length, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes long; run it with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def photos() -> Path:
    """The real photographs in ImageNet3D's raw layout."""
    if not PHOTOS.is_dir():
        pytest.skip("the photographs are not here: ../shared/data/photos beside the repository is missing")
    return PHOTOS


class RawDataset:
    """A dataset in ImageNet3D's raw layout under construction."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = RawLayout(root)
        self._lists: dict[tuple[str, str], list[str]] = {}

    def object(self, width: int = 640, height: int = 480, /, **changes: Any) -> dict[str, Any]:
        """A good annotation of an image of that size, as ImageNet3D writes it; a change of ... takes the field out."""
        values: dict[str, Any] = {
            "azimuth": 0.7,
            "elevation": 0.2,
            "theta": 6.2,
            "distance": 5.0,
            "focal": 1.0,
            "viewport": 2000.0,
            "px": 0.52 * width,
            "py": 0.47 * height,
            "principal": np.array([0.52 * width, 0.47 * height]),
            "cad_index": 1,
            "height": np.uint16(height),
            "width": np.uint16(width),
            "bbox": np.array([0.3 * width, 0.3 * height, 0.8 * width, 0.7 * height]),
            "class": "car",
            "object_status": "status_good",
            "dense": "dense_no",
        }
        values.update(changes)
        return {name: value for name, value in values.items() if value is not ...}

    def add(
        self,
        name: str,
        *,
        category: str = "car",
        split: str = "train",
        image: Image.Image | bytes | None = None,
        objects: Iterable[Mapping[str, Any]] | bytes | None = None,
        suffix: str = ".JPEG",
    ) -> str:
        """List an image and write it with its annotation; a bytes value is written as it is, b"" is left out."""
        if image is None:
            image = self.picture(seed=len(self._lists) + sum(len(names) for names in self._lists.values()))
        if isinstance(image, Image.Image):
            stream = io.BytesIO()
            image.save(stream, {".JPEG": "JPEG", ".png": "PNG"}[suffix], quality=95)
            image = stream.getvalue()
        if image:
            path = self.root / "images" / category / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        annotation = self.layout.annotation(category, name)
        if isinstance(objects, bytes):
            if objects:
                annotation.parent.mkdir(parents=True, exist_ok=True)
                annotation.write_bytes(objects)
        else:
            write_annotation(annotation, [self.object()] if objects is None else objects)
        names = self._lists.setdefault((category, split), [])
        names.append(name)
        write_list(self.layout.list_file(category, split), names)
        return f"{category}/{name}"

    @staticmethod
    def picture(width: int = 640, height: int = 480, seed: int = 0) -> Image.Image:
        """A smooth random picture: different for each seed, and kind to JPEG."""
        small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def raw_dataset(tmp_path: Path) -> RawDataset:
    """An empty raw dataset, with `object`, `picture` and `add` to fill it."""
    root = tmp_path / "raw"
    root.mkdir()
    return RawDataset(root)
