"""Rotation representations of the pose head, by name: raw network outputs in, rotations and losses out.

A representation is a stateless object with ``size`` raw numbers, ``decode(raw)`` and ``loss(raw, angles)``. All arithmetic
is float32 or better, whatever the network computes in.

==================  ====  ===========================================================================================
name                size  source
==================  ====  ===========================================================================================
``svd9d``              9  Levinson et al., "An analysis of SVD for deep rotation estimation", NeurIPS 2020
``rot6d``              6  Zhou et al., "On the continuity of rotation representations in neural networks", CVPR 2019
``bins``             120  40 bins an angle, floor binning, decoded at the centre (ImageNet3D, Ma et al., 2024)
``bins+residual``    240  the same half a bin shifted (0 is a centre), and an offset within each; read where most is near
``matrix-fisher``      9  Mohlin et al., "Probabilistic orientation estimation with matrix Fisher", NeurIPS 2020
``laplace-mixture``   88  eight Laplace densities about rotations, after Yin et al., "A Laplace-inspired distribution on SO(3)
                          for probabilistic rotation estimation", ICLR 2023
==================  ====  ===========================================================================================
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_pose.pose.geometry import angles_to_bins, bins_to_angles, rotation_matrix
from llava_pose.pose.rotation_names import ROTATION_NAMES

BINS = 40
DECODING = "smoothed bins"  # of :meth:`decode`, for files of answers: to be named anew when one changes, so that none mixes two
MODES = 6
COMPONENTS = 8  # of the mixture
PEAKS = 4  # of an angle that modes are made of
MODE_SEPARATION = math.radians(40)
_MIRRORED_SIGNS = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0)  # of S R S, row by row, S = diag(-1, 1, 1)


def _steps(device: torch.device) -> Tensor:
    """(BINS, BINS): bins from a row's bin to a column's, the short way round."""
    bins = torch.arange(BINS, device=device)
    return (bins - bins[:, None] + BINS // 2) % BINS - BINS // 2


class RotationRepresentation(ABC):
    """A representation of rotations by raw network outputs."""

    size: int

    @abstractmethod
    def decode(self, raw: Tensor) -> Tensor:
        """(..., size) raw outputs -> (..., 3, 3) world-to-camera rotations, float32 or better."""

    @abstractmethod
    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        """(n, size) raw outputs and (n, 3) true azimuth, elevation, theta in radians -> (n,) losses."""

    @abstractmethod
    def mirror(self, raw: Tensor) -> Tensor:
        """(..., size) raw outputs for a picture -> those that mean the same for its mirror image: (-a, e, -t) of (a, e, t),
        which is S R S of a rotation R, with S = diag(-1, 1, 1).
        """

    def modes(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(n, size) raw outputs -> (n, k, 3, 3) rotations that they hold likely, the likeliest first and as :meth:`decode`
        gives it, and (n, k) their probabilities, 0 where there are fewer than k. A representation with one mode has one.
        """
        return self.decode(raw)[:, None], raw.new_ones(len(raw), 1, dtype=torch.float32)

    def with_mirror_images(self, raw: Tensor, of_mirror: Tensor, both: Tensor) -> Tensor:
        """(n, size) raw outputs for pictures and for their mirror images as one: the means of both where ``both`` (n,) says
        so, elsewhere the picture's own.
        """
        return torch.where(both[:, None], (raw + self.mirror(of_mirror)) / 2, raw)


