"""Rotation representations: what they decode, what their losses are least at, gradients where SVDs usually break."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.spatial.transform import Rotation
from scipy.special import ive
from torch import Tensor

from llava_pose.model.rotation import (
    BINS,
    COMPONENTS,
    MODE_SEPARATION,
    MODES,
    ROTATION_NAMES,
    LaplaceMixture,
    MatrixFisher,
    chordal_loss,
    rotation_representation,
    special_orthogonalize,
)
from llava_pose.pose.geometry import angles_from_rotation, angles_to_bins, geodesic_angle, rotation_matrix

BIN = 2 * math.pi / BINS
WITH_MODES = ("bins+residual", "laplace-mixture")


def random_angles(count: int, seed: int = 0) -> Tensor:
    """(count, 3) azimuth, elevation, theta over all rotations."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return torch.stack([2 * math.pi * u[:, 0], torch.asin(2 * u[:, 1] - 1), 2 * math.pi * u[:, 2] - math.pi], -1)


def raw_for(name: str, angles: Tensor) -> Tensor:
    """Raw outputs that mean exactly these angles, with certainty."""
    rotation = rotation_matrix(*angles.unbind(-1))
    if name == "svd9d":
        return 3 * rotation.flatten(-2)
    if name == "matrix-fisher":
        return 500 * rotation.flatten(-2)
    if name == "rot6d":
        return torch.cat([2 * rotation[..., 0], 0.5 * rotation[..., 1] + rotation[..., 0]], -1)
    if name == "laplace-mixture":
        parts = torch.zeros(*angles.shape[:-1], COMPONENTS, 11).to(angles)
        parts[..., 3, :9] = 1000 * rotation.flatten(-2)
        parts[..., 3, 9:] = torch.tensor([9.0, 60.0])
        return parts.flatten(-2)
    shift = 0.5 if name == "bins+residual" else 0.0
    index = angles_to_bins(angles, bins=BINS, shift=shift)
    logits = 60.0 * torch.nn.functional.one_hot(index, BINS).to(angles)
    if name == "bins":
        return logits.flatten(-2)
    inside = (angles / BIN + shift) % 1 - 0.5  # where in its bin each angle lies
    return torch.stack([logits, inside[..., None].expand_as(logits)], -3).flatten(-3)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_raw_outputs_are_mirrored_as_the_rotation_is(name: str):
    """Whatever they are: the mirror image of (a, e, t) is (-a, e, -t)."""
    representation = rotation_representation(name)
    raw = torch.randn(64, representation.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    azimuth, elevation, theta = angles_from_rotation(representation.decode(raw).double())
    expected = rotation_matrix(-azimuth, elevation, -theta)
    tolerance = 1e-4 if name == "laplace-mixture" else 1e-5  # a mean of rotations that are far apart rounds more
    assert geodesic_angle(representation.decode(representation.mirror(raw)).double(), expected).max() < tolerance
    torch.testing.assert_close(representation.mirror(representation.mirror(raw)), raw)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_decode_gives_rotations_whatever_the_raw_outputs(name: str):
    representation = rotation_representation(name)
    raw = torch.randn(64, representation.size, generator=torch.Generator().manual_seed(1)) * 10
    rotation = representation.decode(raw)
    assert rotation.shape == (64, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(64, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_decode_inverts_the_representation(name: str):
    angles = random_angles(200)
    rotation = rotation_representation(name).decode(raw_for(name, angles))
    error = geodesic_angle(rotation, rotation_matrix(*angles.unbind(-1)))
    # three angles, each half a bin off at most
    assert error.max() < (1.5 * BIN if name == "bins" else 2e-3)
    if name == "bins":
        assert error.max() > 0.5 * BIN


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_loss_is_least_at_the_truth(name: str):
    representation = rotation_representation(name)
    angles = random_angles(100)
    raw = raw_for(name, angles)
    at_truth = representation.loss(raw, angles)
    assert at_truth.shape == (100,)
    if name not in ("matrix-fisher", "laplace-mixture"):  # log densities, which may be negative
        torch.testing.assert_close(at_truth, torch.zeros_like(at_truth), atol=1e-5, rtol=0)
    for axis in range(3):
        for step in (1.5 * BIN, 1.0, math.pi):
            moved = angles.clone()
            moved[:, axis] += step
            apart = geodesic_angle(rotation_matrix(*moved.unbind(-1)), rotation_matrix(*angles.unbind(-1))) > 1e-3
            assert (representation.loss(raw, moved)[apart] > at_truth[apart]).all(), (axis, step)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_gradient_steps_reach_the_truth(name: str):
    representation = rotation_representation(name)
    angles = random_angles(16, seed=2)
    raw = torch.randn(16, representation.size, generator=torch.Generator().manual_seed(3)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        representation.loss(raw, angles).sum().backward()
        assert torch.isfinite(raw.grad).all()
        optimizer.step()
    error = geodesic_angle(representation.decode(raw.detach()), rotation_matrix(*angles.unbind(-1)))
    assert error.max() < (1.5 * BIN if name == "bins" else 0.03)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_bfloat16_outputs_are_decoded_and_scored_in_float32(name: str):
    representation = rotation_representation(name)
    angles = random_angles(8).float()
    raw = torch.randn(8, representation.size, generator=torch.Generator().manual_seed(4)).bfloat16()
    assert representation.decode(raw).dtype == torch.float32
    assert representation.loss(raw, angles.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(representation.decode(raw), representation.decode(raw.float()))
    torch.testing.assert_close(representation.loss(raw, angles), representation.loss(raw.float(), angles))


def test_unknown_representation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"quaternion.*svd9d"):
        rotation_representation("quaternion")


def test_special_orthogonalize_is_the_nearest_rotation():
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)
    nearest = special_orthogonalize(matrix)
    others = torch.as_tensor(Rotation.random(2000, random_state=0).as_matrix())
    distance = (matrix - nearest).square().sum((-2, -1))
    assert (distance[:, None] <= (matrix[:, None] - others).square().sum((-2, -1)) + 1e-12).all()
    # among the neighbours too
    near = nearest[:, None] @ torch.as_tensor(Rotation.from_rotvec(0.01 * np.eye(3)).as_matrix())
    assert (distance[:, None] <= (matrix[:, None] - near).square().sum((-2, -1))).all()
    assert (torch.linalg.det(matrix) < 0).any()


def test_special_orthogonalize_has_the_right_gradient():
    generator = torch.Generator().manual_seed(6)
    matrices = torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    singular = torch.linalg.svdvals(matrices)
    # where the two smallest singular values cancel (s2 + s3 near 0, by the sign of the determinant) it jumps
    smooth = singular[:, 1] + singular[:, 2] * torch.linalg.det(matrices).sign() > 0.1
    assert smooth.sum() > 10
    assert torch.autograd.gradcheck(special_orthogonalize, matrices[smooth].requires_grad_())


def test_gradient_is_right_at_equal_singular_values():
    """Where autograd through an SVD divides by zero."""
    rotation = rotation_matrix(*random_angles(5).unbind(-1))
    assert torch.autograd.gradcheck(special_orthogonalize, (2 * rotation).requires_grad_())
    assert torch.autograd.gradcheck(special_orthogonalize, torch.eye(3, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize(
    "matrix", [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -1.0])), 1e-30 * torch.eye(3)]
)
def test_gradient_is_finite_where_the_projection_is_not_smooth(matrix: Tensor):
    matrix = matrix.clone().requires_grad_()
    special_orthogonalize(matrix)[0, 1].backward()
    assert torch.isfinite(matrix.grad).all()


def test_one_matrix_that_is_not_finite_spoils_no_other():
    matrices = torch.stack(
        [torch.eye(3), torch.full((3, 3), torch.nan), torch.diag(torch.tensor([1.0, torch.inf, 1.0]))]
    )
    rotation = special_orthogonalize(matrices)
    torch.testing.assert_close(rotation[0], torch.eye(3))
    assert rotation[1:].isnan().all()


def test_chordal_loss_is_twice_the_squared_sine_of_half_the_angle():
    a, b = (rotation_matrix(*random_angles(50, seed).unbind(-1)) for seed in (7, 8))
    torch.testing.assert_close(chordal_loss(a, b), 2 * (geodesic_angle(a, b) / 2).sin().square())


@pytest.mark.parametrize("scale", [1e-3, 0.5, 5.0, 50.0, 2000.0])
def test_matrix_fisher_normalizer_of_a_multiple_of_a_rotation(scale: float):
    """c(a R) = integral of exp(a (1 + 2 cos t)) (1 - cos t) / pi dt = exp(a) (I0(2a) - I1(2a))."""
    expected = 3 * scale + math.log(ive(0, 2 * scale) - ive(1, 2 * scale))
    parameter = scale * rotation_matrix(*random_angles(4).unbind(-1))
    result = MatrixFisher().log_normalizer(parameter)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "singular", [(0.0, 0.0, 0.0), (3.0, 1.0, 0.2), (3.0, 2.0, -1.5), (4.0, 0.0, 0.0), (2.0, 2.0, -2.0)]
)
def test_matrix_fisher_normalizer_by_monte_carlo(singular: tuple[float, float, float]):
    rotations = Rotation.random(200_000, random_state=1).as_matrix()
    u, v = (rotation_matrix(*random_angles(1, seed)[0]) for seed in (9, 10))
    parameter = u @ torch.diag(torch.tensor(singular, dtype=torch.float64)) @ v.mT
    samples = np.exp(np.einsum("ij,nij->n", parameter.numpy(), rotations))
    spread = samples.std() / samples.mean() / math.sqrt(len(samples))
    result = MatrixFisher().log_normalizer(parameter).item()
    assert result == pytest.approx(math.log(samples.mean()), abs=4 * spread + 1e-9)


def test_matrix_fisher_normalizer_has_the_right_gradient():
    parameter = torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(11), dtype=torch.float64) * 3
    assert torch.autograd.gradcheck(MatrixFisher().log_normalizer, parameter.requires_grad_())


