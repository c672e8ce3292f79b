"""Many linear pose probes on the same frozen features, trained together: the same batches, different learning rates.

A probe is three linear classifiers (azimuth, elevation, theta; 40 bins each), its loss the sum of their cross-entropies, its
optimiser SGD with momentum and one cosine over all steps. :class:`ProbeTrainer` gives for every learning rate what
``torch.optim.SGD`` on three ``nn.Linear`` gives that start at zero and get the same batches, only sooner:

- The gradient of softmax regression is written out, and all learning rates share one matrix product a step. A column's base
  learning rate is folded into its gradient, so that momentum and step are the same pass over one tensor for all of them.
- Bins that no training object has cannot be told apart: from zero, their weights stay equal. One column stands for them all.
- Where there are fewer objects than twice the features, the weights are kept as a combination of the objects, ``W = A^T X``.
  A step then needs the kernel ``X X^T`` alone, its gradient touches only the rows of its batch, and the kernel of features
  side by side is the sum of their kernels.
- On CPUs the products go through oneDNN, which uses AVX-512 also where torch's default library does not.

The start is zero because the problem is convex: no draw of weights decides what comes out. (The published probes start at
random weights of deviation 0.01.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from llava_pose.model.rotation import BINS

MOMENTUM = 0.9
_ANGLES = 3
_MOST_KERNEL_ROWS = 4096  # beyond, a kernel is no longer small beside the features
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class ProbeWeights:
    """One probe.

    Attributes:
        weight: (3, 40, features).
        bias: (3, 40).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Map features (n, features) to logits (n, 3, 40)."""
        return torch.einsum("nf,abf->nab", features, self.weight) + self.bias


def batch_order(count: int, *, epochs: int, batch_size: int, seed: int) -> list[Tensor]:
    """Return the objects of each step: a new permutation an epoch, the last batch of an epoch as short as it comes."""
    generator = torch.Generator().manual_seed(seed)
    return [batch for _ in range(epochs) for batch in torch.randperm(count, generator=generator).split(batch_size)]


def half_mirrored(batches: Sequence[Tensor], offset: int, seed: int) -> list[Tensor]:
    """Put, with p = 0.5 each, an object's mirror image in its place, which stands so many rows behind it."""
    generator = torch.Generator().manual_seed(seed)
    return [batch + offset * torch.randint(2, batch.shape, generator=generator) for batch in batches]


def cosine_factor(step: int, steps: int) -> float:
    """Return what the base learning rate is multiplied with, as CosineAnnealingLR has it when it is stepped once a batch."""
    return (1 + math.cos(math.pi * step / steps)) / 2