class _SpecialOrthogonal(torch.autograd.Function):
    """Nearest rotation in Frobenius norm, with a gradient that is finite wherever the projection is smooth.

    With ``M = U S V^T`` and signs folded so that det U = det V = 1 (s3 may be negative), ``R = U V^T`` and
    ``dR = U Omega V^T``, ``Omega_ij = (P_ij - P_ji) / (s_i + s_j)``, ``P = U^T dM V`` (Levinson et al., 2020, eq. 8).
    Autograd through an SVD divides by s_i^2 - s_j^2 instead and blows up at equal singular values.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        finite = torch.isfinite(matrix).flatten(-2).all(-1)[..., None, None]
        # the SVD of one matrix that is not finite would raise for the whole batch
        u, s, vh = torch.linalg.svd(torch.where(finite, matrix, torch.eye(3).to(matrix)))
        v = vh.mT
        sign_u, sign_v = torch.linalg.det(u).sign(), torch.linalg.det(v).sign()
        u = torch.cat([u[..., :2], u[..., 2:] * sign_u[..., None, None]], -1)
        v = torch.cat([v[..., :2], v[..., 2:] * sign_v[..., None, None]], -1)
        s = torch.cat([s[..., :2], s[..., 2:] * (sign_u * sign_v)[..., None]], -1)
        ctx.save_for_backward(u, s, v)
        return torch.where(finite, u @ v.mT, torch.nan)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        u, s, v = ctx.saved_tensors
        inner = u.mT @ gradient @ v
        sums = s[..., :, None] + s[..., None, :]
        floor = 1e-3 * s[..., :1, None].clamp_min(torch.finfo(s.dtype).eps)
        return u @ ((inner - inner.mT) / torch.maximum(sums, floor)) @ v.mT


def special_orthogonalize(matrix: Tensor) -> Tensor:
    """The rotation nearest to each matrix (..., 3, 3) in Frobenius norm; differentiable. NaN where one is not finite."""
    with torch.autocast(matrix.device.type, enabled=False):  # its matrix products would be rounded to bfloat16
        return _SpecialOrthogonal.apply(matrix)


def chordal_loss(rotation: Tensor, true_rotation: Tensor) -> Tensor:
    """``|R - R*|_F^2 / 4`` of (..., 3, 3) -> (...): 2 sin^2 of half the angle, in [0, 2], smooth everywhere."""
    return (rotation - true_rotation).square().sum((-2, -1)) / 4


class _NearestToMatrix(RotationRepresentation):
    """Nine numbers, a 3x3 matrix row by row, that mean the rotation nearest to it."""

    size = 9

    def mirror(self, raw: Tensor) -> Tensor:
        return raw * raw.new_tensor(_MIRRORED_SIGNS)

    def decode(self, raw: Tensor) -> Tensor:
        return special_orthogonalize(raw.float().unflatten(-1, (3, 3)))


class Svd9d(_NearestToMatrix):
    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        return chordal_loss(self.decode(raw), rotation_matrix(*angles.float().unbind(-1)))


class Rot6d(RotationRepresentation):
    size = 6

    def mirror(self, raw: Tensor) -> Tensor:
        # the first two columns of the rotation, one after the other
        return raw * raw.new_tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])

    def decode(self, raw: Tensor) -> Tensor:
        first, second = raw.float().split(3, -1)
        x = F.normalize(first, dim=-1)
        y = F.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
        return torch.stack([x, y, torch.linalg.cross(x, y)], -1)

    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        return chordal_loss(self.decode(raw), rotation_matrix(*angles.float().unbind(-1)))


class Bins(RotationRepresentation):
    """Three independent classifications; the published baseline's labels."""

    size = 3 * BINS
    shift = 0.0

    def mirror(self, raw: Tensor) -> Tensor:
        azimuth, elevation, theta = raw.unflatten(-1, (3, BINS)).unbind(-2)
        return torch.cat([azimuth.flip(-1), elevation, theta.flip(-1)], -1)

    def decode(self, raw: Tensor) -> Tensor:
        index = raw.float().unflatten(-1, (3, BINS)).argmax(-1)
        return rotation_matrix(*bins_to_angles(index, bins=BINS, shift=self.shift).unbind(-1))

    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        target = angles_to_bins(angles.float(), bins=BINS, shift=self.shift)
        logits = raw.float().unflatten(-1, (3, BINS))
        return F.cross_entropy(logits.movedim(-1, 1), target, reduction="none").sum(-1)


