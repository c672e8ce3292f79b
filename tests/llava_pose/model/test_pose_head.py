"""The pose head and its numbers: what a person reads comes back from what the head says, in pixels of any picture."""

from __future__ import annotations

import math

import pytest
import torch

from llava_pose.compact import CompactLlavaConfig
from llava_pose.data.records import Pose, pose_targets_of
from llava_pose.errors import InputError
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.pose_head import (
    ImageTokens,
    PoseEncoder,
    PoseHead,
    PoseHeadOutput,
    PoseTokenEmbedding,
    PoseTokenOutput,
    denormalize_location,
    normalize_location,
)
from llava_pose.model.rotation import ROTATION_NAMES
from llava_pose.pose.geometry import geodesic_angle_of_poses, rotation_matrix

POSE = Pose(1.2, 0.3, -0.4, distance=5.0, px=70.0, py=20.0)
PICTURE = {"width": 160.0, "height": 90.0, "viewport": 700.0}


def config(**changes) -> LlavaPoseConfig:
    sizes = {"hidden_size": 16, "embedding_size": 16, "pooled_size": 8, "pose_head_hidden_size": 12}
    return LlavaPoseConfig(pose_token_id=1, image_token_id=2, **{**sizes, **changes})


def batched(values: dict[str, float], count: int = 1) -> dict[str, torch.Tensor]:
    return {name: torch.full((count,), value, dtype=torch.float64) for name, value in values.items()}


def test_configuration_refuses_an_unknown_rotation_and_a_merge_of_nothing():
    with pytest.raises(InputError, match=r"svd9d.*quaternion"):
        config(rotation="quaternion")
    with pytest.raises(ValueError, match="vision_merge"):
        CompactLlavaConfig(vision_merge=0)
    with pytest.raises(InputError, match="pose_head_attention_heads 5: must be 0 or divide"):
        config(pose_head_attention_heads=5)
    with pytest.raises(InputError, match="pose-head-attention-heads: must be at least 0, not -1"):
        config(pose_head_attention_heads=-1)


# A head that looks at the picture


@pytest.fixture
def looking() -> PoseHead:
    torch.manual_seed(0)
    head = PoseHead(config(pose_head_attention_heads=3, image_places=4)).eval()
    torch.nn.init.normal_(head.look.place.weight)
    return head


def seen_of(tokens: torch.Tensor, there: torch.Tensor) -> ImageTokens:
    return ImageTokens(tokens, there, torch.zeros(len(tokens), 8))


@torch.no_grad()
def test_image_tokens_are_taken_from_their_places_in_their_order():
    embeddings = torch.arange(3 * 5, dtype=torch.float32).view(3, 5, 1)
    at_image = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    pooled = torch.tensor([[1.5], [5.5]])  # of the pictures of rows 0 and 2
    at_image[2, 3:] = True
    seen = ImageTokens.of_pictures(at_image, embeddings[at_image], pooled, [3, 3])
    assert seen.there.tolist() == [[True] * 3, [False] * 3, [True] * 3]
    assert seen.tokens[0, :, 0].tolist() == [1, 2, 4]
    assert seen.tokens[2, :, 0].tolist() == [12, 13, 14]
    assert seen.pooled[:, 0].tolist() == [1.5, 0.0, 5.5]
    again = seen.of(torch.tensor([2, 0, 0]))
    assert again.tokens[:, :, 0].tolist() == [[12, 13, 14], [1, 2, 4], [1, 2, 4]]
    assert again.pooled[:, 0].tolist() == [5.5, 1.5, 1.5]
    for count in (0, 1):  # one is the blank of processes that train together
        none = ImageTokens.of_pictures(
            torch.zeros_like(at_image), embeddings[0, : 3 * count], pooled[:count], [3][:count]
        )
        assert none.tokens.shape == (3, 0, 1)
        assert none.pooled.tolist() == [[0.0]] * 3


