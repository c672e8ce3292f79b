"""`llava-pose predict PHOTOS…`: poses of photographs that have no annotations, as JSON lines or CSV.

Each line is one object of one photograph; ``llava-pose convert`` reads both. A command that was stopped goes on where it was.
"""

from __future__ import annotations

import glob
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt
from tqdm import tqdm

from llava_pose.data.images import BOX_MARGIN, open_picture
from llava_pose.data.jsonl import append_jsonl, drop_torn_line, resume_jsonl
from llava_pose.data.poses.formats import read_poses
from llava_pose.data.poses.posed_object import csv_items, is_number, read_json
from llava_pose.errors import InputError, left_out
from llava_pose.inference.pose_lines import BOX_COLUMNS, csv_text, pose_line
from llava_pose.pose import categories
from llava_pose.pose.conventions import CONVENTIONS
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import LONGEST_PLAIN_NAME, append_whole, atomic_file, file_digest, holds_controls, shortened
from llava_pose.utils.output_folder import keep_settings, own_file, own_folder, require_other, require_suffix
from llava_pose.utils.values import Name

if TYPE_CHECKING:
    from PIL import Image

    from llava_pose.inference.pipeline import Asked, PosePipeline

logger = logging.getLogger(__name__)
AUTO = "auto"  # in the place of categories: all that the checkpoint was taught
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".avif")
_PICTURE_NAMES = ("file_name", "path", "picture", "image")


