"""Training samples: train.json and prepared pictures, as what the collator takes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from tqdm import tqdm

from llava_pose.data.augmentation import UNCHANGED, Augmentation
from llava_pose.data.conversation import (
    IGNORE_INDEX,
    POSE_TOKEN,
    ChatTooLongError,
    mirror_sides,
    pictures_of,
    size_of,
    to_messages,
    validate_sample,
)
from llava_pose.data.images import check_picture, load_rgb
from llava_pose.data.records import Pose, pose_targets_of
from llava_pose.data.samples import read_samples as read_samples
from llava_pose.errors import InputError, joined
from llava_pose.pose.geometry import flip_pose
from llava_pose.utils.distributed import is_first_process
from llava_pose.utils.files import inside, of_split

if TYPE_CHECKING:
    from llava_pose.model.processing import LlavaPoseProcessor
    from llava_pose.train.feature_cache import FeatureCache

logger = logging.getLogger(__name__)


@dataclass
class EncodedSample:
    """One sample, ready to be collated.

    Attributes:
        name: for messages.
        input_ids, labels: (length,) int64.
        pose_targets: (n, 6), one for each supervised `<pose6D>`.
        input_poses: (m, 6), one for each `<pose6D>` in a question.
        pictures: what the backbone is given of the pictures, their patches from the cache, or nothing.
    """

    name: str
    input_ids: np.ndarray
    labels: np.ndarray
    pose_targets: np.ndarray
    input_poses: np.ndarray
    pictures: dict[str, torch.Tensor] = field(default_factory=dict)


# kinds of questions whose words stay true when the picture is turned, scaled and shifted
_FREE_OF_PLACES = frozenset(("pose", "joint", "described"))


class PoseDataset(Dataset):
    """The samples of train.json; with ``flip``, each mirror-symmetric one a second time as its mirror image; with
    ``augment``, each of these so many times, each time changed in another way (:class:`Augmentation`). The pictures of one
    sample are mirrored and changed together, all in the same way.

    All are items of one epoch, so that what is drawn depends on the sampler's seed alone and a run that was stopped goes on
    with the same items.
    """

    def __init__(
        self,
        samples: Sequence[dict[str, Any]],
        data: str | os.PathLike[str],
        processor: LlavaPoseProcessor,
        *,
        flip: bool = False,
        augment: int = 0,
        cache: FeatureCache | None = None,
        max_length: int | None = None,
        drop_long: bool = False,
        positions: int | None = None,
    ):
        """
        Args:
            positions: that the language model has, if it has so many and no more.

        Raises:
            InputError: samples or their pictures are unusable, are longer than max_length and ``drop_long`` is not set, or
                than the positions, or none is left. The message names the first ten.
        """
        self.samples = samples
        self.data = Path(data)
        self.processor = processor
        self.cache = cache
        if drop_long:
            max_length = min((limit for limit in (max_length, positions) if limit is not None), default=None)
        self.max_length = max_length
        self.augment = augment
        self._check_samples(None if drop_long else positions)
        # (items, 2): the sample, and whether it is mirrored. Of a list each worker would come to have a copy of its own, for
        # reading an element writes the count of its references beside it
        self.items = np.stack([np.arange(len(samples)), np.zeros(len(samples), dtype=np.int64)], axis=1)
        if flip:
            flippable = [index for index, sample in enumerate(samples) if sample.get("flippable", False)]
            mirrored = np.stack([np.array(flippable, dtype=np.int64), np.ones(len(flippable), dtype=np.int64)], axis=1)
            self.items = np.concatenate([self.items, mirrored])
        self._lengths: np.ndarray | None = None
        if max_length is not None:
            self._leave_out_long(drop_long)
        if not len(self.items):
            raise InputError("no training sample is left; check train.json and max_length")

    def _check_samples(self, positions: int | None) -> None:
        """Found out before training starts, not hours into it."""
        faults: list[InputError] = []
        seen: set[str] = set()
        for sample in self.samples:
            where = f"sample {sample.get('id')!r}"
            try:
                validate_sample(sample, where=where)
                for image in pictures_of(sample):
                    if image not in seen:
                        seen.add(image)
                        check_picture(*of_split(self.data, image))
                if positions is not None:
                    self._check_length(sample, positions, where)
            except InputError as error:
                # a picture's message names its file, not the sample
                faults.append(error if str(error).startswith(where) else InputError(f"{where}: {error}"))
        if faults:
            raise joined(faults, f"{len(faults)} of {len(self.samples)} samples cannot be learned from")

    def _check_length(self, sample: dict[str, Any], positions: int, where: str) -> None:
        messages = to_messages(sample["conversations"], where=where)
        pictures = self._pictures_of_tokens(sample)
        # a text has no more tokens than bytes: few samples are so long that they have to be encoded
        most = sum(len(message["content"].encode()) + self._bytes_a_turn for message in messages)
        if not pictures and most + len(pictures_of(sample)) * self._tokens_a_picture <= positions:
            return
        length = len(self.processor.encode_chat(messages, pictures, where=where).input_ids)
        if length > positions:
            raise ChatTooLongError(
                f"{where}: {length} tokens are more than the {positions} positions of the language model; shorten the text, "
                "or leave such samples out with drop_long"
            )

    def _pictures_of_tokens(self, sample: dict[str, Any]) -> list[Image.Image]:
        """Return the sample's pictures where it takes them to know how many tokens they have."""
        return [] if self.processor.expanded_image is not None else self._load(sample)

    def _load(self, sample: dict[str, Any]) -> list[Image.Image]:
        return [load_rgb(inside(*of_split(self.data, image))) for image in pictures_of(sample)]

    @cached_property
    def _tokens_a_picture(self) -> int:
        """Return the tokens of a picture, at most one for each byte of what stands for it."""
        return len((self.processor.expanded_image or "").encode())

    @cached_property
    def _bytes_a_turn(self) -> int:
        """Return the most bytes that the chat template adds to a turn."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        return len(self.processor.render(chat).encode())

    def _leave_out_long(self, drop_long: bool) -> None:
        faults: list[InputError] = []
        lengths = np.zeros(len(self.items), dtype=np.int32)  # 0 of those that are left out
        for place, item in enumerate(_shown(self.items)):
            try:
                lengths[place] = len(self._encode_text(*item).input_ids)
            except InputError as error:
                if drop_long and isinstance(error, ChatTooLongError):
                    logger.warning(f"dropped: {error}")
                else:
                    faults.append(error)
        if faults:
            raise joined(
                faults, f"{len(faults)} of {len(self.items)} samples (mirror images included) cannot be encoded"
            )
        self.items, self._lengths = self.items[lengths > 0], lengths[lengths > 0]

    def __len__(self) -> int:
        return len(self.items) * max(1, self.augment)

    def lengths(self) -> list[int]:
        """Tokens of each item; all texts are encoded for it, unless they have been for ``max_length``.

        Raises:
            InputError: a sample's text is unusable.
        """
        if self._lengths is None:
            counts = (len(self._encode_text(*item).input_ids) for item in _shown(self.items))
            self._lengths = np.fromiter(counts, dtype=np.int32, count=len(self.items))
        return np.tile(self._lengths, max(1, self.augment)).tolist()

    def kinds(self, item: int) -> Sequence[str]:
        """Return the kinds of an item's questions, as ``instruct`` names them; none where the file does not say."""
        return self.samples[self.items[item % len(self.items)][0]].get("kinds") or ()

    def __getitem__(self, item: int) -> EncodedSample:
        item = range(len(self))[item]  # what is past the end ends an iteration
        index, mirrored = self.items[item % len(self.items)].tolist()
        kinds = self.kinds(item)
        geometric = bool(kinds) and _FREE_OF_PLACES.issuperset(kinds)
        change = Augmentation.of_item(item, self.augment, geometric=geometric)
        return self._encode_text(index, mirrored, self._load_images(index, mirrored, change), change)

    def _load_images(self, index: int, mirrored: bool, change: Augmentation) -> list[Image.Image]:
        if self.cache is not None:
            return []
        pictures = self._load(self.samples[index])
        return [change.picture(ImageOps.mirror(picture) if mirrored else picture) for picture in pictures]

    def _encode_text(
        self, index: int, mirrored: bool, images: Sequence[Image.Image] = (), change: Augmentation = UNCHANGED
    ) -> EncodedSample:
        sample = self.samples[index]
        messages = to_messages(sample["conversations"], where=str(sample["id"]))
        if mirrored:
            messages = [{**message, "content": mirror_sides(message["content"])} for message in messages]
        name = f"sample {sample['id']!r}" + (" (mirrored)" if mirrored else "")
        images = images or self._pictures_of_tokens(sample)
        chat = self.processor.encode_chat(messages, images, max_length=self.max_length, where=name)
        pictures = chat.pictures
        if self.cache is not None and pictures_of(sample):
            patches = [self.cache[image, mirrored].astype(np.float32) for image in pictures_of(sample)]
            pictures = {"image_patches": torch.from_numpy(np.stack(patches))}
        if (chat.labels == IGNORE_INDEX).all():
            raise InputError(f"{name}: no token is supervised; a sample needs an answer (a turn from 'gpt')")
        answers: list[list[float]] = []
        questions: list[list[float]] = []
        poses = iter(self._pose_numbers(sample, mirrored, change))
        for message in messages:
            target = answers if message["role"] == "assistant" else questions
            target.extend(next(poses) for _ in range(message["content"].count(POSE_TOKEN)))
        return EncodedSample(name, chat.input_ids, chat.labels, _rows(answers), _rows(questions), pictures)

    def _pose_numbers(self, sample: dict[str, Any], mirrored: bool, change: Augmentation) -> list[list[float]]:
        numbers = []
        for value in sample["poses"]:
            pose = Pose.from_dict(value, where=f"sample {sample['id']!r}")
            if None in (pose.distance, pose.px, pose.py):
                pose, size = replace(pose, distance=None), _NO_SIZE
            else:
                size = {name: float(size_of(sample, name, value.get("picture", 0))) for name in _NO_SIZE}
            if mirrored:
                px = np.nan if pose.px is None else pose.px
                a, e, t, px = flip_pose(*pose.angles, px, size["width"])
                pose = Pose(float(a), float(e), float(t), pose.distance, float(px), pose.py)
            pose = change.pose(pose, size["width"], size["height"])
            size = {**size, "viewport": size["viewport"] * change.scale}
            numbers.append(pose_targets_of(pose, **size))
        return numbers


def _shown(items: np.ndarray) -> tqdm:
    return tqdm(items, desc="lengths", unit="sample", delay=2, leave=False, disable=not is_first_process())


_NO_SIZE = {"width": 1.0, "height": 1.0, "viewport": 1.0}  # of no effect where the location is unknown


def _rows(numbers: list[list[float]]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.float32).reshape(-1, 6)
