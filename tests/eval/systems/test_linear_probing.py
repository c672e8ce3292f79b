"""Linear probing from prepared data to predictions: the grid, the hold-out, what is done once, bad input in a sentence."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from eval.benchmark.command import linear_probing as main
from eval.benchmark.command import main as benchmark_main
from eval.systems.linear_probe.backbone import FeatureSet, load_probe_backbone
from eval.systems.linear_probe.features import build_features
from eval.systems.linear_probe.options import LinearProbeOptions
from eval.systems.linear_probe.retrieval import neighbour_scores
from eval.systems.linear_probe.system import hold_out, run
from eval.systems.linear_probe.training import ProbeWeights, half_mirrored
from llava_pose.data.images import load_rgb
from llava_pose.data.records import ObjectRecord, Pose, read_predictions, read_records, write_records
from llava_pose.errors import InputError
from llava_pose.pose.geometry import angles_to_bins, bins_to_angles
from llava_pose.pose.metrics import pose_error
from tests.forked import run as run_forked
from tests.forked import run_together

REPOSITORY = Path(__file__).resolve().parents[3]


def a_record(category: str, image: str, instance: str = "", pose: Pose | None = None) -> ObjectRecord:
    source = {"image": image, "instance": instance, "source": "made"}
    id_ = f"{category}/{image}/0"
    return ObjectRecord(image, id_, category, pose or Pose(0.0, 0.0, 0.0), 1.0, 32, 32, (0, 0, 32, 32), source=source)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough that pictures differ."""
    folder = tmp_path_factory.mktemp("backbone") / "vit"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8, initializer_range=0.2)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """32 objects to train on, of two categories and 16 instances; three to predict."""
    rng = np.random.default_rng(0)

    def made(split: str, name: str, category: str, azimuth: float, elevation: float, instance: str) -> ObjectRecord:
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = tmp_path / "prepared" / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((32, 32), Image.Resampling.BICUBIC).save(path)
        return a_record(category, path.name, instance, pose=Pose(azimuth, elevation, 0.1))

    train = [
        made("train", f"{category}{i}", category, 0.2 + 0.39 * i, 0.3 - 0.02 * i, f"i{i // 2}")
        for i in range(16)
        for category in ("car", "guitar")
    ]
    val = [
        made("val", name, category, 0.7, 0.2, "v") for name, category in (("a", "car"), ("b", "car"), ("c", "guitar"))
    ]
    write_records(tmp_path / "prepared", "train", train)
    write_records(tmp_path / "prepared", "val", val)
    return tmp_path / "prepared"


@pytest.fixture
def recipe(prepared: Path, backbone: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(prepared),
        "output_dir": str(tmp_path / "run"),
        "backbone": str(backbone),
        "learning_rates": [0.001, 0.05],
        "epochs": 4,
    }


def grid_of(recipe: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(recipe["output_dir"]) / "probe_grid.json").read_text())


def test_32_pictures_are_learnt_by_heart(recipe):
    values = {**recipe, "split": "train", "epochs": 400, "learning_rates": [0.05], "batch_size": 32}
    predictions = read_predictions(run(LinearProbeOptions(**values)))
    assert len(predictions) == 32
    true = np.array([p.true.angles for p in predictions])
    errors = pose_error([p.pose.angles for p in predictions], true)
    assert (errors < np.radians(10)).all(), "within the width of a bin: accuracy 100%"
    expected = bins_to_angles(angles_to_bins(true))
    assert pose_error([p.pose.angles for p in predictions], expected).max() < 1e-6


def test_the_cell_is_chosen_on_the_hold_out_and_what_the_predicted_split_would_choose_stands_beside_it(recipe):
    predictions = read_predictions(run(LinearProbeOptions(**recipe, system="probe")))
    grid = grid_of(recipe)
    cells = grid["cells"]
    assert len(cells) == 2 * 2 * 2  # of four layers, last four and four uniform are the same
    assert {(c["layers"], c["pooling"], c["learning_rate"]) for c in cells} >= {("last-4", "cls+patches", 0.05)}
    assert grid["selected"]["holdout"]["acc@30"] == max(cell["holdout"]["acc@30"] for cell in cells)
    assert grid["selected_on_predicted"]["predicted"]["acc@30"] == max(c["predicted"]["acc@30"] for c in cells)
    assert grid["objects"] == {"train": 32, "held_out": 8, "predicted": 3}
    assert [p.id for p in predictions] == [record.id for record in read_records(recipe["data"], "val")]
    assert {p.system for p in predictions} == {"probe"}
    assert all(p.pred_category is None and 0 < p.confidence <= 1 for p in predictions)
    errors = pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions])
    assert np.isclose((errors < np.pi / 6).mean(), grid["selected"]["predicted"]["acc@30"])
    probe = load_file(Path(recipe["output_dir"]) / "probe.safetensors")
    assert probe["weight"].shape[:2] == probe["bias"].shape == (3, 40)


