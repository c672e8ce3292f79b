"""Pictures as everything here takes them: 8-bit RGB whatever the file holds, and square where a model sees them."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llava_pose.errors import InputError

PADDING_COLOUR = (124, 116, 104)  # ImageNet's mean: outside of a picture, and behind transparent pixels
DECODING_ERRORS = (  # what Pillow raises for files that are damaged or no pictures
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def load_rgb(
    path: str | os.PathLike[str],
    *,
    upright: bool = False,
    name: str | None = None,
    remedy: str = "run llava-pose prepare again",
) -> Image.Image:
    """A picture file, decoded whole, as 8-bit RGB.

    Args:
        upright: turn it as its EXIF orientation says. Prepared pictures are annotated as they are stored.
        name: what a person calls the file, for messages; by default the path.
        remedy: for messages.

    Raises:
        InputError: it is missing, damaged, no picture, or of a pixel format that has no agreed range.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except InputError as error:
        raise InputError(f"{name or path}: {error}") from error
    except DECODING_ERRORS as error:
        reason = str(error).replace(repr(str(path)), "the file").replace(repr(Path(path)), "the file")
        if isinstance(error, UnidentifiedImageError):
            reason = "it is no picture of a known format"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise InputError(f"{name or path}: cannot read the picture ({reason}); {remedy}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB: 16-bit pixels scaled, transparent ones laid over :data:`PADDING_COLOUR`.

    One that is 8-bit RGB already comes back itself, not a copy.

    Raises:
        InputError: a pixel format with no agreed range (32-bit integers and floats).
    """
    image.load()  # what follows may fail in Pillow's ways only where the file is damaged
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.float32)
        return Image.fromarray((deep / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError("the picture has 32-bit pixels, whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        front = image.convert("RGBA")
        back = Image.new("RGBA", front.size, (*PADDING_COLOUR, 255))
        return Image.alpha_composite(back, front).convert("RGB")
    return image.convert("RGB")


def square_picture(image: Image.Image) -> tuple[Image.Image, int, int]:
    """The picture as RGB, padded to a square, and how far it moved right and down, pixels.

    Raises:
        InputError: as :func:`to_rgb`.
    """
    image = to_rgb(image)
    side = max(image.size)
    if image.size == (side, side):
        return image, 0, 0
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square = Image.new("RGB", (side, side), PADDING_COLOUR)
    square.paste(image, (left, top))
    return square, left, top
