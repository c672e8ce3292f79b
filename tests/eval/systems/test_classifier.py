"""The pose classifier: its heads, that it learns, goes on, predicts, and gives its backbone away as a tower."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import (
    AutoModel,
    BitImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from data_prep.prepare.command import PrepareConfig, prepare
from eval.systems.classifier.command import main
from eval.systems.classifier.model import PoseClassifier, PoseClassifierConfig
from eval.systems.classifier.system import (
    ClassifierConfig,
    ClassifierTrainer,
    TrainedClassifier,
    TrainedClassifierOptions,
    build_classifier,
    load_classifier,
    predict,
    run,
)
from eval.systems.record_images import RecordImages
from eval.systems.system import run_system
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import read_predictions, read_records
from llava_pose.errors import InputError
from llava_pose.model.loading import load_model
from llava_pose.pose.geometry import angles_from_rotation, angles_to_bins, bins_to_angles
from llava_pose.pose.metrics import pose_error
from llava_pose.train.trainer import NonFiniteLossError
from llava_pose.utils.config import parse_config


@pytest.fixture
def prepared(cars_and_guitars) -> Path:
    return cars_and_guitars("box")


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(prepared),
        "output_dir": str(tmp_path / "run"),
        "backbone": "tiny",
        "image_size": 32,
        "pooling": "flatten",
        "head_hidden_size": 32,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def small_resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")


def small_swin() -> SwinConfig:
    return SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)


@pytest.mark.parametrize("backbone", [small_resnet, small_swin])
def test_published_heads_are_linear_on_the_mean_of_the_last_map(backbone):
    """Forty bins an angle, floor binning, decoded at the centres."""
    config = PoseClassifierConfig(backbone_config=backbone(), categories=["car", "chair", "cup"])
    model = PoseClassifier(config).eval()
    pixels = torch.randn(2, 3, 32, 32)
    last = model.backbone(pixels).last_hidden_state
    pooled = last.mean((2, 3)) if last.dim() == 4 else last.mean(1)
    output = model(pixels)
    torch.testing.assert_close(output.raw_rotation, model.rotation_head(pooled))
    torch.testing.assert_close(output.category_logits, model.category_head(pooled))
    assert output.raw_rotation.shape == (2, 120)

    angles = np.array([[5.0, 0.3, 6.1]])
    chosen = angles_to_bins(angles) + 40 * np.arange(3)
    raw = torch.zeros(1, 120)
    raw[0, chosen[0]] = 9.0
    decoded = torch.stack(angles_from_rotation(model.rotations(raw).double()), -1).numpy()
    expected = bins_to_angles(angles_to_bins(angles))
    assert pose_error(decoded, expected)[0] < 1e-6


def test_losses_are_added_one_to_one():
    model = PoseClassifier(PoseClassifierConfig(backbone_config=small_resnet(), categories=["car", "cup"])).eval()
    pixels, angles, category = torch.randn(3, 3, 32, 32), torch.rand(3, 3), torch.tensor([0, 1, 1])
    output = model(pixels, angles=angles, category=category)
    bins = torch.from_numpy(angles_to_bins(angles.numpy()))
    expected = torch.nn.functional.cross_entropy(output.category_logits, category)
    for index, logits in enumerate(output.raw_rotation.split(40, -1)):
        expected = expected + torch.nn.functional.cross_entropy(logits, bins[:, index])
    torch.testing.assert_close(output.loss, expected)


def test_the_published_losses_are_a_mean_of_angles_and_for_table_2_the_pose_alone():
    pixels, angles, category = torch.randn(3, 3, 32, 32), torch.rand(3, 3), torch.tensor([0, 1, 1])
    bins = torch.from_numpy(angles_to_bins(angles.numpy()))
    for class_weight in (1.0, 0.0):
        weights = {"pose_weight": 1 / 3, "class_weight": class_weight}
        config = PoseClassifierConfig(backbone_config=small_resnet(), categories=["car", "cup"], **weights)
        output = PoseClassifier(config).eval()(pixels, angles=angles, category=category)
        of_angles = [
            torch.nn.functional.cross_entropy(logits, bins[:, index])
            for index, logits in enumerate(output.raw_rotation.split(40, -1))
        ]
        expected = torch.stack(of_angles).mean()
        if class_weight:
            expected = expected + torch.nn.functional.cross_entropy(output.category_logits, category)
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()


def test_the_weights_of_the_losses_reach_the_network(recipe):
    run(ClassifierConfig(**recipe, pose_weight=0.25, class_weight=0.0))
    config = load_classifier(Path(recipe["output_dir"]))[0].config
    assert (config.pose_weight, config.class_weight) == (0.25, 0.0)


def test_mirror_images_have_mirrored_poses_and_guitars_have_none(prepared):
    records = read_records(prepared, "train")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    images = RecordImages(records, prepared / "train", processor, ["car", "guitar"], flip=True)
    assert len(images) == 12
    car = next(index for index, record in enumerate(records) if record.category == "car")
    plain, mirrored = images[car], next(images[i] for i, item in enumerate(images.items) if item == (car, True))
    torch.testing.assert_close(mirrored["pixel_values"], plain["pixel_values"].flip(-1), atol=0.05, rtol=0)
    torch.testing.assert_close(mirrored["angles"], plain["angles"] * torch.tensor([-1.0, 1.0, -1.0]))


def test_random_flips_are_of_every_category_half_and_half_and_the_same_whenever_they_are_drawn(prepared):
    records = read_records(prepared, "train")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    plain = RecordImages(records, prepared / "train", processor, ["car", "guitar"])
    flipped, again = (
        RecordImages(records, prepared / "train", processor, ["car", "guitar"], flip_seed=3) for _ in range(2)
    )
    assert len(flipped) == len(records)
    seen: dict[str, set[bool]] = {"car": set(), "guitar": set()}
    mirrored, drawn = 0, 0
    for epoch in range(20):
        flipped.set_epoch(epoch)
        again.set_epoch(epoch)
        for index, record in enumerate(records):
            item, whole = flipped[index], plain[index]
            assert torch.equal(item["pixel_values"], again[index]["pixel_values"])
            is_mirrored = not torch.equal(item["angles"], whole["angles"])
            sign = torch.tensor([-1.0, 1.0, -1.0]) if is_mirrored else torch.ones(3)
            torch.testing.assert_close(item["angles"], whole["angles"] * sign)
            pixels = whole["pixel_values"].flip(-1) if is_mirrored else whole["pixel_values"]
            torch.testing.assert_close(item["pixel_values"], pixels, atol=0.05, rtol=0)
            seen[record.category].add(is_mirrored)
            mirrored, drawn = mirrored + is_mirrored, drawn + 1
    assert seen == {"car": {False, True}, "guitar": {False, True}}
    assert 0.35 < mirrored / drawn < 0.65


def test_a_few_pictures_are_learnt_and_predicted(recipe, prepared):
    values = {**recipe, "rotation": "bins+residual", "max_steps": 80, "per_device_train_batch_size": 12}
    run(ClassifierConfig(**{**values, "split": "train", "logging_steps": 20}))
    predictions = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert [p.id for p in predictions] == [record.id for record in read_records(prepared, "train")]
    assert all(p.pred_category == p.category for p in predictions)
    errors = pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions])
    assert errors.max() < math.radians(10)
    assert {p.system for p in predictions} == {"pose-classifier"}


def test_thirty_two_pictures_are_overfitted_by_the_published_heads(raw_dataset, recipe):
    """Every pose of the training pictures within 10 degrees, every category right."""
    for index in range(32):
        category = ("bus", "cup", "chair", "sofa")[index % 4]
        pose = {"azimuth": 0.19 * index, "elevation": 0.1 + 0.01 * index, "theta": 0.1, "class": category}
        raw_dataset.add(f"n{index}", category=category, objects=[raw_dataset.object(**pose)])
    folder = raw_dataset.root.parent / "thirty_two"
    prepare(PrepareConfig(str(raw_dataset.root), str(folder), crop="box", size=32, workers=1))
    backbone = {"model_type": "bit", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4}
    values = {**recipe, "data": str(folder), "backbone": None, "backbone_config": backbone, "head_hidden_size": 0}
    values |= {"flip": False, "per_device_train_batch_size": 32, "max_steps": 60, "learning_rate": 1e-2}
    values |= {name: ["bus", "cup", "chair", "sofa"] for name in ("train_categories", "categories")}
    run(ClassifierConfig(**{**values, "split": "train", "logging_steps": 20}))
    predictions = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert len(predictions) == 32
    errors = pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions])
    assert errors.max() < math.pi / 18
    assert all(p.pred_category == p.category for p in predictions)


@pytest.mark.parametrize("image_size", [None, 64])
@pytest.mark.parametrize(
    "processor",
    [
        lambda: ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),  # as microsoft/resnet-50 has it
        lambda: ViTImageProcessor(size={"height": 32, "width": 32}),  # as Swin
        lambda: BitImageProcessor(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}),  # as DINOv2
    ],
)
def test_the_whole_of_a_prepared_picture_is_seen(recipe, tmp_path, processor, image_size):
    """A picture that is white but for a dark frame comes to the network with the frame."""
    AutoModel.from_config(small_resnet()).save_pretrained(tmp_path / "backbone")
    processor().save_pretrained(tmp_path / "backbone")
    config = ClassifierConfig(**{**recipe, "backbone": str(tmp_path / "backbone"), "image_size": image_size})
    model, image_processor = build_classifier(config, ["car"])
    side = image_size or 32
    picture = np.full((64, 64, 3), 255, dtype=np.uint8)
    picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 0
    pixels = image_processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    assert pixels.shape == (3, side, side)
    edges = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]])
    assert edges.max() < pixels[:, side // 2, side // 2].min() - 0.5
    assert model(torch.from_numpy(pixels)[None]).raw_rotation.shape == (1, 120)


@pytest.mark.parametrize("backbone", [small_resnet, small_swin])
def test_resnet_and_swin_go_the_whole_way(recipe, backbone, capsys):
    """Real classes, random weights, the published heads and optimiser, by the command."""
    described = {
        k: v for k, v in backbone().to_diff_dict().items() if k not in ("transformers_version", "architectures")
    }
    options = {
        **{"data": recipe["data"], "output_dir": recipe["output_dir"], "backbone-config": json.dumps(described)},
        **{"image-size": 32, "optim": "sgd", "optim-args": "momentum=0.9", "learning-rate": 0.01, "weight-decay": 1e-4},
        **{"max-steps": 2, "per-device-train-batch-size": 4, "logging-steps": 1, "categories": "car"},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main([*words, "--decay-all", "--use-cpu", "--disable-tqdm"]) == 0, capsys.readouterr().err
    model, _ = load_classifier(Path(recipe["output_dir"]))
    assert type(model.backbone).__name__ == type(AutoModel.from_config(backbone())).__name__
    assert model.config.rotation == "bins"
    (prediction,) = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert (prediction.category, prediction.pred_category in ("car", "guitar")) == ("car", True)


def test_a_vit_with_a_head_and_without_a_pooler_is_a_backbone(recipe, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    whole = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **shape))
    whole.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    values = {**recipe, "backbone": str(tmp_path / "vit")}
    model, _ = build_classifier(ClassifierConfig(**values), ["car"])
    assert torch.equal(model.backbone.layernorm.weight, whole.vit.layernorm.weight)
    with pytest.raises(InputError, match=r"--backbone .*vit: cannot be used \(") as caught:
        build_classifier(ClassifierConfig(**{**values, "image_size": 64}), ["car"])
    assert "\n" not in str(caught.value)


def test_the_rate_falls_by_epochs(recipe):
    """Eight pictures in batches of four are two steps an epoch, so that 1.5 epochs are three."""
    values = {**recipe, "flip": False, "per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 4}
    run(ClassifierConfig(**values, learning_rate=0.01, lr_step_epochs=1.5, lr_step_factor=0.1))
    rates = [line["learning_rate"] for line in log_of(Path(recipe["output_dir"]))]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 1e-4, 1e-4])


@pytest.mark.parametrize("name", ["resnet50_general", "swin_t_general"])
def test_the_published_schedule(recipe, prepared, name):
    """SGD 0.01, momentum 0.9, weight decay 1e-4 on everything, batch 64, 120 epochs, a tenth every 40."""
    file = Path(__file__).parents[3] / "scripts" / "recipes" / f"{name}.yaml"
    words = ["--config", str(file), "--data", str(prepared), "--output-dir", recipe["output_dir"], "--use-cpu"]
    words += ["--dataloader-num-workers", "0"]
    config = parse_config(ClassifierConfig, words, prog="classifier", description="", example="")
    assert (config.rotation, config.pooling, config.head_hidden_size) == ("bins", "mean", 0)
    assert (config.num_train_epochs, config.max_steps) == (120, -1)
    config.backbone, config.backbone_config, config.image_size = None, small_resnet().to_diff_dict(), 32
    model, processor = build_classifier(config, ["car"])
    records = read_records(prepared, "train") * 16  # two batches of 64
    trainer = ClassifierTrainer(
        model=model, args=config, train_dataset=RecordImages(records, prepared / "train", processor, ["car"])
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=240)
    optimizer = trainer.optimizer
    assert type(optimizer) is torch.optim.SGD
    assert sum(len(group["params"]) for group in optimizer.param_groups if group["weight_decay"] == 1e-4) == len(
        list(model.parameters())
    )
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    rates = []
    for _ in range(240):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        trainer.lr_scheduler.step()
    expected = [0.01] * 80 + [0.001] * 80 + [1e-4] * 80
    assert rates == pytest.approx(expected)


def test_bins_are_those_of_the_report():
    """Forty over [0, 2 pi), floor binning of wrapped angles, decoded at (b + 1/2) 9 degrees; theta 0 is on an edge."""
    degrees = np.array([[0.0, 8.9, 9.1], [359.9, -0.1, -89.0], [180.0, 360.0, 725.0]])
    assert angles_to_bins(np.radians(degrees)).tolist() == [[0, 0, 1], [39, 39, 30], [20, 0, 0]]
    np.testing.assert_allclose(np.degrees(bins_to_angles(np.array([0, 1, 39]))), [4.5, 13.5, 355.5])


@pytest.mark.parametrize(
    ("lost", "options"),
    [
        (["checkpoint-4"], {}),
        ([], {}),
        (["checkpoint-4"], {"random_flip": True, "per_device_train_batch_size": 3, "dataloader_num_workers": 1}),
    ],
)
def test_a_run_goes_on_where_it_was(recipe, tmp_path, lost, options):
    """Stopped on its way, or after its last checkpoint and before its end was marked; the rate falls in between. With random
    flips it is stopped in the middle of its first epoch, of three steps.
    """
    whole = {**recipe, "max_steps": 4, "save_steps": 2, "lr_step_epochs": 1.5, **options}
    run(ClassifierConfig(**whole))
    stopped = tmp_path / "stopped"
    run(ClassifierConfig(**{**whole, "output_dir": str(stopped)}))
    for name in (*lost, "training_done.json", "model.safetensors"):
        path = stopped / name
        path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()]
    run(ClassifierConfig(**{**whole, "output_dir": str(stopped)}))
    expected, found = (load_classifier(Path(f))[0].state_dict() for f in (recipe["output_dir"], stopped))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    logs = [log_of(Path(folder)) for folder in (recipe["output_dir"], stopped)]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert [line["learning_rate"] for line in logs[0]] == [line["learning_rate"] for line in logs[1]]


def test_a_run_does_not_go_on_under_another_recipe(recipe):
    """Ended or stopped; what is predicted at the end is no part of the recipe."""
    folder = Path(recipe["output_dir"])
    run(ClassifierConfig(**{**recipe, "save_steps": 1}))
    sentence = r"its run was begun with learning_rate 0\.001, not 0\.5 \(classifier\.yaml says so\); choose another"
    with pytest.raises(InputError, match=sentence):
        run(ClassifierConfig(**{**recipe, "learning_rate": 0.5}))
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    predictions = run(ClassifierConfig(**{**recipe, "split": "train", "system": "another"}))
    assert {line.system for line in read_predictions(predictions)} == {"another"}
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    (folder / "training_done.json").unlink()
    with pytest.raises(InputError, match="begun with rotation 'bins', not 'rot6d'"):
        run(ClassifierConfig(**{**recipe, "rotation": "rot6d"}))


def test_a_run_does_not_go_on_on_other_samples(recipe):
    run(ClassifierConfig(**{**recipe, "save_steps": 1}))
    (Path(recipe["output_dir"]) / "training_done.json").unlink()
    file = Path(recipe["data"]) / "train" / "metadata.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match=rf"was begun when {file} held other samples; choose another --output-dir"):
        run(ClassifierConfig(**recipe))
    run(ClassifierConfig(**{**recipe, "resume": False}))


def test_a_loss_that_is_not_finite_stops_the_run(recipe):
    """A learning rate beyond all measure: no weights that are no numbers are saved, whose bins would be poses like any."""
    values = {**recipe, "learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 4}
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step [2-4]; lower the learning rate$"):
        run(ClassifierConfig(**values))
    folder = Path(recipe["output_dir"])
    assert not (folder / "training_done.json").exists()
    assert not (folder / "predictions.jsonl").exists()


def test_asked_about_the_mirror_image_too_a_classifier_answers_for_both_alike(recipe, prepared, tmp_path):
    """The answer for the mirror image is the mirror image of the answer, of cars; a guitar is asked about once."""
    folder = Path(recipe["output_dir"])
    once = read_predictions(run(ClassifierConfig(**{**recipe, "split": "train", "max_steps": 100})))
    pictures = prepared / "train"
    options = {"data": str(prepared), "split": "train", "flip": True, "task": "joint"}
    asked = TrainedClassifierOptions(**options, checkpoint=str(folder), output_dir=str(tmp_path / "asked"))
    lossless(pictures)
    both = read_predictions(run_trained(asked))
    lossless(pictures, ImageOps.mirror)
    of_mirror = read_predictions(run_trained(replace(asked, output_dir=str(tmp_path / "mirror"))))
    kinds = [line.pred_category for line in both]
    assert set(kinds) == {"car", "guitar"}
    assert kinds == [line.pred_category for line in of_mirror]
    for single, line, other in zip(once, both, of_mirror, strict=True):
        if line.pred_category == "car":
            azimuth, elevation, theta = line.pose.angles
            assert pose_error(other.pose.angles, (-azimuth, elevation, -theta)) < 1e-3
        else:
            assert pose_error(line.pose.angles, single.pose.angles) < 1e-3


def test_a_category_that_is_given_decides_about_the_mirror_image(recipe, prepared, tmp_path):
    """In the pose task it is not the one that is found, which of a novel category is always wrong."""
    once = run(ClassifierConfig(**{**recipe, "train_categories": ["car"], "split": "train"}))
    options = {"data": str(prepared), "split": "train", "flip": True}
    config = TrainedClassifierOptions(**options, checkpoint=recipe["output_dir"], output_dir=str(tmp_path / "asked"))
    lines = list(zip(read_predictions(once), read_predictions(run_trained(config)), strict=True))
    assert {line.pred_category for _, line in lines} == {"car"}
    assert {line.category for _, line in lines} == {"car", "guitar"}
    guitars = [(single, line) for single, line in lines if line.category == "guitar"]
    assert all(line.pose.angles == pytest.approx(single.pose.angles, abs=1e-4) for single, line in guitars)
    config = replace(config, task="joint", output_dir=str(tmp_path / "found"))
    found = [line for line in read_predictions(run_trained(config)) if line.category == "guitar"]
    assert any(
        pose_error(line.pose.angles, other.pose.angles) > 1e-3 for (_, line), other in zip(guitars, found, strict=True)
    )


def run_trained(options: TrainedClassifierOptions) -> Path:
    return run_system(options, TrainedClassifier(options))


def lossless(folder: Path, change: Callable[[Image.Image], Image.Image] = lambda image: image) -> None:
    for path in folder.rglob("*.JPEG"):
        with Image.open(path) as image:
            changed = change(image.convert("RGB"))
        changed.save(path, format="PNG")


def test_a_trained_classifier_needs_a_classifier(prepared, tmp_path):
    config = {"data": str(prepared), "output_dir": str(tmp_path / "asked")}
    with pytest.raises(InputError, match=r"checkpoint .*/nowhere: there is no such folder; train one with"):
        run_trained(TrainedClassifierOptions(**config, checkpoint=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="--checkpoint: must not be null"):
        TrainedClassifierOptions(**config, checkpoint=None)


def test_the_backbone_is_a_tower(recipe, tmp_path):
    run(ClassifierConfig(**recipe))
    tower = Path(recipe["output_dir"]) / "backbone"
    base = assemble(AssembleConfig(out=str(tmp_path / "base"), preset="tiny", vision=str(tower)))
    expected = AutoModel.from_pretrained(tower).state_dict()
    found = load_model(base).tower.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": None}, "--backbone is needed"),
        ({"backbone_config": {"model_type": "resnet"}}, "--backbone is needed, or --backbone-config in its place"),
        ({"backbone": None, "backbone_config": {"depths": [1]}}, "--backbone-config .*: no transformers config"),
        (
            {"backbone": None, "backbone_config": {"model_type": "no-such"}},
            "--backbone-config .*: no transformers config",
        ),
        ({"backbone": None, "backbone_config": "[1]"}, "--backbone-config .*: must be a JSON object"),
        ({"lr_step_epochs": -1.0}, "--lr-step-epochs: must be at least 0, not -1.0"),
        ({"lr_step_epochs": 1.0, "warmup_steps": 3}, "--lr-step-epochs: the rate begins at its height"),
        ({"categories": ["sofa"]}, "--categories sofa: no object of it in .*val"),
        ({"backbone": "/none"}, "--backbone /none: cannot be loaded"),
        ({"rotation": "euler"}, "--rotation: must be one of svd9d, .*, not 'euler'"),
        ({"pooling": "max"}, "--pooling: must be one of mean, flatten, not 'max'"),
        ({"head_hidden_size": -1}, "--head-hidden-size: must be at least 0, not -1"),
        ({"save_total_limit": 1}, "--save-total-limit: must be at least 2"),
        ({"data": "/none"}, "--data /none: there is no such folder"),
        ({"train_categories": ["sofa"]}, "--train-categories sofa: no object of it"),
        ({"split": "test"}, "there is no split test in it, but "),
        ({"deepspeed": "zero_configs/zero2.json"}, "--deepspeed: .* train on several devices with torchrun"),
        (
            {"random_flip": True, "dataloader_persistent_workers": True, "dataloader_num_workers": 1},
            "--dataloader-persistent-workers: .* leave one of them out",
        ),
    ],
)
def test_what_makes_no_sense_is_one_sentence(recipe, options, match):
    with pytest.raises(InputError, match=match) as caught:
        run(ClassifierConfig(**{**recipe, **options}))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_system_is_refused(tiny_base, prepared):
    with pytest.raises(InputError, match=f"{tiny_base}: ") as caught:
        predict(tiny_base, read_records(prepared, "val"), prepared / "val", system="x")
    assert "pose classifier" in str(caught.value)


def test_the_command_says_what_is_wrong(prepared, capsys):
    write_jsonl(prepared / "val" / "metadata.jsonl", [])
    assert main(["--backbone", "tiny", "--data", str(prepared)]) == 2
    assert capsys.readouterr().err == "error: the option --output-dir is needed; see llava-pose classifier --help\n"