@dataclass(kw_only=True)
class PhotosConfig:
    """The options of ``llava-pose predict PHOTOS…``."""

    photos: list[str] = field(
        metadata={"help": "The photographs: files, folders, or patterns such as 'holiday/*.jpg'."}
    )
    checkpoint: Name = field(metadata={"help": "The checkpoint: a folder or a hub id."})
    out: Name = field(
        metadata={"help": "The file to write, .csv or .jsonl; the same command goes on where it was stopped."}
    )
    category: list[str] = field(
        default_factory=lambda: [AUTO],
        metadata={
            "help": "What the photographs show: a category, several to choose from, or auto, all that the checkpoint knows."
        },
    )
    boxes: str | None = field(
        default=None,
        metadata={
            "help": "The boxes of the objects: a CSV file with the columns file_name, x1, y1, x2, y2 in pixels and, if known, "
            "category; or a COCO file. Without, an object fills its photograph."
        },
    )
    overlays: str | None = field(
        default=None,
        metadata={"help": "The folder in which each photograph is drawn, with boxes, names and axes of its objects."},
    )
    convention: Literal[tuple(CONVENTIONS)] = field(  # type: ignore[valid-type]
        default="opencv", metadata={"help": "The convention of the matrix and the quaternion (docs/POSE.md)."}
    )
    flip: bool = field(default=False, metadata={"help": "Ask about the mirror image too, and give the mean of both."})
    margin: Annotated[float, Field(ge=0, le=10)] = field(
        default=BOX_MARGIN,
        metadata={"help": "The room left at each side of a box, as a part of it; prepare's is the same."},
    )
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "Accept categories that are not in the taxonomy."}
    )
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    batch_size: PositiveInt = field(default=16, metadata={"help": "The objects of a forward pass."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class _Object:
    """An object to ask about: id "PHOTO#NUMBER", its photograph, box and category as far as they are given."""

    id: str
    photo: Path
    box: tuple[float, float, float, float] | None = None
    category: str | None = None


def predict_photos(config: PhotosConfig) -> Path:
    """Write a pose for each object of each photograph.

    Raises:
        InputError: there are no photographs, an option is wrong, or single photographs or boxes cannot be used: then all
            others have been answered, and the same command goes on once they are mended.
    """
    out, checkpoint = Path(config.out), config.checkpoint
    require_suffix("--out", out, ".csv", ".jsonl")
    taught = _taught(checkpoint)
    for name in config.category if config.category != [AUTO] else ():
        if name not in taught:
            categories.get(name, allow_custom=config.allow_custom_categories, source="--category")
    faults: list[InputError] = []
    photos = [photo for photo in find_photos(config.photos) if _is_text(photo, faults)]
    objects = _objects(photos, config, faults)
    require_other("--out", [out], [*photos, *([config.boxes] if config.boxes else [])])
    with own_file(out, "--out", "predict"):
        keep_settings(out, "--out", "predict", _settings(config, checkpoint))
        answered = _answered(out)
        left = [one for one in objects if one.id not in answered]
        if left:
            faults += _answer(config, checkpoint, out, objects, {one.id for one in left})
        if config.overlays is not None:
            faults += _draw_all(Path(config.overlays), photos, out)
    drawn = f", drawn on the photographs in {config.overlays}" if config.overlays is not None else ""
    logger.info("%d poses are in %s%s", len(_answered(out)), out, drawn)
    if faults:
        raise left_out(faults, f"{out}: {len(faults)} photographs or boxes could not be used")
    return out


def _taught(checkpoint: str) -> list[str]:
    """Return the categories that a checkpoint in a folder says it was taught."""
    from llava_pose.model.configuration import POSE_CONFIG, LlavaPoseConfig

    return LlavaPoseConfig.load(checkpoint).categories if Path(checkpoint, POSE_CONFIG).is_file() else []


def _is_text(photo: Path, faults: list[InputError]) -> bool:
    """Return whether a name can be written to the file; one that cannot is added to the faults."""
    try:
        str(photo).encode()
    except UnicodeEncodeError:
        faults.append(InputError(f"{os.fsencode(photo).decode(errors='replace')}: its name is no UTF-8; rename it"))
        return False
    if holds_controls(str(photo)):
        faults.append(InputError(f"{shortened(str(photo), 300)}: its name holds control characters; rename it"))
        return False
    return True


def find_photos(places: Sequence[str]) -> list[Path]:
    """Return the pictures among files, folders (with all that is in them) and patterns, each once, in order.

    Raises:
        InputError: a place is not there, or holds no picture.
    """
    found: dict[Path, None] = {}
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not _is_hidden(file, path)
            )
            if not inside:
                raise InputError(f"{place}: there is no picture in this folder ({', '.join(SUFFIXES)})")
            found |= dict.fromkeys(inside)
        elif os.path.lexists(path):
            found[path] = None
        else:
            matches = sorted(glob.glob(place, recursive=True)) if glob.has_magic(place) else []
            if not matches:
                raise InputError(f"{place}: there is no such file or folder")
            found |= dict.fromkeys(Path(match) for match in matches if not os.path.isdir(match))
    if not found:
        raise InputError("no photographs are given; name files or a folder: llava-pose predict photos --checkpoint …")
    return list(found)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _objects(photos: Sequence[Path], config: PhotosConfig, faults: list[InputError]) -> list[_Object]:
    """Return what is to be asked; what is wrong with single boxes is added to the faults."""
    if config.boxes is None:
        return [_Object(f"{photo}#0", photo) for photo in photos]
    by_name: dict[str, list[Path]] = defaultdict(list)
    for photo in photos:
        for name in {str(photo), photo.name}:
            by_name[name].append(photo)
    counts: dict[Path, int] = defaultdict(int)
    objects = []
    for where, name, box, category in _read_boxes(Path(config.boxes), faults):
        matching = by_name.get(name) or by_name.get(Path(name).name, [])
        if len(matching) != 1:
            many = "several photographs are called" if matching else "none of the photographs is called"
            faults.append(InputError(f"{where}: {many} {name}; give its path as the command does"))
            continue
        photo = matching[0]
        objects.append(_Object(f"{photo}#{counts[photo]}", photo, box, category))
        counts[photo] += 1
    if not objects:
        raise left_out(faults, f"--boxes {config.boxes}: there is no box in it that could be used")
    place = {photo: index for index, photo in enumerate(photos)}
    return sorted(objects, key=lambda one: place[one.photo])


def _read_boxes(path: Path, faults: list[InputError]) -> Iterator[tuple[str, str, Any, str | None]]:
    """Yield (place in the file, picture's name, left, top, right and bottom, category if there is one)."""
    lines = _coco_boxes(path) if path.suffix.lower() == ".json" else _csv_boxes(path)
    for where, name, box, category in lines:
        try:
            left, top, right, bottom = (float(number) for number in box)
        except (TypeError, ValueError):
            left = top = right = bottom = math.nan
        if not isinstance(name, str) or not all(map(math.isfinite, (left, top, right, bottom))):
            faults.append(InputError(f"{where}: needs a file_name and a box of four numbers; mend or drop it"))
        else:
            yield where, name, (left, top, right, bottom), category if isinstance(category, str) else None


def _csv_boxes(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    for where, row in csv_items(path):
        name = next((row[column] for column in _PICTURE_NAMES if row.get(column)), None)
        yield where, name, [row.get(column) for column in BOX_COLUMNS], row.get("category")


def _coco_boxes(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    data = read_json(path)
    parts: list[Any] = [data.get(name) if isinstance(data, dict) else None for name in ("images", "annotations")]
    if not all(isinstance(part, list) for part in parts):
        raise InputError(
            f"--boxes {path}: there are no lists 'images' and 'annotations' in it; give a COCO or a CSV file"
        )
    listed = data.get("categories")
    names, kinds = (
        {
            item.get("id"): item.get(key)
            for item in part
            if isinstance(item, dict) and isinstance(item.get("id"), int | str)
        }
        for part, key in ((parts[0], "file_name"), (listed if isinstance(listed, list) else [], "name"))
    )
    for index, item in enumerate(parts[1]):
        entry = item if isinstance(item, dict) else {}
        box = entry.get("bbox")
        corners = None
        if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)):
            corners = box[0], box[1], box[0] + box[2], box[1] + box[3]
        picture, kind = entry.get("image_id"), entry.get("category_id")
        name = names.get(picture) if isinstance(picture, int | str) else None
        yield f"{path}, annotation {index}", name, corners, kinds.get(kind) if isinstance(kind, int | str) else None


def _settings(config: PhotosConfig, checkpoint: str) -> dict[str, Any]:
    """Return what decides an answer; which photographs are asked about does not."""
    from llava_pose.model.checkpoint_files import settings_of_checkpoint

    return {
        **settings_of_checkpoint(checkpoint, config.base),
        "category": config.category,
        "boxes_digest": file_digest(config.boxes) if config.boxes else None,
        "convention": config.convention,
        "flip": config.flip,
        "margin": config.margin,
    }


def _answered(out: Path) -> set[str]:
    """Return the ids of the objects that a file answers already."""
    if not out.exists():
        return set()
    if out.suffix.lower() == ".jsonl":
        return {str(line.get("id")) for _, line in resume_jsonl(out, "id")}
    drop_torn_line(out)
    return {str(row.get("id")) for _, row in csv_items(out)}


def _answer(
    config: PhotosConfig, checkpoint: str, out: Path, objects: Sequence[_Object], left: set[str]
) -> list[InputError]:
    """Append a line for each object that is left; return what is wrong with those that cannot be answered."""
    from llava_pose.inference.pipeline import pipeline

    ask = pipeline(
        checkpoint,
        base=config.base,
        device=config.device,
        margin=config.margin,
        allow_custom_categories=config.allow_custom_categories,
    )
    names = ask.known(config.category[0] if len(config.category) == 1 else config.category)
    faults: list[InputError] = []
    load = lru_cache(maxsize=1)(_load)  # the boxes of one photograph stand together
    # numbers depend on what else is in a batch, in their last digits: a batch is always of the same objects
    batches = [objects[start : start + config.batch_size] for start in range(0, len(objects), config.batch_size)]
    for batch in tqdm([b for b in batches if not left.isdisjoint(o.id for o in b)], desc="predict", unit="batch"):
        asked: list[tuple[_Object, Asked]] = []
        for one in batch:
            try:
                asked.append((one, _asked(ask, one, names, load)))
            except InputError as error:
                faults.append(InputError(str(error) if str(one.photo) in str(error) else f"{one.photo}: {error}"))
        if not asked:
            continue
        lines = []
        for (one, of), answer in zip(asked, ask.ask([of for _, of in asked], flip=config.flip), strict=True):
            if not all(map(math.isfinite, answer.pose.angles)):
                faults.append(InputError(f"{one.photo}: the answer is no pose, for its numbers are not finite"))
            elif one.id in left:
                lines.append(pose_line(one.id, str(one.photo), of.size, one.box, answer, config.convention))
        _append(out, lines)
    return faults


def _load(photo: Path) -> Image.Image:
    if photo.is_dir():
        raise InputError(f"{photo}: is a folder, not a picture")
    return open_picture(photo)


def _asked(ask: PosePipeline, one: _Object, names: tuple[str, ...], load: Any) -> Asked:
    own = names if one.category is None else ask.known(one.category)
    return ask.asked(load(one.photo), own, one.box)


def _append(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    if out.suffix.lower() == ".jsonl":
        append_jsonl(out, lines)
    else:
        append_whole(out, csv_text(lines, header=not out.exists() or not out.stat().st_size).encode())


def _draw_all(folder: Path, photos: Sequence[Path], out: Path) -> list[InputError]:
    """Draw the poses of the file on their photographs; return what is wrong with those that cannot be drawn."""
    from llava_pose.inference.drawing import draw_axes, draw_box, draw_caption

    faults: list[InputError] = []
    if not _answered(out):
        return faults
    of_photo = defaultdict(list)
    for item in read_poses(out, "llava-pose")[0]:
        of_photo[item.picture].append(item)
    taken: set[Path] = set()
    top = os.path.commonpath([photo.absolute().parent for photo in photos])
    with own_folder(folder, "--overlays", "predict"):
        for photo in photos:
            if str(photo) not in of_photo:
                continue
            name = Path(os.path.relpath(photo.absolute(), top))
            file = folder / name.with_suffix(".jpg")
            while file in taken:  # of a photograph of the same name in another format
                name = name.with_name(f"{name.name}.jpg")
                file = folder / name
            taken.add(file)
            require_other("--overlays", [file], photos)
            try:
                if len(os.fsencode(file.name)) > LONGEST_PLAIN_NAME:
                    raise InputError(f"{photo}: its name is too long for a drawing to have it; shorten it")
                drawn = _load(photo)
                for item in of_photo[str(photo)]:
                    if item.box is not None:
                        draw_box(drawn, item.box)
                    drawn = draw_axes(drawn, item.pose, item.viewport)
                for item in of_photo[str(photo)]:  # over all axes
                    called = categories.get(item.category, allow_custom=True).display_name
                    draw_caption(drawn, f"{called}, {item.confidence or 0:.0%} sure", (item.box or (0.0, 0.0))[:2])
            except InputError as error:
                faults.append(error)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file, "wb") as stream:
                drawn.save(stream, "JPEG", quality=92)
    return faults


main = command(
    PhotosConfig,
    predict_photos,
    prog="llava-pose predict",
    description="Predict the poses of objects in photographs. (For the objects of a prepared folder: --data, and no PHOTOS.)",
    example="llava-pose predict photos --checkpoint checkpoints/everyday --category chair --out poses.csv --overlays drawn",
    positional="photos",
)

if __name__ == "__main__":
    raise SystemExit(main())
