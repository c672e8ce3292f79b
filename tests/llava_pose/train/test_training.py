"""One run of training: what a step is, what a recipe says, what is refused, and that it learns."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.integrations import get_available_reporting_integrations

from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
from llava_pose.data.conversation import IMAGE_TOKEN, POSE_ANSWER, POSE_QUESTIONS, POSE_TOKEN, object_words
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.loading import load_full, load_model
from llava_pose.model.processors import load_processor
from llava_pose.pose import categories
from llava_pose.pose.metrics import pose_error
from llava_pose.train.command import main
from llava_pose.train.run_folder import DONE_MARK
from llava_pose.train.trainable import add_lora, nf4_config, parts_of
from llava_pose.train.trainer import LostWeightsError, NonFiniteLossError, require_saved_adapter
from tests.llava_pose.conftest import RECIPE, read_log, run_training

FULL = {"language": "full", "tune_vision": True}
NOT_INSTALLED = next(n for n in ("wandb", "swanlab", "neptune") if n not in get_available_reporting_integrations())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Of the backbone or its adapter, and of the pose parts."""
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2
    return {key: weight for file in files for key, weight in load_file(file).items()}


# A step


@pytest.fixture
def uneven_samples(training_data) -> list[dict[str, Any]]:
    """Sixteen, two steps of eight: answers of few and of many tokens, with no pose, one or two, with and without a picture."""
    samples = training_data.samples[:10]
    for sample in samples[2:4]:
        sample["conversations"][1]["value"] += " It stands on a table, among many other things, and is seen from above."
    pose = samples[0]["poses"][0]
    turns = [
        {"from": "human", "value": "<image>\nWhere are both?"},
        {"from": "gpt", "value": f"One is at {POSE_TOKEN} and the other at {POSE_TOKEN}."},
    ]
    samples += [{**samples[i], "id": f"two {i}", "conversations": turns, "poses": [pose, pose]} for i in range(3)]
    turns = [{"from": "human", "value": "What is a chair?"}, {"from": "gpt", "value": "A seat with a back."}]
    samples += [{"id": f"text {i}", "conversations": turns, "poses": []} for i in range(3)]
    return [samples[i] for i in np.random.default_rng(0).permutation(16)]


@pytest.mark.parametrize("options", [{"language": "lora"}, FULL], ids=["lora", "full"])
def test_a_batch_of_eight_is_eight_batches_of_one(recipe, training_data, uneven_samples, tmp_path: Path, options):
    """Plain gradient descent: weights after the step are equal just where gradients are."""
    values = {
        **recipe,
        **options,
        "train_json": str(training_data.write(tmp_path / "uneven.json", uneven_samples)),
        "train_sampling_strategy": "sequential",
        "flip": False,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
    }
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    together, apart = (
        run_training({**values, **split, "output_dir": str(tmp_path / name)})
        for name, split in (("together", {"per_device_train_batch_size": 8}), ("apart", one))
    )
    for line, expected in zip(read_log(apart), read_log(together), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    weights, expected_weights = weights_of(apart), weights_of(together)
    assert weights.keys() == expected_weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, expected_weights[key], rtol=1e-4, atol=1e-5, msg=key)

    # means of each sample's own mean, which is what accumulation gives without counts, are something else
    processor, model = load_processor(values["model"]), load_model(values["model"])
    data = PoseDataset(uneven_samples[:8], training_data.prepared, processor)
    batches = [PoseCollator(processor)([data[i]]) for i in range(8)]
    with torch.no_grad():
        losses = [model(**{k: v for k, v in batch.items() if k != SAMPLE_NAMES}).loss.item() for batch in batches]
    assert abs(np.mean(losses) - read_log(together)[0]["loss"]) > 0.01


def test_the_log_has_the_terms_of_the_loss(recipe, tmp_path: Path):
    run_training({**recipe, "max_steps": 2})
    for line in read_log(recipe["output_dir"]):
        parts = line["loss_text"] + line["loss_rotation"] + line["loss_location"] + 0.1 * line["loss_confidence"]
        assert line["loss"] == pytest.approx(parts, rel=1e-3)
        assert line["grad_norm"] > 0


