"""Skins give the points of a mesh's faces their colours: pictures laid on by texture coordinates, or solid patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, cast

import numpy as np
from PIL import Image

LARGEST_TEXTURE = 1024  # pixels: larger pictures are shrunk to this, which no rendered image can tell


class Skin(Protocol):
    """Colours of the points of a mesh's faces."""

    def colors(
        self,
        plain: np.ndarray,
        face: np.ndarray,
        second: np.ndarray,
        third: np.ndarray,
        position: np.ndarray,
        texels: np.ndarray | None,
    ) -> np.ndarray:
        """Colours (K, 3) float32 sRGB of K points.

        Args:
            plain: (K, 3) the faces' own colours.
            face: (K,) face indices.
            second, third: (K,) barycentric weights of the faces' second and third corners.
            position: (K, 3) float32, the mesh's frame.
            texels: (K,) how many texture pixels one image pixel covers; None where :meth:`texels` is None.
        """
        ...

    def texels(self, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
        """Return (F,) float32 texture pixels for each unit of length on a face; None for a skin without pictures."""
        ...

    def reversed(self) -> Skin:
        """Return the skin for faces whose corners are counted the other way round."""
        ...


@dataclass(frozen=True)
class PictureSkin:
    """Pictures on faces by texture coordinates, repeated beyond [0, 1], filtered by halved copies (mipmaps).

    Attributes:
        coordinates: (F, 3, 2) float32 u, v of each face's corners; v counts upwards.
        picture: (F,) int32 index of the face's picture, -1 for a face that has none.
        pictures: (H, W, 3) uint8 sRGB each.
    """

    coordinates: np.ndarray
    picture: np.ndarray
    pictures: tuple[np.ndarray, ...]

    def colors(
        self,
        plain: np.ndarray,
        face: np.ndarray,
        second: np.ndarray,
        third: np.ndarray,
        position: np.ndarray,
        texels: np.ndarray | None,
    ) -> np.ndarray:
        """See :meth:`Skin.colors`."""
        chosen = np.flatnonzero(self.picture[face] >= 0)
        colors = plain.copy()
        if not len(chosen):
            return colors
        corners = self.coordinates[face[chosen]]
        b, c = second[chosen, None], third[chosen, None]
        uv = corners[:, 0] * (1 - b - c) + corners[:, 1] * b + corners[:, 2] * c
        colors[chosen] = self._sample(self.picture[face[chosen]], uv, cast(np.ndarray, texels)[chosen])
        return colors

    def texels(self, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """See :meth:`Skin.texels`."""
        a, b, c = (vertices[faces[:, i]] for i in range(3))
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        first, second = (self.coordinates[:, i] - self.coordinates[:, 0] for i in (1, 2))
        covered = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
        pixels = np.array([picture.shape[0] * picture.shape[1] for picture in self.pictures] + [0])[self.picture]
        return np.sqrt(covered * pixels / np.maximum(area, 1e-20)).astype(np.float32)

    def reversed(self) -> PictureSkin:
        """See :meth:`Skin.reversed`."""
        return replace(self, coordinates=self.coordinates[:, ::-1].copy())

    @cached_property
    def _levels(self) -> _Levels:
        return _Levels.of(self.pictures)

    def _sample(self, picture: np.ndarray, uv: np.ndarray, texels: np.ndarray) -> np.ndarray:
        """Return (K, 3) float32, bilinear in the level where a texture pixel is about as large as an image pixel."""
        levels = self._levels
        level = np.log2(np.maximum(texels, 1)).astype(np.int64)
        level = np.minimum(level, levels.count[picture] - 1)
        row_of_table = levels.first[picture] + level
        width, height = levels.width[row_of_table], levels.height[row_of_table]
        start = levels.start[row_of_table]
        x = (uv[:, 0] - np.floor(uv[:, 0])) * width - np.float32(0.5)
        y = (1 - (uv[:, 1] - np.floor(uv[:, 1]))) * height - np.float32(0.5)
        left, top = np.floor(x), np.floor(y)
        right_share, lower_share = (x - left).astype(np.float32)[:, None], (y - top).astype(np.float32)[:, None]
        left, top = left.astype(np.int64) % width, top.astype(np.int64) % height
        right, below = (left + 1) % width, (top + 1) % height
        top, below = start + top * width, start + below * width
        upper = levels.pixels[top + left] * (1 - right_share) + levels.pixels[top + right] * right_share
        lower = levels.pixels[below + left] * (1 - right_share) + levels.pixels[below + right] * right_share
        return (upper * (1 - lower_share) + lower * lower_share) / np.float32(255)


@dataclass(frozen=True)
class _Levels:
    """All pictures and their halved copies in one row of pixels, so that points of several are read at once."""

    pixels: np.ndarray  # (N, 3) uint8
    first: np.ndarray  # (pictures,) row of each picture's full size in the three tables below
    count: np.ndarray  # (pictures,) levels of each picture
    start: np.ndarray  # (rows,) of its first pixel
    width: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, pictures: Sequence[np.ndarray]) -> _Levels:
        parts: list[np.ndarray] = []
        first: list[int] = []
        count: list[int] = []
        for picture in pictures:
            first.append(len(parts))
            image = Image.fromarray(picture)
            while True:
                parts.append(np.asarray(image))
                if max(image.size) == 1:
                    break
                image = image.resize([max(1, side // 2) for side in image.size], Image.Resampling.BOX)
            count.append(len(parts) - first[-1])
        sizes = np.array([part.shape[:2] for part in parts])
        areas = sizes.prod(axis=1)
        return cls(
            pixels=np.concatenate([part.reshape(-1, 3) for part in parts]),
            first=np.array(first),
            count=np.array(count),
            start=np.cumsum(areas) - areas,
            width=sizes[:, 1],
            height=sizes[:, 0],
        )


@dataclass(frozen=True)
class Pattern:
    """Two colours through space: ``sin`` of a coordinate that waves distort, made soft or hard.

    Attributes:
        colors: (2, 3) float32 sRGB.
        axis: (3,) float32, the coordinate's direction times its radians for each unit of length; in a ring pattern
            the line that the rings go round.
        rings: whether the coordinate is the distance from a line (wood) instead of the position along one.
        waves: (n, 3) float32 wave vectors of the distortion.
        phases, strengths: (n,) float32 of the waves, radians.
        sharpness: 0 mixes the colours evenly, 10 separates them.
    """

    colors: np.ndarray
    axis: np.ndarray
    rings: bool
    waves: np.ndarray
    phases: np.ndarray
    strengths: np.ndarray
    sharpness: float

    def at(self, position: np.ndarray) -> np.ndarray:
        """Return (K, 3) float32 sRGB colours at points (K, 3) float32."""
        if self.rings:
            frequency = np.linalg.norm(self.axis)
            along = position @ (self.axis / frequency)
            coordinate = frequency * np.sqrt(np.maximum((position**2).sum(axis=1) - along**2, 0))
        else:
            coordinate = position @ self.axis
        coordinate = coordinate + np.sin(position @ self.waves.T + self.phases) @ self.strengths
        share = 0.5 + 0.5 * np.tanh(np.float32(self.sharpness + 0.6) * np.sin(coordinate))
        return self.colors[0] + (self.colors[1] - self.colors[0]) * share[:, None]


@dataclass(frozen=True)
class PatternSkin:
    """Solid patterns: no texture coordinates are needed, so that any mesh can wear them.

    Attributes:
        pattern: (F,) int32 index of the face's pattern, -1 for a face of its plain colour.
        patterns: the patterns.
    """

    pattern: np.ndarray
    patterns: tuple[Pattern, ...]

    def colors(
        self,
        plain: np.ndarray,
        face: np.ndarray,
        second: np.ndarray,
        third: np.ndarray,
        position: np.ndarray,
        texels: np.ndarray | None,
    ) -> np.ndarray:
        """See :meth:`Skin.colors`."""
        colors = plain.copy()
        which = self.pattern[face]
        for index, pattern in enumerate(self.patterns):
            chosen = which == index
            if chosen.any():
                colors[chosen] = pattern.at(position[chosen])
        return colors

    def texels(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        """Return None: there are no pictures."""
        return None

    def reversed(self) -> PatternSkin:
        """Return itself: corners play no part."""
        return self
