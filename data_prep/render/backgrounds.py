"""Backgrounds behind the object: procedural pictures, or a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def list_photos(folder: Path) -> list[Path]:
    """Return the photographs in a folder and the folders below it, in the order of their names.

    Raises:
        InputError: the folder is missing or holds no photograph.
    """
    if not folder.is_dir():
        raise InputError(f"The background folder {folder} does not exist: give a folder of photographs.")
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise InputError(
            f"The background folder {folder} holds no photograph: put files of type {', '.join(sorted(PHOTO_SUFFIXES))} there."
        )
    return photos


def photo_background(path: Path, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random part of a photograph, (height, width, 3) float32 sRGB in [0, 1], mirrored half the time.

    Raises:
        InputError: as :func:`llava_pose.data.images.load_rgb`.
    """
    photo = load_rgb(path, upright=True, remedy="remove it from --backgrounds or replace it")
    scale = max(width / photo.width, height / photo.height)
    crop_width, crop_height = width / scale, height / scale
    zoom = rng.uniform(0.6, 1.0)
    crop_width, crop_height = crop_width * zoom, crop_height * zoom
    left, top = rng.uniform(0, photo.width - crop_width), rng.uniform(0, photo.height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box=box), dtype=np.float32) / 255
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def procedural_background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a made-up picture, (height, width, 3) float32 sRGB in [0, 1]: a wall and floor, a gradient or noise, with blurred
    shapes before it half the time."""
    kind = rng.choice(["room", "gradient", "noise"], p=[0.4, 0.25, 0.35])
    if kind == "room":
        picture = _room(width, height, rng)
    elif kind == "gradient":
        picture = _gradient(width, height, rng)
    else:
        picture = _noise(width, height, rng, contrast=rng.uniform(0.1, 0.45))
    if rng.random() < 0.5:
        picture = _with_shapes(picture, rng)
    return np.clip(picture, 0, 1).astype(np.float32)


def _color(rng: np.random.Generator) -> np.ndarray:
    """Return (3,) float32: muted colours more often than bright ones."""
    grey = rng.uniform(0.1, 0.95)
    return np.clip(grey + rng.normal(0, 0.13, 3), 0, 1).astype(np.float32)


def _gradient(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :, None]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None, None]
    share = np.clip(0.5 + (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))), 0, 1)
    return _color(rng) * share + _color(rng) * (1 - share)


def _noise(width: int, height: int, rng: np.random.Generator, contrast: float) -> np.ndarray:
    """Smooth noise in three octaves about a base colour: of brightness mostly, of hue a little."""
    cells = int(rng.integers(2, 7))
    hue = _enlarged(rng.uniform(-0.4, 0.4, (cells, cells, 3)).astype(np.float32), width, height)
    brightness = sum(
        _enlarged(rng.uniform(-1, 1, (cells * 3**octave,) * 2 + (1,)).astype(np.float32), width, height) / 2**octave
        for octave in range(3)
    )
    return _color(rng) + (hue + brightness) * np.float32(contrast)


def _enlarged(grid: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return a coarse grid (h, w, C) interpolated to (height, width, C)."""
    channels = [
        Image.fromarray(grid[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(grid.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _room(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return a wall over a floor, each with some texture, meeting at a nearly level line."""
    wall = _noise(width, height, rng, contrast=rng.uniform(0.0, 0.15))
    floor = _noise(width, height, rng, contrast=rng.uniform(0.05, 0.3))
    level, slope = rng.uniform(0.3, 0.8), rng.uniform(-0.12, 0.12)
    x = np.linspace(-0.5, 0.5, width)[None, :]
    y = np.linspace(0, 1, height)[:, None]
    below = np.clip((y - level - slope * x) * height + 0.5, 0, 1)[..., None].astype(np.float32)
    return wall * (1 - below) + floor * below


def _with_shapes(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurred boxes, discs and bars, like things out of focus."""
    height, width = picture.shape[:2]
    canvas = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 9))):
        color = tuple(int(value * 255) for value in _color(rng))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3) * width, rng.uniform(0.05, 0.3) * height
        shape = rng.choice(["box", "disc", "bar"])
        if shape == "box":
            draw.rectangle((x - w, y - h, x + w, y + h), fill=color)
        elif shape == "disc":
            draw.ellipse((x - w, y - h, x + w, y + h), fill=color)
        else:
            draw.line((x, y, rng.uniform(0, width), rng.uniform(0, height)), fill=color, width=int(rng.integers(3, 16)))
    canvas = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 5.0)))
    return np.asarray(canvas, dtype=np.float32) / 255