class ProbeTrainer:
    """Trains probes on any of several blocks of features side by side."""

    def __init__(
        self,
        blocks: Mapping[str, Tensor],
        bins: Tensor,
        *,
        rates: Sequence[float],
        batches: Sequence[Tensor],
        others: Tensor,
        progress: str | None = None,
    ):
        """
        Args:
            blocks: name -> (objects, width), all of one floating type and device.
            bins: (objects, 3) labels in [0, 40).
            rates: base learning rates.
            batches: indices of the objects of each step.
            others: indices of objects to predict.
            progress: name of a bar to show while it trains.
        """
        like = next(iter(blocks.values()))
        # in the order in which they are first seen, so that the objects seen so far are a slice
        seen = torch.tensor(list(dict.fromkeys(torch.cat(list(batches)).tolist())))
        place = torch.empty(len(like), dtype=torch.long)
        place[seen] = torch.arange(len(seen))
        rows = torch.cat([seen, others.cpu()]).to(like.device)
        self._count = len(seen)
        self._blocks = {name: block[rows] for name, block in blocks.items()}
        self._batches = [place[batch].to(like.device) for batch in batches]
        self._outputs = _Outputs(bins[seen], rates, like)
        self._grams: dict[str, Tensor] = {}
        self._progress = progress

    def train(self, names: Sequence[str]) -> TrainedProbes:
        """Train probes, one a learning rate, on the blocks of these names side by side."""
        parts = [self._blocks[name] for name in names]
        if self._count < 2 * sum(part.shape[1] for part in parts) and self._count <= _MOST_KERNEL_ROWS:
            kernel = self._gram(names[0]) + 1  # the bias: a feature that is 1 everywhere
            for name in names[1:]:
                kernel += self._gram(name)
            shares = self._train_shares(kernel[: self._count])
            logits = _linear(kernel[self._count :], shares.T).T
            fitted = [part[: self._count] for part in parts]
            return TrainedProbes(self._outputs, self._outputs.best_bins(logits), shares, fitted)
        features = torch.cat([*parts, torch.ones_like(parts[0][:, :1])], 1)
        weight = self._train_weight(features[: self._count])
        logits = _linear(weight, features[self._count :])
        return TrainedProbes(self._outputs, self._outputs.best_bins(logits), weight, None)

    def _gram(self, name: str) -> Tensor:
        """Return the kernel of one block, (objects, objects that are trained on)."""
        if name not in self._grams:
            self._grams[name] = _linear(self._blocks[name], self._blocks[name][: self._count])
        return self._grams[name]

    def _train_weight(self, features: Tensor) -> Tensor:
        """Run SGD on the weights themselves: features (objects, features) give weights (columns, features)."""
        weight = features.new_zeros(self._outputs.count, features.shape[1])
        velocity = torch.zeros_like(weight)
        for step, batch in enumerate(self._bar()):
            inputs = features.index_select(0, batch)
            slope = self._outputs.slope(_linear(weight, inputs), batch)
            velocity.mul_(MOMENTUM).add_(_linear(slope, inputs.T))
            weight.add_(velocity, alpha=-cosine_factor(step, len(self._batches)))
        return weight

    def _train_shares(self, kernel: Tensor) -> Tensor:
        """Run SGD on the objects' shares in the weights: a kernel (objects, objects) gives shares (objects, columns)."""
        shares = kernel.new_zeros(len(kernel), self._outputs.count)
        velocity = torch.zeros_like(shares)  # divided by `scale`: to decay, a step need not touch every row
        scale, seen = 1.0, 0
        for step, batch in enumerate(self._bar()):
            # in the first epoch only the rows of objects seen so far are not zero
            logits = _linear(kernel[:, :seen].index_select(0, batch), shares[:seen].T).T.contiguous()
            if seen < len(kernel):
                seen = max(seen, int(batch.max()) + 1)
            slope = self._outputs.slope(logits, batch).T.contiguous()
            scale *= MOMENTUM
            velocity.index_add_(0, batch, slope, alpha=1 / scale)
            shares[:seen].add_(velocity[:seen], alpha=-scale * cosine_factor(step, len(self._batches)))
            if scale < _SMALLEST_SCALE:
                velocity.mul_(scale)
                scale = 1.0
        return shares

    def _bar(self) -> tqdm:
        return tqdm(self._batches, desc=self._progress, unit="step", leave=False, disable=self._progress is None)


class TrainedProbes:
    """The probes of all learning rates on the same features.

    Attributes:
        bins: (rates, others, 3) predicted for the objects that were to be predicted.
    """

    def __init__(self, outputs: _Outputs, bins: Tensor, trained: Tensor, fitted: list[Tensor] | None):
        """
        Args:
            trained: (columns, features + 1), or with ``fitted`` (objects, columns).
            fitted: the features, side by side, of the objects whose shares the rows of ``trained`` are.
        """
        self.bins = bins
        self._outputs = outputs
        self._trained = trained
        self._fitted = fitted

    def weights(self, rate: int) -> ProbeWeights:
        """Return the probe of the learning rate of this index."""
        if self._fitted is None:
            columns = self._outputs.spread(self._trained, rate)
            return ProbeWeights(columns[..., :-1].contiguous(), columns[..., -1].contiguous())
        shares = self._outputs.spread(self._trained.T, rate)
        return ProbeWeights(shares @ torch.cat(self._fitted, 1), shares.sum(-1))


