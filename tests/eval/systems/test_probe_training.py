"""The probes of a whole grid, trained together, are those that torch's own optimiser and layers give one after another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.systems.linear_probe.training import ProbeTrainer, batch_order, cosine_factor

RATES = (1e-3, 2e-2, 0.1)


def one_after_another(features: Tensor, bins: Tensor, rate: float, batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A plain loop: weight (3, 40, features) and bias (3, 40)."""
    layers = nn.ModuleList([nn.Linear(features.shape[1], 40) for _ in range(3)]).to(features.dtype)
    for parameter in layers.parameters():
        nn.init.zeros_(parameter)
    optimizer = torch.optim.SGD(layers.parameters(), lr=rate, momentum=0.9, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        loss = sum(F.cross_entropy(layer(features[batch]), bins[batch, angle]) for angle, layer in enumerate(layers))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return tuple(torch.stack([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))


def made_objects(count: int, width: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Two blocks of features and labels that can be learnt from them; azimuth has all bins, the others few."""
    generator = torch.Generator().manual_seed(1)
    blocks = {name: torch.randn(count, width, generator=generator, dtype=dtype) + 0.5 for name in ("cls", "patches")}
    score = blocks["cls"].float() @ torch.randn(width, 40, generator=generator)
    bins = torch.stack([score.argmax(1), score[:, :7].argmax(1), 38 + score[:, :2].argmax(1)], 1)
    bins[:40, 0] = torch.arange(40)
    return blocks, bins


@pytest.mark.parametrize("names", [["cls"], ["cls", "patches"]])
@pytest.mark.parametrize(("count", "width"), [(90, 6), (90, 60)], ids=["on the weights", "on the kernel"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_all_rates_together_are_each_rate_alone(names, count, width, dtype, tolerance):
    blocks, bins = made_objects(count + 10, width, dtype)
    batches = batch_order(count, epochs=14, batch_size=32, seed=3)  # 42 steps; the last batch of an epoch is short
    others = torch.arange(count, count + 10)
    found = ProbeTrainer(blocks, bins, rates=RATES, batches=batches, others=others).train(names)
    features = torch.cat([blocks[name] for name in names], 1)
    for index, rate in enumerate(RATES):
        weight, bias = one_after_another(features, bins, rate, batches)
        probe = found.weights(index)
        scale = float(weight.abs().max())
        torch.testing.assert_close(probe.weight, weight, rtol=0, atol=tolerance * scale)
        torch.testing.assert_close(probe.bias, bias, rtol=0, atol=tolerance * scale)
        logits = torch.einsum("nf,abf->nab", features[others], weight) + bias
        assert torch.equal(found.bins[index], logits.argmax(-1))
        torch.testing.assert_close(probe.logits(features[others]), logits, rtol=0, atol=10 * tolerance * scale)


def test_objects_that_are_in_no_batch_are_not_trained_on():
    blocks, bins = made_objects(60, 8, torch.float64)
    batches = [torch.tensor([5, 40, 7]), torch.tensor([40, 2])]
    arguments = {"rates": [0.1], "batches": batches, "others": torch.tensor([0, 1])}
    first = ProbeTrainer(blocks, bins, **arguments).train(["cls"]).weights(0)
    untouched = [index for index in range(60) if index not in (5, 40, 7, 2)]
    blocks["cls"][untouched] = 99.0
    second = ProbeTrainer(blocks, bins, **arguments).train(["cls"]).weights(0)
    assert torch.equal(first.weight, second.weight)
    weight, _ = one_after_another(blocks["cls"], bins, 0.1, batches)
    torch.testing.assert_close(first.weight, weight)


def test_a_thousand_steps_of_the_kernel_neither_vanish_nor_overflow():
    """The momentum is kept divided by a power of 0.9 that is folded back in time."""
    blocks, bins = made_objects(40, 60, torch.float32)
    batches = batch_order(40, epochs=500, batch_size=20, seed=0)
    trainer = ProbeTrainer(blocks, bins, rates=[0.01], batches=batches, others=torch.arange(40))
    probe = trainer.train(["cls"]).weights(0)
    weight, _ = one_after_another(blocks["cls"], bins, 0.01, batches)
    torch.testing.assert_close(probe.weight, weight, rtol=0, atol=1e-4 * float(weight.abs().max()))


def test_the_order_is_a_permutation_an_epoch_and_the_seed_decides_it():
    order = batch_order(10, epochs=2, batch_size=4, seed=5)
    assert [len(batch) for batch in order] == [4, 4, 2, 4, 4, 2]
    for epoch in (order[:3], order[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert torch.equal(torch.cat(order), torch.cat(batch_order(10, epochs=2, batch_size=4, seed=5)))
    assert not torch.equal(torch.cat(order), torch.cat(batch_order(10, epochs=2, batch_size=4, seed=6)))


def test_the_cosine_goes_from_one_to_nearly_nothing():
    assert cosine_factor(0, 10) == 1.0
    assert math.isclose(cosine_factor(5, 10), 0.5)
    assert 0 < cosine_factor(9, 10) < 0.03
