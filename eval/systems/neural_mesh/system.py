"""Neural mesh models (NMM-Sphere, NOVUM) as systems: how one is built, trained, and asked."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import ViTImageProcessor
from transformers.trainer_utils import set_seed

from eval.systems.network import (
    TINY,
    TrainedNetwork,
    answer_in_batches,
    fit,
    load_network,
    load_vision_backbone,
    start_from,
)
from eval.systems.neural_mesh.command import NeuralMeshOptions
from eval.systems.neural_mesh.data import MeshImages, require_square, with_cameras
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
from eval.systems.record_choice import select_records
from eval.systems.system import run_system
from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_vision_config
from llava_pose.data.records import ObjectRecord, Pose, Prediction, category_of
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import blaming
from llava_pose.model.processing import input_size
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.train.run_folder import RunFolder
from llava_pose.train.trainer import ResumableTrainer
from llava_pose.train.training_arguments import RunArguments

logger = logging.getLogger(__name__)
SYSTEMS = {"sphere": "nmm-sphere", "cuboid": "novum"}
_BATCH = 32
_FINER = 3  # points that refinement uses to a vertex that has been learnt


@dataclass(kw_only=True)
class NeuralMeshRunConfig(NeuralMeshOptions, RunArguments):  # type: ignore[misc]  # its fields replace those of that name
    """The options of a neural mesh model, and transformers' TrainingArguments."""

    def __post_init__(self) -> None:
        if self.mesh == "cuboid" and not self.cad:
            raise InputError("--mesh cuboid: needs CAD models; give --cad, a folder of <category>/NN.off")
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
        self.system = self.system or SYSTEMS[self.mesh]

    @property
    def shares_bank(self) -> bool:
        """Say whether all categories share one mesh and its features."""
        return self.mesh == "sphere" and self.task == "pose"


