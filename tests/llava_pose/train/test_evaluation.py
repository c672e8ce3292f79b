"""Evaluation in a run: the figures that a checkpoint gets afterwards, the same whatever disturbs the run or shares it."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.instruct.command import InstructConfig, instruct
from llava_pose.data.conversation import JOINT_QUESTIONS, POSE_QUESTIONS
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.pose.metrics import pose_error
from llava_pose.train.checkpoints import COMPLETE_MARK
from llava_pose.train.run_folder import DONE_MARK
from tests.llava_pose.conftest import TrainingData, read_log, run_training
from tests.llava_pose.train.test_resume import assert_same_run, weights_of


@pytest.fixture(scope="module")
def val_json(training_data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question for the pose and one for the category and the pose, in one conversation about each picture."""
    out = tmp_path_factory.mktemp("val") / "val.json"
    instruct(
        InstructConfig(
            data=str(training_data.prepared),
            out=str(out),
            kinds=["pose", "joint"],
            questions_per_object=2,
            turns_per_conversation=1,
        )
    )
    return out


@pytest.fixture
def evaluated(recipe: dict[str, Any], val_json: Path) -> dict[str, Any]:
    """Eight steps, evaluated and saved after every other one."""
    return {
        **recipe,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "lora_dropout": 0.3,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 3,
        "val_json": str(val_json),
    }


def evaluations(folder: str | Path) -> list[dict[str, float]]:
    return [line for line in read_log(folder) if "eval_loss" in line]


def test_the_figures_are_those_that_the_checkpoint_gets_afterwards(evaluated, training_data, tmp_path: Path) -> None:
    """By the predictor, question by question: poses in one pass, and what it writes in a chat."""
    samples = json.loads(Path(evaluated["val_json"]).read_text())
    asked = []
    for sample in samples:
        joint = sample["kinds"] == ["joint"]
        question = (JOINT_QUESTIONS if joint else POSE_QUESTIONS)[0]
        question = question.format(object=sample["category"])
        turns = [{"from": "human", "value": f"<image>\n{question}"}, sample["conversations"][1]]
        asked.append({**sample, "conversations": turns})
    run = run_training(
        {
            **evaluated,
            **{"language": "full", "learning_rate": 3e-3, "max_steps": 150, "eval_steps": 150, "save_strategy": "no"},
            **{"text_loss_weight": 4.0, "lora_dropout": 0.0, "tune_vision": True},
            "train_json": str(training_data.write(tmp_path / "few.json", asked)),
            "val_json": str(training_data.write(tmp_path / "val.json", asked)),
        }
    )
    (figures,) = evaluations(run)
    predictor = PosePredictor.from_checkpoint(run, device="cpu")
    errors, named = [], []
    for sample in asked:
        picture = Image.open(training_data.prepared / "train" / sample["image"].removeprefix("train/"))
        true = [sample["poses"][0][name] for name in ("azimuth", "elevation", "theta")]
        if sample["kinds"] == ["joint"]:
            answer = predictor.chat(picture, [{"role": "user", "content": JOINT_QUESTIONS[0]}])
            expected = sample["conversations"][1]["value"].partition("<pose6D>")[0]
            named.append(answer.text.startswith(f"{expected}<pose6D>"))
        else:
            (answer,) = predictor.predict([picture], [sample["category"]])
            errors.append(float(pose_error(np.array(answer.pose.angles), np.array(true))))
    assert figures["eval_class_accuracy"] == np.mean(named)
    assert np.mean(named) > 0
    only_poses = [sample for sample in asked if sample["kinds"] == ["pose"]]
    again = run_training(
        {
            **evaluated,
            **{"language": "full", "learning_rate": 0.0, "max_steps": 1, "eval_steps": 1, "save_strategy": "no"},
            "model": str(run),
            "output_dir": str(tmp_path / "again"),
            "val_json": str(training_data.write(tmp_path / "poses.json", only_poses)),
        }
    )
    (figures,) = evaluations(again)
    assert "eval_class_accuracy" not in figures
    assert figures["eval_median_deg"] == pytest.approx(np.degrees(np.median(errors)), abs=0.01)
    assert figures["eval_acc_30"] == np.mean(np.array(errors) < np.pi / 6)