class BinsResidual(RotationRepresentation):
    """Half-shifted bins and an offset in bin widths for each: as many modes as there are bins, and no bin floor.

    Of an object's front and back now this and now that bin may be the most probable by a hair. The answer is therefore not
    the best bin but the angle whose surroundings hold the most: the mode of the bins smoothed with a Gaussian, and from
    there one step of mean shift (Comaniciu and Meer, PAMI 2002, eq. 20) to where its neighbours, with their offsets, lie;
    how near they are is counted from centre to centre.
    """

    size = 6 * BINS
    shift = 0.5
    width = 2.0  # standard deviation, bins: 18 degrees, so that within the protocol's 30 most of a neighbour counts

    def mirror(self, raw: Tensor) -> Tensor:
        parts = raw.unflatten(-1, (2, 3, BINS))
        turned = parts.flip(-1).roll(1, -1)  # of bin b, which is centred on b widths, comes bin -b
        signs = raw.new_tensor([1.0, -1.0]).view(2, 1)
        rows = [turned[..., 0, :] * signs, parts[..., 1, :], turned[..., 2, :] * signs]
        return torch.stack(rows, -2).flatten(-3)

    def decode(self, raw: Tensor) -> Tensor:
        probabilities, offsets, smoothed = self._smoothed(raw)
        angles = self._shifted(smoothed.argmax(-1, keepdim=True), probabilities, offsets)
        return rotation_matrix(*angles.squeeze(-1).unbind(-1))

    def modes(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Up to MODES rotations at peaks of the smoothed bins of all three angles, no two within MODE_SEPARATION.

        A peak weighs the product of what the angles' surroundings hold, as if the angles were independent, which is what
        the bins say.
        """
        probabilities, offsets, smoothed = self._smoothed(raw)
        peak = (smoothed >= smoothed.roll(1, -1)) & (smoothed > smoothed.roll(-1, -1))
        # the best of an angle stands first, so that the first of all is what decode finds
        heights, places = torch.where(peak, smoothed, 0.0).topk(PEAKS, dim=-1)
        places[..., :1] = smoothed.argmax(-1, keepdim=True)
        heights[..., :1] = smoothed.amax(-1, keepdim=True)
        angles = self._shifted(places, probabilities, offsets)
        grid = torch.cartesian_prod(*[torch.arange(PEAKS, device=raw.device)] * 3)  # a row a choice of three peaks
        of_angle = torch.arange(3, device=raw.device)
        weights = heights[:, of_angle, grid].prod(-1)
        rotations = rotation_matrix(*angles[:, of_angle, grid].unbind(-1))
        return _apart(rotations, weights)

    def _smoothed(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each bin of each angle, its probability, its offset and what its surroundings hold, (..., 3, BINS)."""
        logits, offsets = raw.float().unflatten(-1, (2, 3, BINS)).unbind(-3)
        probabilities = logits.softmax(-1)
        with torch.autocast(raw.device.type, enabled=False):  # bfloat16 would now and then find another mode
            return probabilities, offsets.clamp(-0.5, 0.5), probabilities @ self._near(raw.device)

    def _near(self, device: torch.device) -> Tensor:
        return torch.exp(-0.5 * (_steps(device) / self.width) ** 2)

    def _shifted(self, modes: Tensor, probabilities: Tensor, offsets: Tensor) -> Tensor:
        """(..., 3, m) bins -> (..., 3, m) angles in radians, one step of mean shift from there."""
        device = modes.device
        weights = self._near(device)[modes] * probabilities[..., None, :]
        step = (weights * (_steps(device)[modes] + offsets[..., None, :])).sum(-1) / weights.sum(-1)
        return bins_to_angles(modes, bins=BINS, shift=self.shift) + step * (2 * torch.pi / BINS)

    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        angles = angles.float()
        logits, offsets = raw.float().unflatten(-1, (2, 3, BINS)).unbind(-3)
        index = angles_to_bins(angles, bins=BINS, shift=self.shift)
        centre = bins_to_angles(index, bins=BINS, shift=self.shift)
        difference = angles - centre
        difference = torch.atan2(difference.sin(), difference.cos()) * (BINS / (2 * torch.pi))
        offset = offsets.gather(-1, index[..., None]).squeeze(-1)
        classification = F.cross_entropy(logits.movedim(-1, 1), index, reduction="none").sum(-1)
        return classification + F.smooth_l1_loss(offset, difference, beta=0.1, reduction="none").sum(-1)


class MatrixFisher(_NearestToMatrix):
    """Negative log likelihood of a matrix Fisher distribution with parameter F = raw; its mode is the prediction.

    The normalising constant depends on the signed singular values s1 >= s2 >= |s3| of F (Lee, "Bayesian attitude estimation
    with the matrix Fisher distribution on SO(3)", IEEE TAC 2018, eq. 12):
    ``c = integral_{-1}^{1} 1/2 I0((s1 - s2)(1 - u) / 2) I0((s1 + s2)(1 + u) / 2) exp(s3 u) du``. With v = 1 - u and the
    exponentials of the Bessel functions taken out (i0e), this is ``exp(s1 + s2 + s3)`` times
    ``integral_0^2 1/2 i0e((s1 - s2) v / 2) i0e((s1 + s2)(2 - v) / 2) exp(-(s2 + s3) v) dv``.
    """

    _NODES = 96

    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        parameter = raw.float().unflatten(-1, (3, 3))
        rotation = rotation_matrix(*angles.float().unbind(-1))
        return self.log_normalizer(parameter) - (parameter * rotation).sum((-2, -1))

    def log_normalizer(self, parameter: Tensor) -> Tensor:
        """log c(F) of (..., 3, 3) -> (...), uniform measure of mass 1 on SO(3). NaN where F is not finite."""
        finite = torch.isfinite(parameter).flatten(-2).all(-1)
        parameter = torch.where(finite[..., None, None], parameter, 0.0)
        s = torch.linalg.svdvals(parameter)
        s1, s2 = s[..., :1], s[..., 1:2]
        s3 = s[..., 2:] * torch.linalg.det(parameter).sign()[..., None]
        v, rest, weights = (torch.as_tensor(x).to(parameter) for x in _nodes_dense_at_both_ends(self._NODES))
        integrand = 0.5 * weights * torch.special.i0e((s1 - s2) * v / 2) * torch.special.i0e((s1 + s2) * rest / 2)
        log_integral = torch.logsumexp(integrand.log() - (s2 + s3) * v, -1)
        return torch.where(finite, (s1 + s2 + s3).squeeze(-1) + log_integral, torch.nan)


class LaplaceMixture(RotationRepresentation):
    """Negative log likelihood of a mixture of Laplace densities on SO(3).

    Component k has nine numbers, that are added to a rotation about the vertical by k eighths of a turn and mean the rotation
    R_k nearest to their sum; the logarithm of a concentration; and the logit of its weight. With the chordal distance
    ``d = |R - R_k|_F / sqrt(2) = 2 sin(angle / 2)`` its density is ``exp(-c d) / Z(c)``, where
    ``Z(c) = 4/pi integral_0^{pi/2} exp(-2 c sin x) sin^2 x dx`` over half of the angle, uniform measure of mass 1 on SO(3).
    It is the isotropic member of Yin et al.'s family, without the factor 1/d that makes theirs infinite at R_k. A fresh
    network's components look to eight sides: an object's front and back are told apart by weights, not by one mean between.

    The answer is the mean of what lies about the component whose surroundings hold the most.
    """

    size = 11 * COMPONENTS
    width = math.radians(18)  # as BinsResidual.width: within the protocol's 30 degrees most of a neighbour counts

    _NODES = 96

    def mirror(self, raw: Tensor) -> Tensor:
        parts = raw.unflatten(-1, (COMPONENTS, 11))
        parts = parts.flip(-2).roll(1, -2)  # that of -k eighths
        return (parts * parts.new_tensor([*_MIRRORED_SIGNS, 1.0, 1.0])).flatten(-2)

    def decode(self, raw: Tensor) -> Tensor:
        rotations, held = self._about(raw)
        return rotations.gather(-3, held.argmax(-1)[..., None, None, None].expand(*raw.shape[:-1], 1, 3, 3)).squeeze(-3)

    def modes(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Up to MODES rotations with the most about them, no two within MODE_SEPARATION."""
        return _apart(*self._about(raw))

    def loss(self, raw: Tensor, angles: Tensor) -> Tensor:
        rotations, concentrations, log_weights = self._components(raw)
        apart = rotations - rotation_matrix(*angles.float().unbind(-1))[..., None, :, :]
        # far below a thousandth of a degree, where the root's gradient would not be finite
        distance = (apart.square().sum((-2, -1)) / 2 + 1e-12).sqrt()
        log_densities = -concentrations * distance - self.log_normalizer(concentrations)
        return -torch.logsumexp(log_weights + log_densities, -1)

    def log_normalizer(self, concentrations: Tensor) -> Tensor:
        """log Z of concentrations of any shape."""
        v, _, weights = (torch.as_tensor(x).to(concentrations) for x in _nodes_dense_at_both_ends(self._NODES))
        sine = torch.sin(v * (math.pi / 4))
        return torch.logsumexp((weights * sine.square()).log() - 2 * concentrations[..., None] * sine, -1)

    def _components(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., k, 3, 3) rotations, (..., k) concentrations and logarithms of weights."""
        parts = raw.float().unflatten(-1, (COMPONENTS, 11))
        azimuths = torch.arange(COMPONENTS, device=raw.device) * (2 * math.pi / COMPONENTS)
        sides = rotation_matrix(azimuths, torch.zeros_like(azimuths), torch.zeros_like(azimuths))
        rotations = special_orthogonalize(parts[..., :9].unflatten(-1, (3, 3)) + sides)
        # e^6 is a degree's width of a seventh; a fresh network begins at e, which is half a turn's
        return rotations, torch.exp((parts[..., 9] + 1).clamp(-2, 6)), parts[..., 10].log_softmax(-1)

    def _about(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(..., k, 3, 3) means of what lies about each component, and (..., k) shares that lie there."""
        with torch.autocast(raw.device.type, enabled=False):
            rotations, _, log_weights = self._components(raw)
            traces = torch.einsum("...iab,...jab->...ij", rotations, rotations)
            angles = torch.acos(((traces - 1) / 2).clamp(-1, 1))
            near = torch.exp(-0.5 * (angles / self.width) ** 2) * log_weights.exp()[..., None, :]
            means = torch.einsum("...ij,...jab->...iab", near, rotations)
            return special_orthogonalize(means), near.sum(-1)


def _apart(rotations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k, 3, 3) rotations and (n, k) weights -> the MODES heaviest of which no two are within MODE_SEPARATION, the
    heaviest first, and their shares of what these weigh; 0 for those that are too many.
    """
    chosen, kept = [], []
    rows = torch.arange(len(rotations), device=rotations.device)
    for _ in range(MODES):
        best = weights.argmax(-1)
        chosen.append(rotations[rows, best])
        kept.append(weights[rows, best])
        traces = torch.einsum("nij,nkij->nk", chosen[-1], rotations)
        weights = torch.where(traces > 1 + 2 * math.cos(MODE_SEPARATION), 0.0, weights)
    share = torch.stack(kept, -1)
    return torch.stack(chosen, 1), share / share.sum(-1, keepdim=True)


@functools.cache
def _nodes_dense_at_both_ends(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes v in (0, 2), 2 - v, and weights of a quadrature that sees a peak of width 1e-5 at either end.

    Gauss-Legendre in t with v = 2 p(t), p(t) = 35 t^4 - 84 t^5 + 70 t^6 - 20 t^7 (p' = 140 t^3 (1 - t)^3).
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    t = (nodes + 1) / 2
    v = 2 * t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3)
    return v, v[::-1].copy(), weights * 140 * (t * (1 - t)) ** 3


_REPRESENTATIONS: dict[str, type[RotationRepresentation]] = dict(
    zip(ROTATION_NAMES, (Svd9d, Rot6d, Bins, BinsResidual, MatrixFisher, LaplaceMixture), strict=True)
)


def rotation_representation(name: str) -> RotationRepresentation:
    """The representation of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in _REPRESENTATIONS:
        raise ValueError(f"unknown rotation representation {name!r}; known: {', '.join(ROTATION_NAMES)}")
    return _REPRESENTATIONS[name]()