def test_of_several_pictures_in_a_row_the_mean_is_pooled():
    at_image = torch.tensor([[True] * 4, [False, False, True, True]])
    pooled = torch.tensor([[1.0], [3.0], [9.0]])
    for counts in ([2, 2, 2], [1, 3, 2]):
        assert ImageTokens.of_pictures(at_image, torch.zeros(6, 1), pooled, counts).pooled[:, 0].tolist() == [2.0, 9.0]


@torch.no_grad()
def test_a_state_sees_the_picture_of_its_row_alone(looking: PoseHead):
    states, tokens = torch.randn(3, 16), torch.randn(3, 6, 16)
    there = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [False] * 6])
    raw = looking(states, seen_of(tokens, there)).raw_rotation
    for row, count in ((0, 4), (1, 6)):
        alone = seen_of(tokens[row : row + 1, :count], there[row : row + 1, :count])
        torch.testing.assert_close(looking(states[row : row + 1], alone).raw_rotation[0], raw[row])
    other = tokens.clone()
    other[0, 2] = torch.randn(16)
    changed = (looking(states, seen_of(other, there)).raw_rotation - raw).abs().amax(-1) > 1e-4
    assert changed.tolist() == [True, False, False]


@torch.no_grad()
def test_where_a_token_stands_matters(looking: PoseHead):
    states, tokens, there = torch.randn(1, 16), torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    raw = looking(states, seen_of(tokens, there)).raw_rotation
    assert not torch.allclose(looking(states, seen_of(tokens.flip(1), there)).raw_rotation, raw, atol=1e-3)


@torch.no_grad()
def test_without_a_picture_the_state_alone_decides(looking: PoseHead):
    states = torch.randn(2, 16)
    none = seen_of(torch.zeros(2, 0, 16), torch.zeros(2, 0, dtype=torch.bool))
    blind = PoseHead(config())
    blind.load_state_dict({key: value for key, value in looking.state_dict().items() if not key.startswith("look.")})
    torch.testing.assert_close(looking(states, none).raw_rotation, blind(states).raw_rotation)
    with pytest.raises(ValueError, match="give the image tokens"):
        looking(states)


def test_every_weight_of_the_look_learns(looking: PoseHead):
    seen = seen_of(torch.randn(2, 4, 16), torch.tensor([[True] * 4, [False] * 4]))
    looking(torch.randn(2, 16), seen).raw_rotation.square().sum().backward()
    for name, parameter in looking.look.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_a_head_with_pooled_features_says_what_it_said_and_a_linear_layer_of_them():
    torch.manual_seed(0)
    head = PoseHead(config(pose_head_pooled_features=True)).eval()
    plain = PoseHead(config())
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if not key.startswith("pooled.")})
    states, pooled = torch.randn(3, 16), torch.randn(3, 8)
    seen = ImageTokens(torch.zeros(3, 1, 16), torch.tensor([[True], [True], [False]]), pooled)
    with torch.no_grad():
        head.pooled.linear.weight.normal_()
        head.pooled.linear.bias.normal_()
    normed = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    told = (normed @ head.pooled.linear.weight.T + head.pooled.linear.bias)[:, : head.representation.size]
    difference = head(states, seen).raw_rotation - plain(states).raw_rotation
    torch.testing.assert_close(difference[:2], told[:2], atol=1e-5, rtol=1e-5)
    assert difference[2].abs().max() == 0, "a row without a picture"
    head(states, seen).raw_rotation.square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.pooled.parameters())
    with pytest.raises(ValueError, match="give the image tokens"):
        head(states)


def test_location_is_independent_of_the_size_of_the_picture():
    """What the model learns does not change when a picture is resized, with px, py and viewport."""
    doubled = Pose(*POSE.angles, distance=5.0, px=140.0, py=40.0)
    assert pose_targets_of(POSE, **PICTURE) == pytest.approx(
        pose_targets_of(doubled, **{name: 2 * value for name, value in PICTURE.items()})
    )
    assert pose_targets_of(POSE, **PICTURE)[3] == pytest.approx(math.log(700 / (5 * 160)))


def test_location_round_trip():
    values = batched(PICTURE)
    location = normalize_location(
        *(torch.tensor([v], dtype=torch.float64) for v in (POSE.distance, POSE.px, POSE.py)), **values
    )
    assert location[0].tolist() == pytest.approx(pose_targets_of(POSE, **PICTURE)[3:])
    assert denormalize_location(location, **values)[0].tolist() == pytest.approx([POSE.distance, POSE.px, POSE.py])


