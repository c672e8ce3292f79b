"""The memory of a neural mesh: a feature for every vertex, and features of what is no object; and the contrast with them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llava_pose.utils.distributed import several_processes, sum_over_processes

_AGAINST = -0.5  # normals with a lesser cosine belong to opposite sides: never neighbours, however thin the object


class FeatureBank(nn.Module):
    """Running means of the features of the vertices of all classes, and a ring of clutter features, all of length 1.

    They are buffers, saved with the model; gradients do not reach them. All processes of a run hold the same.

    Attributes:
        vertices: (classes, V, dims).
        seen: (classes, V) whether a vertex has been seen yet; until then its feature is random.
        clutter: (size, dims); random until it has been filled once.
        clutter_next: () where the next clutter feature goes.
    """

    vertices: Tensor
    clutter: Tensor
    seen: Tensor
    clutter_next: Tensor

    def __init__(self, classes: int, vertices: int, clutter: int, dims: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("vertices", (classes, vertices, dims)), ("clutter", (clutter, dims))):
            random = torch.randn(shape, generator=generator, device="cpu")
            self.register_buffer(name, F.normalize(random, dim=-1))
        self.register_buffer("seen", torch.zeros(classes, vertices, dtype=torch.bool))
        self.register_buffer("clutter_next", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def remember(self, features: Tensor, visible: Tensor, classes: Tensor, clutter: Tensor) -> None:
        """Move each vertex towards the mean of what was seen of it: f <- norm(m f + (1 - m) mean). The first time it is
        put there. Clutter takes the place of the oldest. Every process must call it equally often.

        Args:
            features: (batch, V, dims) of length 1.
            visible: (batch, V) which of them count.
            classes: (batch,) whose vertices they are.
            clutter: (n, dims) of length 1; n may differ between processes.
        """
        count, number, dims = self.vertices.shape
        sums = features.new_zeros(count, number, dims + 1)
        weights = visible.to(features.dtype)[..., None]
        sums.index_add_(0, classes, torch.cat([features * weights, weights], -1))
        sums = sum_over_processes(sums)
        now = sums[..., -1] > 0
        means = sums[..., :-1] / sums[..., -1:].clamp_min(1)
        momentum = torch.where(self.seen, self.momentum, 0.0)[..., None]
        moved = F.normalize(momentum * self.vertices + (1 - momentum) * means, dim=-1)
        self.vertices.copy_(torch.where(now[..., None], moved, self.vertices))
        self.seen |= now
        self._remember_clutter(_from_all_processes(clutter))

    def _remember_clutter(self, features: Tensor) -> None:
        size = self.clutter.shape[0]
        features = features[-size:]
        places = (self.clutter_next + torch.arange(len(features), device=features.device)) % size
        self.clutter[places] = features
        self.clutter_next.copy_((self.clutter_next + len(features)) % size)

    def everything(self) -> Tensor:
        """Copy all features, (classes * V + clutter, dims): the vertices class by class, then the clutter."""
        return torch.cat([self.vertices.flatten(0, 1), self.clutter])


def _from_all_processes(features: Tensor) -> Tensor:
    """Gather (n, dims) of every process, one after the other in the order of the processes."""
    if not several_processes():
        return features
    counts = [torch.zeros(1, dtype=torch.long, device=features.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(features)], device=features.device))
    longest = int(max(counts))
    padded = F.pad(features, (0, 0, 0, longest - len(features)))
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[: int(count)] for rows, count in zip(gathered, counts, strict=True)])


def neighbours(vertices: Tensor, normals: Tensor, chosen: Tensor, radius: float) -> Tensor:
    """Find the vertices that are too near a chosen one to be told apart from it, itself left out.

    Points on opposite sides of a thin object are no neighbours: they are what tells its front from its back.

    Args:
        vertices, normals: (batch, V, 3).
        chosen: (batch, n) indices.
        radius: object units.

    Returns:
        (batch, n, V) booleans.
    """
    pick = chosen[..., None].expand(-1, -1, 3)
    near = torch.cdist(vertices.gather(1, pick), vertices) < radius
    near &= normals.gather(1, pick) @ normals.transpose(1, 2) > _AGAINST
    return near.scatter(2, chosen[..., None], False)


def vertex_contrast(
    features: Tensor,
    chosen: Tensor,
    valid: Tensor,
    classes: Tensor,
    ignored: Tensor,
    bank: Tensor,
    *,
    number: int,
    temperature: float,
) -> Tensor:
    """Compute the cross-entropy of telling a vertex from all other vertices of all classes, and from clutter.

    Args:
        features: (batch, n, dims) of chosen vertices, of length 1.
        chosen: (batch, n) which vertices they are.
        valid: (batch, n) which of them count.
        classes: (batch,) of whose mesh.
        ignored: (batch, n, V) vertices of that mesh that are neither right nor wrong.
        bank: (classes * V + clutter, dims) as ``FeatureBank.everything``.
        number: V.

    Returns:
        Scalar: the mean over images of the mean over their vertices.
    """
    logits = features @ bank.T / temperature
    penalty = torch.where(ignored, -torch.inf, 0.0).to(logits.dtype)
    own = (classes[:, None] * number + torch.arange(number, device=classes.device))[:, None].expand_as(penalty)
    logits.scatter_add_(2, own, penalty)
    targets = classes[:, None] * number + chosen
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return _mean_of_means(losses, valid)


def clutter_contrast(features: Tensor, valid: Tensor, bank: Tensor, *, clutter: int, temperature: float) -> Tensor:
    """Compute minus the log of the probability that a background feature is any of the clutter.

    Args:
        features: (batch, n, dims) of background pixels, of length 1.
        valid: (batch, n) which of them count.
        bank: as in :func:`vertex_contrast`.
        clutter: how many of its last rows are clutter.

    Returns:
        Scalar: the mean over images of the mean over their pixels.
    """
    logits = features @ bank.T / temperature
    losses = logits.logsumexp(-1) - logits[..., -clutter:].logsumexp(-1)
    return _mean_of_means(losses, valid)


def _mean_of_means(losses: Tensor, valid: Tensor) -> Tensor:
    weights = valid.to(losses.dtype)
    return ((losses * weights).sum(-1) / weights.sum(-1).clamp_min(1)).mean()