class NeuralMeshSystem(TrainedNetwork):
    """A neural mesh model that trains.

    A picture's true distance and place are used in training alone. At inference an object is expected where training objects
    of its class, seen from about there, stood in their pictures, and the search may move it as far as these strayed.
    """

    kind = "neural-mesh"
    may_differ = (*TrainedNetwork.may_differ, "score", "refine_steps", "refine_starts", "search_classes")

    def check(self, records: Sequence[ObjectRecord]) -> None:
        """Refuse pictures that are not square."""
        require_square(records, f"{self.config.data}/{self.config.split}")

    def train(self, folder: RunFolder) -> None:
        """Train, or go on, and save model and processor."""
        config: NeuralMeshRunConfig = self.config
        where = f"{config.data}/train"
        records = select_records(config.data, "train", config.train_categories, "--train-categories")
        require_square(records, where)
        records = with_cameras(records, where)
        names = [] if config.shares_bank else sorted({category_of(record).name for record in records})
        cuboids = cuboids_of(cast(str, config.cad), names) if config.mesh == "cuboid" else []
        set_seed(config.seed)
        backbone, backbone_config, image_processor = _backbone(config)
        dataset = MeshImages(records, Path(config.data) / "train", image_processor, names, flip=config.flip)
        cameras, distance = dataset.cameras()
        grid = _grid(config, cameras)
        model = build_model(config, backbone_config, names, cuboids, image_processor, len(grid))
        start_from(model, backbone)
        _expect(model, cameras, distance, grid)
        logger.info(
            f"{len(dataset)} samples (mirror images included), {model.config.classes} meshes of {config.vertices} vertices, "
            f"{model.num_parameters() / 1e6:.2f} M parameters"
        )
        trainer = fit(ResumableTrainer, model, config, dataset, image_processor, folder)
        seen = model.bank.seen.float().mean().item()
        logger.info(
            f"the neural mesh model is in {folder.folder}; {100 * seen:.0f}% of its vertices were seen in training"
        )
        folder.finish(trainer, vertices_seen=seen)

    def predict(self, folder: Path, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Predict the pose, and the category where each has features of its own."""
        config: NeuralMeshRunConfig = self.config
        return predict(
            folder,
            records,
            Path(config.data) / config.split,
            system=config.system,
            score=config.score,
            steps=config.refine_steps,
            starts=config.refine_starts,
            search_classes=config.search_classes,
            device=config.device,
        )


def _backbone(config: NeuralMeshRunConfig) -> tuple[Any, Any, Any]:
    """Return the backbone (None: with random weights), its config, and a processor that keeps a square picture whole."""
    if config.backbone == TINY:
        size = config.image_size or TINY_IMAGE_SIZE
        return None, tiny_vision_config(), ViTImageProcessor(size={"height": size, "width": size})
    backbone, theirs = load_vision_backbone(config.backbone)
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
    """Make a new model with random weights.

    Raises:
        InputError: the backbone has no feature maps.
    """
    settings = NeuralMeshConfig(
        backbone_config=backbone_config,
        kind=config.mesh,
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
    with blaming(f"--backbone {config.backbone}: cannot be used"):
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
    """Load a trained model in evaluation mode, and its image processor.

    Raises:
        InputError: the folder holds none, or not a whole one.
    """
    return load_network(folder, NeuralMesh, what="neural mesh", remedy="make one with llava-pose neural-mesh")


def pose_search(model: NeuralMesh, *, score: str = "ratio", steps: int = 30, starts: int = 3) -> PoseSearch:
    """Make the search with a trained model's meshes, features and expectations."""
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
    *,
    system: str,
    score: str = "ratio",
    steps: int = 30,
    starts: int = 3,
    search_classes: int = 1,
    device: torch.device | str = "cpu",
) -> list[Prediction]:
    """Return a prediction for each record; the processes of one run take turns.

    Args:
        folder: the folder of the trained model.
        records: records of square pictures.
        pictures: the folder that the records' files are in.
        score, steps, starts: as :class:`PoseSearch` takes them.
        search_classes: how many classes, most votes first, have their poses searched; the best pose decides.
    """
    model, image_processor = load_neural_mesh(folder)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps it without its self
    search = pose_search(model, score=score, steps=steps, starts=starts)
    images = MeshImages(records, pictures, image_processor, ())

    def answer(batch: range) -> list[Prediction]:
        pixels = torch.stack([images.pixels(index) for index in batch]).to(device)
        found, classes, votes = classify_and_search(search, model.features(pixels), search_classes)
        angles = torch.stack(angles_from_rotation(found.rotations.double().cpu()), -1).tolist()
        cameras, scores = found.cameras.tolist(), found.scores.tolist()
        predictions = []
        for row, index in enumerate(batch):
            name = model.config.categories[classes[row]] if model.config.categories else None
            prediction = Prediction.of(
                records[index],
                system=system,
                pose=_pose(angles[row], cameras[row], records[index]),
                pred_category=name,
                confidence=votes[row] if name else min(max(scores[row], 0.0), 1.0),
            )
            predictions.append(prediction)
        return predictions

    return answer_in_batches(answer, len(records), _BATCH, description=f"predict {pictures.name}")


def _pose(angles: Sequence[float], camera: Sequence[float], record: ObjectRecord) -> Pose:
    """Return the pose in the prepared picture; the distance is what its apparent size means under the record's viewport."""
    log_scale, across, down = camera
    distance = record.viewport * record.focal / (math.exp(log_scale) * record.width)
    azimuth, elevation, theta = angles
    px, py = (across + 0.5) * record.width, (down + 0.5) * record.height
    return Pose(azimuth, elevation, theta, distance, px, py)


def run(config: NeuralMeshRunConfig) -> Path:
    """Train (or go on), save the model, and write ``predictions.jsonl``; return its path.

    Raises:
        InputError: bad data or settings.
    """
    return run_system(config, NeuralMeshSystem(config))
