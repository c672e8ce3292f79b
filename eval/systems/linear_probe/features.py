"""The features of a frozen backbone for every object, computed once, on disk, by one process or several."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.systems.linear_probe.backbone import ProbeBackbone
from llava_pose.data.images import check_picture, load_rgb
from llava_pose.train.feature_cache import FeatureCache, fingerprint
from llava_pose.utils.files import inside, of_split, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeFeatures:
    """The features of pictures, on disk.

    Attributes:
        name: the fingerprint of backbone and pictures.
    """

    name: str
    cache: FeatureCache

    def of(self, images: Sequence[str], *, mirrored: bool = False) -> Tensor:
        """Return the features of pictures by their names, or of their mirror images, (n, width) float32."""
        return torch.from_numpy(np.stack([self.cache[image, mirrored][0, 0] for image in images]))


def build_features(
    cache_dir: str | os.PathLike[str],
    data: str | os.PathLike[str],
    images: Sequence[str],
    backbone: ProbeBackbone,
    *,
    flips: bool = False,
    share: tuple[int, int] = (0, 1),
) -> ProbeFeatures:
    """Compute what the cache lacks; a build that was stopped goes on where it was.

    Args:
        images: paths relative to ``data``, each once.
        flips: compute those of mirror images, too.
        share: (index, count): of ``count`` processes that do it together, this is number ``index``; all is there once all of
            them are here.

    Raises:
        InputError: a picture is missing or cannot be read, or features are not finite.
    """
    data = Path(data)
    for name in images:
        check_picture(*of_split(data, name))
    settings = {**backbone.settings(), **({"flips": True} if flips else {})}
    name = fingerprint(backbone.model, settings, data, images)
    width = sum(backbone.widths.values())
    cache = FeatureCache(Path(cache_dir) / name, images, (1, 1, width), flips=flips, dtype=np.float32)
    if share[0] == 0:
        write_json(cache.folder / "about.json", {"images": len(images), "blocks": backbone.widths})
        logger.info(f"features: {len(images)} pictures, {len(cache.missing())} to compute, in {cache.folder}")

    def extract(pictures: list[Image.Image]) -> np.ndarray:
        return backbone.features(pictures)[:, None, None, :]

    cache.fill(lambda row: load_rgb(inside(*of_split(data, images[row]))), extract, share=share)
    return ProbeFeatures(name, cache)
