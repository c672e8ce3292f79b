"""`llava-pose neural-mesh`: that it learns, goes on, predicts, and says what is wrong; the same in two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from eval.systems.classifier.system import load_classifier
from eval.systems.neural_mesh.command import main
from eval.systems.neural_mesh.data import MeshImages
from eval.systems.neural_mesh.system import NeuralMeshRunConfig, load_neural_mesh, predict, run
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import read_predictions, read_records, write_records
from llava_pose.errors import InputError
from llava_pose.model.loading import load_model
from llava_pose.pose.geometry import project_points
from llava_pose.pose.metrics import pose_error
from tests.forked import run_together

BOXES = {"car": ((-0.2, -0.4, -0.15), (0.2, 0.4, 0.15)), "guitar": ((-0.15, -0.05, -0.45), (0.15, 0.05, 0.45))}


@pytest.fixture
def prepared(cars_and_guitars) -> Path:
    return cars_and_guitars("pose")


@pytest.fixture
def cad(tmp_path: Path) -> Path:
    for category, corners in BOXES.items():
        folder = tmp_path / "cad" / category
        folder.mkdir(parents=True)
        rows = [" ".join(map(str, corner)) for corner in (*corners, (0, 0, 0))]
        (folder / "01.off").write_text("\n".join(["OFF", "3 1 0", *rows, "3 0 1 2"]) + "\n")
    return tmp_path / "cad"


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(prepared),
        "output_dir": str(tmp_path / "run"),
        "backbone": "tiny",
        "image_size": 32,
        "vertices": 80,
        "samples_per_image": 16,
        "per_device_train_batch_size": 6,
        "max_steps": 2,
        "logging_steps": 1,
        "refine_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
    }


def test_pictures_and_their_mirror_images_come_with_the_cameras_that_show_them(prepared):
    """A point of the car, and its mirror image across x = 0, fall on places that mirror each other."""
    records = read_records(prepared, "train")
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    images = MeshImages(records, prepared / "train", processor, ["car", "guitar"], flip=True)
    assert len(images) == 12
    car = next(index for index, record in enumerate(records) if record.category == "car")
    plain, mirrored = images[car], images[images.items.index((car, True))]
    torch.testing.assert_close(mirrored["pixel_values"], plain["pixel_values"].flip(-1), atol=0.05, rtol=0)

    def place(item: dict[str, torch.Tensor], point: tuple[float, float, float]) -> np.ndarray:
        azimuth, elevation, theta = item["angles"].double().numpy()
        px, py = item["principal"].double().numpy()
        pose = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "distance": float(item["distance"])}
        return project_points(np.array(point), **pose, px=px, py=py, viewport=float(item["focal"]))

    u, v = place(plain, (0.2, 0.3, 0.1))
    np.testing.assert_allclose(place(mirrored, (-0.2, 0.3, 0.1)), (32 - u, v), atol=1e-4)
    record = records[car]
    whole = project_points(
        np.array((0.2, 0.3, 0.1)),
        **vars(record.pose),
        viewport=record.viewport,
    )
    np.testing.assert_allclose((u, v), whole / 2, atol=1e-4)  # 64 prepared pixels, 32 in the network


@pytest.mark.parametrize("mesh", ["sphere", "cuboid"])
def test_a_few_pictures_are_learnt_and_predicted(recipe, prepared, cad, mesh):
    values = {**recipe, "mesh": mesh, "task": "joint", "cad": str(cad), "flip": False, "max_steps": 60}
    values |= {"per_device_train_batch_size": 8, "split": "train", "refine_steps": 30}
    run(NeuralMeshRunConfig(**{**values, "image_size": 64, "vertices": 300, "learning_rate": 3e-3}))
    predictions = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert [p.id for p in predictions] == [record.id for record in read_records(prepared, "train")]
    assert all(p.pred_category == p.category for p in predictions)
    errors = np.degrees(pose_error([p.pose.angles for p in predictions], [p.true.angles for p in predictions]))
    assert np.median(errors) < 10
    assert errors.max() < 30
    assert {p.system for p in predictions} == {{"sphere": "nmm-sphere", "cuboid": "novum"}[mesh]}
    for p in predictions:  # prepared by --crop pose: place and size are known
        assert math.hypot(p.pose.px - p.true.px, p.pose.py - p.true.py) < 1
        assert abs(p.pose.distance / p.true.distance - 1) < 0.05


def test_one_sphere_for_all_names_no_category_and_takes_any(recipe, prepared):
    run(NeuralMeshRunConfig(**{**recipe, "train_categories": ["guitar"], "categories": ["car"]}))
    (prediction,) = read_predictions(Path(recipe["output_dir"]) / "predictions.jsonl")
    assert (prediction.category, prediction.pred_category) == ("car", None)
    assert 0 <= prediction.confidence <= 1


@pytest.mark.parametrize("lost", [["checkpoint-4"], []])
def test_a_run_goes_on_where_it_was(recipe, tmp_path, lost):
    """Stopped on its way, or after its last checkpoint and before its end was marked: memory and all."""
    whole = {**recipe, "max_steps": 4, "save_steps": 2, "task": "joint"}
    run(NeuralMeshRunConfig(**whole))
    stopped = tmp_path / "stopped"
    run(NeuralMeshRunConfig(**{**whole, "output_dir": str(stopped)}))
    for name in (*lost, "training_done.json", "model.safetensors"):
        path = stopped / name
        path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()]
    run(NeuralMeshRunConfig(**{**whole, "output_dir": str(stopped)}))
    expected, found = (load_file(Path(f) / "model.safetensors") for f in (recipe["output_dir"], stopped))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    logs = [(Path(folder) / "metrics.jsonl").read_text().splitlines() for folder in (recipe["output_dir"], stopped)]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


def test_two_processes_remember_and_learn_what_one_does(recipe, tmp_path):
    values = {**recipe, "task": "joint", "max_steps": 3, "optim": "sgd", "learning_rate": 0.05}
    run(NeuralMeshRunConfig(**values))
    apart = {**values, "output_dir": str(tmp_path / "apart"), "per_device_train_batch_size": 3, "ddp_backend": "gloo"}
    (tmp_path / "recipe.json").write_text(json.dumps(apart))  # JSON is YAML
    done = run_together(["neural-mesh", "--config", str(tmp_path / "recipe.json")], tmp_path / "log")
    assert done.returncode == 0, done.said[-2000:]
    expected, found = (load_file(Path(f) / "model.safetensors") for f in (recipe["output_dir"], tmp_path / "apart"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=2e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": None}, "--backbone: must not be null"),
        ({"backbone": "/none"}, "--backbone /none: cannot be loaded"),
        ({"mesh": "cube"}, "--mesh: must be one of sphere, cuboid, not 'cube'"),
        ({"grid": "fine"}, "--grid: must be one of train, uniform, published, not 'fine'"),
        ({"mesh": "cuboid"}, "--mesh cuboid: needs CAD models; give --cad"),
        ({"mesh": "cuboid", "cad": "/none"}, "--cad /none: there is no such folder"),
        ({"task": "class"}, "--task: must be one of pose, joint, not 'class'"),
        ({"gradient_accumulation_steps": 2}, "--gradient-accumulation-steps 2: vertex features"),
        ({"vertices": 3}, "--vertices: must be at least 12, not 3"),
        ({"sphere_radius": 0.0}, "--sphere-radius: must be over 0, not 0.0"),
        ({"data": "/none"}, "--data /none: there is no such folder"),
        ({"train_categories": ["sofa"]}, "--train-categories sofa: no object of it"),
        ({"categories": ["guitar"]}, "--categories guitar: no object of it"),
        ({"split": "test"}, "there is no split test in it, but "),
        ({"deepspeed": "zero_configs/zero2.json"}, "--deepspeed: .* train on several devices with torchrun"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(recipe, options, match):
    with pytest.raises(InputError, match=match) as caught:
        run(NeuralMeshRunConfig(**{**recipe, "max_steps": 1, **options}))
    assert "\n" not in str(caught.value)
    assert not (Path(recipe["output_dir"]) / "metrics.jsonl").exists(), "it trained before it looked"


def test_a_category_without_a_cad_model_is_named_before_anything_is_trained(recipe, cad):
    (cad / "guitar" / "01.off").unlink()
    with pytest.raises(InputError, match=r"there is no CAD model of 'guitar'; add guitar/01\.off"):
        run(NeuralMeshRunConfig(**{**recipe, "mesh": "cuboid", "cad": str(cad)}))
    assert not (Path(recipe["output_dir"]) / "metrics.jsonl").exists()


def test_objects_without_a_camera_are_left_out_and_oblong_pictures_refused(recipe, prepared, caplog):
    records = read_records(prepared, "train")
    values = [record.to_dict() for record in records]
    values[0]["pose"]["distance"] = None
    path = prepared / "train" / "metadata.jsonl"
    write_jsonl(path, values)
    with caplog.at_level("WARNING"):
        run(NeuralMeshRunConfig(**{**recipe, "max_steps": 1}))
    assert "1 objects without distance, px or py are left out" in caplog.text
    write_jsonl(path, [{**value, "pose": {**value["pose"], "distance": None}} for value in values])
    with pytest.raises(InputError, match="no object has a distance"):
        run(NeuralMeshRunConfig(**{**recipe, "output_dir": recipe["output_dir"] + "2"}))
    write_jsonl(path, [{**value, "width": 80} for value in values])
    with pytest.raises(InputError, match="is 80x64 pixels, not square"):
        run(NeuralMeshRunConfig(**{**recipe, "output_dir": recipe["output_dir"] + "3"}))
    write_records(prepared, "train", records)


def test_checkpoints_of_other_systems_are_refused_either_way(tiny_base, recipe, prepared):
    with pytest.raises(InputError, match=f"{tiny_base}: a compact llava model, not a neural mesh; make one with"):
        predict(tiny_base, [], prepared / "val", system="x")
    run(NeuralMeshRunConfig(**{**recipe, "max_steps": 1}))
    folder = Path(recipe["output_dir"])
    load_neural_mesh(folder)
    with pytest.raises(InputError, match="a neural mesh model, not a pose classifier; make one with"):
        load_classifier(folder)
    with pytest.raises(InputError, match="neural_mesh"):
        load_model(folder)
    with pytest.raises(InputError, match=r"config\.json: cannot be read .*is this a whole checkpoint"):
        load_neural_mesh(prepared)


def test_the_command_says_what_is_wrong(prepared, capsys):
    assert main(["--backbone", "tiny", "--data", str(prepared)]) == 2
    assert capsys.readouterr().err == "error: the option --output-dir is needed; see llava-pose neural-mesh --help\n"
