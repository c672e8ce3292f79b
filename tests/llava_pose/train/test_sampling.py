"""The order of an epoch whose batches are of samples of like length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_pose.data.collator import PoseCollator
from llava_pose.data.dataset import PoseDataset
from llava_pose.errors import InputError
from llava_pose.model.processors import load_processor
from llava_pose.train.length_groups import LengthGroups
from tests.llava_pose.conftest import arguments, read_log, run_training


def padding(order: np.ndarray, lengths: np.ndarray, batch_size: int) -> float:
    """The share of padding in an epoch's batches."""
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


@pytest.mark.parametrize("count", [1, 7, 8, 64, 1001])
def test_every_sample_once_an_epoch(count: int):
    lengths = np.random.default_rng(0).integers(40, 160, count)
    sampler = LengthGroups(lengths, 8, seed=0)
    assert len(sampler) == count
    assert sorted(sampler) == list(range(count))


def test_little_of_a_batch_is_padding_and_its_place_in_the_epoch_tells_nothing_of_its_length():
    lengths = np.where(np.random.default_rng(0).random(4000) < 0.5, 45, 150)
    order = np.array(list(LengthGroups(lengths, 32, seed=0)))
    by_lot = np.random.default_rng(0).permutation(4000)
    assert padding(by_lot, lengths, 32) > 0.3
    assert padding(order, lengths, 32) < 0.02
    longest = np.array([lengths[order[start : start + 32]].max() for start in range(0, 4000, 32)])
    assert longest[0] == 150  # memory that is too small is found at once
    changes = (longest[1:] != longest[:-1]).mean()
    assert 0.3 < changes < 0.7  # in the order of their lengths it would be some 0.04


def test_the_order_is_that_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(40, 160, 100)
    sampler, again = LengthGroups(lengths, 8, seed=3), LengthGroups(lengths, 8, seed=3)
    first = list(sampler)
    assert list(again) == list(sampler) == first  # one that is drawn twice, too
    sampler.set_epoch(1)
    assert list(sampler) != first
    again.set_epoch(1)
    assert list(again) == list(sampler)
    assert list(LengthGroups(lengths, 8, seed=4)) != first


def test_the_lengths_of_a_dataset_are_those_of_its_items(recipe: dict[str, Any], training_data):
    samples = training_data.samples[:4]
    samples[1]["conversations"][0]["value"] += " Take your time, and look at all of the picture before you answer."
    processor = load_processor(recipe["model"])
    data = PoseDataset(samples, training_data.prepared, processor, flip=True, augment=2)
    lengths = data.lengths()
    assert lengths == [len(data[i].input_ids) for i in range(len(data))]
    options = {"flip": True, "augment": 2, "max_length": max(lengths) - 1, "drop_long": True}
    shorter = PoseDataset(samples, training_data.prepared, processor, **options)
    assert shorter.lengths() == [len(shorter[i].input_ids) for i in range(len(shorter))] < lengths


def test_a_run_groups_by_length(recipe: dict[str, Any], training_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    samples = training_data.samples
    for sample in samples[::2]:
        sample["conversations"][0]["value"] += " Take your time, and look at all of the picture before you answer." * 3
    widths: list[tuple[int, int]] = []
    values = {**recipe, "train_json": str(training_data.write(tmp_path / "two lengths.json", samples)), "flip": False}
    values |= {"per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 2}

    def watch(collate):
        def collated(self, batch):
            lengths = [len(sample.input_ids) for sample in batch]
            widths.append((min(lengths), max(lengths)))
            return collate(self, batch)

        return collated

    monkeypatch.setattr(PoseCollator, "__call__", watch(PoseCollator.__call__))
    run_training({**values, "train_sampling_strategy": "group_by_length"})
    assert read_log(recipe["output_dir"])
    mixed = [most - least > 20 for least, most in widths]
    assert len(mixed) >= 2 * len(samples) // 4
    assert sum(mixed) <= 4  # where one length ends and the other begins, and the last batch: once an epoch each


def test_other_strategies_are_refused_with_a_sentence(recipe: dict[str, Any]):
    with pytest.raises(
        InputError, match=r"--train-sampling-strategy: must be one of random, sequential, group_by_length, not 'batch"
    ):
        arguments({**recipe, "train_sampling_strategy": "batch_rebalance"})
