"""A frozen tower sees each picture once: its patches, of the picture and of its mirror image, on disk in float16."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

from llava_pose.data.collator import joined_pictures
from llava_pose.data.conversation import pictures_of
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.images import check_picture, load_rgb
from llava_pose.errors import InputError
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processing import LlavaPoseProcessor
from llava_pose.train.arguments import DataArguments
from llava_pose.utils.distributed import broadcast, gathered_parameters, this_place
from llava_pose.utils.files import inside, of_split, reserve, write_json
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)
_BLOCK = 16
_BLOCKS_TO_FLUSH = 8
# of a tower's config: where it came from, and the dtype that its weights tell
_NO_MATTER = ("_name_or_path", "transformers_version", "dtype", "architectures", "use_cache")


class FeatureCache:
    """Patches of pictures from a frozen tower, computed once and memory-mapped.

    The folder is named by a fingerprint of the tower's weights and settings and of the pictures (path, size, date), so that
    another tower or a changed picture never meets old features. A build that was stopped goes on where it was.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[str],
        shape: tuple[int, ...],
        *,
        flips: bool,
        dtype: type[np.floating] = np.float16,
    ):
        """
        Args:
            folder: of this fingerprint.
            images: names of pictures.
            shape: of one picture's patches, (…, channels).
            flips: whether mirror images are held too.
            dtype: of the numbers that are held.

        Raises:
            InputError: the folder cannot be written.
        """
        self.folder = folder
        self.flips = flips
        self._dtype = np.dtype(dtype)
        self._row = {name: row for row, name in enumerate(images)}
        self._shape = (len(images), 2 if flips else 1, *shape)
        # several processes may do this at once: none of them may empty what another has begun to fill
        with own_folder(folder, "cache_dir", "run", wait=True):
            if self._resize("features.mmap", math.prod(self._shape) * self._dtype.itemsize):
                (folder / "done.mmap").unlink(missing_ok=True)  # what was cut off is not done, whatever the marks say
            self._resize("done.mmap", len(images))
        self._features = np.memmap(folder / "features.mmap", dtype=self._dtype, mode="r+", shape=self._shape)
        self._done = np.memmap(folder / "done.mmap", dtype=np.uint8, mode="r+", shape=(len(images),))

    def _resize(self, name: str, size: int) -> bool:
        """Make a file that many bytes long, new ones zero, with room on the disk for all; return whether it was not."""
        path = self.folder / name
        differs = not path.exists() or path.stat().st_size != size
        if differs:
            if path.exists():
                os.truncate(path, min(size, path.stat().st_size))
            reserve(path, size)
        return differs

    @property
    def shape(self) -> tuple[int, ...]:
        """(…, channels) of one picture's patches."""
        return self._shape[2:]

    @property
    def nbytes(self) -> int:
        return self._features.nbytes

    def __getitem__(self, key: tuple[str, bool]) -> np.ndarray:
        """(…, channels) of (picture, mirrored)."""
        name, mirrored = key
        return self._features[self._row[name], int(mirrored)]

    def missing(self) -> list[int]:
        return np.flatnonzero(self._done == 0).tolist()

    def fill(
        self,
        load: Callable[[int], Image.Image],
        extract: Callable[[list[Image.Image]], np.ndarray],
        *,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Compute what is missing.

        Args:
            load: row -> picture.
            extract: pictures -> (n, …, channels).
            share: (index, count): of ``count`` processes that fill this cache together, this is number ``index``.

        Raises:
            InputError: the tower gave something that is not finite in the type that is held.
        """
        index, count = share
        rows = [row for row in self.missing() if row % count == index]
        computed: list[int] = []
        with tqdm(total=len(rows), desc="tower features", unit="image", disable=not rows or index > 0) as progress:
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                self._compute(block, [load(row) for row in block], extract)
                computed += block
                if len(computed) >= _BLOCK * _BLOCKS_TO_FLUSH:
                    self._mark_done(computed)
                    computed = []
                progress.update(len(block))
        self._mark_done(computed)

    def _compute(
        self, rows: list[int], pictures: list[Image.Image], extract: Callable[[list[Image.Image]], np.ndarray]
    ) -> None:
        views = [pictures, [ImageOps.mirror(picture) for picture in pictures]] if self.flips else [pictures]
        for side, view in enumerate(views):
            features = extract(view)
            if not np.isfinite(features).all() or np.abs(features).max() > np.finfo(self._dtype).max:
                raise InputError(f"{self.folder}: {self._not_finite(features)}")
            self._features[rows, side] = features.astype(self._dtype)

    def _not_finite(self, features: np.ndarray) -> str:
        if np.isnan(features).any():
            return "some features are no numbers (NaN); the tower's weights are broken, or a picture is too much for it"
        return f"the tower's features overflow {self._dtype}; set cache_features to false, or take another tower"

    def _mark_done(self, rows: list[int]) -> None:
        """Features must be on disk before they are called done."""
        self._features.flush()
        self._done[rows] = 1
        self._done.flush()


def fingerprint(tower: nn.Module, settings: Any, data: Path, images: Sequence[str]) -> str:
    """A name for (tower, settings, pictures)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    for name in images:
        stat = (data / name).stat()
        digest.update(f"{name}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def can_cache(model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor) -> bool:
    """Return whether a frozen tower's features can be kept: the backbone makes image tokens of patches by a module of its
    own, and of as many for every picture.
    """
    return model.connector is not None and processor.expanded_image is not None


def build_feature_cache(
    cache_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    images: Sequence[str],
    model: LlavaPoseForConditionalGeneration,
    processor: LlavaPoseProcessor,
    *,
    flips: bool,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
) -> FeatureCache:
    """The cache of these pictures (paths relative to ``data``) for a LLaVA-pose model's tower, filled.

    Args:
        share: (index, count): of ``count`` processes that fill it together, this is number ``index``; it is then whole
            once all of them are here.

    Raises:
        InputError: a picture cannot be read, or features overflow.
    """
    data = Path(data)
    for name in images:
        check_picture(*of_split(data, name))
    of_backbone = {k: v for k, v in model.config.to_dict().items() if k != "text_config" and k not in _NO_MATTER}
    tower = model.config.vision_config.to_dict() if hasattr(model.config, "vision_config") else {}
    settings = {
        # weights do not say everything: CLIPs of the same shapes differ in their activation
        **of_backbone,
        "vision_config": {name: value for name, value in tower.items() if name not in _NO_MATTER},
        "image_processor": processor.image_processor.to_dict(),
        "flips": flips,
    }
    name = fingerprint(model.tower, settings, data, images)
    extract = patch_extractor(model, processor, device)
    shape = extract([load_rgb(inside(*of_split(data, images[0])))]).shape[1:]
    cache = FeatureCache(Path(cache_dir) / name, images, shape, flips=flips)
    if share[0] == 0:
        write_json(cache.folder / "about.json", {"images": len(images), "shape": list(shape), "flips": flips})
        logger.info(
            f"tower features: {len(images)} pictures, {len(cache.missing())} to compute, "
            f"{cache.nbytes / 2**30:.1f} GiB in {cache.folder}"
        )
    cache.fill(lambda row: load_rgb(inside(*of_split(data, images[row]))), extract, share=share)
    return cache


def fill_together(
    cache_dir: str | os.PathLike[str] | None,
    data: str | os.PathLike[str],
    images: Iterable[str],
    model: LlavaPoseForConditionalGeneration,
    processor: LlavaPoseProcessor,
    *,
    flips: bool,
    device: torch.device | str,
) -> FeatureCache | None:
    """The cache of a run's pictures, which the processes of each machine fill together. Waits for all.

    Args:
        cache_dir: by default ``.features`` in the folder ``data``.
        images: paths relative to ``data``; one may come several times.

    Returns:
        The cache, whole; None where there is no picture.
    """
    names = sorted(set(images))
    if not names:
        return None
    place = this_place()
    folder = Path(cache_dir or Path(data) / ".features")
    if place.nodes > 1:  # a memory map must not be written from two machines
        folder = folder / f"node{place.node}"
    # with the connector, which is run for its input, and takes no time
    parts = [model.tower, *([] if model.connector is None else [model.connector])]
    with gathered_parameters([parameter for part in parts for parameter in part.parameters()]):
        for part in parts:
            part.to(device)
        share = (place.index, place.count)
        cache = build_feature_cache(folder, data, names, model, processor, flips=flips, device=device, share=share)
    broadcast(None)  # the others have computed their share too
    return cache


def cache_features(
    datasets: Sequence[PoseDataset],
    arguments: DataArguments,
    model: LlavaPoseForConditionalGeneration,
    processor: LlavaPoseProcessor,
    *,
    device: torch.device | str,
) -> None:
    """Give data sets the features of their pictures from a frozen tower, where they can be kept. Waits for all.

    Raises:
        InputError: a picture cannot be read, or features overflow.
    """
    if not can_cache(model, processor):
        logger.info("the tower's features are computed anew each time: this backbone's cannot be kept")
        return
    for dataset in datasets:
        dataset.cache = fill_together(
            arguments.cache_dir,
            arguments.data,
            (image for sample in dataset.samples for image in pictures_of(sample)),
            model,
            processor,
            flips=any(mirrored for _, mirrored in dataset.items),
            device=device,
        )


def patch_extractor(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, device: torch.device | str
) -> Callable[[list[Image.Image]], np.ndarray]:
    """A function from pictures to what the connector is given of them, (n, …, channels), in float32."""

    @torch.inference_mode()
    def extract(pictures: list[Image.Image]) -> np.ndarray:
        inputs = joined_pictures([processor.picture_inputs(picture) for picture in pictures])
        return model.patches({name: value.to(device) for name, value in inputs.items()}).float().cpu().numpy()

    return extract
