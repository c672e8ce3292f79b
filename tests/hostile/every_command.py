"""Every command that writes something, on small data: the words to start it with, and where it writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from data_prep.instruct.command import InstructConfig, instruct
from data_prep.prepare.command import PrepareConfig, prepare
from llava_pose import cli
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_records
from tests.conftest import RawDataset
from tests.eval.benchmark.test_task import QUICK, make_prepared
from tests.llava_pose.conftest import run_training, without_speed

POSE = {"azimuth": 45.0, "elevation": 10.0, "theta": 0.0, "category": "car"}  # as a served model answers
_QUICK_WORDS = "--max-steps {steps} --save-steps 2 --logging-steps 1 --use-cpu --disable-tqdm"


@dataclass(frozen=True)
class Workspace:
    """What the commands read. Read only.

    Attributes:
        base: of llava-pose assemble.
    """

    root: Path
    base: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def prepared(self) -> Path:
        return self.root / "prepared"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    def words(self, name: str, out: Path, *, steps: int = 2, model: str | None = None, server: str = "") -> list[str]:
        """The words of a command that writes to ``out``.

        Args:
            model: what it loads, in place of one that is there.
        """
        base, data = model or str(self.base), f"--data {self.prepared}"
        backbone, adapter = model or str(self.root / "vit"), model or str(self.adapter)
        quick = _QUICK_WORDS.format(steps=steps)
        text = {
            "render": f"--out {out} --categories car cup --train-instances 2 --val-instances 1 --views 3 --size 72 --workers 1",
            "import": f"{self.root / 'predictions.jsonl'} {data} --split val --out {out}",
            "convert": f"{self.root / 'predictions.jsonl'} --to-format opencv --out {out}",
            "align": f"--data-root {self.raw} --out {out} --files copy --workers 1",
            "prepare": f"--data-root {self.raw} --out {out} --size 64 --workers 1",
            "export": f"--data {self.root / 'crops'} --out {out}",
            "inspect": f"stats {self.prepared} --out {out}",
            "caption": f"{data} --out {out}",
            "instruct": f"{data} --out {out}",
            "assemble": f"--out {out} --preset tiny" if model is None else f"--out {out} --llava {model}",
            "train": f"--model {base} {data} --train-json {self.root / 'train.json'} --output-dir {out} {quick} "
            f"--cache-dir {out}_features --per-device-train-batch-size 4 --lora-r 4 --save-total-limit 2",
            "merge": f"--checkpoint {adapter} --out {out}",
            "classifier": f"--backbone {model or 'tiny'} --image-size 32 {data} --output-dir {out} {quick} "
            "--per-device-train-batch-size 4",
            "neural-mesh": f"--backbone {model or 'tiny'} --image-size 32 {data} --output-dir {out} {quick} --vertices 80 "
            "--samples-per-image 16 --refine-steps 2 --per-device-train-batch-size 4",
            "linear-probing": f"--backbones ViT={backbone} {data} --output-dir {out} --learning-rates 0.01 --epochs 2",
            "vlm-api": f"{data} --output-dir {out} --api-base {server or 'http://127.0.0.1:9/v1'} --model m "
            "--concurrency 1 --tries 2",
            "benchmark": f"--table 3 --config {self.root / 'task.yaml'} {data} --output-dir {out}",
            "open-vocabulary": f"--config {self.root / 'task.yaml'} {data} --output-dir {out}",
            "joint": f"--config {self.root / 'task.yaml'} {data} --output-dir {out}",
            "predict": f"--checkpoint {base} {data} --out {out} --device cpu --batch-size 3",
            "score": f"{self.root / 'predictions.jsonl'} --out {out}",
            "report": f"{self.root / 'predictions.jsonl'} {data} --out {out}",
            "leaderboard": f"{self.root / 'sent'} {data} --out {out}",
            "sheet": f"{data} --predictions {self.root / 'predictions.jsonl'} --out {out}",
            "orient-anything": f"{data} --answers {self.root / 'answers.jsonl'} --out {out}",
            "tables": f"{self.root / 'predictions.jsonl'} --out {out}",
        }
        return [name, *text[name].split()]


# the output's name inside of a folder, for all commands that own one
OUTPUTS = {
    **dict.fromkeys(("render", "import", "align", "prepare", "export", "inspect", "assemble", "train", "merge"), "out"),
    **dict.fromkeys(("classifier", "neural-mesh", "linear-probing", "vlm-api", "benchmark"), "out"),
    **dict.fromkeys(("open-vocabulary", "joint", "leaderboard"), "out"),
    "caption": "captions.jsonl",
    "instruct": "train.json",
    "predict": "predictions.jsonl",
    "convert": "poses.jsonl",
    "score": "scores.json",
    "tables": "table.md",
    "sheet": "sheet.png",
    "report": "report.html",
    "orient-anything": "predictions.jsonl",
}


def make_workspace(root: Path, base: Path) -> Workspace:
    space = Workspace(root, base)
    raw = RawDataset(space.raw)
    for number in range(6):
        raw.add(f"n{number}", category="car" if number % 2 else "cup", split="train" if number < 4 else "val")
    prepare(PrepareConfig(str(space.raw), str(root / "crops"), size=64, workers=1))
    make_prepared(space.prepared, train=4, val=3)
    instruct(InstructConfig(data=str(space.prepared), out=str(root / "train.json"), seed=0))
    answer = {"system": "llava-pose", "pose": Pose(0.1, 0.2, 0.3), "pred_category": "car", "confidence": 0.5}
    records = read_records(space.prepared, "val")
    for name in ("predictions.jsonl", "sent/ours.jsonl"):
        write_jsonl(root / name, (Prediction.of(record, **answer).to_dict() for record in records))
    answers = ({"id": record.id, "azimuth": 10, "polar": 5, "rotation": 0} for record in records)
    write_jsonl(root / "answers.jsonl", answers)
    system = {"name": "mine", "kind": "predictions", "options": {"file": str(root / "predictions.jsonl")}}
    (root / "task.yaml").write_text(yaml.safe_dump({"systems": [system]}), encoding="utf-8")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8, initializer_range=0.2)).save_pretrained(root / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "vit")
    run_training(
        dict(
            model=str(base),
            data=str(space.prepared),
            train_json=str(root / "train.json"),
            output_dir=str(space.adapter),
            lora_r=4,
            cache_features=False,
            save_strategy="no",
            **QUICK,
        )
    )
    return space


def run(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command in this process: its exit code and what it said on stderr, with the log as a terminal shows it."""
    capsys.readouterr()
    try:
        code = cli.main(list(words))
    except SystemExit as error:  # as argparse ends
        code = int(error.code or 0)
    return code, capsys.readouterr().err