class _Outputs:
    """The outputs of all probes as rows of one matrix: angle by angle, in an angle class by class, in a class rate by rate.

    A class is a bin that some object has; all bins that none has are one class more. Classes come before rates so that a
    softmax over them runs along contiguous memory.
    """

    def __init__(self, bins: Tensor, rates: Sequence[float], like: Tensor):
        """
        Args:
            bins: (objects, 3).
            like: a tensor of the type and device to compute in.
        """
        self._rates = len(rates)
        self._angles = [_AngleClasses(bins[:, angle].cpu(), rates, like) for angle in range(_ANGLES)]
        self._sizes = [angle.count * self._rates for angle in self._angles]
        self.count = sum(self._sizes)

    def slope(self, logits: Tensor, batch: Tensor) -> Tensor:
        """Turn logits (columns, batch) in place into the gradient of the loss by them, times each column's learning rate."""
        for angle, part in self._parts(logits):
            angle.slope_(part, batch)
        return logits

    def best_bins(self, logits: Tensor) -> Tensor:
        """Return the best bins of logits (columns, objects): (rates, objects, 3)."""
        return torch.stack([angle.bin_of_class[part.max(0).indices] for angle, part in self._parts(logits)], -1)

    def spread(self, rows: Tensor, rate: int) -> Tensor:
        """Spread rows (columns, n) over all bins of one rate: (3, 40, n)."""
        return torch.stack([part[angle.class_of_bin, rate] for angle, part in self._parts(rows)])

    def _parts(self, rows: Tensor) -> list[tuple[_AngleClasses, Tensor]]:
        """Split rows (columns, n) into each angle and its (classes, rates, n)."""
        parts = [part.unflatten(0, (-1, self._rates)) for part in rows.split(self._sizes)]
        return list(zip(self._angles, parts, strict=True))


class _AngleClasses:
    def __init__(self, bins: Tensor, rates: Sequence[float], like: Tensor):
        present = bins.unique()
        absent = torch.tensor(sorted(set(range(BINS)) - set(present.tolist())), dtype=torch.long)
        self.count = len(present) + bool(len(absent))
        class_of_bin = torch.full((BINS,), self.count - 1)
        class_of_bin[present] = torch.arange(len(present))
        self.class_of_bin = class_of_bin.to(like.device)
        self.bin_of_class = torch.cat([present, absent[:1]]).to(like.device)
        self._log_absent = math.log(len(absent)) if len(absent) else 0.0
        factors = torch.tensor(rates, dtype=torch.float64).repeat(self.count, 1)
        if len(absent):
            factors[-1] /= len(absent)  # the gradient of each of these bins is its part of the probability
        self._factors = factors[..., None].to(like)
        self._labels = torch.nn.functional.one_hot(class_of_bin[bins], self.count).to(like)

    def slope_(self, logits: Tensor, batch: Tensor) -> None:
        """Turn logits (classes, rates, batch) in place into (probability - label) times learning rate / batch size."""
        logits[-1] += self._log_absent
        torch.softmax(logits, 0, out=logits)
        logits -= self._labels.index_select(0, batch).T[:, None]
        logits *= self._factors / len(batch)


def _linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Compute ``inputs @ weight.T``; on CPUs best with dense inputs, while weights may as well be dense when transposed."""
    on_cpu = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not on_cpu or not inputs.numel():
        return inputs @ weight.T
    if not weight.is_contiguous() and not weight.T.is_contiguous():
        weight = weight.contiguous()  # rows with gaps between them would make oneDNN thousands of times slower
    return torch.ops.mkldnn._linear_pointwise(inputs.contiguous(), weight, None, "none", [], "")
