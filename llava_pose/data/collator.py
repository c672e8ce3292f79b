"""Samples to a batch: text padded on the right, poses and pictures stacked in the order of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from llava_pose.data.conversation import IGNORE_INDEX
from llava_pose.data.dataset import EncodedSample

if TYPE_CHECKING:
    from llava_pose.model.processing import LlavaPoseProcessor

SAMPLE_NAMES = "sample_names"


class PoseCollator:
    """Makes the keyword arguments of ``LlavaPoseForConditionalGeneration.forward``, and the names of the samples."""

    def __init__(self, processor: LlavaPoseProcessor, *, runs_tower: bool = True):
        """
        Args:
            runs_tower: whether samples bring pictures rather than cached patches. A batch without a picture then gets a
                blank one, so that the tower runs on every process: they would wait for each other otherwise.
        """
        self.processor = processor
        self.runs_tower = runs_tower

    def __call__(self, samples: Sequence[EncodedSample]) -> dict[str, Any]:
        """
        Returns:
            input_ids, labels, attention_mask (batch, length); pose_targets (n, 6); input_poses (m, 6) with
            input_pose_mask (batch, length); image_patches or pixel_values for the samples that have a picture;
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
        images = [sample.image for sample in samples if sample.image is not None]
        if images and isinstance(images[0], np.ndarray):
            batch["image_patches"] = torch.from_numpy(np.stack(cast(list[np.ndarray], images))).float()
        elif images:
            batch["pixel_values"] = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        elif self.runs_tower:
            batch["pixel_values"] = torch.zeros(1, 3, *self.processor.image_size)
        return batch
