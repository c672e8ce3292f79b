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
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from transformers import ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.systems.network import TINY, fit, load_backbone, load_network, start_from, write_answers
from eval.systems.neural_mesh.data import MeshImages, square_records, with_cameras
from eval.systems.neural_mesh.geometry import Cuboid, cuboids_of
from eval.systems.neural_mesh.grid import (
    Cameras,
    covering_grid,
    expected_cameras,
    nearest_of,
    published_grid,
    uniform_grid,
)
from eval.systems.neural_mesh.model import NeuralMesh, NeuralMeshConfig
from eval.systems.neural_mesh.search import Meshes, PoseSearch, Starts, classify_and_search, interpolated
from eval.systems.record_choice import category_of
from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Pose, Prediction
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import loading
from llava_pose.model.processing import input_size
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.train.arguments import Name, Positive, Rate
from llava_pose.train.run_folder import RunFolder, own_run
from llava_pose.train.trainer import ResumableTrainer
from llava_pose.train.training_arguments import RunArguments
from llava_pose.utils.config import command, require_folder
from llava_pose.utils.distributed import is_first_process

logger = logging.getLogger(__name__)
_OF_PREDICTION = ("score", "refine_steps", "refine_starts", "search_classes")  # an ended run predicts again with others
SYSTEMS = {"sphere": "nmm-sphere", "cuboid": "novum"}
_BATCH = 32
_FINER = 3  # points that refinement uses to a vertex that has been learnt


@dataclass(kw_only=True)
class NeuralMeshRunConfig(RunArguments):
    """A run: transformers' TrainingArguments, with our defaults, and what a neural mesh model adds."""

    data: Name = field(metadata={"help": "The prepared folder."})
    backbone: Name = field(
        metadata={
            "help": "The network: a hub id or folder that AutoModel can load, or tiny, the random tower of --preset tiny."
        },
    )
    kind: Literal["sphere", "cuboid"] = field(
        default="sphere", metadata={"help": "The meshes: spheres are NMM-Sphere, cuboids NOVUM."}
    )
    task: Literal["pose", "joint"] = field(
        default="pose",
        metadata={"help": "Find the pose alone, or the category as well; a sphere then has one's features."},
    )
    cad: str | None = field(default=None, metadata={"help": "The folder of <category>/NN.off, for --kind cuboid."})
    vertices: Annotated[int, Field(ge=12)] = field(default=1000, metadata={"help": "The vertices of a mesh."})
    sphere_radius: Positive = field(
        default=0.4, metadata={"help": "The radius of a sphere, in object units; CAD models have a diagonal of 1."}
    )
    image_size: PositiveInt | None = field(
        default=None, metadata={"help": "The side of the input in pixels; by default the backbone's."}
    )
    stride: PositiveInt = field(default=8, metadata={"help": "The input pixels to a position of the feature map."})
    samples_per_image: PositiveInt = field(
        default=32, metadata={"help": "The vertices of an image that enter the loss."}
    )
    clutter_weight: Rate = field(default=0.1, metadata={"help": "The weight of the background's term in the loss."})
    flip: bool = field(default=True, metadata={"help": "Train on mirror images as well, of categories that allow it."})
    grid: Literal["train", "uniform", "published"] = field(
        default="train",
        metadata={
            "help": "The rotations that a search starts from: a cover of the training rotations, --grid-size rotations over "
            "all there are, or the published 12 x 4 x 3."
        },
    )
    grid_radius: Positive = field(default=20.0, metadata={"help": "The radius of --grid train, in degrees."})
    grid_size: PositiveInt = field(default=1152, metadata={"help": "The rotations of --grid uniform."})
    score: Literal["ratio", "mean"] = field(
        default="ratio",
        metadata={"help": "The score of a pose: cosines over clutter by area, or their mean, as published."},
    )
    refine_steps: NonNegativeInt = field(
        default=30, metadata={"help": "The steps of gradient ascent; 0 answers with the best pose of the grid."}
    )
    refine_starts: PositiveInt = field(default=3, metadata={"help": "The poses of the grid that are refined."})
    search_classes: PositiveInt = field(
        default=1,
        metadata={
            "help": "The classes, most votes first, whose poses are searched; the best pose decides. 1 leaves it to the votes."
        },
    )
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "Train on these categories alone; by default on all of the train split."}
    )
    predict_split: str = field(default="val", metadata={"help": "The split to predict at the end."})
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "Predict objects of these categories alone; by default all of the split."}
    )
    system: str | None = field(
        default=None, metadata={"help": "The name in the tables; by default nmm-sphere or novum."}
    )

    per_device_train_batch_size: PositiveInt = field(
        default=32, metadata={"help": "The samples of a step on each device."}
    )
    learning_rate: Rate = field(default=1e-3, metadata={"help": "The learning rate at its height."})
    num_train_epochs: Positive = field(
        default=10.0, metadata={"help": "The passes over the samples, mirror images included."}
    )
    logging_steps: Positive = field(default=20, metadata={"help": "The steps between two lines of the log."})
    save_steps: Positive = field(default=500, metadata={"help": "The steps between two checkpoints."})

    def __post_init__(self) -> None:
        if self.kind == "cuboid" and not self.cad:
            raise InputError("--kind cuboid: needs CAD models; give --cad, a folder of <category>/NN.off")
        if self.deepspeed:
            raise InputError("--deepspeed: a neural mesh is small; train on several devices with torchrun")
        if self.gradient_accumulation_steps > 1:
            raise InputError(
                f"--gradient-accumulation-steps {self.gradient_accumulation_steps}: vertex features are remembered at each "
                "forward pass, so that accumulating gradients would change them; train on more devices instead"
            )
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a backbone has layers behind its feature maps
        super().__post_init__()
        self.system = self.system or SYSTEMS[self.kind]

    @property
    def shares_bank(self) -> bool:
        """Whether all categories share one mesh and its features."""
        return self.kind == "sphere" and self.task == "pose"


