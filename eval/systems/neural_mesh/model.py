"""A neural mesh model: a fine feature map, meshes whose vertices have features, and the contrast that trains both.

NMM-Sphere is ``kind="sphere"``, NOVUM (Jesslen et al., ECCV 2024) ``kind="cuboid"``; both follow NeMo (Wang et al., ICLR
2021). How a pose is found is in ``search.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from eval.systems.neural_mesh.bank import FeatureBank, clutter_contrast, neighbours, vertex_contrast
from eval.systems.neural_mesh.features import FeaturePyramid, maps_of, pyramid_layers
from eval.systems.neural_mesh.geometry import Cuboid, SurfacePoints, cuboid_points, facing, sphere_points
from llava_pose.model.checkpoint_files import NO_CODE
from llava_pose.pose.geometry import camera_center, project_points

KINDS = ("sphere", "cuboid")


class NeuralMeshConfig(PreTrainedConfig):
    """The configuration of :class:`NeuralMesh`.

    Args:
        backbone_config: of an AutoModel backbone, or its dict.
        kind: "sphere" or "cuboid".
        categories: names of the classes, each with features of its own; none: one set of features for all categories.
        cuboids: least and greatest corner of each category's, for "cuboid".
        sphere_radius: object units.
        image_size: side of the input, pixels.
        stride: pixels of the input to a position of the feature map.
        width, dims: channels inside of the upsampling, and of the features.
        vertices: of a mesh.
        clutter_size: how many clutter features are remembered.
        momentum: of the running mean of a vertex.
        contrast_temperature: of the contrast.
        neighbour_distance: object units; vertices nearer to each other are not contrasted.
        samples_per_image: vertices of an image that enter the loss; all that are seen enter the running means.
        clutter_per_image: background positions of an image that enter loss and memory.
        clutter_weight: of the background's term in the loss.
        poses: rotations that a search starts from.
    """

    model_type = "neural_mesh"

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        kind: str = "sphere",
        categories: Sequence[str] = (),
        cuboids: Sequence[Sequence[Sequence[float]]] = (),
        sphere_radius: float = 0.4,
        image_size: int = 224,
        stride: int = 8,
        width: int = 128,
        dims: int = 128,
        vertices: int = 1000,
        clutter_size: int = 1024,
        momentum: float = 0.9,
        contrast_temperature: float = 0.07,
        neighbour_distance: float = 0.1,
        samples_per_image: int = 32,
        clutter_per_image: int = 16,
        clutter_weight: float = 0.1,
        poses: int = 144,
        **kwargs: Any,
    ):
        if isinstance(backbone_config, dict):
            values = dict(backbone_config)
            backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
        if not stride >= 1:
            raise ValueError(f"stride {stride}: must be at least 1")
        self.backbone_config = backbone_config
        self.kind = kind
        self.categories = list(categories)
        self.cuboids = [[list(corner) for corner in cuboid] for cuboid in cuboids]
        self.sphere_radius = sphere_radius
        self.image_size = image_size
        self.stride = stride
        self.width = width
        self.dims = dims
        self.vertices = vertices
        self.clutter_size = clutter_size
        self.momentum = momentum
        self.contrast_temperature = contrast_temperature
        self.neighbour_distance = neighbour_distance
        self.samples_per_image = samples_per_image
        self.clutter_per_image = clutter_per_image
        self.clutter_weight = clutter_weight
        self.poses = poses
        super().__init__(**kwargs)

    @property
    def classes(self) -> int:
        """The number of sets of vertex features."""
        return max(1, len(self.categories))

    def surfaces(self, count: int) -> list[SurfacePoints]:
        """Return the mesh of each class with so many vertices."""
        if self.kind == "sphere":
            return [sphere_points(count, self.sphere_radius)] * self.classes
        cuboids = cast(list[list[tuple[float, float, float]]], [list(map(tuple, corners)) for corners in self.cuboids])
        return [cuboid_points(count, Cuboid(low, high)) for low, high in cuboids]


@dataclass
class NeuralMeshOutput(ModelOutput):
    """
    Attributes:
        loss: scalar, with poses.
        features: (batch, dims, rows, columns), each position of length 1.
    """

    loss: Tensor | None = None
    features: Tensor | None = None


class NeuralMesh(PreTrainedModel):
    """Backbone, upsampling, meshes with their features, and what a pose search starts from.

    Buffers, all saved: ``mesh_vertices`` and ``mesh_normals`` (classes, V, 3); ``bank``; ``grid`` (poses, 3, 3) rotations;
    ``camera_mean`` (classes, poses, 3), ``camera_spread`` (classes, 3) and ``camera_distance`` (), where an object is
    expected in the picture (``grid.expected_cameras``).
    """

    config_class = NeuralMeshConfig
    main_input_name = "pixel_values"

    mesh_vertices: Tensor
    mesh_normals: Tensor
    grid: Tensor
    camera_mean: Tensor
    camera_spread: Tensor
    camera_distance: Tensor
    draws: Tensor

    def __init__(self, config: NeuralMeshConfig):
        """
        Raises:
            ValueError: the backbone has no feature maps.
        """
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config, **NO_CODE)
        if getattr(config, "pyramid_layers", None) is None:
            config.pyramid_layers, config.pyramid_channels = self._measure()
        self.pyramid = FeaturePyramid(config.pyramid_channels, config.width, config.dims)
        self.bank = FeatureBank(config.classes, config.vertices, config.clutter_size, config.dims, config.momentum)
        vertices, normals, _ = zip(*config.surfaces(config.vertices), strict=True)
        for name, rows in (("mesh_vertices", vertices), ("mesh_normals", normals)):
            self.register_buffer(name, torch.tensor(np.stack(rows), dtype=torch.float32))
        self.register_buffer("grid", torch.eye(3).repeat(config.poses, 1, 1))
        self.register_buffer("camera_mean", torch.zeros(config.classes, config.poses, 3))
        self.register_buffer("camera_spread", torch.zeros(config.classes, 3))
        self.register_buffer("camera_distance", torch.tensor(4.0))
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))
        self.post_init()

    @property
    def map_size(self) -> tuple[int, int]:
        """The rows and columns of the feature map."""
        side = -(-self.config.image_size // self.config.stride)
        return side, side

    @torch.no_grad()
    def _measure(self) -> tuple[list[int], list[int]]:
        weight = next(self.backbone.parameters())
        if weight.is_meta:
            raise ValueError("the config of a saved neural mesh must hold pyramid_layers")
        maps = self._maps(weight.new_zeros(1, 3, self.config.image_size, self.config.image_size))
        layers = pyramid_layers(maps, self.map_size[0])
        if not layers:
            raise ValueError("the backbone has no feature maps")
        return layers, [cast(Tensor, maps[layer]).shape[1] for layer in layers]

    def _maps(self, pixel_values: Tensor) -> list[Tensor | None]:
        output = self.backbone(pixel_values, output_hidden_states=True, return_dict=True)
        return maps_of(output, pixel_values.shape[-2:], getattr(self.config.backbone_config, "patch_size", None))

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map pictures (batch, 3, side, side) to features (batch, dims, rows, columns), each position of length 1."""
        maps = self._maps(pixel_values)
        return self.pyramid([maps[layer] for layer in self.config.pyramid_layers], self.map_size)

    def forward(
        self,
        pixel_values: Tensor,
        angles: Tensor | None = None,
        distance: Tensor | None = None,
        focal: Tensor | None = None,
        principal: Tensor | None = None,
        bbox: Tensor | None = None,
        category: Tensor | None = None,
        key: Tensor | None = None,
    ) -> NeuralMeshOutput:
        """Compute features, and with poses the loss. In training, the bank remembers what it is shown.

        Args:
            pixel_values: (batch, 3, side, side).
            angles: (batch, 3) azimuth, elevation, theta in radians.
            distance: (batch,) object units.
            focal: (batch,) input pixels per unit focal length.
            principal: (batch, 2) input pixels.
            bbox: (batch, 4) x1, y1, x2, y2 in input pixels.
            category: (batch,) class indices.
            key: (batch,) numbers of the samples: which vertices are drawn depends on them and on the step alone.
        """
        features = self.features(pixel_values)
        if angles is None:
            return NeuralMeshOutput(features=features)
        # the others are given with the angles
        distance, focal, principal = cast(tuple[Tensor, Tensor, Tensor], (distance, focal, principal))
        bbox, category, key = cast(tuple[Tensor, Tensor, Tensor], (bbox, category, key))
        config = self.config
        vertices, normals = self.mesh_vertices[category], self.mesh_normals[category]
        points, seen = self._project(vertices, normals, angles, distance, focal, principal)
        sampled = F.normalize(sample_features(features, points / config.image_size), dim=-1)
        background = self._background(points, bbox)

        draws = self._draw(key, config.vertices + background.shape[1])
        valid, chosen = _some_of(seen, draws[:, : config.vertices], config.samples_per_image)
        valid_clutter, positions = _some_of(background, draws[:, config.vertices :], config.clutter_per_image)
        clutter = features.flatten(2).transpose(1, 2).gather(1, positions[..., None].expand(-1, -1, config.dims))

        bank = self.bank.everything()
        loss = vertex_contrast(
            sampled.gather(1, chosen[..., None].expand(-1, -1, config.dims)),
            chosen,
            valid,
            category,
            neighbours(vertices, normals, chosen, config.neighbour_distance),
            bank,
            number=config.vertices,
            temperature=config.contrast_temperature,
        ) + config.clutter_weight * clutter_contrast(
            clutter, valid_clutter, bank, clutter=config.clutter_size, temperature=config.contrast_temperature
        )
        if self.training:
            self.bank.remember(sampled.detach(), seen, category, clutter.detach()[valid_clutter])
            self.draws += 1
        return NeuralMeshOutput(loss=loss, features=features)

    def _project(
        self, vertices: Tensor, normals: Tensor, angles: Tensor, distance: Tensor, focal: Tensor, principal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Project vertices: (batch, V, 2) input pixels, and (batch, V) which of them are seen inside of the picture."""
        azimuth, elevation, theta = angles.unsqueeze(-1).unbind(1)
        seen = facing(vertices, normals, camera_center(azimuth, elevation, distance[:, None])[:, 0]) > 0
        offsets = project_points(
            vertices,
            azimuth=azimuth,
            elevation=elevation,
            theta=theta,
            distance=distance[:, None],
            px=0.0,
            py=0.0,
            viewport=1.0,
        )
        points = principal[:, None] + focal[:, None, None] * offsets
        inside = ((points >= 0) & (points < self.config.image_size)).all(-1)  # false for NaN, behind the camera
        return torch.nan_to_num(points), seen & inside

    def _background(self, points: Tensor, bbox: Tensor) -> Tensor:
        """Find the positions of the feature map that are outside of mesh and box alike, (batch, positions)."""
        rows, columns = self.map_size
        cell = self.config.image_size / torch.tensor([columns, rows], device=points.device)
        places = (points / cell).long()
        inside = ((places >= 0) & (places < torch.tensor([columns, rows], device=points.device))).all(-1)
        flat = torch.where(inside, places[..., 1] * columns + places[..., 0], 0)
        mesh = torch.zeros(len(points), rows * columns, device=points.device)
        mesh.scatter_reduce_(1, flat, inside.float(), "amax")
        mesh = F.max_pool2d(mesh.view(-1, 1, rows, columns), 3, stride=1, padding=1).flatten(1) > 0
        y, x = torch.meshgrid(
            torch.arange(rows, device=points.device), torch.arange(columns, device=points.device), indexing="ij"
        )
        centers = (torch.stack([x, y], -1).flatten(0, 1) + 0.5) * cell
        low, high = bbox[:, None, :2], bbox[:, None, 2:]
        boxed = ((centers > low - cell) & (centers < high + cell)).all(-1)
        return ~mesh & ~boxed

    def _draw(self, key: Tensor, count: int) -> Tensor:
        """Draw (batch, count) uniform numbers in [0, 1) that depend on sample and step alone, not on the batch or process."""
        step = int(self.draws)
        rows = [
            torch.rand(count, generator=torch.Generator().manual_seed(step * 1_000_003 + sample))
            for sample in key.tolist()
        ]
        return torch.stack(rows).to(self.draws.device)


def sample_features(features: Tensor, places: Tensor) -> Tensor:
    """Look features (batch, dims, rows, columns) up at places (batch, n, 2), bilinearly: (batch, n, dims).

    Args:
        places: shares of width and height.
    """
    grid = (2 * places - 1)[:, :, None]
    return F.grid_sample(features, grid, padding_mode="border", align_corners=False)[..., 0].transpose(1, 2)


def _some_of(candidates: Tensor, draws: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` of each row's candidates: (batch, count) which of the chosen are candidates, and their indices."""
    order = torch.where(candidates, draws, -1.0)
    values, chosen = order.topk(min(count, order.shape[1]), dim=1)
    return values >= 0, chosen