def test_a_run_evaluates_when_it_is_asked_to(evaluated, tmp_path: Path) -> None:
    run = run_training({**evaluated, "max_steps": 5, "eval_delay": 3})
    assert [line["step"] for line in evaluations(run)] == [4, 5], "after the delay, and at the end"
    values = {**evaluated, "eval_strategy": "epoch", "eval_steps": None, "max_steps": -1, "num_train_epochs": 2}
    run = run_training({**values, "output_dir": str(tmp_path / "epochs"), "per_device_train_batch_size": 8})
    assert len(evaluations(run)) == 2


def test_an_evaluation_does_not_touch_the_training(evaluated, recipe, tmp_path: Path) -> None:
    run = run_training(evaluated)
    plain = {name: value for name, value in evaluated.items() if name != "val_json" and not name.startswith("eval_")}
    other = run_training({**plain, "eval_strategy": "no", "output_dir": str(tmp_path / "plain")})
    losses = [[line["loss_text"] for line in read_log(folder) if "loss" in line] for folder in (run, other)]
    assert losses[0] == losses[1]
    weights, expected = weights_of(run), weights_of(other)
    assert [name for name, value in weights.items() if not torch.equal(value, expected[name])] == []


def test_the_batch_of_an_evaluation_changes_no_figure(evaluated, tmp_path: Path) -> None:
    found = [
        evaluations(
            run_training({**evaluated, "per_device_eval_batch_size": size, "output_dir": str(tmp_path / str(size))})
        )
        for size in (1, 5)
    ]
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_the_sample_that_is_asked_is_the_same_in_every_run(evaluated, tmp_path: Path) -> None:
    runs = [
        run_training({**evaluated, "max_steps": 1, "eval_steps": 1, "learning_rate": 0.0, "val_samples": 5, "seed": seed,
                      "output_dir": str(tmp_path / str(seed))})
        for seed in (1, 2)
    ]  # fmt: skip
    assert evaluations(runs[0]) == evaluations(runs[1])


def best_of(folder: Path, figure: str, *, grows: bool) -> dict[str, float]:
    return (max if grows else min)(evaluations(folder), key=lambda line: line[f"eval_{figure}"])


@pytest.mark.parametrize(("figure", "grows"), [("median_deg", False), ("acc_30", True)])
def test_the_best_checkpoint_is_kept_and_its_weights_are_the_end(evaluated, figure: str, grows: bool) -> None:
    values = {**evaluated, "metric_for_best_model": figure, "load_best_model_at_end": True, "max_steps": 14}
    run = run_training({**values, "learning_rate": 5e-2})
    best = best_of(run, figure, grows=grows)
    done = json.loads((run / DONE_MARK).read_text())
    assert (done["steps"], done["best_step"], done["best"]) == (14, best["step"], best[f"eval_{figure}"])
    kept = {int(folder.name.rpartition("-")[2]) for folder in run.glob("checkpoint-*")}
    assert kept >= {best["step"], 12, 14}
    assert len(kept) <= 3
    weights, expected = weights_of(run), weights_of(run / f"checkpoint-{best['step']}")
    assert [name for name, value in weights.items() if not torch.equal(value, expected[name])] == []


@pytest.fixture
def patient(evaluated) -> dict[str, Any]:
    """So high a rate that nothing gets better for long, so that the run ends early."""
    return {
        **evaluated,
        **{"metric_for_best_model": "median_deg", "load_best_model_at_end": True, "early_stopping_patience": 2},
        **{"max_steps": 60, "learning_rate": 3e-2, "lr_scheduler_type": "linear"},
    }


def test_a_run_that_gets_no_better_ends_and_is_done(patient, caplog) -> None:
    run = run_training(patient)
    found = evaluations(run)
    best = best_of(run, "median_deg", grows=False)
    assert found[-1]["step"] == best["step"] + 4 < 60
    assert json.loads((run / DONE_MARK).read_text())["steps"] == found[-1]["step"]
    before = (run / "adapter_model.safetensors").stat().st_mtime_ns
    run_training(patient)
    assert (run / "adapter_model.safetensors").stat().st_mtime_ns == before, "there is nothing to do"


