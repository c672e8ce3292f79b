"""What a neural mesh model remembers and is trained with: feature maps, memory, masks, losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import ResNetConfig, SwinConfig, ViTConfig

from eval.systems.neural_mesh.bank import FeatureBank, clutter_contrast, neighbours, vertex_contrast
from eval.systems.neural_mesh.features import pyramid_layers
from eval.systems.neural_mesh.geometry import Cuboid, cuboid_points
from eval.systems.neural_mesh.model import NeuralMesh, NeuralMeshConfig, sample_features
from llava_pose.backbones.tiny import tiny_vision_config
from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig
from llava_pose.pose.geometry import camera_center, project_points


def small_resnet() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], layer_type="basic")


def small_swin() -> SwinConfig:
    return SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4)


def small_vit() -> ViTConfig:
    return ViTConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )


def small_lite() -> EfficientNetLiteConfig:
    stages = ((1, 3, 1, 1, 8), (1, 3, 2, 2, 8), (1, 3, 2, 2, 12), (1, 3, 2, 2, 16))
    return EfficientNetLiteConfig(stem_channels=8, stages=stages, hidden_size=24)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def model_of(**changes) -> NeuralMesh:
    torch.manual_seed(0)
    values = {"backbone_config": small_resnet(), "image_size": 64, "width": 16, "dims": 8, "vertices": 60}
    return NeuralMesh(NeuralMeshConfig(**{**values, "clutter_size": 20, "samples_per_image": 10, **changes}))


def batch_of(size: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(size, 3, 64, 64, generator=generator),
        "angles": torch.rand(size, 3, generator=generator),
        "distance": torch.full((size,), 4.0),
        "focal": torch.full((size,), 200.0),
        "principal": torch.full((size, 2), 32.0),
        "bbox": torch.tensor([[16.0, 16.0, 48.0, 48.0]]).repeat(size, 1),
        "category": torch.arange(size) % 2,
        "key": torch.arange(size),
    }


@pytest.mark.parametrize("backbone", [small_resnet, small_swin, small_vit, small_lite, tiny_vision_config])
@pytest.mark.parametrize("stride", [4, 8])
def test_any_backbone_gives_a_map_of_the_stride(backbone, stride):
    model = model_of(backbone_config=backbone(), stride=stride)
    features = model.features(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 8, 64 // stride, 64 // stride)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 64 // stride, 64 // stride))


def test_of_each_size_the_last_map_counts_and_none_finer_than_wanted():
    maps = [torch.zeros(1, 1, size, size) for size in (32, 16, 16, 8, 4, 4)]
    assert pyramid_layers([*maps, None], 16) == [2, 3, 5]
    assert pyramid_layers(maps[:2], 8) == [1]
    assert pyramid_layers([None], 8) == []


def test_a_feature_map_is_read_where_the_pixel_is():
    """Each position holds the place of its own middle: reading it anywhere between the middles gives that place."""
    rows, columns = 6, 8
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    places = torch.tensor([[[0.3, 0.4], [0.5, 0.9], [0.1, 0.15]]])
    torch.testing.assert_close(sample_features(torch.stack([x, y])[None], places), places)


def test_memory_is_a_running_mean_of_what_was_seen():
    bank = FeatureBank(2, 3, 4, 8, momentum=0.9)
    before = bank.vertices.clone()
    features, visible = unit(3, 3, 8, seed=1), torch.tensor([[True, False, True], [True, False, False], [False] * 3])
    classes = torch.tensor([1, 1, 0])
    bank.remember(features, visible, classes, unit(2, 8))
    torch.testing.assert_close(bank.vertices[0], before[0])
    torch.testing.assert_close(bank.vertices[1, 1], before[1, 1])
    first = F.normalize((features[0, 0] + features[1, 0]) / 2, dim=-1)
    torch.testing.assert_close(bank.vertices[1, 0], first)  # the first time nothing is kept of the random start
    assert bank.seen.tolist() == [[False] * 3, [True, False, True]]
    bank.remember(unit(1, 3, 8, seed=2), torch.ones(1, 3, dtype=torch.bool), torch.tensor([1]), unit(0, 8))
    torch.testing.assert_close(
        bank.vertices[1, 0], F.normalize(0.9 * first + 0.1 * unit(1, 3, 8, seed=2)[0, 0], dim=-1)
    )


def test_clutter_replaces_the_oldest():
    bank = FeatureBank(1, 1, 4, 8, momentum=0.9)
    nothing = unit(1, 1, 8), torch.zeros(1, 1, dtype=torch.bool), torch.tensor([0])
    rows = unit(10, 8, seed=3)
    bank.remember(*nothing, rows[:3])
    bank.remember(*nothing, rows[3:5])
    torch.testing.assert_close(bank.clutter, rows[[4, 1, 2, 3]])
    bank.remember(*nothing, rows)  # more than there is room for
    assert {tuple(row.tolist()) for row in bank.clutter} == {tuple(row.tolist()) for row in rows[-4:]}


def test_neighbours_are_near_and_on_the_same_side():
    """A sheet thinner than the radius: its back is no neighbour of its front."""
    vertices, normals = (
        torch.tensor(rows, dtype=torch.float32)[None]
        for rows in cuboid_points(400, Cuboid((-0.5, -0.01, -0.3), (0.5, 0.01, 0.3)))[:2]
    )
    front = normals[0, :, 1] < -0.5
    chosen = front.nonzero()[:5].T
    found = neighbours(vertices, normals, chosen, 0.1)[0]
    away = (vertices[0, chosen[0], None] - vertices[0]).norm(dim=-1)
    own = torch.arange(400) == chosen[0, :, None]
    back = normals[0, :, 1] > 0.5
    torch.testing.assert_close(found[:, front], ((away < 0.1) & ~own)[:, front])
    assert (away[:, back] < 0.1).any()
    assert not found[:, back].any()


def test_the_contrast_is_cross_entropy_without_the_neighbours():
    classes, number, dims = 2, 5, 8
    bank = torch.cat([unit(classes * number, dims), unit(3, dims, seed=7)])
    features, chosen, of = unit(2, 2, dims, seed=4), torch.tensor([[0, 3], [4, 1]]), torch.tensor([1, 0])
    valid = torch.tensor([[True, True], [True, False]])
    ignored = torch.zeros(2, 2, number, dtype=torch.bool)
    ignored[0, 0, 2] = ignored[0, 0, 4] = True
    loss = vertex_contrast(features, chosen, valid, of, ignored, bank, number=number, temperature=0.07)

    def one(image: int, sample: int, left_out: tuple[int, ...] = ()) -> torch.Tensor:
        target = int(of[image]) * number + int(chosen[image, sample])
        kept = [row for row in range(len(bank)) if row not in left_out]
        return F.cross_entropy(bank[kept] @ features[image, sample] / 0.07, torch.tensor(kept.index(target)))

    expected = ((one(0, 0, (7, 9)) + one(0, 1)) / 2 + one(1, 0)) / 2
    torch.testing.assert_close(loss, expected)


def test_background_is_to_be_any_clutter():
    bank = torch.cat([unit(10, 8), unit(3, 8, seed=7)])
    features, valid = unit(2, 2, 8, seed=4), torch.tensor([[True, True], [False, False]])
    loss = clutter_contrast(features, valid, bank, clutter=3, temperature=0.07)
    chances = (features[0] @ bank.T / 0.07).softmax(-1)[:, -3:].sum(-1)
    torch.testing.assert_close(loss, -chances.log().mean() / 2)


def test_vertices_are_seen_where_the_camera_of_the_record_sees_them():
    model, batch = model_of(kind="sphere"), batch_of()
    names = ("angles", "distance", "focal", "principal")
    vertices = model.mesh_vertices[torch.zeros(3, dtype=torch.long)]
    points, seen = model._project(vertices, vertices / 0.4, *(batch[name] for name in names))
    for row in range(3):
        azimuth, elevation, theta = batch["angles"][row].tolist()
        pose = {"azimuth": azimuth, "elevation": elevation, "theta": theta, "distance": 4.0, "px": 32.0, "py": 32.0}
        pixels = project_points(vertices[row].numpy(), **pose, viewport=200.0)
        np.testing.assert_allclose(points[row].numpy(), pixels, atol=1e-3)
        outward = vertices[row].numpy() @ camera_center(azimuth, elevation, 4.0) - 0.4**2
        assert (seen[row].numpy() == (outward > 0))[abs(outward) > 1e-4].all()


def test_background_is_outside_of_mesh_and_box():
    model, batch = model_of(), batch_of(1)
    points = torch.tensor([[[40.0, 40.0], [-5.0, 90.0]]])  # one vertex in the position (5, 5), one outside
    background = model._background(points, torch.tensor([[0.0, 0.0, 15.0, 64.0]])).view(8, 8)
    expected = torch.ones(8, 8, dtype=torch.bool)
    expected[4:7, 4:7] = False  # a position around the vertex's own
    expected[:, :3] = False  # the box and a position beside it, by their middles
    assert torch.equal(background, expected)
    assert model._background(points, batch["bbox"]).any()


def test_training_remembers_and_evaluation_does_not():
    model, batch = model_of(categories=["car", "cup"]), batch_of()
    before = model.bank.vertices.clone()
    model.eval()(**batch)
    assert torch.equal(model.bank.vertices, before)
    model.train()(**batch)
    assert model.bank.seen.any(1).all()
    assert not torch.equal(model.bank.vertices, before)
    assert model.bank.clutter_next > 0


def test_losses_do_not_depend_on_what_else_is_in_the_batch():
    model, batch = model_of(categories=["car", "cup"]).eval(), batch_of()
    together = model(**batch).loss
    alone = [model(**{name: value[row : row + 1] for name, value in batch.items()}).loss for row in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    model.draws += 1
    assert model(**batch).loss != together  # other vertices are drawn in another step


def test_a_saved_model_is_the_same(tmp_path):
    model = model_of(kind="cuboid", categories=["car"], cuboids=[[[-0.1, -0.4, -0.1], [0.1, 0.4, 0.2]]])
    batch = batch_of(2) | {"category": torch.zeros(2, dtype=torch.long)}
    model.train()(**batch)
    model.camera_mean.fill_(math.pi)
    model.save_pretrained(tmp_path)
    found = NeuralMesh.from_pretrained(tmp_path)
    expected = model.state_dict()
    assert expected.keys() == found.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    torch.testing.assert_close(found(**batch).loss, model.eval()(**batch).loss)