def test_the_text_may_weigh_more(recipe):
    run_training({**recipe, **FULL, "max_steps": 1, "text_loss_weight": 4.0})
    (line,) = read_log(recipe["output_dir"])
    pose = line["loss_rotation"] + line["loss_location"] + 0.1 * line["loss_confidence"]
    assert line["loss"] == pytest.approx(4 * line["loss_text"] + pose, rel=1e-3)
    assert load_model(recipe["output_dir"]).pose_config.text_loss_weight == 4.0


# A recipe


def test_the_command_line_wins_over_the_recipe(recipe, launcher, tmp_path: Path):
    file = launcher.recipe_file({**recipe, "max_steps": 7, "new_module_learning_rate": 1e-3})
    out = tmp_path / "other"
    words = ["--config", str(file), "--max-steps", "1", "--lora-r", "2", "--no-flip", "--output_dir", str(out)]
    assert main(words) == 0
    resolved = yaml.safe_load((out / "train.yaml").read_text())
    expected = {"max_steps": 1, "lora_r": 2, "flip": False, "output_dir": str(out), "lora_alpha": 8}
    assert {name: resolved[name] for name in expected} == expected
    assert resolved["new_module_learning_rate"] == 1e-3
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    assert [line["step"] for line in read_log(out)] == [1]
    assert json.loads((out / DONE_MARK).read_text())["steps"] == 1
    assert not (tmp_path / "run").exists()

    # what was resolved is a recipe itself: of the same run
    again = launcher.recipe_file({**resolved, "output_dir": str(tmp_path / "again")})
    assert main(["--config", str(again)]) == 0
    assert read_log(tmp_path / "again") == read_log(out)