def bins_of(probabilities: list[list[float]], offsets: float = 0.0) -> torch.Tensor:
    """(1, 240) what a head puts out that gives the bins of each angle these probabilities."""
    logits = torch.tensor(probabilities).log()
    return torch.cat([logits, torch.full_like(logits, offsets)]).flatten()[None]


def spread(bins: dict[int, float]) -> list[float]:
    return [bins.get(number, 1e-9) for number in range(BINS)]


@pytest.mark.parametrize("concentration", [0.01, 1.0, 30.0, 400.0])
def test_laplace_normalizer_is_the_integral_over_all_rotations(concentration: float):
    """Of the angle x of a rotation, which has the density (1 - cos x) / pi when all rotations are as likely."""
    expected, _ = quad(
        lambda x: math.exp(-2 * concentration * math.sin(x / 2)) * (1 - math.cos(x)) / math.pi,
        0,
        math.pi,
        points=[1 / concentration] if concentration > 1 else None,
        epsabs=0,
    )
    found = LaplaceMixture().log_normalizer(torch.tensor(concentration, dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(expected), abs=1e-6)


def test_a_mixture_learns_both_of_two_rotations_that_are_as_likely():
    """Half a turn apart: one rotation between them would be wrong by 90 degrees for both."""
    representation = rotation_representation("laplace-mixture")
    raw = torch.zeros(1, representation.size, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    both = torch.tensor([[0.5, 0.2, 0.0], [0.5 + math.pi, 0.2, 0.0]])
    for _ in range(300):
        optimizer.zero_grad()
        representation.loss(raw.expand(2, -1), both).sum().backward()
        optimizer.step()
    rotations, shares = representation.modes(raw.detach())
    off = geodesic_angle(rotations[0, :2, None], rotation_matrix(*both.unbind(-1)))
    assert off.amin(0).max() < math.radians(2)
    assert shares[0, :2].tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_residual_bins_answer_where_the_most_is_near_and_not_with_the_best_bin():
    """Front or back: the back's bin is the best, and the front's neighbours hold twice as much together."""
    azimuth = spread({30: 0.34, 9: 0.2, 10: 0.26, 11: 0.2})
    upright = spread({0: 1.0})
    raw = bins_of([azimuth, upright, upright])
    found = angles_from_rotation(rotation_representation("bins+residual").decode(raw))[0]
    assert found.item() == pytest.approx(10 * BIN, abs=1e-4)


def test_residual_bins_answer_between_two_bins_that_share_an_angle():
    azimuth = spread({10: 0.5, 11: 0.5})
    raw = bins_of([azimuth, spread({0: 1.0}), spread({39: 0.5, 0: 0.5})])
    azimuth, _, theta = angles_from_rotation(rotation_representation("bins+residual").decode(raw))
    assert azimuth.item() == pytest.approx(10.5 * BIN, abs=0.05 * BIN)  # one step gets there but for that
    assert theta.item() == pytest.approx(-0.5 * BIN, abs=0.05 * BIN)


@pytest.mark.parametrize("name", WITH_MODES)
def test_the_first_mode_is_the_answer_and_no_two_are_near(name: str):
    representation = rotation_representation(name)
    raw = 3 * torch.randn(300, representation.size, generator=torch.Generator().manual_seed(0))
    rotations, shares = representation.modes(raw)
    assert torch.equal(rotations[:, 0], representation.decode(raw))
    assert (shares.diff() <= 0).all()
    assert shares.sum(-1).numpy() == pytest.approx(np.ones(300), abs=1e-5)
    off = geodesic_angle(rotations[:, :, None], rotations[:, None])
    both = (shares[:, :, None] > 0) & (shares[:, None] > 0) & ~torch.eye(MODES, dtype=torch.bool)
    assert math.degrees(off[both].min()) >= math.degrees(MODE_SEPARATION) - 0.1


def test_a_half_turn_that_is_as_likely_is_the_second_mode():
    logits = torch.full((1, 3, BINS), -9.0)
    logits[0, 0, [3, 23]] = torch.tensor([3.0, 2.9])
    logits[0, 1, 1] = logits[0, 2, 0] = 5.0
    raw = torch.stack([logits, torch.zeros_like(logits)], 1).flatten(1)
    rotations, shares = rotation_representation("bins+residual").modes(raw)
    azimuth, elevation, theta = (np.degrees(angle[0, :2].numpy()) for angle in angles_from_rotation(rotations))
    assert azimuth.tolist() == pytest.approx([27, 207], abs=0.1)
    assert (elevation.tolist(), theta.tolist()) == (pytest.approx([9, 9], abs=0.1), pytest.approx([0, 0], abs=0.1))
    assert shares[0, :3].tolist() == pytest.approx([0.525, 0.475, 0], abs=1e-3)


@pytest.mark.parametrize("name", [name for name in ROTATION_NAMES if name not in WITH_MODES])
def test_other_representations_have_one_mode(name: str):
    representation = rotation_representation(name)
    raw = torch.randn(5, representation.size, generator=torch.Generator().manual_seed(0))
    rotations, shares = representation.modes(raw)
    assert torch.equal(rotations[:, 0], representation.decode(raw))
    assert shares.tolist() == [[1.0]] * 5


def test_a_sure_bin_of_residual_bins_is_taken_with_its_offset():
    raw = bins_of([spread({7: 1.0}), spread({2: 1.0}), spread({38: 1.0})], offsets=0.3)
    found = torch.stack(angles_from_rotation(rotation_representation("bins+residual").decode(raw)))[:, 0]
    expected = torch.tensor([7.3, 2.3, -1.7]) * BIN
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ROTATION_NAMES)
def test_autocast_does_not_change_what_is_decoded(name: str):
    representation = rotation_representation(name)
    raw = torch.randn(256, representation.size, generator=torch.Generator().manual_seed(3)) * 3
    expected = representation.decode(raw)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = representation.decode(raw)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
