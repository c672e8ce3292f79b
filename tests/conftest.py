"""Fixtures that tests of several rooms share: a small raw dataset made on the spot, and the photographs beside the repo."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.raw.imagenet3d import RawLayout, write_annotation, write_list
from llava_pose.data.records import Pose
from tests.browser import Page, find_browser

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTOS = REPOSITORY.parent / "shared" / "data" / "photos"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that prove a claim at length, too")
    parser.addoption("--published-code", help="a checkout of the published ImageNet3D code, to be run beside ours")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="takes long; run it with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    # scripts run for minutes: begun first, none of them is left alone at the end with one process of several
    items.sort(key=lambda item: item.path.parent.name != "scripts")


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


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of a browser of its own."""
    executable = find_browser()
    if executable is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    (tmp_path / "profile").mkdir()
    opened = Page(executable, tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny base: a whole checkpoint with random weights. Read only."""

    def make(folder: Path) -> None:
        from llava_pose.backbones.assemble import AssembleConfig, assemble

        assemble(AssembleConfig(out=str(folder), preset="tiny"))

    return _made_once(tmp_path_factory, "tiny", make)


_CAR, _CUP = Pose(0.7, 0.2, -0.1, 2.0, 70.0, 90.0), Pose(4.0, 0.5, 0.3, 3.0, 120.0, 40.0)


@dataclass(frozen=True)
class TaughtCheckpoint:
    """A tiny checkpoint that knows a few conversations about one square picture by heart.

    Attributes:
        folder: of the checkpoint. Read only.
        picture: the file of the picture.
        viewport: that its poses go with.
        car, cup: the poses that it was taught.
    """

    folder: Path
    picture: Path
    viewport: float = 160.0
    car: Pose = _CAR
    cup: Pose = _CUP

    @property
    def lessons(self) -> list[tuple[list[str], list[Pose]]]:
        """Questions and answers by turns, and the poses of all their `<pose6D>`."""
        car, cup = self.car, self.cup
        return [
            (["What is the pose of the car?", "The car is at <pose6D>."], [car]),
            (
                ["What is the pose of the car?", "The car is at <pose6D>.", "And the cup?", "The cup is at <pose6D>."],
                [car, cup],
            ),
            (["Describe the picture.", "A car at <pose6D> and a cup at <pose6D>."], [car, cup]),
            (["What is this and what is its pose?", "This is a car at <pose6D>."], [car]),
            (["What is at <pose6D>?", "A car."], [car]),
            (["What is at <pose6D>?", "A cup."], [cup]),
            (
                ["What is the pose of the car?", "The car is at <pose6D>.", "What is at <pose6D>?", "A car."],
                [car, car],
            ),
            (
                ["What is the pose of the car?", "The car is at <pose6D>.", "What is at <pose6D>?", "A cup."],
                [car, cup],
            ),
        ]


@pytest.fixture(scope="session")
def taught(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TaughtCheckpoint:
    """Made in some ten seconds from the tiny base; its answers hold poses, as a random model's never do."""
    folder = _made_once(tmp_path_factory, "taught", lambda folder: _teach(tiny_base, folder))
    return TaughtCheckpoint(folder, folder / "picture.png")


def _teach(base: Path, folder: Path) -> None:
    import torch

    from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
    from llava_pose.model.loading import load_full
    from llava_pose.model.processors import load_processor

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other where tests run side by side
    try:
        model, processor = load_full(base, dtype=torch.float32), load_processor(base)
        picture = RawDataset.picture(160, 160, seed=3)
        batch = PoseCollator(processor)(_lessons(TaughtCheckpoint(folder, folder), picture, model, processor))
        del batch[SAMPLE_NAMES]
        model.tower.requires_grad_(False)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=200)
        for _ in range(300):
            loss = model(**batch).loss
            if loss < 0.02:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            falling.step()
        else:
            raise AssertionError(f"the tiny base did not learn its few lessons (loss {loss})")
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    picture.save(folder / "picture.png")


def _lessons(known: TaughtCheckpoint, picture: Image.Image, model: Any, processor: Any) -> list[Any]:
    import torch

    from llava_pose.data.dataset import EncodedSample
    from llava_pose.data.records import pose_targets_of

    with torch.no_grad():  # the tower is frozen: its features are those of one picture
        patches = model.patches(processor.picture_inputs(picture))
    samples = []
    for texts, poses in known.lessons:
        roles = ("user", "assistant") * (len(texts) // 2)
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        turns[0]["content"] = "<image>\n" + turns[0]["content"]
        chat = processor.encode_chat(turns)
        size = {"width": picture.width, "height": picture.height, "viewport": known.viewport}
        numbers = np.array([pose_targets_of(pose, **size) for pose in poses], dtype=np.float32)
        in_answer = [bool(turn % 2) for turn, text in enumerate(texts) for _ in range(text.count("<pose6D>"))]
        samples.append(
            EncodedSample(
                texts[0],
                chat.input_ids,
                chat.labels,
                pose_targets=numbers[in_answer],
                input_poses=numbers[[not answered for answered in in_answer]],
                pictures={"image_patches": patches},
            )
        )
    return samples


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder made by the first of the test processes that run side by side, and waited for by the others."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder, done = run / name, run / f"{name}.done"
    with open(run / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