def files_of(place: Path) -> dict[str, bytes]:
    """The files under a folder, or beside and at a file's place, with their content."""
    folder = place if place.is_dir() else place.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def small_disk(size: str, *, at: Path | None = None) -> Iterator[Path]:
    """A file system of its own, of that many bytes; the test is skipped where nothing may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="small_disk_")) if at is None else at
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no file system can be mounted here ({mounted.stderr.strip()}); run this as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


def shown(error: str) -> list[str]:
    """The sentences that say what is wrong; one may stand behind a progress bar."""
    return re.findall(r"error: [^\r\n]*", error)


def different_files(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of the files that are not as expected, but for settings, which hold paths, and what a killed run leaves hidden."""
    names = {name for name in found.keys() | expected.keys() if not _may_differ(name)}
    return sorted(name for name in names if not _same(name, found.get(name), expected.get(name)))


def _may_differ(name: str) -> bool:
    path = Path(name)
    return (
        path.suffix in (".yaml", ".tmp")
        or path.name in (".lock", "training_args.bin", "README.md", "adapter_config.json")
        or path.name == "system_done.json"  # the seconds of a benchmark's system
        or path.parts[0].startswith(("checkpoint-", ".prepare"))
    )


def _same(name: str, one: bytes | None, other: bytes | None) -> bool:
    if one is not None and other is not None and re.fullmatch(r"table\d\.json", Path(name).name):
        found, wanted = json.loads(one), json.loads(other)  # its files are paths
        return {**found, "files": None} == {**wanted, "files": None}
    if one is not None and other is not None and Path(name).name == "metrics.jsonl":
        return without_speed(one) == without_speed(other)
    if one is None or other is None or not name.endswith(".safetensors"):
        return one == other
    tensors, expected = load(one), load(other)  # whose header lists its remarks in any order
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[key], expected[key]) for key in tensors)
