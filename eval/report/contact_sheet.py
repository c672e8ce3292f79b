"""`llava-pose sheet`: pictures with predicted axes show what a system gets right and wrong.

``llava-pose sheet --data prepared --split val --predictions predictions.jsonl --out sheet.png``
draws the predicted pose of each object as solid axes and the true one as thin dashed ones (llava_pose.inference.drawing).
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, PositiveInt
from tqdm import tqdm

from eval.compared import Seed, canonical_category, read_systems, require_annotation
from eval.report.printing import printable_line
from llava_pose.data.images import load_rgb, to_rgb
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_records
from llava_pose.errors import InputError, joined, left_out
from llava_pose.inference.drawing import AXIS_COLOURS, draw_axes, load_font
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import inside, write_atomic
from llava_pose.utils.output_folder import own_file, require_other
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)

Selection = Literal["random", "worst", "best"]
_BACKGROUND = (250, 250, 250)
_PICTURE_GROUND = (232, 232, 232)
_INK = (40, 40, 40)
_GOOD, _FAIR, _BAD = (0, 130, 60), (190, 110, 0), (200, 30, 30)
_GAP = 10


class SheetItem(NamedTuple):
    """One object of a sheet: its picture, of any mode and size, what a system says of it, and what is annotated."""

    image: Image.Image
    prediction: Prediction
    record: ObjectRecord

    @property
    def error(self) -> float:
        """The error of the prediction in radians, pi where there is no usable pose."""
        return error_of(self.prediction)


def error_of(prediction: Prediction) -> float:
    """Return the error of a prediction in radians, pi where there is no usable pose."""
    return math.pi if prediction.pose is None else float(pose_error(prediction.pose.angles, prediction.true.angles))


@dataclass(kw_only=True)
class ContactSheetConfig:
    """The options of ``llava-pose sheet``."""

    data: Name = field(metadata={"help": "The prepared folder, as llava-pose prepare writes it."})
    predictions: Name = field(metadata={"help": "A predictions.jsonl file of that data."})
    split: str = field(default="val", metadata={"help": "The split that was predicted."})
    out: str = field(default="contact_sheet.png", metadata={"help": "The PNG file to write."})
    system: str | None = field(default=None, metadata={"help": "The system to show, where the file holds several."})
    select: Selection = field(default="random", metadata={"help": "The predictions to show."})
    count: PositiveInt = field(default=24, metadata={"help": "The number of pictures."})
    columns: PositiveInt = field(default=6, metadata={"help": "The number of pictures in a row."})
    tile: Annotated[int, Field(ge=64)] = field(
        default=240, metadata={"help": "The side of a picture on the sheet in pixels."}
    )
    seed: Seed = field(default=0, metadata={"help": "The seed of the random choice."})

    def __post_init__(self) -> None:
        check_fields(self)
        if Path(self.out).suffix.lower() != ".png":
            raise InputError(f"--out {self.out}: the sheet is a PNG; give a name that ends in .png")


def contact_sheet(config: ContactSheetConfig) -> Path:
    """Draw a sheet of predictions on prepared data and return its path.

    Raises:
        InputError: data or predictions are missing or bad, the system is not in the file, a prediction is of another
            annotation than the object's, or none is of an object of the split. Also where lines or pictures cannot be
            used: the sheet of the others has been drawn then.
    """
    folder = require_folder(config.data, "--data", "make it with llava-pose prepare")
    require_other("--out", [config.out], [config.predictions, folder / config.split])
    with own_file(config.out, "--out", "sheet"):
        return _contact_sheet(config, folder)


def _contact_sheet(config: ContactSheetConfig, folder: Path) -> Path:
    faults: list[InputError] = []
    records = {record.id: record for record in read_records(folder, config.split, faults=faults)}
    predictions = _of_one_system(config)
    known = of_the_data(predictions, records, folder / config.split, config.predictions)
    chosen = choose(known, config.select, config.count, seed=config.seed)
    items = list(read_items(chosen, records, folder / config.split, faults))
    if not items:
        raise joined(faults, f"{folder / config.split}: none of the pictures can be drawn")
    title = f"{chosen[0].system}: {config.select} {len(items)} of {len(known):,} predictions on {config.split}"
    buffer = io.BytesIO()
    sheet = render_sheet(items, title=title, columns=config.columns, tile=config.tile)
    sheet.save(buffer, format="PNG", optimize=True)
    write_atomic(config.out, buffer.getvalue())
    logger.info("contact sheet: %s   the scores behind it: llava-pose score %s", config.out, config.predictions)
    if faults:
        raise left_out(faults, f"{config.out}: {len(faults)} objects cannot be used and are not on it")
    return Path(config.out)


def of_the_data(
    predictions: Sequence[Prediction], records: Mapping[str, ObjectRecord], split: Path, where: str
) -> list[Prediction]:
    """Return the predictions of objects of a split; how many are of others is logged.

    Raises:
        InputError: there is none, or one was made on another annotation; the message begins with ``where``.
    """
    known = [prediction for prediction in predictions if prediction.id in records]
    if not known:
        raise InputError(
            f"{where}: none of its {len(predictions)} ids is in {split}; give the data and the split that were predicted"
        )
    if len(known) < len(predictions):
        logger.warning("%d predictions are of objects outside %s", len(predictions) - len(known), split)
    for prediction in known:
        require_annotation(prediction, records[prediction.id], f"{where}: the line of {prediction.id!r}")
    return known


def read_items(
    chosen: Sequence[Prediction], records: Mapping[str, ObjectRecord], split: Path, faults: list[InputError]
) -> Iterator[SheetItem]:
    """Yield predictions with their pictures; of those whose picture cannot be used, the error goes to the faults."""
    for prediction in tqdm(chosen, desc="drawing", unit="picture", delay=2, leave=False):
        record = records[prediction.id]
        try:
            picture = load_rgb(inside(split, record.file_name))
        except InputError as error:
            faults.append(error)
            continue
        yield SheetItem(picture, prediction, record)


def _of_one_system(config: ContactSheetConfig) -> list[Prediction]:
    systems = read_systems([config.predictions])
    if config.system is None and len(systems) > 1:
        raise InputError(
            f"{config.predictions}: holds several systems ({', '.join(systems)}); choose one with --system"
        )
    name = config.system or next(iter(systems))
    if name not in systems:
        raise InputError(f"--system {name}: not in {config.predictions}, which holds {', '.join(systems)}")
    return systems[name]


def choose(predictions: Sequence[Prediction], select: Selection, count: int, *, seed: int = 0) -> list[Prediction]:
    """Choose predictions: the worst first, the best first, or a random choice in the order of the file."""
    if select == "random":
        index = np.random.default_rng(seed).permutation(len(predictions))[:count]
        return [predictions[i] for i in sorted(index)]
    errors = np.array([error_of(prediction) for prediction in predictions])
    order = np.argsort(-errors if select == "worst" else errors, kind="stable")
    return [predictions[i] for i in order[:count]]


def render_sheet(items: Sequence[SheetItem], *, title: str = "", columns: int = 6, tile: int = 240) -> Image.Image:
    """Lay pictures with axes and captions out on one sheet, below a title and what the colours mean.

    Args:
        items: in the order of the sheet, row by row.
        columns: the pictures in a row.
        tile: the side of the square that a picture is fitted into, in pixels.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(items))
    size = max(11, round(tile / 17))
    line, caption = round(1.9 * size), round(2.9 * size)
    header = line * (bool(title) + 1) + _GAP
    cell_width, cell_height = tile + _GAP, tile + caption + _GAP
    rows = math.ceil(len(items) / columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, header + rows * cell_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _GAP), title, 1.15 * size, sheet.width - 2 * _GAP)
    _draw_legend(draw, (_GAP, _GAP + line * bool(title)), size)
    for number, item in enumerate(items):
        left, top = _GAP + (number % columns) * cell_width, header + (number // columns) * cell_height
        picture = draw_item(item, tile)
        draw.rectangle((left, top, left + tile - 1, top + tile - 1), fill=_PICTURE_GROUND)
        sheet.paste(picture, (left + (tile - picture.width) // 2, top + (tile - picture.height) // 2))
        _draw_caption(draw, item, (left, top + tile + 3), size, tile)
    return sheet


def draw_item(item: SheetItem, tile: int) -> Image.Image:
    """Return the picture of an item, its longer side of ``tile`` pixels, with predicted and annotated axes."""
    record, pose = item.record, item.prediction.pose
    scale = tile / max(item.image.size)
    width, height = (max(1, round(side * scale)) for side in item.image.size)
    picture = to_rgb(item.image).resize((width, height), Image.Resampling.LANCZOS)
    camera = (record.viewport * scale, record.focal)
    picture = draw_axes(picture, _scaled(record.pose, scale), *camera, dashed=True)
    if pose is not None and all(map(math.isfinite, pose.angles)):
        picture = draw_axes(picture, _scaled(pose, scale), *camera, labels=False)
    return picture


def _scaled(pose: Pose, scale: float) -> Pose:
    px, py = (None if place is None else place * scale for place in (pose.px, pose.py))
    return replace(pose, px=px, py=py)


def _draw_caption(draw: ImageDraw.ImageDraw, item: SheetItem, place: tuple[int, int], size: int, width: int) -> None:
    left, top = place
    category, named, pose = item.prediction.category, item.prediction.pred_category, item.prediction.pose
    name, colour = category.replace("_", " "), _INK
    if named is not None and canonical_category(named) != canonical_category(category):
        name, colour = f"{name}, called {named.replace('_', ' ')}", _BAD
    _write(draw, (left, top), name, size, width, colour)
    degrees = math.degrees(item.error)
    text, colour = f"error {degrees:.1f}°", _GOOD if degrees < 10 else _FAIR if degrees < 30 else _BAD
    if pose is None or not all(map(math.isfinite, pose.angles)):
        text = "no pose"
    _write(draw, (left, top + round(1.3 * size)), text, size, width, colour)


def _draw_legend(draw: ImageDraw.ImageDraw, place: tuple[int, int], size: int) -> None:
    x, y = place
    for name, text in (("front", "front"), ("up", "up"), ("left", "object's left")):
        draw.rounded_rectangle((x, y + 0.35 * size, x + 1.6 * size, y + 0.7 * size), 3, fill=AXIS_COLOURS[name])
        _write(draw, (round(x + 2 * size), y), text, size, draw.im.size[0])
        x += round(3 * size + draw.textlength(text, font=load_font(size)))
    _write(draw, (x, y), "dashed: annotated pose", size, max(0, draw.im.size[0] - x - _GAP))


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: float,
    width: int,
    colour: tuple[int, int, int] = _INK,
) -> None:
    """Write one line of text, cut with an ellipsis where it is wider than ``width``; names come from other people's files."""
    text = printable_line(text)
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
