"""A run that is killed with -9, wherever it stands, and started again by the same command ends as an undisturbed one."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.train.checkpoints import COMPLETE_MARK, last_complete_checkpoint
from llava_pose.train.run_folder import DONE_MARK
from tests.forked import start
from tests.llava_pose.conftest import read_log, run_training

KILLED = -signal.SIGKILL
STEPS = 9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(AssembleConfig(out=str(tmp_path_factory.mktemp("tiny")), preset="tiny"))


@pytest.fixture
def long_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Nine steps over an epoch of seven, checkpoints between the lines of the log, a learning rate that changes."""
    return {
        **recipe,
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "lora_dropout": 0.3,
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Of the backbone or its adapter, and of the pose parts."""
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    return {key: weight for file in files for key, weight in load_file(file).items()}


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    assert read_log(folder) == read_log(undisturbed)
    weights, expected = weights_of(folder), weights_of(undisturbed)
    assert weights.keys() == expected.keys()
    assert [key for key, value in weights.items() if not torch.equal(value, expected[key])] == []
    assert json.loads((folder / DONE_MARK).read_text()) == json.loads((undisturbed / DONE_MARK).read_text())


def test_lora_run_killed_again_and_again_ends_as_an_undisturbed_one(launcher, long_recipe, tiny: Path, tmp_path: Path):
    values = {**long_recipe, "model": str(tiny)}
    run = Path(values["output_dir"])
    undisturbed = run_training({**values, "output_dir": str(tmp_path / "undisturbed")})

    # in the middle of writing the first checkpoint: the run starts over
    assert launcher.train(values, kill_at="checkpoint-2/trainer_state.json").returncode == KILLED
    assert (run / "checkpoint-2").is_dir()
    assert not (run / "checkpoint-2" / COMPLETE_MARK).exists()

    # all of the third checkpoint written, but for the mark that says so: the run goes on from the second
    result = launcher.train(values, kill_at=f"checkpoint-6/{COMPLETE_MARK}")
    assert result.returncode == KILLED
    assert "checkpoint-2: was not written to its end; removed" in result.said
    assert (run / "checkpoint-6" / "optimizer.pt").exists()

    # in the middle of writing the result, after the last step
    result = launcher.train(values, kill_at="run/processor_config.json")
    assert result.returncode == KILLED
    assert "going on from" in result.said
    assert "checkpoint-4" in result.said
    assert not (run / DONE_MARK).exists()

    result = launcher.train(values)
    assert result.returncode == 0, result.said[-4000:]
    assert_same_run(run, undisturbed)

    # once more: there is nothing to do, and that is said
    before = (run / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_training(values) == run
    assert (run / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_run_that_groups_by_length_goes_on_in_the_same_order(launcher, long_recipe, tmp_path: Path):
    """In its second epoch of four steps."""
    values = {**long_recipe, "train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 8}
    undisturbed = run_training({**values, "output_dir": str(tmp_path / "undisturbed")})
    assert launcher.train(values, kill_at=f"checkpoint-8/{COMPLETE_MARK}").returncode == KILLED
    result = launcher.train(values)
    assert result.returncode == 0, result.said[-4000:]
    assert "checkpoint-6" in result.said
    assert_same_run(Path(values["output_dir"]), undisturbed)


def test_full_run_killed_from_outside_ends_as_an_undisturbed_one(launcher, long_recipe, tmp_path: Path):
    values = {**long_recipe, "language": "full", "tune_vision": True, "max_steps": 40, "logging_steps": 1}
    run = Path(values["output_dir"])
    undisturbed = run_training({**values, "output_dir": str(tmp_path / "undisturbed")})

    process = start(["train", "--config", str(launcher.recipe_file(values))], tmp_path / "killed.log")
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 9:
        assert process.is_alive(), "ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == KILLED
    assert not (run / DONE_MARK).exists()
    assert last_complete_checkpoint(run) is not None

    result = launcher.train(values)
    assert result.returncode == 0, result.said[-4000:]
    assert "going on from" in result.said
    assert_same_run(run, undisturbed)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_that_group_by_length_go_on_in_the_same_order(launcher, long_recipe, tmp_path: Path):
    """In their second epoch of four steps: what sets the epoch does not reach an order that processes share by itself."""
    values = {**long_recipe, "train_sampling_strategy": "group_by_length"}
    undisturbed = {**values, "output_dir": str(tmp_path / "undisturbed")}
    assert launcher.together(undisturbed).returncode == 0
    assert launcher.together(values, kill_at=f"checkpoint-8/{COMPLETE_MARK}").returncode != 0
    result = launcher.together(values)
    assert result.returncode == 0, result.said[-6000:]
    assert "checkpoint-6" in result.said
    assert_same_run(Path(values["output_dir"]), tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.distributed
def test_zero3_run_killed_while_it_writes_a_checkpoint(launcher, long_recipe, tmp_path: Path):
    values = {**long_recipe, "per_device_train_batch_size": 2}
    undisturbed = {**values, "output_dir": str(tmp_path / "undisturbed")}
    assert launcher.together(undisturbed, "zero3").returncode == 0
    result = launcher.together(values, "zero3", kill_at="checkpoint-6/trainer_state.json")
    assert result.returncode != 0
    result = launcher.together(values, "zero3")
    assert result.returncode == 0, result.said[-6000:]
    assert "checkpoint-4" in result.said
    assert_same_run(Path(values["output_dir"]), tmp_path / "undisturbed")


def test_torn_checkpoints_are_passed_over(tmp_path: Path):
    assert last_complete_checkpoint(tmp_path) is None
    for step, whole in ((9, True), (10, True), (100, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            (folder / COMPLETE_MARK).write_text("{}")  # as it was before it named files
    (tmp_path / "checkpoint-mine").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()
    assert (tmp_path / "checkpoint-mine").exists()


def test_without_resume_a_run_starts_over(long_recipe):
    values = {**long_recipe, "max_steps": 4}
    first = read_log(run_training(values))
    again = read_log(run_training({**values, "resume": False}))
    assert again == first


def test_a_run_that_started_over_and_was_killed_is_not_taken_for_the_one_before(launcher, long_recipe):
    run_training({**long_recipe, "max_steps": 4})
    run = Path(long_recipe["output_dir"])
    (run / "checkpoint-mine").mkdir()
    other = {**long_recipe, "max_steps": 4, "learning_rate": 0.0}
    result = launcher.train({**other, "resume": False}, kill_at="checkpoint-2/trainer_state.json")
    assert result.returncode != 0
    assert not (run / DONE_MARK).exists()
    assert last_complete_checkpoint(run) is None
    assert (run / "checkpoint-mine").exists()
