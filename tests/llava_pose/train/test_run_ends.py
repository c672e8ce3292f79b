"""A run is done only at its last step, whatever ends it before; and only what began it goes on with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from eval.systems.classifier.system import ClassifierConfig
from eval.systems.classifier.system import run as run_classifier
from llava_pose.errors import InputError
from llava_pose.train.checkpoints import COMPLETE_MARK
from llava_pose.train.command import main
from llava_pose.train.run_folder import BEGUN_WITH, DONE_MARK
from llava_pose.train.trainer import LossHistory, PoseTrainer, ResumableTrainer, StoppedEarlyError
from tests.llava_pose.conftest import run_training
from tests.llava_pose.train.test_resume import assert_same_run


@pytest.fixture
def long_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Five steps, no checkpoint of their own, and dropout, so that random numbers matter."""
    return {**recipe, "max_steps": 5, "lr_scheduler_type": "cosine", "lora_dropout": 0.3}


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that ends the training after a step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == step

    monkeypatch.setattr(LossHistory, "on_step_end", on_step_end)


def signal_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes to this process while a step's forward pass runs."""
    compute = ResumableTrainer.compute_loss

    def with_signal(self, *args, **kwargs):
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(ResumableTrainer, "compute_loss", with_signal)


@pytest.mark.parametrize("by", ["callback", "signal"])
def test_a_run_that_is_stopped_on_its_way_is_not_done(long_recipe, tmp_path: Path, monkeypatch, by: str) -> None:
    """It keeps what it has done, and the same command goes on with it, bit for bit."""
    values = {**long_recipe, "enable_jit_checkpoint": by == "signal"}
    run = Path(values["output_dir"])
    undisturbed = run_training({**values, "output_dir": str(tmp_path / "undisturbed")})
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        (stop_at if by == "callback" else signal_at)(2, patch)
        with pytest.raises(StoppedEarlyError, match=rf"^{run}: stopped after step 2 of 5; run the same command again"):
            run_training(values)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert not (run / DONE_MARK).exists()
    assert not (run / "adapter_model.safetensors").exists(), "nobody should take it for a result"
    assert (run / "checkpoint-2" / COMPLETE_MARK).is_file()
    run_training(values)
    assert_same_run(run, undisturbed)


def test_a_run_that_gets_a_signal_goes_on_where_it_was(launcher, long_recipe, monkeypatch, capsys) -> None:
    """As a command: exit code 1 and a sentence, then 0."""
    file = launcher.recipe_file({**long_recipe, "enable_jit_checkpoint": True})
    with monkeypatch.context() as patch:
        signal_at(3, patch)
        assert main(["--config", str(file)]) == 1
    assert "stopped after step 3 of 5; run the same command again to go on" in capsys.readouterr().err
    assert main(["--config", str(file)]) == 0
    assert json.loads((Path(long_recipe["output_dir"]) / DONE_MARK).read_text())["steps"] == 5


@pytest.mark.parametrize("limit", [{"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 2}], ids=str)
def test_a_run_that_took_no_step_is_an_error(long_recipe, limit) -> None:
    """No epoch holds a whole batch, and what is not whole is dropped."""
    values = {**long_recipe, **limit, "dataloader_drop_last": True, "per_device_train_batch_size": 500}
    for _ in range(2):
        with pytest.raises(InputError, match=r"no step can be taken, for \d+ samples are no whole batch of 500"):
            run_training(values)
    assert not (Path(values["output_dir"]) / DONE_MARK).exists()


def test_a_run_that_is_stopped_before_its_first_step_is_an_error(long_recipe, monkeypatch) -> None:
    monkeypatch.setattr(PoseTrainer, "get_batch_samples", lambda *_: ([], None))
    with pytest.raises(StoppedEarlyError, match="no step was taken, of 5"):
        run_training(long_recipe)
    assert not (Path(long_recipe["output_dir"]) / DONE_MARK).exists()


def test_a_classifier_that_is_stopped_is_not_done_and_predicts_nothing(training_data, tmp_path, monkeypatch) -> None:
    values = {"data": str(training_data.prepared), "output_dir": str(tmp_path / "run"), "backbone": "tiny"}
    values |= {"image_size": 32, "max_steps": 3, "split": "train", "use_cpu": True, "disable_tqdm": True}
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(StoppedEarlyError, match="stopped after step 2 of 3"):
            run_classifier(ClassifierConfig(**values))
    assert not (tmp_path / "run" / DONE_MARK).exists()
    assert not (tmp_path / "run" / "predictions.jsonl").exists()
    assert run_classifier(ClassifierConfig(**values)).is_file()
    assert json.loads((tmp_path / "run" / DONE_MARK).read_text())["steps"] == 3


def test_another_number_of_processes_does_not_go_on(long_recipe, monkeypatch) -> None:
    run = Path(long_recipe["output_dir"])
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(StoppedEarlyError):
            run_training(long_recipe)
    begun = json.loads((run / BEGUN_WITH).read_text())
    assert begun["processes"] == 1
    (run / BEGUN_WITH).write_text(json.dumps({**begun, "processes": 2}))
    remedy = "start it by as many again, choose another --output-dir, or start over with --no-resume"
    with pytest.raises(InputError, match=f"^{run}: its run was begun by 2 processes, not by one process; {remedy}$"):
        run_training(long_recipe)
    run_training({**long_recipe, "resume": False})
    (run / BEGUN_WITH).write_text(json.dumps({**json.loads((run / BEGUN_WITH).read_text()), "processes": 2}))
    run_training(long_recipe)  # has ended: there is nothing to go on with


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_of_two_processes_does_not_go_on_with_one(launcher, long_recipe) -> None:
    values = {**long_recipe, "save_strategy": "steps", "save_steps": 2}
    assert launcher.together(values, kill_at=f"checkpoint-4/{COMPLETE_MARK}").returncode != 0
    with pytest.raises(InputError, match="its run was begun by 2 processes, not by one process"):
        run_training(values)
    result = launcher.together(values)
    assert result.returncode == 0, result.said[-4000:]
