"""`llava-pose neural-mesh`: train a neural mesh model (NMM-Sphere or NOVUM) on prepared data, and predict a split with it.

``--kind sphere`` is NMM-Sphere: one sphere whose features all categories share, or for ``--task joint`` one set of features
a category, which then names the category too. ``--kind cuboid`` is NOVUM: the mean bounding box of each
category's CAD models; categories are voted for, and the pose is searched with the predicted one.

A picture's true distance and place are used in training alone. At inference an object is expected where training objects
of its class, seen from about there, stood in their pictures, and the search may move it as far as these strayed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.systems.network import TINY, fit, load_backbone, load_network, rewrite_recipe, start_from, write_answers
from eval.systems.neural_mesh.data import MeshImages, square_records, with_cameras
from eval.systems.neural_mesh.geometry import Cuboid, cuboids_of
from eval.systems.neural_mesh.grid import (
    GRIDS,
    Cameras,
    covering_grid,
    expected_cameras,
    nearest_of,
    published_grid,
    uniform_grid,
)
from eval.systems.neural_mesh.model import KINDS, NeuralMesh, NeuralMeshConfig
from eval.systems.neural_mesh.search import SCORES, Meshes, PoseSearch, Starts, classify_and_search, interpolated
from eval.systems.record_images import category_of
from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.data.records import ObjectRecord, Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import loading
from llava_pose.model.processing import input_size
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.train.run import DONE_MARK, RunConfig, mark_done, require_same_recipe
from llava_pose.train.trainer import ResumableTrainer
from llava_pose.utils.config import command, require_folder
from llava_pose.utils.distributed import broadcast, first_process_holds, is_first_process
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)
RECIPE = "neural_mesh.yaml"
_OF_PREDICTION = ("score", "refine_steps", "refine_starts", "search_classes")  # an ended run predicts again with others
TASKS = ("pose", "joint")
SYSTEMS = {"sphere": "nmm-sphere", "cuboid": "novum"}
_BATCH = 32
_FINER = 3  # points that refinement uses to a vertex that has been learnt


@dataclass
class NeuralMeshRunConfig(RunConfig):
    """A run: transformers' TrainingArguments, with our defaults, and what a neural mesh model adds."""

    backbone: str | None = field(
        default=None,
        metadata={"help": "hub id or folder that AutoModel can load, or tiny: the random tower of --preset tiny"},
    )
    kind: str = field(default="sphere", metadata={"help": f"one of {', '.join(KINDS)}: NMM-Sphere or NOVUM"})
    task: str = field(
        default="pose", metadata={"help": f"one of {', '.join(TASKS)}; joint: a sphere has features for each category"}
    )
    cad: str | None = field(default=None, metadata={"help": "folder of <category>/NN.off, for --kind cuboid"})
    vertices: int = field(default=1000, metadata={"help": "of a mesh"})
    sphere_radius: float = field(default=0.4, metadata={"help": "object units; CAD models have a diagonal of 1"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the input, pixels; default: the backbone's"}
    )
    stride: int = field(default=8, metadata={"help": "input pixels to a position of the feature map"})
    samples_per_image: int = field(default=32, metadata={"help": "vertices of an image that enter the loss"})
    clutter_weight: float = field(default=0.1, metadata={"help": "of the background's term in the loss"})
    flip: bool = field(default=True, metadata={"help": "train on mirror images too, of categories that allow it"})
    grid: str = field(
        default="train",
        metadata={
            "help": f"rotations that a search starts from, one of {', '.join(GRIDS)}: a cover of the training rotations, "
            "--grid-size rotations over all there are, or the published 12 x 4 x 3"
        },
    )
    grid_radius: float = field(default=20.0, metadata={"help": "degrees; of --grid train"})
    grid_size: int = field(default=1152, metadata={"help": "rotations of --grid uniform"})
    score: str = field(
        default="ratio", metadata={"help": "of a pose: ratio, cosines over clutter by area; mean, as published"}
    )
    refine_steps: int = field(default=30, metadata={"help": "of gradient ascent; 0: the best pose of the grid"})
    refine_starts: int = field(default=3, metadata={"help": "poses of the grid that are refined"})
    search_classes: int = field(
        default=1,
        metadata={
            "help": "classes, most votes first, whose poses are searched; the best pose decides. 1: the votes alone"
        },
    )
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "train on these alone; default: every category of the train split"}
    )
    predict_split: str = field(default="val", metadata={"help": "split to predict at the end"})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "predict objects of these alone; default: every object of the split"}
    )
    system: str | None = field(default=None, metadata={"help": "name in the tables; default: nmm-sphere or novum"})

    per_device_train_batch_size: int = field(default=32, metadata={"help": "samples a step and device"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of everything"})
    num_train_epochs: float = field(default=10.0, metadata={"help": "passes over the samples, mirror images included"})
    logging_steps: float = field(default=20, metadata={"help": "steps between lines of the log"})
    save_steps: float = field(default=500, metadata={"help": "steps between checkpoints"})

    def __post_init__(self) -> None:
        self.require("data", "output-dir", "backbone")
        for option, known in (("kind", KINDS), ("task", TASKS), ("grid", GRIDS), ("score", SCORES)):
            if getattr(self, option) not in known:
                raise InputError(f"--{option} {getattr(self, option)}: not known; choose one of {', '.join(known)}")
        least = {"vertices": 12, "stride": 1, "samples_per_image": 1, "grid_size": 1, "refine_starts": 1}
        for name, value in {**least, "search_classes": 1, "refine_steps": 0}.items():
            if getattr(self, name) < value:
                option = name.replace("_", "-")
                raise InputError(f"--{option} {getattr(self, name)}: must be at least {value}")
        for name in ("sphere_radius", "grid_radius"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be positive")
        if self.kind == "cuboid" and not self.cad:
            raise InputError("--kind cuboid needs CAD models: give --cad, a folder of <category>/NN.off")
        if self.deepspeed:
            raise InputError("--deepspeed: a neural mesh is small; train on several devices with torchrun")
        if self.gradient_accumulation_steps > 1:
            raise InputError(
                f"--gradient-accumulation-steps {self.gradient_accumulation_steps}: vertex features are remembered at each "
                "forward pass, so that accumulating gradients would change them; train on more devices instead"
            )
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a backbone has layers behind its feature maps
        self.system = self.system or SYSTEMS[self.kind]
        super().__post_init__()

    @property
    def shares_bank(self) -> bool:
        """Whether all categories share one mesh and its features."""
        return self.kind == "sphere" and self.task == "pose"


def run(config: NeuralMeshRunConfig) -> Path:
    """Train (or go on), save the model, and write ``predictions.jsonl``; returns its path.

    Raises:
        InputError: bad data or settings.
    """
    output = Path(config.output_dir)
    with first_process_holds(own_folder(output, "--output-dir", "neural-mesh")):
        return _run(config, output)


def _run(config: NeuralMeshRunConfig, output: Path) -> Path:
    require_same_recipe(config, output / RECIPE, may_differ=_OF_PREDICTION)
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = square_records(config.data, config.predict_split, config.predict_categories, "--predict-categories")
    if broadcast((output / DONE_MARK).is_file()) and config.resume:
        logger.info(f"{output}: this run has ended; give --resume false to run again")
        rewrite_recipe(config, RECIPE)
    else:
        train(config)
    predictions = output / "predictions.jsonl"
    predict(
        output,
        records,
        Path(config.data) / config.predict_split,
        predictions,
        system=config.system,
        score=config.score,
        steps=config.refine_steps,
        starts=config.refine_starts,
        search_classes=config.search_classes,
        device=config.device,
    )
    if is_first_process():
        logger.info(f"{predictions}; next: llava-pose score {predictions} --out {output / 'scores.json'}")
    return predictions


def train(config: NeuralMeshRunConfig) -> None:
    """Train, and save model and processor to the output folder."""
    output = Path(config.output_dir)
    where = f"{config.data}/train"
    records = with_cameras(square_records(config.data, "train", config.train_categories, "--train-categories"), where)
    names = None if config.shares_bank else sorted({category_of(record).name for record in records})
    cuboids = cuboids_of(config.cad, names) if config.kind == "cuboid" else []
    set_seed(config.seed)
    backbone, backbone_config, image_processor = _backbone(config)
    dataset = MeshImages(records, Path(config.data) / "train", image_processor, names or (), flip=config.flip)
    cameras, distance = dataset.cameras()
    grid = _grid(config, cameras)
    model = build_model(config, backbone_config, names or [], cuboids, image_processor, len(grid))
    start_from(model, backbone)
    _expect(model, cameras, distance, grid)
    logger.info(
        f"{len(dataset)} samples (mirror images included), {model.config.classes} meshes of {config.vertices} vertices, "
        f"{model.num_parameters() / 1e6:.2f} M parameters"
    )
    trainer, done = fit(ResumableTrainer, model, config, dataset, image_processor, recipe=RECIPE)
    if trainer.is_world_process_zero():
        seen = model.bank.seen.float().mean().item()
        mark_done(output, {**done, "vertices_seen": seen})
        logger.info(f"the neural mesh model is in {output}; {100 * seen:.0f}% of its vertices were seen in training")
    trainer.accelerator.wait_for_everyone()


def _backbone(config: NeuralMeshRunConfig) -> tuple[Any, Any, Any]:
    """The backbone with its weights (None: random ones), its config, and a processor that keeps a square picture whole."""
    if config.backbone == TINY:
        size = config.image_size or TINY_IMAGE_SIZE
        return None, tiny_vision_config(), ViTImageProcessor(size={"height": size, "width": size})
    backbone, theirs = load_backbone(config.backbone)
    size = config.image_size or input_size(theirs)[0]
    # processors that crop, or keep an aspect ratio, would move the object under its projected mesh
    ours = ViTImageProcessor(
        size={"height": size, "width": size},
        resample=theirs.resample,
        rescale_factor=theirs.rescale_factor,
        image_mean=theirs.image_mean,
        image_std=theirs.image_std,
    )
    return backbone, backbone.config, ours


def build_model(
    config: NeuralMeshRunConfig,
    backbone_config: Any,
    names: Sequence[str],
    cuboids: Sequence[Cuboid],
    image_processor: Any,
    poses: int,
) -> NeuralMesh:
    """A new model with random weights.

    Raises:
        InputError: the backbone has no feature maps.
    """
    settings = NeuralMeshConfig(
        backbone_config=backbone_config,
        kind=config.kind,
        categories=names,
        cuboids=cuboids,
        sphere_radius=config.sphere_radius,
        image_size=image_processor.size["height"],
        stride=config.stride,
        vertices=config.vertices,
        samples_per_image=config.samples_per_image,
        clutter_weight=config.clutter_weight,
        poses=poses,
    )
    with loading(f"--backbone {config.backbone}: cannot be used"):
        return NeuralMesh(settings)


def _grid(config: NeuralMeshRunConfig, cameras: Cameras) -> np.ndarray:
    if config.grid == "published":
        grid = published_grid()
    elif config.grid == "uniform":
        grid = uniform_grid(config.grid_size)
    else:
        grid = covering_grid(cameras.rotations, math.radians(config.grid_radius))
    away = np.degrees(nearest_of(cameras.rotations, grid)[0])
    logger.info(
        f"{len(grid)} rotations to start from; {100 * (away < 30).mean():.1f}% of the training rotations are within 30 "
        f"degrees of one, all within {away.max():.0f}"
    )
    return grid


def _expect(model: NeuralMesh, cameras: Cameras, distance: float, grid: np.ndarray) -> None:
    mean, spread = expected_cameras(cameras, grid, model.config.classes)
    model.grid.copy_(torch.tensor(grid))
    model.camera_mean.copy_(torch.tensor(mean))
    model.camera_spread.copy_(torch.tensor(spread))
    model.camera_distance.fill_(distance)


def load_neural_mesh(folder: Path) -> tuple[NeuralMesh, Any]:
    """A trained model in evaluation mode, and its image processor.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    return load_network(folder, NeuralMesh, what="neural mesh", remedy="make one with llava-pose neural-mesh")


def pose_search(model: NeuralMesh, *, score: str = "ratio", steps: int = 30, starts: int = 3) -> PoseSearch:
    """The search with a trained model's meshes, features and expectations."""
    bank, config = model.bank, model.config
    fine_vertices, fine_normals, areas = zip(*config.surfaces(_FINER * config.vertices), strict=True)
    vertices, normals, area = (
        torch.tensor(np.stack(rows)).to(bank.vertices) for rows in (fine_vertices, fine_normals, areas)
    )
    meshes = Meshes(model.mesh_vertices, model.mesh_normals, area, bank.vertices)
    return PoseSearch(
        meshes,
        interpolated(meshes, vertices, normals),
        bank.clutter,
        Starts(model.grid, model.camera_mean, model.camera_spread, model.camera_distance),
        temperature=config.contrast_temperature,
        score=score,
        steps=steps,
        best=starts,
    )


@torch.no_grad()
def predict(
    folder: Path,
    records: Sequence[ObjectRecord],
    pictures: Path,
    out: Path,
    *,
    system: str,
    score: str = "ratio",
    steps: int = 30,
    starts: int = 3,
    search_classes: int = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Write a prediction for each record, whole or not at all; the processes of one run take turns.

    Args:
        folder: of the trained model.
        records: of square pictures (:func:`square_records`).
        pictures: the folder that the records' files are in.
        score, steps, starts: of the search.
        search_classes: how many classes, most votes first, have their poses searched; the best pose decides.
    """
    model, image_processor = load_neural_mesh(folder)
    model.to(device)
    search = pose_search(model, score=score, steps=steps, starts=starts)
    images = MeshImages(records, pictures, image_processor, ())

    def answer(batch: range) -> list[dict[str, Any]]:
        pixels = torch.stack([images.pixels(index) for index in batch]).to(device)
        found, classes, votes = classify_and_search(search, model.features(pixels), search_classes)
        angles = torch.stack(angles_from_rotation(found.rotations.double().cpu()), -1).tolist()
        cameras, scores = found.cameras.tolist(), found.scores.tolist()
        lines = []
        for row, index in enumerate(batch):
            name = model.config.categories[classes[row]] if model.config.categories else None
            prediction = Prediction.of(
                records[index],
                system=system,
                pose=_pose(angles[row], cameras[row], records[index]),
                pred_category=name,
                confidence=votes[row] if name else min(max(scores[row], 0.0), 1.0),
            )
            lines.append(prediction.to_dict())
        return lines

    write_answers(answer, len(records), _BATCH, out, description=f"predict {pictures.name}")


def _pose(angles: Sequence[float], camera: Sequence[float], record: ObjectRecord) -> Pose:
    """In the prepared picture; the distance is what its apparent size means under the record's viewport."""
    log_scale, across, down = camera
    distance = record.viewport * record.focal / (math.exp(log_scale) * record.width)
    return Pose(*angles, distance, (across + 0.5) * record.width, (down + 0.5) * record.height)


main = command(
    NeuralMeshRunConfig,
    run,
    prog="llava-pose neural-mesh",
    description="Train a neural mesh model (NMM-Sphere, NOVUM) on prepared data and predict a split.",
    example="llava-pose neural-mesh --kind cuboid --cad CAD --backbone microsoft/resnet-50 --data prepared "
    "--output-dir runs/novum",
)

if __name__ == "__main__":
    raise SystemExit(main())
