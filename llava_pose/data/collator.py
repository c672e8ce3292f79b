"""Samples to a batch: text padded on the right, poses and pictures stacked in the order of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llava_pose.data.conversation import IGNORE_INDEX
from llava_pose.data.dataset import EncodedSample

if TYPE_CHECKING:
    from llava_pose.model.processing import LlavaPoseProcessor

SAMPLE_NAMES = "sample_names"


class PoseCollator:
    """Makes the keyword arguments of ``LlavaPoseForConditionalGeneration.forward``, and the names of the samples."""

    def __init__(self, processor: LlavaPoseProcessor, *, blank: Mapping[str, torch.Tensor] | None = None):
        """
        Args:
            blank: the inputs of a picture that a batch without one gets, so that the same modules run on every process: they
                would wait for each other otherwise.
        """
        self.processor = processor
        self.blank = dict(blank or {})

    def __call__(self, samples: Sequence[EncodedSample]) -> dict[str, Any]:
        """
        Returns:
            input_ids, labels, attention_mask (batch, length); pose_targets (n, 6); input_poses (m, 6) with
            input_pose_mask (batch, length); the inputs of the pictures, sample by sample;
            "sample_names": list of str.
        """
        length = max(len(sample.input_ids) for sample in samples)
        shape = (len(samples), length)
        ids = np.full(shape, self.processor.tokenizer.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        attended = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(samples):
            n = len(sample.input_ids)
            ids[row, :n], labels[row, :n], attended[row, :n] = sample.input_ids, sample.labels, 1
        at_input_pose = (ids == self.processor.pose_token_id) & (labels == IGNORE_INDEX) & (attended == 1)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "attention_mask": torch.from_numpy(attended),
            "pose_targets": torch.from_numpy(np.concatenate([sample.pose_targets for sample in samples])),
            SAMPLE_NAMES: [sample.name for sample in samples],
        }
        if at_input_pose.any():
            batch["input_poses"] = torch.from_numpy(np.concatenate([sample.input_poses for sample in samples]))
            batch["input_pose_mask"] = torch.from_numpy(at_input_pose)
        pictures = [sample.pictures for sample in samples if sample.pictures]
        return {**batch, **(joined_pictures(pictures) if pictures else self.blank)}


def joined_pictures(pictures: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the inputs of several pictures as those of one batch, one after another.

    Where pictures have tiles or pixels of different numbers, the missing ones are zero, as the backbones' own image
    processors have it: sizes and masks beside them say which are real.
    """
    joined = {}
    for name in pictures[0]:
        parts = [each[name] for each in pictures]
        largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        padded = []
        for part in parts:
            growth = [(0, most - size) for most, size in zip(largest, part.shape[1:], strict=True)]
            flat = [number for pair in reversed(growth) for number in pair]
            padded.append(torch.nn.functional.pad(part, flat) if any(flat) else part)
        joined[name] = torch.cat(padded)
    return joined
