"""Crops of a raw image whose pixels are where the arithmetic says: decode, one crop and resize in one pass.

A :class:`Crop` is the exact mapping ``prepared = (raw - (left, top)) * scale`` in edge coordinates. Decoding at reduced
size and the crop's fractional edges are hidden behind it: the pixels follow the mapping to a small part of a pixel.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_prep.raw.imagenet3d import AnnotationError
from llava_pose.data.images import DECODING_ERRORS, MAX_PIXELS, PADDING_COLOUR, open_image, to_rgb
from llava_pose.errors import InputError

JPEG_OPTIONS = {"quality": 95, "subsampling": 0}  # 4:4:4: the crops are small, and their colour edges count

# the published 3D protocol: the window is 512 px at distance 4
PROTOCOL_WINDOW = 512.0
PROTOCOL_SIZE = int(PROTOCOL_WINDOW)  # what the published preprocessing writes
PROTOCOL_DISTANCE = 4.0

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Crop:
    """The map by which the raw image becomes a prepared one of ``size`` x ``size``: prepared = (raw - (left, top)) * scale."""

    left: float
    top: float
    scale: float
    size: int

    @classmethod
    def around(cls, center_x: float, center_y: float, side: float, size: int) -> Crop:
        """Return the square of ``side`` raw pixels around a point."""
        return cls(center_x - side / 2, center_y - side / 2, size / side, size)

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return (x1, y1, x2, y2) of the raw image in the prepared one, not clipped to it."""
        x1, y1, x2, y2 = box
        left, top, scale = self.left, self.top, self.scale
        return (x1 - left) * scale, (y1 - top) * scale, (x2 - left) * scale, (y2 - top) * scale

    def visible(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the prepared pixels (x1, y1, x2, y2) that lie wholly inside a raw image of that size; x1 >= x2 if none do."""
        x1, y1, x2, y2 = self.box((0, 0, width, height))
        # an image's edge that falls on a pixel's edge up to rounding does not cost that pixel
        slack = 1e-6
        return (
            max(0, math.ceil(x1 - slack)),
            max(0, math.ceil(y1 - slack)),
            min(self.size, math.floor(x2 + slack)),
            min(self.size, math.floor(y2 + slack)),
        )


def pose_crop(px: float, py: float, distance: float, size: int) -> Crop:
    """Return the crop of the published 3D protocol: centred on the object's origin, scaled by distance / 4 so that objects
    look equally near, 512 pixels cut out and brought to ``size``.
    """
    return Crop.around(px, py, PROTOCOL_WINDOW * PROTOCOL_DISTANCE / distance, size)


def published_resize(distance: float) -> tuple[float, float]:
    """Return by how much the published 3D protocol resizes an image, and the side of its window in raw pixels."""
    rate = distance / PROTOCOL_DISTANCE
    return rate, PROTOCOL_WINDOW / rate


def box_crop(bbox: tuple[float, float, float, float], margin: float, size: int) -> Crop:
    """Return the square around the bbox's centre whose side is the longest side of the bbox and a margin at either end."""
    x1, y1, x2, y2 = bbox
    side = max(x2 - x1, y2 - y1) * (1 + 2 * margin)
    return Crop.around((x1 + x2) / 2, (y1 + y2) / 2, side, size)


def whole_crop(width: int, height: int, size: int) -> Crop:
    """Return the crop of the 6D profile: the whole image, letterboxed, in the middle of a square of its longer side."""
    return Crop.around(width / 2, height / 2, float(max(width, height)), size)


def published_crop(px: float, py: float, distance: float) -> Crop:
    """Return the crop of the published preprocessing, whose window begins at whole pixels of the resized image.

    It is ``PROTOCOL_WINDOW`` wide. The mapping is that of the pixels but for what the sides of the resized image lose by being
    whole numbers, too: less than a pixel.
    """
    rate = distance / PROTOCOL_DISTANCE
    left, top = (int(p * rate) - PROTOCOL_SIZE // 2 for p in (px, py))
    return Crop(left / rate, top / rate, rate, PROTOCOL_SIZE)


class RawImage:
    """A raw image in the frame its annotation means, decoded once for all its crops.

    Args:
        content: the bytes of the file.
        annotated_size: (width, height) that the annotation gives; (0, 0) where it gives none; None to take the image as
            it is stored, whatever the annotation says. It decides whether the
            EXIF orientation holds: an image that fits as it is stored is left so; one that fits once it is turned is
            turned; one that fits neither way is an error. Half turns and mirrorings leave the size as it is, so that they
            are never applied when a size is given. Without a size an image that EXIF turns is an error too, since
            nothing tells which frame the annotation means.

    Raises:
        AnnotationError: not an image, too many pixels, or of another size than the annotation says.
    """

    def __init__(self, content: bytes, annotated_size: tuple[int, int] | None) -> None:
        self._content = content
        try:
            with open_image(io.BytesIO(content)) as image:
                stored, orientation = image.size, image.getexif().get(_EXIF_ORIENTATION, 1)
        except InputError as error:
            limit = f"{MAX_PIXELS / 1e6:.0f} million"
            raise AnnotationError("image too large", f"has more than {limit} pixels; make it smaller") from error
        except UnidentifiedImageError as error:
            raise AnnotationError("image unreadable", "is not an image that can be read; replace it") from error
        except DECODING_ERRORS as error:
            raise _unreadable(error) from error
        turned = stored[::-1] if orientation in (5, 6, 7, 8) else stored
        self.exif_transposed = False
        if annotated_size is None:
            annotated_size = stored
        if annotated_size == (0, 0):
            if orientation in range(2, 9):
                raise AnnotationError(
                    "image orientation unknown",
                    "is turned by its EXIF orientation and the annotation gives no 'height' and 'width'; add them",
                )
        elif annotated_size != stored:
            if annotated_size != turned:
                raise AnnotationError(
                    "image size differs",
                    f"is {stored[0]}x{stored[1]} pixels but was annotated at {annotated_size[0]}x{annotated_size[1]}; "
                    "use the image that was annotated",
                )
            self.exif_transposed = True
        self.width, self.height = turned if self.exif_transposed else stored

    def crops(self, crops: list[Crop]) -> list[Image.Image]:
        """Return the crops as RGB images; what lies outside of the raw image has :data:`PADDING_COLOUR`.

        Raises:
            AnnotationError: the pixels cannot be decoded.
        """
        try:
            with open_image(io.BytesIO(self._content)) as opened:
                reduction = self._reduction(opened, max((crop.scale for crop in crops), default=1.0))
                image = to_rgb(ImageOps.exif_transpose(opened) if self.exif_transposed else opened)
        except InputError as error:
            raise AnnotationError("image unreadable", f"cannot be used: {error}") from error
        except DECODING_ERRORS as error:
            raise _unreadable(error) from error
        return [self._cut(image, crop, reduction) for crop in crops]

    def published_crops(self, crops: list[Crop]) -> list[Image.Image]:
        """Return :func:`published_crop` s as the published preprocessing makes them: the image resized to whole pixels, rounded
        down, by bicubic interpolation without antialiasing, and black outside of it.

        Raises:
            AnnotationError: the pixels cannot be decoded.
        """
        try:
            with open_image(io.BytesIO(self._content)) as opened:
                pixels = np.asarray(to_rgb(opened))
        except InputError as error:
            raise AnnotationError("image unreadable", f"cannot be used: {error}") from error
        except DECODING_ERRORS as error:
            raise _unreadable(error) from error
        return [_cut_as_published(pixels, crop) for crop in crops]

    def _reduction(self, image: Image.Image, scale: float) -> int:
        """Ask the JPEG decoder for 1/2, 1/4 or 1/8 of the size where every crop is at least that much smaller.

        The decoder rounds the reduced size up: its pixel i still covers raw pixels [i r, (i + 1) r) from the left edge.
        From the right edge it does not, so an image that has to be turned is decoded whole.
        """
        wanted = next((r for r in (8, 4, 2) if r * scale <= 1), 1)
        if wanted == 1 or self.exif_transposed or image.format != "JPEG":
            return 1
        if min(self.width, self.height) < wanted:
            return 1
        drafted = image.draft(None, (self.width // wanted, self.height // wanted))
        return 1 if drafted is None else round(self.width / drafted[1][2])

    def _cut(self, image: Image.Image, crop: Crop, reduction: int) -> Image.Image:
        x1, y1, x2, y2 = crop.visible(self.width, self.height)
        if x1 >= x2 or y1 >= y2:
            return Image.new("RGB", (crop.size, crop.size), PADDING_COLOUR)
        box = (
            max(0.0, crop.left + x1 / crop.scale) / reduction,
            max(0.0, crop.top + y1 / crop.scale) / reduction,
            min(float(self.width), crop.left + x2 / crop.scale) / reduction,
            min(float(self.height), crop.top + y2 / crop.scale) / reduction,
        )
        # Pillow's resize antialiases when it reduces, and takes a box with fractions of pixels
        shown = image.resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC, box=box)
        if shown.size == (crop.size, crop.size):
            return shown
        prepared = Image.new("RGB", (crop.size, crop.size), PADDING_COLOUR)
        prepared.paste(shown, (x1, y1))
        return prepared


def _cut_as_published(pixels: np.ndarray, crop: Crop) -> Image.Image:
    """Cut one crop of an image, (height, width, 3): the rows and columns of the resized image that it shows, and no others."""
    shown, places = pixels.astype(np.float32), []
    for axis, start in enumerate((crop.top, crop.left)):
        size = pixels.shape[axis]
        resized, first = int(size * crop.scale), round(start * crop.scale)
        inside = slice(max(0, -first), max(0, min(crop.size, resized - first)))
        taken, weights = _cubic(np.arange(inside.start, inside.stop) + first, size, resized)
        shape = (-1, *(1,) * (2 - axis))
        parts = [w.reshape(shape) * shown.take(t, axis) for t, w in zip(taken, weights, strict=True)]
        shown = parts[0] + parts[1] + parts[2] + parts[3]
        places.append(inside)
    prepared = np.zeros((crop.size, crop.size, 3), np.uint8)
    prepared[tuple(places)] = np.clip(np.rint(shown), 0, 255)
    return Image.fromarray(prepared)


def _cubic(at: np.ndarray, size: int, resized: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (4, n) that pixels ``at`` of a resized side are made of, and their weights, as OpenCV's INTER_CUBIC has
    them (Keys' kernel with a = -0.75, the edge repeated).
    """
    place = (at + 0.5) * size / max(resized, 1) - 0.5
    before = np.floor(place).astype(int)
    near = place - before
    a, steps = -0.75, np.arange(-1, 3)[:, None]
    away = np.abs(near - steps)
    inner = ((a + 2) * away - (a + 3)) * away**2 + 1
    outer = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    return np.clip(before + steps, 0, size - 1), np.where(away <= 1, inner, outer).astype(np.float32)


def encode_jpeg(image: Image.Image, *, published: bool = False) -> bytes:
    """Return the bytes of a prepared image; as published with Pillow's own quality of 75, 4:2:0."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", **({} if published else JPEG_OPTIONS))
    return stream.getvalue()


def _unreadable(error: BaseException) -> AnnotationError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return AnnotationError("image unreadable", f"cannot be decoded ({reason}); replace it")