def test_named_features_alone_are_probed_and_score_as_in_the_whole_grid(recipe, tmp_path):
    run(LinearProbeOptions(**recipe))
    whole = [cell for cell in grid_of(recipe)["cells"] if (cell["layers"], cell["pooling"]) == ("last-4", "cls")]
    named = {**recipe, "output_dir": str(tmp_path / "named")}
    run(LinearProbeOptions(**named, features=["last-4:cls"]))
    assert grid_of(named)["cells"] == whole


def test_the_head_of_spatial_reasoner_is_one_set_of_features_of_raw_states(tmp_path):
    """srdatagen/pose_utils.py takes CLS tokens of the hidden states at a quarter, a half, three quarters and the end."""
    values = yaml.safe_load(
        (REPOSITORY / "scripts" / "recipes" / "spatial_reasoner_probe.yaml").read_text(encoding="utf-8")
    )
    shape = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "mlp_ratio": 1}
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=14)).eval()
    model.save_pretrained(tmp_path / "dinov2")
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "dinov2")
    backbone = load_probe_backbone(
        str(tmp_path / "dinov2"), center_crop=values["center_crop"], final_norm=values["final_norm"]
    )
    backbone.keep(values["features"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    pixels = backbone.image_processor([picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states[1:]
    seen = backbone.split(torch.from_numpy(backbone.features([picture])))
    (feature_set,) = backbone.feature_sets
    found = torch.cat([seen[block] for block in feature_set.blocks], 1)
    expected = torch.cat([states[12 // 4 - 1][:, 0], states[12 // 2 - 1][:, 0], states[8][:, 0], states[11][:, 0]], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_with_random_flips_probes_learn_pictures_and_their_mirror_images(recipe):
    """A probe of a capacity to learn 32 pictures by heart answers for each mirror image with the mirrored pose."""
    values = {
        **recipe,
        "split": "train",
        "epochs": 800,
        "learning_rates": [0.05],
        "batch_size": 32,
        "random_flip": True,
    }
    predictions = read_predictions(run(LinearProbeOptions(**values)))
    true = np.array([p.true.angles for p in predictions])
    assert (pose_error([p.pose.angles for p in predictions], true) < np.radians(10)).all()
    probe = load_file(Path(recipe["output_dir"]) / "probe.safetensors")
    with safe_open(Path(recipe["output_dir"]) / "probe.safetensors", "pt") as file:
        blocks = file.metadata()["blocks"].split()
    backbone = load_probe_backbone(recipe["backbone"])
    records = read_records(recipe["data"], "train")
    mirrored = [ImageOps.mirror(load_rgb(Path(recipe["data"]) / "train" / record.file_name)) for record in records]
    seen = backbone.split(torch.from_numpy(backbone.features(mirrored)))
    logits = ProbeWeights(probe["weight"], probe["bias"]).logits(torch.cat([seen[name] for name in blocks], 1))
    answers = bins_to_angles(logits.argmax(-1).numpy())
    assert (pose_error(answers, true * [-1, 1, -1]) < np.radians(10)).all()


def test_the_nearest_neighbour_is_of_the_own_category_and_its_pose_error_is_counted():
    """Three cars and two cups to find; a car asks, whose features are a cup's first of all, and a chair, which has no like."""
    degrees = np.array([0, 40, 90, 0, 10, 0, 0])
    angles = np.stack([np.radians(degrees), np.zeros(7), np.zeros(7)], -1)
    features = torch.tensor([[0.0, 1.0], [1.0, 0.5], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.1], [1.0, 1.0]])
    names = ["car", "car", "car", "cup", "cup", "car", "chair"]
    sets = [FeatureSet("last", "cls", ("a",)), FeatureSet("last", "cls+patches", ("a", "b"))]
    blocks = {"a": features, "b": features * torch.tensor([[1.0, 0.0]])}
    found = neighbour_scores(blocks, sets, angles, names, searched=np.arange(5), asked=np.arange(5, 7), seed=0)
    for scores in found:
        assert scores["n"] == 1
        assert scores["mean_deg"] == pytest.approx(40)
        assert scores["mean_of_5_deg"] == pytest.approx((0 + 40 + 90) / 3)
        assert min(abs(scores["random_deg"] - error) for error in (0, 40, 90)) < 1e-6
    alone = neighbour_scores(blocks, sets, angles, names, searched=np.arange(5), asked=np.array([6]), seed=0)
    assert [(scores["n"], scores["mean_deg"], scores["random_deg"]) for scores in alone] == [(0, None, None)] * 2


def test_mirror_images_take_the_place_of_half_of_the_objects():
    batches = [torch.arange(500), torch.arange(500, 1000)]
    flipped = torch.cat(half_mirrored(batches, 2000, seed=1))
    assert (flipped % 2000).tolist() == list(range(1000))
    assert 400 < int((flipped >= 2000).sum()) < 600


def test_what_is_done_is_not_done_again_and_another_setting_is_refused(recipe):
    out = run(LinearProbeOptions(**recipe))
    before = out.stat().st_mtime_ns
    assert run(LinearProbeOptions(**recipe)).stat().st_mtime_ns == before
    with pytest.raises(InputError, match="was begun with epochs 4, not 5; choose another --output-dir"):
        run(LinearProbeOptions(**{**recipe, "epochs": 5}))
    features = next((Path(recipe["output_dir"]) / "features").glob("*/features.mmap"))
    held = features.stat().st_mtime_ns
    other = {
        "output_dir": recipe["output_dir"] + "_other",
        "cache_dir": recipe["output_dir"] + "/features",
        "epochs": 5,
    }
    assert run(LinearProbeOptions(**{**recipe, **other})).stat().st_mtime_ns > before
    assert features.stat().st_mtime_ns == held, "features do not depend on the probes' settings"


@pytest.mark.slow
def test_predictions_of_a_run_that_was_killed_are_not_taken_for_done(recipe, backbone, tmp_path):
    """Killed after the predictions and before their scores: the same command goes on, and no other does."""
    output = Path(recipe["output_dir"])

    def words(epochs: int) -> list[str]:
        common = ["--data", recipe["data"], "--output-dir", str(output), "--backbones", f"vit={backbone}"]
        return [*common, "--epochs", str(epochs), "--learning-rates", "0.05"]

    killed = run_forked(["linear-probing", *words(4)], tmp_path / "log", kill_at="vit/probe_grid.json")
    assert killed.returncode == -signal.SIGKILL, killed.said[-2000:]
    predictions = output / "vit" / "predictions.jsonl"
    expected = predictions.read_bytes()
    assert main(words(40)) == 2
    assert not (output / "vit" / "probe_grid.json").exists()
    assert main(words(4)) == 0
    assert predictions.read_bytes() == expected
    assert (output / "vit" / "probe_grid.json").exists()


def test_categories_and_limit_choose_objects(recipe):
    values = {**recipe, "train_categories": ["car"], "categories": ["Guitar"], "limit": 10}
    predictions = read_predictions(run(LinearProbeOptions(**values)))
    assert [p.category for p in predictions] == ["guitar"]
    assert grid_of(recipe)["objects"]["train"] == 10


def test_instances_are_held_out_whole_and_of_every_category():
    records = [a_record("car", f"c{i}", f"model{i // 5}") for i in range(50)]
    records += [a_record("cup", f"u{i // 2}") for i in range(20)] + [a_record("bus", "b")]
    held = hold_out(records, 0.2, seed=0)
    for name in {r.source["instance"] for r in records if r.source["instance"]}:
        assert len({bool(h) for h, r in zip(held, records, strict=True) if r.source["instance"] == name}) == 1
    assert held[:50].sum() == 10
    assert held[50:70].sum() == 4
    assert held[50:70:2].tolist() == held[51:70:2].tolist(), "two objects of one picture stay together"
    assert not held[70], "the only object of its category is trained on"
    assert not np.array_equal(held, hold_out(records, 0.2, seed=1))
    assert np.array_equal(held, hold_out(records, 0.2, seed=0))


def test_processes_that_share_the_features_get_those_of_one(prepared, backbone, tmp_path):
    records = read_records(prepared, "train")
    images = [f"train/{record.file_name}" for record in records]
    loaded = load_probe_backbone(str(backbone))
    for index in (1, 0):
        both = build_features(tmp_path / "both", prepared, images, loaded, share=(index, 2))
    alone = build_features(tmp_path / "alone", prepared, images, load_probe_backbone(str(backbone)))
    assert both.name == alone.name
    assert both.cache.missing() == []
    torch.testing.assert_close(both.of(images), alone.of(images), rtol=1e-5, atol=1e-5)
    expected = loaded.features([load_rgb(prepared / image) for image in images[:2]])
    np.testing.assert_allclose(alone.of(images[:2]).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_predict_what_one_does(recipe, tmp_path):
    words = [f"--{name.replace('_', '-')}={recipe[name]}" for name in ("data", "epochs")]
    words += ["--backbones", f"vit={recipe['backbone']}", "--learning-rates", "0.001", "0.05"]
    found = []
    for processes in (run_forked, run_together):
        out = tmp_path / processes.__name__
        done = processes(["linear-probing", *words, "--output-dir", str(out)], tmp_path / "log")
        assert done.returncode == 0, done.said
        found.append([(p.id, p.pose.angles) for p in read_predictions(out / "vit" / "predictions.jsonl")])
    assert found[0] == found[1]


def test_the_command_runs_several_backbones_and_makes_the_table(recipe, backbone, capsys):
    out = Path(recipe["output_dir"])
    words = ["--data", recipe["data"], "--output-dir", str(out), "--epochs", "2", "--learning-rates", "0.01"]
    words += ["--backbones", f"ViT-A/8={backbone}", f"B={backbone}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("ViT-A/8 ", "B "))][:2] == [
        "ViT-A/8",
        "B",
    ]
    files = [out / folder / "predictions.jsonl" for folder in ("ViT-A-8", "B")]
    assert {p.system for p in read_predictions(files[0])} == {"ViT-A/8"}
    table = json.loads((out / "table1.json").read_text())
    assert table["files"] == [str(file) for file in files]
    for name, file in zip(("ViT-A/8", "B"), files, strict=True):
        grid = json.loads(file.with_name("probe_grid.json").read_text())
        assert table["systems"][name]["test_selected"]["acc@30"] == grid["selected_on_predicted"]["predicted"]["acc@30"]
        assert table["systems"][name]["overall"]["acc@30"]["value"] == grid["selected"]["predicted"]["acc@30"]
    assert "probe chosen on test" in (out / "table1.md").read_text()
    grid = json.loads(files[1].with_name("probe_grid.json").read_text())
    assert [found["n"] for found in grid["retrieval"]] == [3] * 4, "a set of features each"
    near = table["systems"]["B"]["neighbours"]
    assert near in [{key: found[key] for key in near} for found in grid["retrieval"]]
    assert "| nearest neighbour ° |" in (out / "table1.md").read_text()


def test_a_benchmark_of_table_1_takes_probes_and_others(recipe, backbone, tmp_path, capsys):
    probe = {"kind": "linear-probe", "options": {"backbone": str(backbone), "epochs": 2, "learning_rates": [0.01]}}
    systems = [{"name": "vit", "title": "ViT-A/8", **probe}]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"table": 1, "systems": systems, "categories": ["car"]}))
    words = ["--config", str(tmp_path / "recipe.yaml"), "--data", recipe["data"], "--output-dir", recipe["output_dir"]]
    assert benchmark_main(words) == 0, capsys.readouterr().err
    predictions = read_predictions(Path(recipe["output_dir"]) / "vit" / "predictions.jsonl")
    assert {(p.system, p.category) for p in predictions} == {("ViT-A/8", "car")}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data": ""}, "--data: must be text"),
        ({"data": "/none"}, "--data /none: there is no such folder"),
        ({"output_dir": ""}, "--output-dir: must be text"),
        ({"backbone": ""}, "--backbone: must be text"),
        ({"train_categories": ["sofa"]}, "--train-categories sofa: no object of it"),
        ({"categories": ["sofa"]}, "--categories sofa: no object of it"),
        ({"split": "test"}, "there is no split test in it, but "),
        ({"epochs": 0}, "--epochs: must be over 0"),
        ({"holdout": 1.0}, "--holdout: must be less than 1"),
        ({"learning_rates": [0.0]}, "--learning-rates: must be over 0"),
        ({"limit": 1}, "1 objects are too few to hold some out"),
        (
            {"features": ["uniform-3:cls"]},
            "--features uniform-3:cls: .* no such features; choose of last:cls, last:",
        ),
        ({"mae_mask": 1.0}, "--mae-mask: must be less than 1"),
        ({"center_crop": True, "image_size": 32}, "--center-crop: .* leave one of them out"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(recipe, options, match):
    with pytest.raises(InputError, match=match) as caught:
        run(LinearProbeOptions(**{**recipe, **options}))
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_one_sentence(recipe):
    write_records(recipe["data"], "val", [])
    with pytest.raises(InputError, match="val: there is no object in it"):
        run(LinearProbeOptions(**recipe))


def test_backbones_are_looked_at_before_the_first_is_run(recipe, backbone, tmp_path, capsys):
    text = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(text).save_pretrained(tmp_path / "llama")
    words = ["--data", recipe["data"], "--output-dir", recipe["output_dir"], "--backbones"]
    for backbones, expected in (
        ([f"A={backbone}", f"B={tmp_path / 'llama'}"], "is a llama model, not a vision model"),
        ([f"A={backbone}", f"A={backbone}"], "has the same folder"),
        ([str(backbone)], "write NAME=HUB_ID_OR_FOLDER"),
    ):
        assert main([*words, *backbones]) == 2
        error = capsys.readouterr().err
        assert expected in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not Path(recipe["output_dir"]).exists()
