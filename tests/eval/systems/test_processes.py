"""Two processes, started as torchrun starts them, train and predict what one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eval.predict import PredictConfig, predict
from eval.systems.classifier.system import ClassifierConfig, load_classifier, run
from llava_pose.data.records import read_predictions, read_records
from llava_pose.utils.distributed import map_over_processes
from tests.eval.benchmark.test_task import (
    BACKBONE,
    QUICK,
    SIDE,
    classifier,
    make_prepared,
    recipe_file,
    words,
)
from tests.forked import run_together

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("prepared"), train=6, val=3)


def by_two(log: Path, *command: str, refused: bool = False) -> str:
    ended = run_together(command, log)
    assert (ended.returncode != 0) == refused, ended.said[-6000:]
    return ended.said


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_process_does_all_the_work_in_order() -> None:
    assert map_over_processes(lambda number: number * number, [3, 1, 2]) == [9, 1, 4]
    assert map_over_processes(str, []) == []


def test_two_processes_train_and_predict_what_one_does(prepared: Path, tmp_path: Path) -> None:
    """The same total batch, over two epochs and their boundary: the same pictures in each step."""
    values: dict[str, Any] = {
        **QUICK,
        "data": str(prepared),
        "backbone_config": BACKBONE,
        "image_size": SIDE,
        "flip": False,
        "learning_rate": 1e-3,
        "max_steps": 6,  # of 24 pictures, eight a step
        "per_device_train_batch_size": 4,
        "output_dir": str(tmp_path / "two"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    by_two(tmp_path / "log", "classifier", "--config", str(recipe))
    one = {**values, "output_dir": str(tmp_path / "one"), "per_device_train_batch_size": 8}
    run(ClassifierConfig(**one))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    ours, theirs = (load_classifier(tmp_path / folder)[0].state_dict() for folder in ("two", "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)

    predicted = (tmp_path / "two" / "predictions.jsonl").read_bytes()
    run(ClassifierConfig(**values))  # has trained: it predicts, alone
    assert (tmp_path / "two" / "predictions.jsonl").read_bytes() == predicted
    assert len(read_predictions(tmp_path / "two" / "predictions.jsonl")) == 12


@pytest.mark.slow
def test_two_processes_predict_with_a_checkpoint_what_one_does(tiny_base: Path, prepared: Path, tmp_path: Path) -> None:
    """Stopped after three objects, too; in batches of two, five of them, so that one process has one more."""
    options = {"checkpoint": str(tiny_base), "data": str(prepared), "task": "joint", "device": "cpu", "batch_size": 2}
    predict(PredictConfig(**options, out=str(tmp_path / "one.jsonl")))
    predict(PredictConfig(**options, out=str(tmp_path / "two.jsonl"), limit=3))
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    by_two(tmp_path / "log", "predict", *given, "--out", str(tmp_path / "two.jsonl"))
    ours, theirs = read_predictions(tmp_path / "two.jsonl"), read_predictions(tmp_path / "one.jsonl")
    assert [p.id for p in ours] == [p.id for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.pose.angles == pytest.approx(b.pose.angles, abs=1e-4)
        assert a.pred_category == b.pred_category


@pytest.mark.slow
def test_two_processes_run_a_whole_task(tiny_base: Path, prepared: Path, tmp_path: Path) -> None:
    quick = {**QUICK, "per_device_train_batch_size": 2}
    systems = [
        {
            "name": "general",
            "kind": "classifier",
            "options": {**quick, "backbone_config": BACKBONE, "image_size": SIDE},
        },
        {
            "name": "vlm",
            "kind": "llava-pose",
            "options": {
                "model": str(tiny_base),
                "train": {**quick, "language": "full"},
                "instruct": {"kinds": ["joint"]},
            },
        },
    ]
    recipe = recipe_file(tmp_path, systems)
    command = ["benchmark", "--table", "3", *words(recipe, prepared, tmp_path / "out")]
    by_two(tmp_path / "log", *command)
    said = by_two(tmp_path / "again.log", *command)
    assert "vlm (llava-pose): is done" in said
    for name in ("general", "vlm"):
        assert len(read_predictions(tmp_path / "out" / name / "predictions.jsonl")) == 12


@pytest.mark.slow
def test_what_one_process_cannot_read_ends_them_all(prepared: Path, tmp_path: Path) -> None:
    """Of 72 objects in two batches the last is damaged, which the second process alone sees; nobody waits for it."""
    data = make_prepared(tmp_path / "data", train=2, val=18)
    (data / "val" / read_records(data, "val")[-1].file_name).write_bytes(b"no picture")
    recipe = recipe_file(tmp_path, [classifier("first"), classifier("second")])
    said = by_two(tmp_path / "log", "benchmark", "--table", "3", *words(recipe, data, tmp_path / "out"), refused=True)
    assert "chair/val17.png" in said
    assert not (tmp_path / "out" / "second").exists()
