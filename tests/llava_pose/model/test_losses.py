"""The losses: sums over what is supervised, divided by the counts of the whole step."""

from __future__ import annotations

import math

import pytest
import torch

from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.losses import POSE_TERMS, pose_loss, text_loss
from llava_pose.model.pose_head import PoseHeadOutput
from llava_pose.model.rotation import rotation_representation
from llava_pose.pose.geometry import rotation_matrix

SVD = rotation_representation("svd9d")


def config(**weights: float) -> LlavaPoseConfig:
    return LlavaPoseConfig(
        pose_token_id=1, image_token_id=2, hidden_size=16, embedding_size=16, pooled_size=8, **weights
    )


def targets(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([torch.rand(count, 3, generator=generator) * 3, torch.randn(count, 3, generator=generator)], -1)


def answer(angles: torch.Tensor, location: torch.Tensor, logit: float = 0.0) -> PoseHeadOutput:
    rotation = rotation_matrix(*angles.unbind(-1))
    return PoseHeadOutput(rotation.flatten(-2), rotation, location, torch.full((len(angles),), logit))


def guess(count: int) -> PoseHeadOutput:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(count, 9, generator=generator)
    return PoseHeadOutput(
        raw, SVD.decode(raw), torch.randn(count, 3, generator=generator), torch.randn(count, generator=generator)
    )


def test_text_loss_is_a_mean_or_a_share_of_the_whole_step():
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    mean = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(text_loss(logits, labels, None), mean)
    shares = text_loss(logits[:2], labels[:2], 6) + text_loss(logits[2:], labels[2:], torch.tensor(6))
    torch.testing.assert_close(shares, mean)


def test_text_loss_of_nothing_is_zero_and_in_the_graph():
    logits = torch.zeros(0, 10, requires_grad=True)
    loss = text_loss(logits, torch.zeros(0, dtype=torch.long), None)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_text_loss_of_bfloat16_logits_is_float32():
    logits = torch.randn(4, 10).bfloat16()
    loss = text_loss(logits, torch.arange(4), None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, text_loss(logits.float(), torch.arange(4), None))


def test_the_truth_costs_nothing_but_doubt():
    truth = targets(5)
    loss, terms = pose_loss(answer(truth[:, :3], truth[:, 3:], 20.0), truth, config(), SVD, None)
    assert terms["rotation"] == pytest.approx(0, abs=1e-6)
    assert terms["location"] == pytest.approx(0, abs=1e-6)
    assert terms["confidence"] == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_confidence_is_taught_whether_the_error_is_under_the_threshold():
    truth = targets(1)
    for offset, sure in ((0.4, True), (0.7, False)):
        moved = truth.clone()
        moved[:, 2] += offset
        for logit in (-8.0, 8.0):
            _, terms = pose_loss(
                answer(moved[:, :3], truth[:, 3:], logit), truth, config(confidence_threshold=math.pi / 6), SVD, None
            )
            assert (terms["confidence"] < 0.1) == (sure == (logit > 0))


def test_terms_are_weighted_by_the_config():
    truth, output = targets(4), guess(4)
    terms = pose_loss(output, truth, config(), SVD, None)[1]
    assert tuple(terms) == POSE_TERMS
    for name in POSE_TERMS:
        weights = {f"{other}_loss_weight": 3.0 if other == name else 0.0 for other in POSE_TERMS}
        loss, again = pose_loss(output, truth, config(**weights), SVD, None)
        assert loss.item() == pytest.approx(3 * terms[name].item())
        assert again == terms  # the log shows them unweighted


@pytest.mark.parametrize("name", ["svd9d", "bins+residual"])
def test_parts_of_a_step_add_up_to_the_step(name: str):
    representation = rotation_representation(name)
    truth = targets(6)
    raw = torch.randn(6, representation.size, generator=torch.Generator().manual_seed(2))

    def part(rows: slice) -> torch.Tensor:
        output = PoseHeadOutput(raw[rows], representation.decode(raw[rows]), truth[rows, 3:] + 0.3, truth[rows, 0])
        return pose_loss(output, truth[rows], config(rotation=name), representation, 6)[0]

    torch.testing.assert_close(part(slice(0, 1)) + part(slice(1, 6)), part(slice(0, 6)))


def test_an_unknown_location_costs_nothing_and_moves_nothing():
    truth, output = targets(3), guess(3)
    truth[1, 3:] = math.nan
    location = output.location.clone().requires_grad_()
    output = PoseHeadOutput(output.raw_rotation, output.rotation, location, output.confidence_logit)
    loss, terms = pose_loss(output, truth, config(location_loss_weight=1.0), SVD, None)
    loss.backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert not location.grad[1].any()
    assert location.grad[[0, 2]].all()
