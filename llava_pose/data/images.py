"""Pictures as everything here takes them: 8-bit RGB whatever the file holds, and square where a model sees them.

Pillow knows some seventy formats, and hands a few of them (EPS, for one) to other programs. Only those of :data:`FORMATS`
are decoded here, whatever a file is called, and none with more than :data:`MAX_PIXELS`.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from llava_pose.errors import InputError
from llava_pose.utils.files import inside, open_regular, read_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 1 << 26  # 67 million, 200 MB once decoded; a JPEG may have more where it can be decoded smaller
MAX_SCANS = (
    50  # of a progressive JPEG, which has ten or so: one more costs a file nothing, and a decoder a whole picture
)
_SENT_AS_THEY_ARE = ("JPEG", "PNG", "WEBP")  # what every server reads
MAX_SQUARE = 2048  # pixels a side of what a model is shown: towers see less, and a thin panorama's square would be vast
BOX_MARGIN = 0.05  # of a box's longer side, left at each side of it where a picture is cut to the box
PADDING_COLOUR = (124, 116, 104)  # ImageNet's mean: outside of a picture, and behind transparent pixels
DECODING_ERRORS = (  # what Pillow raises for files that are damaged or no pictures
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, MemoryError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),  # the first of them from AVIF's decoder
)


@contextmanager
def open_image(
    source: str | os.PathLike[str] | IO[bytes], *, max_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Open a picture without decoding it: a regular file, of one of :data:`FORMATS`, and not too large.

    Args:
        source: a path, or a binary file that is open.
        max_side: what a longer side may be reduced to while a JPEG is decoded, pixels: to no less than this.
        max_pixels: that may be decoded.

    Raises:
        InputError: it has more pixels, or more than :data:`MAX_SCANS`.
        OSError, UnidentifiedImageError, …: one of :data:`DECODING_ERRORS`.
    """
    if not hasattr(source, "read"):
        with open_regular(source) as file, open_image(file, max_side=max_side, max_pixels=max_pixels) as image:
            yield image
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            opened = Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(
            f"it has far more pixels than the {max_pixels / 1e6:.0f} million that are decoded here; make it smaller"
        ) from error
    with opened as image:
        size = image.size
        if max_side is not None and max(size) > 2 * max_side:
            image.draft(None, _fitted(size, max_side))  # a JPEG by a power of two, anything else not at all
        if image.width * image.height > max_pixels:
            raise InputError(
                f"it has {size[0]}×{size[1]} pixels, more than the {max_pixels / 1e6:.0f} million that are decoded here; "
                "make it smaller"
            )
        if has_too_many_scans(image):
            raise InputError(f"it is a JPEG of more than {MAX_SCANS} scans; save it anew as a plain one")
        yield image


def has_too_many_scans(image: ImageFile.ImageFile) -> bool:
    """Return whether a picture that is open is a JPEG of more than :data:`MAX_SCANS`, by the markers that they begin with."""
    if "progressive" not in image.info:
        return False
    file = cast(IO[bytes], image.fp)  # it is open
    place = file.tell()
    file.seek(0)
    count, last = 0, b""
    while block := file.read(1 << 20):
        count += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(place)
    return count > MAX_SCANS


