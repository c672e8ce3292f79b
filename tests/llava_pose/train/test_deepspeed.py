"""Two processes, started by the real launchers or as they start them, end where one process ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.model.loading import load_model
from tests.llava_pose.conftest import read_log, run_training

pytestmark = pytest.mark.distributed

STEPS = 3
# the DeepSpeed config, and what trains: docs/TRAINING.md has this as a table
RUNS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "ddp-lora": (None, {"language": "lora"}),
    "zero2-lora": ("zero2", {"language": "lora"}),
    "zero3-lora": ("zero3", {"language": "lora", "activation_checkpointing": True}),
    "zero2-full": ("zero2", {"language": "full", "tune_vision": True}),
    "zero3-full": ("zero3", {"language": "full", "tune_vision": True}),
    "zero2-nf4": ("zero2", {"language": "lora", "quantize": "nf4"}),
    "ddp-nf4": (None, {"language": "lora", "quantize": "nf4"}),
    "ddp-full": (None, {"language": "full", "tune_vision": True, "activation_checkpointing": True}),
}
QUICK = {"zero3-lora", "zero2-nf4"}
LAUNCHED = {"zero3-lora", "ddp-lora"}  # by the launchers themselves


@pytest.fixture
def mixed_samples(training_data) -> list[dict[str, Any]]:
    """Twelve samples in an order in which one process of two has a picture or a pose while the other has none."""
    with_pose = iter([sample for sample in training_data.samples if len(sample["poses"]) == 1])

    def text_only() -> dict[str, Any]:
        turns = [{"from": "human", "value": "What is a chair?"}, {"from": "gpt", "value": "A seat with a back."}]
        return {"id": "text", "conversations": turns, "poses": []}

    def picture_only() -> dict[str, Any]:
        sample = next(with_pose)
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "An object."}]
        return {**sample, "id": "picture", "conversations": turns, "poses": []}

    def pose_in_question() -> dict[str, Any]:
        sample = next(with_pose)
        turns = [
            {"from": "human", "value": "<image>\nThe object is at <pose6D>. Does it face left?"},
            {"from": "gpt", "value": "It does."},
        ]
        return {**sample, "id": "pose in question", "conversations": turns}

    def interleaved() -> Iterator[dict[str, Any]]:
        yield from (next(with_pose), text_only(), text_only(), next(with_pose))
        yield from (picture_only(), next(with_pose), pose_in_question(), text_only())
        # the pose encoder ends in zeros: it takes a second pose in a question to move its first layer
        yield from (text_only(), picture_only(), pose_in_question(), next(with_pose))

    return list(interleaved())


@pytest.fixture
def mixed_recipe(recipe: dict[str, Any], mixed_samples, training_data, tmp_path: Path) -> dict[str, Any]:
    """One sample a micro-batch, two micro-batches a step, in the order of the file."""
    return {
        **recipe,
        "train_json": str(training_data.write(tmp_path / "mixed.json", mixed_samples)),
        "train_sampling_strategy": "sequential",
        "flip": False,
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    }


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_two_processes_end_where_one_ends(name: str, launcher, mixed_recipe, base: Path, tmp_path: Path):
    zero, options = RUNS[name]
    values = {**mixed_recipe, **options}
    together = {**values, "output_dir": str(tmp_path / "together")}
    result = (launcher.launched if name in LAUNCHED else launcher.together)(together, zero)
    assert result.returncode == 0, result.said[-6000:]
    alone = {**values, "output_dir": str(tmp_path / "alone"), "gradient_accumulation_steps": 4}
    run_training(alone)

    log, expected_log = read_log(tmp_path / "together"), read_log(tmp_path / "alone")
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    for line, expected in zip(log, expected_log, strict=True):
        assert line == pytest.approx(expected, rel=2e-4, abs=2e-5), line["step"]

    # read back strictly: nothing missing, nothing left over, of the right shapes
    weights = load_model(tmp_path / "together").state_dict()
    expected_weights = load_model(tmp_path / "alone").state_dict()
    assert weights.keys() == expected_weights.keys()
    for key, value in weights.items():
        message = f"{key} of the two processes is not that of one process"
        torch.testing.assert_close(value, expected_weights[key], rtol=1e-3, atol=1e-4, msg=message)
    start = load_model(base).state_dict()
    trained = {key: value for key, value in weights.items() if key in start or "lora_B" in key}
    still = [key for key, value in trained.items() if torch.equal(value, start.get(key, torch.zeros_like(value)))]
    # the tower's closing norm comes after the feature layers: nothing flows through it
    assert [key for key in still if "vision_tower.layernorm" not in key] == []


@pytest.mark.slow
def test_a_tower_that_cannot_be_built_in_shards_trains_under_zero3(launcher, mixed_recipe, tmp_path: Path):
    """The quickstart's own base, whose tower is a BiT."""
    base = assemble(AssembleConfig(out=str(tmp_path / "tiny"), preset="tiny"))
    values = {**mixed_recipe, "model": str(base), "language": "full", "tune_vision": True}
    together = {**values, "output_dir": str(tmp_path / "together")}
    result = launcher.together(together, "zero3")
    assert result.returncode == 0, result.said[-6000:]
    run_training({**values, "output_dir": str(tmp_path / "alone"), "gradient_accumulation_steps": 4})
    for line, expected in zip(read_log(tmp_path / "together"), read_log(tmp_path / "alone"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=2e-3), line["step"]
