"""A fine feature map from any AutoModel backbone: its maps of all sizes, joined from the coarsest up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


def maps_of(output: Any, image_size: Sequence[int], patch_size: int | None) -> list[Tensor | None]:
    """Return a backbone's hidden states as (batch, channels, rows, columns); None for one that is no map.

    Args:
        output: what a transformers model gives that was asked for its hidden states.
        image_size: (height, width) in pixels.
        patch_size: the patch size of a transformer whose hidden states are tokens.
    """
    states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None) or ()
    return [_as_map(state, image_size, patch_size) for state in states]


def _as_map(state: Tensor, image_size: Sequence[int], patch_size: int | None) -> Tensor | None:
    if state.dim() == 4:
        return state
    if state.dim() != 3 or patch_size is None:
        return None
    rows, columns = image_size[0] // patch_size, image_size[1] // patch_size
    if state.shape[1] < rows * columns:
        return None
    return state[:, state.shape[1] - rows * columns :].transpose(1, 2).unflatten(-1, (rows, columns))


def pyramid_layers(maps: Sequence[Tensor | None], rows: int) -> list[int]:
    """Choose of each size no finer than ``rows`` the last map, the finest first; of finer ones alone the coarsest.

    Returns:
        Indices of ``maps``; empty if none is a map.
    """
    last = {m.shape[2]: index for index, m in enumerate(maps) if m is not None}
    sizes = sorted((size for size in last if size <= rows), reverse=True) or sorted(last)[:1]
    return [last[size] for size in sizes]


class FeaturePyramid(nn.Module):
    """A feature pyramid: maps of several sizes become one; each is enlarged, added to the one below it, and mixed."""

    def __init__(self, channels: Sequence[int], width: int, dims: int):
        """
        Args:
            channels: the channels of the maps, the finest first.
            width: the channels inside, a multiple of 8.
        """
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mix = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU(inplace=True)
            )
            for _ in channels
        )
        self.output = nn.Conv2d(width, dims, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Join maps (batch, c, …), the finest first, to (batch, dims, *size), each position of length 1, float32."""
        joined: Tensor | None = None
        for lateral, mix, m in zip(reversed(self.lateral), reversed(self.mix), reversed(maps), strict=True):
            here = lateral(m)
            joined = mix(here if joined is None else here + _resized(joined, here.shape[-2:]))
        return F.normalize(self.output(_resized(cast(Tensor, joined), size)).float(), dim=1)


def _resized(features: Tensor, size: Sequence[int]) -> Tensor:
    if features.shape[-2:] == torch.Size(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
