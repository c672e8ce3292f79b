"""Any picture file as 8-bit RGB, and the sentence for one that cannot be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_pose.data.images import PADDING_COLOUR, load_rgb, square_picture, to_rgb
from llava_pose.errors import InputError

LEFT, RIGHT = (200, 40, 30), (20, 60, 220)
ORIENTATION = 0x0112


def halves(width: int = 64, height: int = 32) -> Image.Image:
    """Two colours side by side."""
    image = Image.new("RGB", (width, height), LEFT)
    image.paste(RIGHT, (width // 2, 0, width, height))
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def assert_colour(image: Image.Image, at: tuple[int, int], colour: tuple[int, ...], tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    assert np.abs(np.subtract(image.getpixel(at), colour)).max() <= tolerance, (image.getpixel(at), colour)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif"])
def test_rgb_files_come_as_they_are(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    loaded = load_rgb(saved(halves(), tmp_path / name, **options))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(halves()))


def test_the_pixels_are_there_when_the_file_is_gone(tmp_path: Path) -> None:
    path = saved(halves(), tmp_path / "a.png")
    loaded = load_rgb(path)
    path.unlink()
    assert_colour(loaded.copy(), (10, 10), LEFT)


def test_cmyk(tmp_path: Path) -> None:
    path = saved(halves().convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert Image.open(path).mode == "CMYK"
    loaded = load_rgb(path)
    assert_colour(loaded, (10, 16), LEFT, tolerance=8)
    assert_colour(loaded, (50, 16), RIGHT, tolerance=8)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_scaled_not_cut_off(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 257, 300, 128 * 257, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(deep), tmp_path / name)
    assert Image.open(path).mode.startswith("I;16")
    expected = np.repeat(np.array([[0, 1, 1, 128, 255]])[..., None], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(load_rgb(path)), expected)


@pytest.mark.parametrize(
    "kind", ["RGBA", "LA", "PA", "RGB with one transparent colour", "P with one transparent colour"]
)
def test_transparent_pixels_show_the_padding_colour(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "RGB with one transparent colour":
        saved(halves(), path, transparency=LEFT)
    elif kind == "P with one transparent colour":
        palette = Image.new("P", (64, 32), 0)
        palette.putpalette([*LEFT, *RIGHT])
        palette.paste(1, (32, 0, 64, 32))
        saved(palette, path, transparency=0)
    else:
        image = halves().convert("RGBA")
        image.paste((255, 255, 255, 0), (0, 0, 32, 32))
        if kind == "PA":
            path = path.with_suffix(".tif")
            palette = halves().quantize(4)
            palette = palette.convert("PA")
            palette.putalpha(image.getchannel("A"))
            image = palette
        saved(image if kind in ("RGBA", "PA") else image.convert(kind), path)
    loaded = load_rgb(path)
    assert_colour(loaded, (10, 16), PADDING_COLOUR)
    grey = halves().convert("L").convert("RGB").getpixel((50, 16))
    assert_colour(loaded, (50, 16), grey if kind == "LA" else RIGHT, tolerance=1)


def test_half_transparent_pixels_are_mixed() -> None:
    mixed = to_rgb(Image.new("RGBA", (2, 2), (255, 255, 255, 128)))
    expected = [round(colour + (255 - colour) * 128 / 255) for colour in PADDING_COLOUR]
    assert_colour(mixed, (0, 0), tuple(expected), tolerance=1)


def test_exif_turns_only_where_it_is_asked_to(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise: what is stored at the left is at the top
    path = saved(halves(), tmp_path / "a.jpg", quality=95, exif=exif)
    stored, upright = load_rgb(path), load_rgb(path, upright=True)
    assert (stored.size, upright.size) == ((64, 32), (32, 64))
    assert_colour(stored, (10, 16), LEFT, tolerance=8)
    assert_colour(upright, (16, 10), LEFT, tolerance=8)
    assert_colour(upright, (16, 50), RIGHT, tolerance=8)


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.jpg"
    if kind == "truncated":
        stream = io.BytesIO()
        halves(640, 480).save(stream, "JPEG")
        path.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    elif kind == "no picture":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "32-bit integers":
        path = saved(Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4)), tmp_path / "bad.tif")
    elif kind == "32-bit floats":
        path = saved(Image.fromarray(np.zeros((3, 4), dtype=np.float32)), tmp_path / "bad.tif")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated"),
        ("no picture", "no picture of a known format"),
        ("empty", "no picture of a known format"),
        ("folder", "Is a directory"),
        ("missing", "No such file or directory"),
        ("32-bit integers", "save it with 8 or 16 bits"),
        ("32-bit floats", "save it with 8 or 16 bits"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, kind: str, reason: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(InputError) as error:
        load_rgb(path, remedy="choose another")
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ")
    assert sentence.count(str(path)) == 1
    assert reason in sentence
    assert "\n" not in sentence
    if "32-bit" not in kind:
        assert sentence.endswith("; choose another")
    with pytest.raises(InputError, match=r"^holiday\.jpg: "):
        load_rgb(path, name="holiday.jpg")


@pytest.mark.parametrize(("size", "moved"), [((40, 30), (0, 5)), ((30, 41), (5, 0)), ((33, 33), (0, 0))])
def test_square_pictures_are_padded_around_the_middle(size: tuple[int, int], moved: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    square, _, left, top = square_picture(image)
    assert (left, top) == moved
    assert square.size == (max(size), max(size))
    pixels = np.asarray(square)
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[top : top + size[1], left : left + size[0]] = True
    np.testing.assert_array_equal(pixels[inside].reshape(size[1], size[0], 3), np.asarray(image))
    assert (pixels[~inside] == PADDING_COLOUR).all()


def test_square_pictures_are_rgb() -> None:
    square, _, _, _ = square_picture(Image.new("RGBA", (8, 4), (0, 0, 0, 0)))
    assert_colour(square, (4, 2), PADDING_COLOUR)