def run(config: NeuralMeshRunConfig) -> Path:
    """Train (or go on), save the model, and write ``predictions.jsonl``; returns its path.

    Raises:
        InputError: bad data or settings.
    """
    samples = Path(config.data) / "train" / METADATA_FILE
    with own_run("neural-mesh", config, samples=samples, may_differ=_OF_PREDICTION) as folder:
        return _run(config, folder)


def _run(config: NeuralMeshRunConfig, folder: RunFolder) -> Path:
    output = folder.folder
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = square_records(config.data, config.predict_split, config.predict_categories, "--predict-categories")
    if folder.is_done:
        folder.write_settings()  # it predicts again, perhaps by another search
    else:
        train(config, folder)
    predictions = output / "predictions.jsonl"
    predict(
        output,
        records,
        Path(config.data) / config.predict_split,
        predictions,
        system=cast(str, config.system),
        score=config.score,
        steps=config.refine_steps,
        starts=config.refine_starts,
        search_classes=config.search_classes,
        device=config.device,
    )
    if is_first_process():
        logger.info(f"{predictions}; next: llava-pose score {predictions} --out {output / 'scores.json'}")
    return predictions


def train(config: NeuralMeshRunConfig, folder: RunFolder) -> None:
    """Train, and save model and processor to the output folder."""
    where = f"{config.data}/train"
    records = with_cameras(square_records(config.data, "train", config.train_categories, "--train-categories"), where)
    names = None if config.shares_bank else sorted({category_of(record).name for record in records})
    cuboids = cuboids_of(cast(str, config.cad), cast(list[str], names)) if config.kind == "cuboid" else []
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
    trainer = fit(ResumableTrainer, model, config, dataset, image_processor, folder)
    seen = model.bank.seen.float().mean().item()
    logger.info(f"the neural mesh model is in {folder.folder}; {100 * seen:.0f}% of its vertices were seen in training")
    folder.finish(trainer, vertices_seen=seen)


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
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it without its self
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
    azimuth, elevation, theta = angles
    px, py = (across + 0.5) * record.width, (down + 0.5) * record.height
    return Pose(azimuth, elevation, theta, distance, px, py)


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
