"""The training loss: text cross-entropy and the pose terms, each normalised so that gradient accumulation changes nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.pose_head import PoseHeadOutput
from llava_pose.model.rotation import RotationRepresentation
from llava_pose.pose.geometry import geodesic_angle, rotation_matrix

POSE_TERMS = ("rotation", "location", "confidence")


def text_loss(logits: Tensor, targets: Tensor, count: Tensor | int | None) -> Tensor:
    """Cross-entropy of (n, vocabulary) logits, summed and divided by ``count``: the supervised tokens of the whole step.

    Without a count it is the mean over these n (0 for none).
    """
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / (max(1, targets.numel()) if count is None else count)


def pose_loss(
    output: PoseHeadOutput,
    targets: Tensor,
    config: LlavaPoseConfig,
    representation: RotationRepresentation,
    count: Tensor | int | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted rotation, location and confidence terms over n poses, divided by ``count`` (the poses of the whole step).

    Args:
        targets: (n, 6) as ``pose_targets_of`` gives them; an unknown location is NaN and costs nothing.

    Returns:
        The weighted sum, and each unweighted term for the log.
    """
    n = targets.shape[0]
    count = max(1, n) if count is None else count
    targets = targets.float()
    rotation = representation.loss(output.raw_rotation, targets[:, :3]).sum() / count

    known = torch.isfinite(targets[:, 3:])
    location_targets = torch.where(known, targets[:, 3:], output.location.detach())
    location = F.smooth_l1_loss(output.location, location_targets, beta=0.1, reduction="sum") / count

    with torch.no_grad():
        error = geodesic_angle(output.rotation, rotation_matrix(*targets[:, :3].unbind(-1)))
        close = (error < config.confidence_threshold).to(output.confidence_logit.dtype)
    confidence = F.binary_cross_entropy_with_logits(output.confidence_logit, close, reduction="sum") / count

    total = (
        config.rotation_loss_weight * rotation
        + config.location_loss_weight * location
        + config.confidence_loss_weight * confidence
    )
    terms = (rotation, location, confidence)
    return total, {name: term.detach() for name, term in zip(POSE_TERMS, terms, strict=True)}