def test_a_run_that_is_killed_ends_as_an_undisturbed_one(launcher, patient, tmp_path: Path) -> None:
    """At three moments drawn at random, and while it writes its result: figures, best checkpoint and early end included."""
    run = Path(patient["output_dir"])
    undisturbed = run_training({**patient, "output_dir": str(tmp_path / "undisturbed")})
    steps = json.loads((undisturbed / DONE_MARK).read_text())["steps"]
    assert steps < 60, "it did not end early"
    drawn = random.Random(0)
    moments = sorted(drawn.sample(range(2, steps + 1, 2), 2))
    places = [f"checkpoint-{moments[0]}/trainer_state.json", f"checkpoint-{moments[1]}/{COMPLETE_MARK}"]
    for place in (*places, "run/processor_config.json"):
        assert launcher.train(patient, kill_at=place).returncode == -signal.SIGKILL
        assert not (run / DONE_MARK).exists()
    result = launcher.train(patient)
    assert result.returncode == 0, result.said[-4000:]
    assert_same_run(run, undisturbed)


def test_an_early_end_after_an_epoch_is_not_gone_over_again(launcher, patient, tmp_path: Path) -> None:
    """Evaluations follow epochs, and the run is killed while it writes its result."""
    values = {
        **patient,
        **{"eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "per_device_train_batch_size": 14},
        **{"max_steps": -1, "num_train_epochs": 30, "early_stopping_patience": 1, "learning_rate": 5e-2},
    }
    undisturbed = run_training({**values, "output_dir": str(tmp_path / "undisturbed")})
    assert launcher.train(values, kill_at="run/processor_config.json").returncode == -signal.SIGKILL
    result = launcher.train(values)
    assert result.returncode == 0, result.said[-4000:]
    assert_same_run(Path(values["output_dir"]), undisturbed)


def test_other_validation_samples_do_not_go_on(evaluated, training_data, tmp_path: Path) -> None:
    file = tmp_path / "val.json"
    file.write_bytes(Path(evaluated["val_json"]).read_bytes())
    values = {**evaluated, "val_json": str(file), "max_steps": 2}
    run = run_training(values)
    training_data.write(file, json.loads(file.read_text())[:4])
    with pytest.raises(InputError, match=f"^{run}: its run was begun when {file} held other samples; "):
        run_training(values)


def test_samples_that_no_figure_can_be_made_of_are_refused(evaluated, training_data, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is a chair?"}, {"from": "gpt", "value": "A seat with a back."}]
    file = training_data.write(tmp_path / "val.json", [{"id": "text", "conversations": turns, "poses": []}])
    with pytest.raises(InputError, match=f"^--val-json {file}: no answer in it holds a pose"):
        run_training({**evaluated, "val_json": str(file)})
    poses = [sample for sample in json.loads(Path(evaluated["val_json"]).read_text()) if sample["kinds"] == ["pose"]]
    training_data.write(file, poses)
    with pytest.raises(InputError, match=r"^--metric-for-best-model class_accuracy: no question of .* asks for a cat"):
        run_training({**evaluated, "val_json": str(file), "metric_for_best_model": "class_accuracy"})


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("how", [None, "zero3"])
def test_two_processes_get_the_figures_of_one(how: str | None, launcher, patient, tmp_path: Path) -> None:
    """To the last digit where the weights are the same, and to rounding where each has trained them in its own way."""
    values = {**patient, "train_sampling_strategy": "sequential", "lora_dropout": 0.0, "per_device_train_batch_size": 2}
    for name, changes, tolerance in (
        ("still", {"learning_rate": 0.0}, 1e-6),
        ("trains", {"learning_rate": 1e-2, "early_stopping_patience": None, "max_steps": 8}, 2e-3),
    ):
        together = {**values, **changes, "output_dir": str(tmp_path / f"{name}-together")}
        result = launcher.together(together, how)
        assert result.returncode == 0, result.said[-6000:]
        alone = {**together, "output_dir": str(tmp_path / f"{name}-alone"), "per_device_train_batch_size": 4}
        run_training(alone)
        found, expected = evaluations(together["output_dir"]), evaluations(alone["output_dir"])
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        for line, other in zip(found, expected, strict=True):
            assert line == pytest.approx(other, rel=tolerance, abs=tolerance)
        marks = [json.loads((tmp_path / f"{name}-{which}" / DONE_MARK).read_text()) for which in ("together", "alone")]
        assert marks[0]["steps"] == marks[1]["steps"]
        assert marks[0]["best_step"] == marks[1]["best_step"]