def test_a_word_that_is_no_option_is_named(recipe, launcher, capsys):
    file = launcher.recipe_file({**recipe, "lora_rank": 4})
    assert main(["--config", str(file)]) == 2
    assert f"error: {file}: there is no field 'lora_rank'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": None}, "--model: must not be null or empty"),
        ({"data": ""}, "--data: must be text, not ''"),
        ({"train_json": None}, "--train-json: must not be null or empty"),
        ({"output_dir": None}, "--output-dir: must not be null or empty"),
        ({"language": "half"}, "--language: must be one of full, lora, frozen, not 'half'"),
        ({"quantize": "int3"}, "--quantize: must be one of none, nf4, not 'int3'"),
        ({"quantize": "nf4", "language": "full"}, "--quantize nf4: trains adapters only"),
        ({"cache_features": True, "tune_vision": True}, "--cache-features: needs a frozen tower"),
        ({"vision_learning_rate": 1e-4}, "--vision-learning-rate: has no effect on a frozen tower"),
        ({"augment": -1}, "--augment: must be at least 0, not -1"),
        ({"augment": 2, "cache_features": True}, "--cache-features: holds pictures as they are; set --augment to 0"),
        ({"use_liger_kernel": True}, "--use-liger-kernel True: .*; leave it out"),
        ({"average_tokens_across_devices": False}, "--average-tokens-across-devices False: the loss would depend"),
        ({"save_total_limit": 1}, "--save-total-limit: must be at least 2"),
        ({"text_loss_weight": -1.0}, "--text-loss-weight: must be at least 0, not -1.0"),
        ({"lora_r": 0}, "--lora-r: must be over 0, not 0"),
        ({"lora_dropout": 1.5}, "--lora-dropout: must be less than 1, not 1.5"),
        ({"lora_alpha": 0}, "--lora-alpha: must be over 0, not 0"),
        ({"seed": -1}, "--seed: must be at least 0, not -1"),
        ({"per_device_train_batch_size": 0}, "--per-device-train-batch-size: must be over 0, not 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps: must be over 0, not 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: must be a finite number, not nan"),
        ({"max_steps": -1, "num_train_epochs": 0}, "--num-train-epochs: must be over 0, not 0"),
        ({"dataloader_num_workers": -1}, "--dataloader-num-workers: must be at least 0, not -1"),
        ({"eval_strategy": "steps"}, "--eval-strategy: there is nothing to evaluate on; give --val-json as well"),
        ({"val_json": "/none.json"}, "--val-json: is for a run that evaluates; give --eval-strategy steps as well"),
        ({"eval_strategy": "steps", "val_json": "/none.json"}, "/none.json: cannot be read .*llava-pose instruct"),
        ({"early_stopping_patience": 3}, "--early-stopping-patience 3: has no effect on a run that evaluates nothing"),
        ({"load_best_model_at_end": True}, "--load-best-model-at-end True: has no effect on a run that evaluates"),
        (
            {"eval_steps": 5},
            "--eval-steps 5: has no effect on a run that evaluates nothing; give --eval-strategy steps",
        ),
        ({"metric_for_best_model": "acc"}, "--metric-for-best-model: must be one of acc_30, acc_10, .*, not 'acc'"),
        ({"bf16": True}, "--bf16: half precision is for a GPU, and this run is on the CPU; leave it out"),
        ({"fp16": True}, "--fp16: half precision is for a GPU, and this run is on the CPU; leave it out"),
        ({"report_to": "wandbb"}, "--report-to wandbb: is not known; choose none or one of .*wandb"),
        ({"report_to": NOT_INSTALLED}, f"--report-to {NOT_INSTALLED}: is not installed; install its package, or leave"),
        ({"remove_unused_columns": True}, "--remove-unused-columns: samples would reach the collator without"),
        ({"data": "/none"}, "--data /none: there is no such folder; make it with llava-pose prepare"),
        ({"train_json": "/none.json"}, "/none.json: cannot be read .*make it with llava-pose instruct"),
        ({"model": "/none"}, "/none: no LLaVA-pose processor there"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(recipe, options, match):
    with pytest.raises(InputError, match=match) as caught:
        run_training({**recipe, **options})
    assert "\n" not in str(caught.value)
    assert not Path(recipe["output_dir"]).exists()


# Going on


@pytest.fixture(scope="module")
def ended(base: Path, training_data, tmp_path_factory) -> dict[str, Any]:
    """The recipe of a run of two steps that has ended, with a checkpoint on its way."""
    values = {**RECIPE, "model": str(base), "data": str(training_data.prepared)}
    values |= {"train_json": str(training_data.train_json), "output_dir": str(tmp_path_factory.mktemp("ended") / "run")}
    values |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run_training(values)
    return values


@pytest.fixture(params=["ended", "stopped"])
def begun(request, ended: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """It, or what it was before it ended, in a folder of its own."""
    folder = shutil.copytree(ended["output_dir"], tmp_path / "begun")
    if request.param == "stopped":
        for name in (DONE_MARK, "adapter_model.safetensors"):
            (folder / name).unlink()
        shutil.rmtree(folder / "checkpoint-2")
    return {**ended, "output_dir": str(folder)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate 0\.003, not 0\.001"),
        ({"language": "frozen"}, "language 'lora', not 'frozen'"),
        ({"max_steps": 9}, "max_steps 2, not 9"),
        ({"weight_decay": 0.5}, r"weight_decay 0\.0, not 0\.5"),
        ({"seed": 3}, "seed 42, not 3"),
        ({"train_json": "/other.json"}, "train_json '.*', not '/other.json'"),
    ],
)
def test_a_run_does_not_go_on_under_another_recipe(begun, changes, sentence):
    folder = Path(begun["output_dir"])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    remedy = r"\(train\.yaml says so\); choose another --output-dir, or start over with --no-resume"
    with pytest.raises(InputError, match=rf"^{folder}: its run was begun with {sentence} {remedy}$"):
        run_training({**begun, **changes})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_does_not_go_on_on_other_samples(begun):
    file = Path(begun["train_json"])
    samples = json.loads(file.read_text())
    samples[0]["poses"][0]["azimuth"] += 0.1
    text = file.read_text()
    try:
        file.write_text(json.dumps(samples))
        with pytest.raises(InputError, match=rf"was begun when {file} held other samples; choose another --output-dir"):
            run_training(begun)
    finally:
        file.write_text(text)
    run_training(begun)


def test_what_does_not_touch_the_weights_may_change(begun, ended, monkeypatch):
    monkeypatch.chdir(Path(begun["data"]).parent)
    changes = {"logging_steps": 2, "save_steps": 5, "save_total_limit": 7, "dataloader_num_workers": 1}
    changes |= {"data": Path(begun["data"]).name, "cache_dir": str(Path(begun["output_dir"]).parent / "features")}
    folder = run_training({**begun, **changes, "report_to": "none"})
    found, expected = weights_of(folder), weights_of(Path(ended["output_dir"]))
    assert [key for key, value in expected.items() if not torch.equal(value, found[key])] == []


def test_a_run_without_a_checkpoint_binds_nobody(begun):
    folder = Path(begun["output_dir"])
    (folder / DONE_MARK).unlink(missing_ok=True)
    for mark in folder.glob("checkpoint-*/complete.json"):
        mark.unlink()
    run_training({**begun, "max_steps": 1})
    assert [line["step"] for line in read_log(folder)] == [1]


def test_a_recipe_that_stands_in_the_folder_is_left_alone(recipe, tmp_path: Path):
    file = tmp_path / "train.yaml"
    file.write_text("learning_rate: 0.1  # mine\n")
    with pytest.raises(InputError, match=rf"^{file}: is there and was not written by train.* choose another output$"):
        run_training({**recipe, "output_dir": str(tmp_path)})
    assert file.read_text() == "learning_rate: 0.1  # mine\n"


# What was saved


def test_a_saved_adapter_is_read_back(recipe, tmp_path: Path):
    """Against an adapter in memory: what is lost, bent or turned on the way to the disk is named."""
    model = add_lora(load_model(recipe["model"]), r=4, alpha=8, dropout=0.0, tune_vision=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    require_saved_adapter(model, tmp_path)
    for name, part in (("adapter_model", "lora_B"), ("pose_head", "pose_head.linear_2.bias")):
        file = tmp_path / f"{name}.safetensors"
        good = load_file(file)
        key = next(key for key in good if part in key)
        for what, changes in (
            ("is missing", {key: None}),
            (r"has the shape \(0,\) instead of", {key: torch.empty(0)}),  # as ZeRO-3 leaves what is not gathered
            ("has other values than were trained", {key: good[key] + 1e-3}),
            ("has other values than were trained", {key: good[key] * float("nan")}),
        ):
            weights = {name: value for name, value in {**good, **changes}.items() if value is not None}
            save_file(weights, file)
            with pytest.raises(LostWeightsError, match=rf"{file}: was read back, and {re.escape(key)} {what}"):
                require_saved_adapter(model, tmp_path)
        save_file({**good, "strange": torch.zeros(1)}, file)
        with pytest.raises(LostWeightsError, match="strange is not of the model"):
            require_saved_adapter(model, tmp_path)
        file.write_bytes(b"torn")
        with pytest.raises(LostWeightsError, match="cannot be read"):
            require_saved_adapter(model, tmp_path)
        save_file(good, file)


@pytest.mark.parametrize("under", ["", "below"])
def test_a_folder_that_cannot_be_written_is_named_before_the_work(recipe, tmp_path: Path, under: str):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--output-dir .*file.*; (give|choose) "):
        run_training({**recipe, "output_dir": str(tmp_path / "file" / under)})


@pytest.mark.parametrize(("option", "still"), [("vision_learning_rate", "vision"), ("new_module_learning_rate", "new")])
def test_a_part_has_a_learning_rate_of_its_own(recipe, base: Path, option: str, still: str):
    run_training({**recipe, **FULL, "max_steps": 1, option: 0.0})
    trained = load_model(recipe["output_dir"])
    before, after, parts = load_model(base).state_dict(), dict(trained.named_parameters()), parts_of(trained)
    moved = {parts[name] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {"language", "vision", "new"} - {still}


# Learning


def exact_samples(training_data) -> list[dict[str, Any]]:
    """Two cars and two guitars, asked about as the predictor asks: words alone do not tell which of two it is."""
    by_picture = {sample["image"]: sample for sample in training_data.samples}
    chosen = [s for s in by_picture.values() if s["image"].split("/")[1] in ("car", "guitar")]
    for sample in chosen:
        words = {**object_words(categories.get(sample["image"].split("/")[1])), "pose": POSE_TOKEN}
        sample["conversations"] = [
            {"from": "human", "value": f"{IMAGE_TOKEN}\n{POSE_QUESTIONS[0].format(**words)}"},
            {"from": "gpt", "value": POSE_ANSWER.format(**words)},
        ]
    assert len(chosen) == 4
    return chosen


@pytest.fixture
def few(recipe, training_data, tmp_path: Path) -> dict[str, Any]:
    """A recipe for those four, all of them in each step."""
    samples = exact_samples(training_data)
    return {
        **recipe,
        "train_json": str(training_data.write(tmp_path / "few.json", samples)),
        "flip": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }


def test_a_few_pictures_are_learnt_by_heart(few, training_data):
    folder = run_training({**few, "language": "full", "learning_rate": 5e-3, "max_steps": 200})
    log = read_log(folder)
    assert log[-1]["loss_text"] < 0.05 * log[0]["loss_text"]
    assert log[-1]["loss_rotation"] < 0.05 * log[0]["loss_rotation"]

    samples = json.loads(Path(few["train_json"]).read_text())
    predictor = PosePredictor.from_checkpoint(folder, device="cpu")
    pictures = [Image.open(training_data.prepared / sample["image"]) for sample in samples]
    names = [sample["image"].split("/")[1] for sample in samples]
    answers = predictor.predict(pictures, names, viewports=[sample["viewport"] for sample in samples])
    for answer, sample in zip(answers, samples, strict=True):
        truth = Pose.from_dict(sample["poses"][0], where=sample["id"])
        assert math.degrees(float(pose_error(np.array(answer.pose.angles), np.array(truth.angles)))) < 10
        assert answer.pose.distance == pytest.approx(truth.distance, rel=0.15)
        assert (answer.pose.px, answer.pose.py) == pytest.approx((truth.px, truth.py), abs=4)


def test_qlora_learns_and_its_adapter_comes_back(few, base: Path):
    model = load_full(base, dtype=torch.float32, quantization_config=nf4_config(str(base)))
    quantized = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert quantized
    assert [name for name in quantized if ".causal_lm.model.layers." not in name] == []

    folder = run_training({**few, "quantize": "nf4", "max_steps": 40})
    log = read_log(folder)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    processor = load_processor(folder)
    data = PoseDataset(json.loads(Path(few["train_json"]).read_text()), few["data"], processor)
    batch = PoseCollator(processor)([data[i] for i in range(len(data))])
    del batch[SAMPLE_NAMES]
    with torch.no_grad():
        loss, before = (load_model(path)(**batch).loss.item() for path in (folder, base))
    # four bits are not the whole base, but near it
    assert loss < 0.6 * before


@pytest.mark.distributed
def test_qlora_does_not_go_with_zero3(recipe, launcher):
    result = launcher.together({**recipe, "quantize": "nf4"}, "zero3")
    assert result.returncode != 0
    sentence = "ZeRO-3 cannot shard 4-bit weights; give --deepspeed zero_configs/zero2.json"
    assert f"error: --quantize nf4: {sentence}" in result.said
    assert "Traceback" not in result.said.split("error: --quantize")[0]
    assert not Path(recipe["output_dir"]).exists()


@pytest.mark.parametrize("name", ["base", "other_base"])
def test_a_loss_that_is_not_finite_stops_the_run(request, recipe, training_data, name):
    """A learning rate beyond all measure: the second step has no loss any more."""
    values = {
        **recipe,
        "model": str(request.getfixturevalue(name)),
        "learning_rate": 1e30,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "flip": False,
    }
    with pytest.raises(NonFiniteLossError) as caught:
        run_training(values)
    message = str(caught.value)
    assert message.startswith(("the loss is nan at step 2", "the loss is inf at step 2"))
    named = [sample["id"] for sample in training_data.samples if repr(sample["id"]) in message]
    assert named == [sample["id"] for sample in training_data.samples[2:4]]
    assert not (Path(recipe["output_dir"]) / DONE_MARK).exists()
