"""The pose classifier: its heads, that it learns, goes on, predicts, and gives its backbone away as a tower."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, ResNetConfig, SwinConfig, ViTImageProcessor

from data_prep.prepare import PrepareConfig, prepare
from eval.baselines.classifier import ClassifierConfig, RecordImages, load_classifier, main, predict, run
from eval.baselines.classifier_model import PoseClassifier, PoseClassifierConfig
from llava_pose.errors import InputError
from llava_pose.geometry import angles_from_rotation, angles_to_bins, bins_to_angles
from llava_pose.metrics import pose_error
from llava_pose.model.assemble import AssembleConfig, assemble
from llava_pose.model.loading import load_model
from llava_pose.records import read_predictions, read_records, write_jsonl


@pytest.fixture
def prepared(raw_dataset) -> Path:
    """Four cars and four guitars for training, a car for validation."""
    for index in range(4):
        for category in ("car", "guitar"):
            pose = {"azimuth": 0.4 + 1.5 * index, "elevation": 0.3, "theta": 0.1 * index, "class": category}
            raw_dataset.add(f"{category}{index}", category=category, objects=[raw_dataset.object(**pose)])
    raw_dataset.add("unseen", split="val")
    return prepare(
        PrepareConfig(str(raw_dataset.root), str(raw_dataset.root.parent / "prepared"), crop="box", size=64, workers=1)
    )


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


def test_mirror_images_have_mirrored_poses_and_guitars_have_none(prepared):
    records = read_records(prepared, "train")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    images = RecordImages(records, prepared / "train", processor, ["car", "guitar"], flip=True)
    assert len(images) == 12
    car = next(index for index, record in enumerate(records) if record.category == "car")
    plain, mirrored = images[car], next(images[i] for i, item in enumerate(images.items) if item == (car, True))
    torch.testing.assert_close(mirrored["pixel_values"], plain["pixel_values"].flip(-1), atol=0.05, rtol=0)
    torch.testing.assert_close(mirrored["angles"], plain["angles"] * torch.tensor([-1.0, 1.0, -1.0]))


def test_a_few_pictures_are_learnt_and_predicted(recipe, prepared):
    values = {**recipe, "rotation": "bins+residual", "max_steps": 80, "per_device_train_batch_size": 12}
    run(ClassifierConfig(**{**values, "predict_split": "train", "logging_steps": 20}))
    predictions = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert [p.id for p in predictions] == [record.id for record in read_records(prepared, "train")]
    assert all(p.pred_category == p.category for p in predictions)
    errors = pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions])
    assert errors.max() < math.radians(10)
    assert {p.system for p in predictions} == {"pose-classifier"}


@pytest.mark.parametrize("lost", [["checkpoint-4"], []])
def test_a_run_goes_on_where_it_was(recipe, tmp_path, lost):
    """Stopped on its way, or after its last checkpoint and before its end was marked."""
    whole = {**recipe, "max_steps": 4, "save_steps": 2}
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
    logs = [(Path(folder) / "log.jsonl").read_text().splitlines() for folder in (recipe["output_dir"], stopped)]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


def test_the_backbone_is_a_tower(recipe, tmp_path):
    run(ClassifierConfig(**recipe))
    tower = Path(recipe["output_dir"]) / "backbone"
    base = assemble(AssembleConfig(out=str(tmp_path / "base"), preset="tiny", vision=str(tower)))
    expected = AutoModel.from_pretrained(tower).state_dict()
    found = load_model(base).model.vision_tower.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": None}, "--backbone is needed"),
        ({"backbone": "/none"}, "--backbone /none: cannot be loaded"),
        ({"rotation": "euler"}, "--rotation euler: not known; choose one of svd9d"),
        ({"pooling": "max"}, "--pooling max: not known; choose one of mean, flatten"),
        ({"head_hidden_size": -1}, "--head-hidden-size -1"),
        ({"save_total_limit": 1}, "save_total_limit: must be at least 2"),
        ({"data": "/none"}, "--data /none: there is no such folder"),
        ({"train_categories": ["sofa"]}, "--train-categories sofa: no object of it"),
        ({"predict_split": "test"}, "test"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(recipe, options, match):
    with pytest.raises(InputError, match=match) as caught:
        run(ClassifierConfig(**{**recipe, **options}))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_system_is_refused(tiny_base, prepared, tmp_path):
    with pytest.raises(InputError, match=f"{tiny_base}: ") as caught:
        predict(tiny_base, prepared, "val", tmp_path / "p.jsonl", system="x")
    assert "pose classifier" in str(caught.value)
    assert not (tmp_path / "p.jsonl").exists()


def test_the_command_says_what_is_wrong(prepared, capsys):
    write_jsonl(prepared / "val" / "metadata.jsonl", [])
    assert main(["--backbone", "tiny", "--data", str(prepared)]) == 2
    assert capsys.readouterr().err == "error: the option --output-dir is needed; see --help\n"
