"""The commands of the pages run as they are printed, section by section, on small data under the names that the pages use."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from data_prep.instruct.command import InstructConfig, instruct
from data_prep.prepare.command import PrepareConfig, prepare
from llava_pose.cli import main
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_records
from llava_pose.model.configuration import POSE_CONFIG
from tests.conftest import RawDataset, TaughtCheckpoint
from tests.data_prep.foreign import make_coco
from tests.test_docs import PAGES, shown_in, stage_of

_PAGES = ("README", "START", "PHOTOS", "DATA", "EVALUATION", "POSE", "DEMO", "ANNOTATE")
# what is not run here, and why
_FOREVER = {"demo", "serve", "annotate"}  # they end by Ctrl-C; each has tests of its own
_ASKS_A_SERVER = {"vlm-api"}
_NOT_HERE = re.compile(
    r"--deepspeed|microsoft/|facebook/|llava-hf/"  # of the hub
    r"|--api-base|sweethome3d|my_meshes|objectron|orient-anything|scripts/recipes/(?!quickstart)"
    r"|PASCAL3D|ycbv|KITTI|cup_1|omni\.json|captions_gpt4v"  # test_foreign.py and others make these data sets
    r"|--table 3|--shard|runs/gpt-4o|--cad CAD|--profile published"
)
_FEW_STEPS = ("--max-steps", "1", "--use-cpu", "--per-device-train-batch-size", "2", "--disable-tqdm")
_SMALL_RENDERS = ("--categories", "cup", "--size", "64", "--workers", "1")


class World:
    """A folder in which the names of the pages are there: each is made when a command needs it."""

    def __init__(self, root: Path, taught: TaughtCheckpoint, base: Path) -> None:
        self.root = root
        self._taught, self._base = taught, base
        self._makers: dict[str, Callable[[Path], object]] = {
            "imagenet3d/imagenet3d_v1": _raw,  # where its archive unpacks to
            "imagenet3d": lambda path: _raw(path / "imagenet3d_v1"),
            "DATA": _raw,
            "photos_raw": _raw,
            "photos": self._photos,
            "chair.jpg": self._photo,
            "boxes.csv": lambda path: path.write_text("file_name,x1,y1,x2,y2\np0.jpg,2,2,90,90\n", encoding="utf-8"),
            "boxes.json": _qwen_boxes,
            "labels.jsonl": self._labels,
            "angles.csv": lambda path: self._coco(),
            "prepared": self._prepared,
            "train.json": lambda path: instruct(InstructConfig(data=str(self.need("prepared")), out=str(path))),
            "predictions.jsonl": self._predictions,
            "ours.jsonl": lambda path: self._predictions(path, "ours"),
            "mine.jsonl": lambda path: self._predictions(path, "mine"),
            "runs/resnet50/predictions.jsonl": lambda path: self._predictions(path, "resnet50"),
            "qwen3_vl.jsonl": lambda path: self._predictions(path, "qwen3_vl"),
            "sent": lambda path: self._predictions(path / "mine.jsonl", "mine"),
            "poses.csv": self._poses,
            "base": lambda path: path.symlink_to(self._base),
            **dict.fromkeys(("checkpoints/everyday", "runs/first", "runs/llava-pose-7b"), self._checkpoint),
        }

    def need(self, name: str) -> Path:
        """Make what has this name, if it is one of the pages' and not there yet."""
        path = self.root / name
        if (maker := self._makers.get(name)) is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            maker(path)
        return path

    def run(self, words: Sequence[str]) -> int:
        """Run a command; what it reads is made before."""
        out = [after for word, after in pairwise(words) if word in ("--out", "--output-dir")]
        if "--angles-file" in words:
            self.need("angles.csv")  # and the boxes of COCO
        for word in words:
            if word not in out:
                self.need(word.removesuffix("/*.jpg"))
        return main(
            [file for word in words for file in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        )

    def _photo(self, path: Path) -> None:
        Image.open(self._taught.picture).convert("RGB").save(path, "JPEG")

    def _photos(self, path: Path) -> None:
        path.mkdir()
        for number in range(2):
            self._photo(path / f"p{number}.jpg")
        Image.open(self._taught.picture).convert("RGB").resize((640, 480)).save(path / "office.jpg")

    def _coco(self) -> None:
        make_coco(self.root)
        (self.root / "instances.json").rename(self.root / "boxes.json")

    def _prepared(self, path: Path) -> None:
        prepare(PrepareConfig(str(self.need("imagenet3d")), str(path), size=64, workers=1))

    def _predictions(self, path: Path, system: str = "llava-pose") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"system": system, "pose": Pose(0.1, 0.2, 0.3), "pred_category": None, "confidence": 0.9}
        records = read_records(self.need("prepared"), "val")
        write_jsonl(path, (Prediction.of(record, **told).to_dict() for record in records))

    def _poses(self, path: Path) -> None:
        checkpoint = str(self.need("checkpoints/everyday"))
        assert main(["predict", str(self.need("photos")), "--checkpoint", checkpoint, "--out", str(path)]) == 0

    def _labels(self, path: Path) -> None:
        self.need("photos")
        matrix = [[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 4], [0, 0, 0, 1]]
        camera = {"intrinsics": [160, 160, 80, 80], "size": [0.5, 1.0, 0.4]}
        write_jsonl(path, [{"file_name": "p0.jpg", "category": "car", "matrix": matrix, **camera}])

    def _checkpoint(self, path: Path) -> None:
        shutil.copytree(self._taught.folder, path)
        config = json.loads((path / POSE_CONFIG).read_text(encoding="utf-8"))
        known = {**config, "categories": ["car", "chair", "cup"]}
        (path / POSE_CONFIG).write_text(json.dumps(known), encoding="utf-8")


def _raw(path: Path) -> None:
    raw = RawDataset(path)
    for number in range(16):
        raw.add(f"n{number}", category="car" if number % 2 else "cup", split="train" if number < 4 else "val")


def _qwen_boxes(path: Path) -> None:
    box = {"label": "car", "bbox_3d": [0.1, 0.0, 3.0, 1.0, 0.8, 0.6, 0.0, 0.1, 0.0]}
    path.write_text(json.dumps([box]), encoding="utf-8")


def runs_here(name: str, words: Sequence[str]) -> bool:
    return name not in _FOREVER | _ASKS_A_SERVER and not _NOT_HERE.search(" ".join([name, *words]))


def sections() -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The title of each section, and those of its commands that run here."""
    found = []
    for page in (page for page in PAGES if page.stem in _PAGES):
        for part in re.split(r"^(?=## )", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            stages = [stage for shown in shown_in(page, part) if shown.whole and (stage := stage_of(shown.words))]
            stages = [(name, words) for name, words in stages if runs_here(name, words)]
            if stages:
                found.append((f"{page.stem}: {part.splitlines()[0].strip('# ')}", stages))
    return found


SECTIONS = sections()


def test_most_sections_run():
    assert len(SECTIONS) >= 18
    assert len({name for _, stages in SECTIONS for name, _ in stages}) >= 18


@pytest.mark.parametrize(("title", "stages"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_the_commands_of_a_section_run_one_after_the_other(
    title, stages, tmp_path, taught, tiny_base, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 (chat asks nobody)
    (tmp_path / "scripts").symlink_to(Path(__file__).resolve().parents[1] / "scripts")
    world = World(tmp_path, taught, tiny_base)
    for name, words in stages:
        more = {"train": _FEW_STEPS, "render": _SMALL_RENDERS, "prepare": ("--workers", "1")}.get(name, ())
        code = world.run([name, *words, *more])
        assert code == 0, capsys.readouterr().err