def load_rgb(
    path: str | os.PathLike[str] | IO[bytes],
    *,
    upright: bool = False,
    name: str | None = None,
    remedy: str = "run llava-pose prepare again",
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return a picture file, decoded whole, as 8-bit RGB.

    Args:
        upright: turn it as its EXIF orientation says. Prepared pictures are annotated as they are stored.
        name: what a person calls the file, for messages; by default the path.
        remedy: for messages.
        max_side: shrink a picture whose longer side has more pixels than this.
        max_pixels: refuse a picture with more.

    Raises:
        InputError: it is missing, no regular file, damaged, too large, no picture of a known format, or of a pixel format
            that has no agreed range.
    """
    with (
        _saying(path, name, remedy),
        open_image(path, max_side=max_side, max_pixels=max_pixels) as image,
    ):
        image.load()
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        if max_side is not None and image.mode in ("RGBA", "LA"):  # laying it over a colour takes four times its memory
            image = shrink(image, max_side)
        loaded = to_rgb(image)
        return loaded if max_side is None else shrink(loaded, max_side)


def open_picture(path: str | os.PathLike[str], name: str | None = None) -> Image.Image:
    """Any picture file as a person sees it: 8-bit RGB, turned upright as its EXIF orientation says.

    Args:
        name: what the person calls the file, for messages; by default the path.

    Raises:
        InputError: it is missing, damaged, no picture, or of a pixel format that has no agreed range.
    """
    return load_rgb(path, upright=True, name=name, remedy="give a JPEG, PNG or WebP file")


def check_picture(
    folder: str | os.PathLike[str], name: str, *, remedy: str = "run llava-pose prepare again"
) -> tuple[Path, str]:
    """Return path and format of a picture that a data set names: there, in its folder, and no larger than what is decoded.

    Nothing but its header is read: that it is whole is found where it is decoded.

    Raises:
        InputError: it is not.
    """
    path = inside(folder, name)
    with _saying(path, None, remedy), open_image(path) as image:
        return path, str(image.format)


def sent_picture(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """Return a picture as servers take it, and its media type: the file as it is, or a JPEG of a format that few know.

    Raises:
        InputError: as :func:`load_rgb`, but that the file is not decoded where it is sent as it is.
    """
    with _saying(path, None, "run llava-pose prepare again"):
        content = read_bytes(path)
        with open_image(io.BytesIO(content)) as image:
            if image.format in _SENT_AS_THEY_ARE:
                return content, f"image/{image.format.lower()}"
            stream = io.BytesIO()
            to_rgb(image).save(stream, "JPEG", quality=95)
            return stream.getvalue(), "image/jpeg"


@contextmanager
def _saying(path: str | os.PathLike[str] | IO[bytes], name: str | None, remedy: str) -> Iterator[None]:
    """Turn what goes wrong with a picture into an error that names it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name or path}: {error}") from error
    except DECODING_ERRORS as error:
        reason = str(error) or "there is not enough memory"
        if isinstance(path, str | os.PathLike):
            reason = reason.replace(repr(str(path)), "the file").replace(repr(Path(path)), "the file")
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


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Return the picture with its longer side at most ``max_side`` pixels; one that fits comes back itself."""
    if max(image.size) <= max_side:
        return image
    return image.resize(_fitted(image.size, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _fitted(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def square_picture(image: Image.Image) -> tuple[Image.Image, float, int, int]:
    """Return the picture as RGB, shrunk to :data:`MAX_SQUARE` if it is larger, and padded to a square.

    Returns:
        The square; how much smaller it was made, as square pixels per pixel; and how far it moved right and down, in
        pixels of the square.

    Raises:
        InputError: as :func:`to_rgb`.
    """
    longest = max(image.size)
    image = shrink(to_rgb(image), MAX_SQUARE)
    side = max(image.size)
    scale = side / longest
    if image.size == (side, side):
        return image, scale, 0, 0
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square = Image.new("RGB", (side, side), PADDING_COLOUR)
    square.paste(image, (left, top))
    return square, scale, left, top


def cut_to_box(
    picture: Image.Image, box: tuple[float, float, float, float], margin: float = BOX_MARGIN
) -> tuple[Image.Image, float, int, int]:
    """Return the square round a box, as prepare --crop box cuts it out, and how it lies in the picture.

    Args:
        picture: RGB.
        box: left, top, right, bottom in pixels of the picture, within it.
        margin: round the box, as a share of its longer side.

    Returns:
        The square, no side of which has more than :data:`MAX_SQUARE` pixels (that of a thin panorama's box would be vast);
        its pixels per pixel of the picture; and where its corner is in the picture.
    """
    left, top, right, bottom = box
    length = max(right - left, bottom - top) * (1 + 2 * margin)
    corner = round((left + right - length) / 2), round((top + bottom - length) / 2)
    side = max(2, round(length))
    scale = min(1.0, MAX_SQUARE / side)
    inner = max(0, corner[0]), max(0, corner[1])
    part = picture.crop((*inner, min(picture.width, corner[0] + side), min(picture.height, corner[1] + side)))
    if scale < 1:
        width, height = (max(1, round(pixels * scale)) for pixels in part.size)
        part = part.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGB", (round(side * scale),) * 2, PADDING_COLOUR)
    square.paste(part, (round((inner[0] - corner[0]) * scale), round((inner[1] - corner[1]) * scale)))
    return square, scale, *corner


def picture_part(picture: Path) -> dict[str, Any]:
    """The part of a message that holds a picture, as a data URL.

    Raises:
        InputError: as :func:`sent_picture`.
    """
    content, kind = sent_picture(picture)
    data = base64.b64encode(content).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def assumed_viewport(image: Image.Image) -> float:
    """Pixels per unit focal length of a camera that is not known: the longer side, a field of view of 53 degrees."""
    return float(max(image.size))