@pytest.mark.parametrize(
    "missing", [{"distance": None}, {"px": None}, {"py": None}, {"distance": 0.0}, {"distance": -1.0}]
)
def test_unknown_location_is_nan_and_the_angles_stay(missing: dict):
    pose = Pose(**{**POSE.to_dict(), **missing})
    targets = pose_targets_of(pose, **PICTURE)
    assert targets[:3] == list(POSE.angles)
    assert all(math.isnan(value) for value in targets[3:])


def test_to_poses_gives_back_the_pose_that_was_learned():
    targets = torch.tensor([pose_targets_of(POSE, **PICTURE)])
    output = PoseHeadOutput(
        torch.zeros(1, 9), rotation_matrix(*targets[:, :3].unbind(-1)), targets[:, 3:], torch.zeros(1)
    )
    (pose,) = output.to_poses(**batched(PICTURE))
    assert geodesic_angle_of_poses(pose.angles, POSE.angles) < 1e-6
    assert (pose.distance, pose.px, pose.py) == pytest.approx((5.0, 70.0, 20.0), rel=1e-5)
    assert output.confidence.item() == 0.5


def test_a_runaway_distance_stays_finite():
    output = PoseHeadOutput(
        torch.zeros(2, 9), torch.eye(3).expand(2, 3, 3), torch.tensor([[-1e6, 0, 0], [1e6, 0, 0]]), torch.zeros(2)
    )
    distances = [pose.distance for pose in output.to_poses(**batched(PICTURE, 2))]
    assert all(math.isfinite(distance) and distance > 0 for distance in distances)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_head_answers_in_float32_whatever_it_computes_in(name: str):
    torch.manual_seed(0)
    head = PoseHead(config(rotation=name))
    states = torch.randn(5, 16)
    output = head(states)
    assert output.raw_rotation.shape == (5, head.representation.size)
    assert output.rotation.shape == (5, 3, 3)
    assert output.location.shape == (5, 3)
    assert output.confidence.shape == (5,)
    # mixed precision leaves the head alone: bfloat16 has eight bits, a third of a degree
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(states)
    assert torch.equal(mixed.raw_rotation, output.raw_rotation)
    low = head.bfloat16()(states.bfloat16())
    assert low.rotation.dtype == low.location.dtype == low.confidence_logit.dtype == torch.float32
    torch.testing.assert_close(low.rotation @ low.rotation.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_fresh_encoder_says_nothing_and_takes_an_unknown_location():
    torch.manual_seed(0)
    encoder = PoseEncoder(config())
    poses = torch.tensor([pose_targets_of(POSE, **PICTURE), [1.0, 0.2, 0.1, math.nan, math.nan, math.nan]])
    assert torch.isfinite(encoder(poses)).all()
    # the same rotation by its other name, and by a full turn, is the same input
    a, e, t = POSE.angles
    names = [(a, e, t), (a + math.pi, math.pi - e, t + math.pi), (a + 2 * math.pi, e, t - 2 * math.pi)]
    encoded = encoder(torch.tensor([[*angles, 0.0, 0.0, 0.0] for angles in names]))
    torch.testing.assert_close(encoded, encoded[:1].expand(3, -1), atol=1e-5, rtol=1e-5)


def test_rows_of_the_pose_token_start_at_zero_and_change_that_token_alone():
    rows = PoseTokenEmbedding(16), PoseTokenOutput(16)
    assert all(not row.change.any() for row in rows)
    embedding, output = rows
    torch.nn.init.normal_(embedding.change)
    at_token = torch.tensor([[False, True, False]])
    added = embedding(at_token)
    assert torch.equal(added[0, 1], embedding.change[0])
    assert not added[0, [0, 2]].any()
    torch.nn.init.normal_(output.change)
    states = torch.randn(2, 3, 16)
    torch.testing.assert_close(output(states), (states * output.change[0]).sum(-1))
