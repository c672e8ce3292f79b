"""`llava-pose sheet`: pictures with predicted axes, what a system gets right and wrong, to be looked at.

``llava-pose sheet --data prepared --split val --predictions predictions.jsonl --out sheet.png``
draws the predicted pose of each object as solid axes and the true one as thin dashed ones (llava_pose.inference.drawing).
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from eval.compared import canonical_category, read_systems, require_annotation
from llava_pose.data.images import load_rgb, to_rgb
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_records
from llava_pose.errors import InputError, joined, left_out
from llava_pose.inference.drawing import AXIS_COLOURS, draw_axes, load_font
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.config import command, require, require_folder, require_seed
from llava_pose.utils.files import inside, write_atomic
from llava_pose.utils.output_folder import own_file

logger = logging.getLogger(__name__)

Selection = Literal["random", "worst", "best"]
_BACKGROUND = (250, 250, 250)
_PICTURE_GROUND = (232, 232, 232)
_INK = (40, 40, 40)
_GOOD, _FAIR, _BAD = (0, 130, 60), (190, 110, 0), (200, 30, 30)
_GAP = 10


@dataclass(frozen=True)
class SheetItem:
    """One picture of a sheet.

    Attributes:
        image: the object's picture, any mode and size.
        category: the true category.
        pose: the predicted pose in pixels of ``image``; None if the system gave none.
        true: the annotated pose; None where there is none (pictures of the user's own).
        viewport, focal: of the camera, as in the record of the picture; a viewport of None is made up for.
        pred_category: None if the system predicts none.
    """

    image: Image.Image
    category: str
    pose: Pose | None
    true: Pose | None = None
    viewport: float | None = None
    focal: float = 1.0
    pred_category: str | None = None

    @property
    def error(self) -> float | None:
        """Radians; pi without a usable pose; None without a true pose."""
        return None if self.true is None else error_of(self.pose, self.true)


def error_of(pose: Pose | None, true: Pose) -> float:
    """The error of one prediction in radians, pi where there is no usable pose."""
    return math.pi if pose is None else float(pose_error(pose.angles, true.angles))


@dataclass
class ContactSheetConfig:
    """Options of ``llava-pose sheet``."""

    data: str | None = field(default=None, metadata={"help": "the prepared folder, as llava-pose prepare writes it"})
    predictions: str | None = field(default=None, metadata={"help": "a predictions.jsonl file of that data"})
    split: str = field(default="val", metadata={"help": "the split that was predicted"})
    out: str = field(default="contact_sheet.png", metadata={"help": "the PNG to write"})
    system: str | None = field(default=None, metadata={"help": "which system, where the file holds several"})
    select: Selection = field(default="random", metadata={"help": "which predictions: random, worst or best"})
    count: int = field(default=24, metadata={"help": "how many pictures"})
    columns: int = field(default=6, metadata={"help": "pictures in a row"})
    tile: int = field(default=240, metadata={"help": "side of a picture on the sheet, pixels"})
    seed: int = field(default=0, metadata={"help": "of the random choice"})

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("columns", 1), ("tile", 64)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")
        require_seed(self.seed)
        if Path(self.out).suffix.lower() != ".png":
            raise InputError(f"--out {self.out}: the sheet is a PNG; give a name that ends in .png")


def contact_sheet(config: ContactSheetConfig) -> Path:
    """Draw a sheet of predictions on prepared data and return its path.

    Raises:
        InputError: data or predictions are missing or bad, the system is not in the file, a prediction is of another
            annotation than the object's, or none is of an object of the split. Also where lines or pictures cannot be
            used: the sheet of the others has been drawn then.
    """
    data = require(config.data, "--data")
    require(config.predictions, "--predictions")
    folder = require_folder(data, "--data", "make it with llava-pose prepare")
    with own_file(config.out, "--out", "sheet"):
        return _contact_sheet(config, folder)


def _contact_sheet(config: ContactSheetConfig, folder: Path) -> Path:
    faults: list[InputError] = []
    records = {record.id: record for record in read_records(folder, config.split, faults=faults)}
    predictions = _of_one_system(config)
    known = [prediction for prediction in predictions if prediction.id in records]
    if not known:
        raise InputError(
            f"{config.predictions}: none of its {len(predictions)} ids is in {folder / config.split}; "
            "give the data and the split that were predicted"
        )
    if len(known) < len(predictions):
        logger.warning("%d predictions are of objects outside %s", len(predictions) - len(known), folder / config.split)
    for prediction in known:
        require_annotation(prediction, records[prediction.id], f"{config.predictions}: the line of {prediction.id!r}")
    chosen = choose(known, config.select, config.count, seed=config.seed)
    items = []
    for prediction in tqdm(chosen, desc="drawing", unit="picture", delay=2, leave=False):
        try:
            items.append(load_item(prediction, records[prediction.id], folder / config.split))
        except InputError as error:
            faults.append(error)
    if not items:
        raise joined(faults, f"{folder / config.split}: none of the pictures can be drawn")
    title = f"{chosen[0].system}: {config.select} {len(items)} of {len(known):,} predictions on {config.split}"
    save_sheet(render_sheet(items, title=title, columns=config.columns, tile=config.tile), config.out)
    logger.info("contact sheet: %s   the scores behind it: llava-pose score %s", config.out, config.predictions)
    if faults:
        raise left_out(faults, f"{config.out}: {len(faults)} objects cannot be used and are not on it")
    return Path(config.out)


def _of_one_system(config: ContactSheetConfig) -> list[Prediction]:
    systems = read_systems([cast(str, config.predictions)])
    if config.system is None and len(systems) > 1:
        raise InputError(
            f"{config.predictions}: holds several systems ({', '.join(systems)}); choose one with --system"
        )
    name = config.system or next(iter(systems))
    if name not in systems:
        raise InputError(f"--system {name}: not in {config.predictions}, which holds {', '.join(systems)}")
    return systems[name]


def choose(predictions: Sequence[Prediction], select: Selection, count: int, *, seed: int = 0) -> list[Prediction]:
    """Some predictions: the worst first, the best first, or a random choice in the order of the file."""
    if select == "random":
        index = np.random.default_rng(seed).permutation(len(predictions))[:count]
        return [predictions[i] for i in sorted(index)]
    errors = np.array([error_of(prediction.pose, prediction.true) for prediction in predictions])
    order = np.argsort(-errors if select == "worst" else errors, kind="stable")
    return [predictions[i] for i in order[:count]]


def load_item(prediction: Prediction, record: ObjectRecord, folder: Path) -> SheetItem:
    """The sheet's item of one prediction.

    Raises:
        InputError: the image is missing or cannot be read.
    """
    return SheetItem(
        load_rgb(inside(folder, record.file_name)),
        prediction.category,
        prediction.pose,
        record.pose,
        record.viewport,
        record.focal,
        prediction.pred_category,
    )


def render_sheet(
    items: Sequence[SheetItem], *, title: str = "", columns: int = 6, tile: int = 240, legend: bool = True
) -> Image.Image:
    """Lay pictures with axes and captions out on one sheet.

    Args:
        items: in the order of the sheet, row by row.
        title: one line at the top.
        columns: pictures in a row.
        tile: side of the square that a picture is fitted into, pixels.
        legend: say at the top what the colours mean.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(items))
    rows = math.ceil(len(items) / columns)
    text_size = max(11, round(tile / 17))
    caption = round(2.9 * text_size)
    header = round(1.9 * text_size) * (bool(title) + bool(legend)) + _GAP
    cell_width, cell_height = tile + _GAP, tile + caption + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, header + rows * cell_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    line = _GAP
    if title:
        _write(draw, (_GAP, line), title, 1.15 * text_size, sheet.width - 2 * _GAP)
        line += round(1.9 * text_size)
    if legend:
        _draw_legend(draw, (_GAP, line), text_size, with_truth=any(item.true is not None for item in items))
    for number, item in enumerate(items):
        left = _GAP + (number % columns) * cell_width
        top = header + (number // columns) * cell_height
        picture = _picture(item, tile)
        draw.rectangle((left, top, left + tile - 1, top + tile - 1), fill=_PICTURE_GROUND)
        sheet.paste(picture, (left + (tile - picture.width) // 2, top + (tile - picture.height) // 2))
        _draw_caption(draw, item, (left, top + tile + 3), text_size, tile)
    return sheet


def save_sheet(sheet: Image.Image, path: str | Path) -> None:
    """Write a sheet as PNG, atomically."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_atomic(path, buffer.getvalue())


def _picture(item: SheetItem, tile: int) -> Image.Image:
    scale = tile / max(item.image.size)
    width, height = (max(1, round(side * scale)) for side in item.image.size)
    picture = to_rgb(item.image).resize((width, height), Image.Resampling.LANCZOS)
    viewport = None if item.viewport is None else item.viewport * scale
    if item.true is not None:
        picture = draw_axes(picture, _scaled(item.true, scale), viewport, item.focal, dashed=True)
    if item.pose is not None and all(math.isfinite(angle) for angle in item.pose.angles):
        picture = draw_axes(picture, _scaled(item.pose, scale), viewport, item.focal, labels=False)
    return picture


def _scaled(pose: Pose, scale: float) -> Pose:
    return replace(
        pose,
        px=None if pose.px is None else pose.px * scale,
        py=None if pose.py is None else pose.py * scale,
    )


def _draw_caption(draw: ImageDraw.ImageDraw, item: SheetItem, place: tuple[int, int], size: int, width: int) -> None:
    left, top = place
    name, colour = item.category.replace("_", " "), _INK
    if item.pred_category is not None and canonical_category(item.pred_category) != canonical_category(item.category):
        name, colour = f"{name}, called {item.pred_category.replace('_', ' ')}", _BAD
    _write(draw, (left, top), name, size, width, colour)
    second = top + round(1.3 * size)
    if item.pose is None or not all(math.isfinite(angle) for angle in item.pose.angles):
        _write(draw, (left, second), "no pose", size, width, _BAD)
    elif item.error is not None:
        degrees = math.degrees(item.error)
        colour = _GOOD if degrees < 10 else _FAIR if degrees < 30 else _BAD
        _write(draw, (left, second), f"error {degrees:.1f}°", size, width, colour)
    else:
        a, e, t = (math.degrees(angle) for angle in item.pose.angles)
        _write(draw, (left, second), f"{a:.0f}°, {e:.0f}°, {t:.0f}°", size, width)


def _draw_legend(draw: ImageDraw.ImageDraw, place: tuple[int, int], size: int, *, with_truth: bool) -> None:
    x, y = place
    for name in ("front", "up", "left"):
        draw.rounded_rectangle((x, y + 0.35 * size, x + 1.6 * size, y + 0.7 * size), 3, fill=AXIS_COLOURS[name])
        text = {"left": "object's left"}.get(name, name)
        _write(draw, (round(x + 2 * size), y), text, size, draw.im.size[0])
        x += round(3 * size + draw.textlength(text, font=load_font(size)))
    if with_truth:
        _write(draw, (x, y), "dashed: annotated pose", size, max(0, draw.im.size[0] - x - _GAP))


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: float,
    width: int,
    colour: tuple[int, int, int] = _INK,
) -> None:
    """One line of text, cut with an ellipsis where it is wider than ``width``; names come from other people's files."""
    text = "".join(sign if sign.isprintable() else "?" for sign in text)
    font = load_font(size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(place, text, font=font, fill=colour)


main = command(
    ContactSheetConfig,
    contact_sheet,
    prog="llava-pose sheet",
    description="Draw predicted and true object axes on the pictures, with the error of each.",
    example="llava-pose sheet --data prepared --predictions predictions.jsonl --out sheet.png",
)

if __name__ == "__main__":
    raise SystemExit(main())
