"""`llava-pose inspect page DATA`: samples of any stage's output with box, CAD outline and axes, in one HTML file."""

from __future__ import annotations

import base64
import io
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import NonNegativeInt, PositiveInt
from tqdm import tqdm

from data_prep.inspect.entries import KINDS, Dataset, Entry
from data_prep.inspect.outline import Models
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.report import fill, statistics_text
from data_prep.inspect.statistics import statistics
from llava_pose.data.images import load_rgb
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.drawing import draw_axes
from llava_pose.pose.geometry import canonicalize
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import is_regular, write_atomic
from llava_pose.utils.output_folder import own_file, require_other, require_suffix

logger = logging.getLogger(__name__)
_YELLOW, _MAGENTA = (255, 213, 0), (255, 47, 208)
_WRONG = 30.0  # degrees of error from which an answer is shown in red


@dataclass
class PageConfig:
    """The options of ``llava-pose inspect page``."""

    data: str = field(metadata={"help": "A dataset's folder, or a file of any stage, as llava-pose inspect takes it."})
    out: str = field(default="inspect.html", metadata={"help": "The HTML file to write."})
    prepared: str | None = field(
        default=None,
        metadata={"help": "The prepared folder that the pictures of a file are in; by default where the file lies."},
    )
    cad: str | None = field(
        default=None,
        metadata={
            "help": "A folder of <category>/NN.off; by default that of the raw dataset, where it is still there."
        },
    )
    wireframes: bool = field(
        default=True, metadata={"help": "Draw the edges of CAD models, which needs the render extra."}
    )
    select: Literal["spread", "random", "worst"] = field(
        default="spread",
        metadata={"help": "Take as many of each category, any, or the largest errors of predictions."},
    )
    count: PositiveInt = field(default=60, metadata={"help": "The number of samples."})
    categories: list[str] = field(default_factory=list, metadata={"help": "Show these categories only."})
    splits: list[str] = field(default_factory=list, metadata={"help": "Show these splits only."})
    ids: list[str] = field(default_factory=list, metadata={"help": "Show these ids only."})
    size: PositiveInt = field(default=320, metadata={"help": "The longer side of a picture on the page, in pixels."})
    seed: NonNegativeInt = field(default=0, metadata={"help": "The seed of the choice."})

    def __post_init__(self) -> None:
        check_fields(self)


def inspect_page(config: PageConfig) -> None:
    """Write the page.

    Raises:
        InputError: the data cannot be inspected, nothing is left of it, or CAD models are asked for and cannot be drawn.
    """
    require_suffix("--out", config.out, ".html")
    require_other("--out", [config.out], [config.data])
    with own_file(config.out, "--out", "inspect"):
        _write_page(config)


def _write_page(config: PageConfig) -> None:
    dataset = open_dataset(config.data, prepared=config.prepared)
    if config.prepared is not None and dataset.kind in ("predictions", "instructions", "captions"):
        dataset = _with_records(dataset, config.prepared)
    models = _models(config, dataset)
    chosen = choose(dataset, config)
    sections: dict[str, list[dict[str, Any]]] = {}
    for entry in tqdm(chosen, desc="drawing", unit="sample", delay=2, leave=False, mininterval=0.5):
        card = {**_words(entry, dataset), **_picture(entry, models, config.size)}
        sections.setdefault(entry.category or "no category", []).append(card)
    drawn = sum(card.get("has_model", False) for cards in sections.values() for card in cards)
    content = fill(
        "page.html",
        title=str(dataset.path),
        summary=f"{KINDS[dataset.kind]}; {len(chosen)} of {len(dataset.entries):,} shown ({config.select}), "
        f"{drawn} with a wireframe",
        sections=dict(sorted(sections.items())),
        statistics=statistics_text(statistics(dataset)),
        has_predictions=dataset.kind == "predictions",
        column=max(160, config.size - 20),
    )
    write_atomic(config.out, content)
    logger.info(
        "%d samples, %d with a CAD wireframe, in %s (%.1f MB): open it in a browser",
        *(len(chosen), drawn, config.out, len(content.encode()) / 1e6),
    )


def _models(config: PageConfig, dataset: Dataset) -> Models | None:
    if not config.wireframes:
        return None
    if config.cad is None:
        return None if dataset.cad is None else Models(dataset.cad)
    cad = Path(config.cad)
    cad = cad / "CAD" if (cad / "CAD").is_dir() else cad
    if not cad.is_dir():
        raise InputError(f"--cad {cad}: there is no such folder; give the folder that holds <category>/NN.off")
    return Models(cad)


def _with_records(dataset: Dataset, prepared: str) -> Dataset:
    """Return predictions and texts with what the records of their objects know: picture, box, camera and CAD model."""
    folder = open_dataset(prepared)
    known = {entry.id: entry for entry in folder.entries}

    def joined(entry: Entry) -> Entry:
        record = known.get(entry.record or entry.id)
        if record is None:
            return entry
        names = ("split", "viewport", "size", "bbox", "cad_index")
        values = {name: getattr(entry, name) or getattr(record, name) for name in names}
        picture = entry.picture if entry.picture is not None and is_regular(entry.picture) else record.picture
        return replace(entry, picture=picture, **values)

    return replace(dataset, entries=tuple(map(joined, dataset.entries)), cad=dataset.cad or folder.cad)


def choose(dataset: Dataset, config: PageConfig) -> list[Entry]:
    """Return the samples of the page, by category.

    Raises:
        InputError: the options leave none, or ask for the worst of what has no errors.
    """
    asked = {"category": config.categories, "split": config.splits, "id": config.ids}
    entries = [e for e in dataset.entries if all(not v or getattr(e, name) in v for name, v in asked.items())]
    if not entries:
        given = " and ".join(f"--{name}" for name in ("categories", "splits", "ids") if getattr(config, name))
        raise InputError(
            f"{dataset.path}: {f'{given} leave' if given else 'there is'} nothing to show; see llava-pose inspect"
        )
    if config.select == "worst":
        if dataset.kind != "predictions":
            raise InputError(f"--select worst: {dataset.path} is {KINDS[dataset.kind]} and has no errors; use spread")
        return sorted(entries, key=lambda entry: -_error(entry))[: config.count]
    order = np.random.default_rng(config.seed).permutation(len(entries))
    if config.select == "spread":
        place: dict[str, int] = {}
        rank = np.empty(len(entries), dtype=int)  # which of its category an entry is
        for index in order:
            rank[index] = place[entries[index].category] = place.get(entries[index].category, -1) + 1
        order = order[np.argsort(rank[order], kind="stable")]
    picked = sorted(order[: config.count], key=lambda index: (entries[index].category, index))
    return [entries[index] for index in picked]


def _error(prediction: Entry) -> float:
    """Return the degrees between a prediction and the truth, 180 where there is no pose."""
    if prediction.predicted is None:
        return 180.0
    return math.degrees(float(pose_error(prediction.predicted.angles, prediction.poses[0].angles)))


def _picture(entry: Entry, models: Models | None, side: int) -> dict[str, Any]:
    """Return the picture of a card, plain and with its drawings, or what is wrong with it."""
    if entry.picture is None:
        return {}
    try:
        image = load_rgb(entry.picture, remedy="look at the file")
        if entry.size is not None and entry.size not in (image.size, image.size[::-1]):
            logger.warning(
                "%s: it is %s × %s pixels, not %s × %s as annotated", entry.picture, *image.size, *entry.size
            )
        elif entry.size is not None and entry.size != image.size:  # annotated as EXIF turns it
            image = load_rgb(entry.picture, upright=True)
    except InputError as error:
        return {"fault": str(error)}
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    plain = image.resize(size, Image.Resampling.LANCZOS)
    lines = None if models is None else models.outline(entry, size, scale)
    return {
        "picture": data_url(plain, "JPEG"),
        "drawn": data_url(_drawings(plain, entry, lines, scale), "PNG"),
        "has_model": lines is not None,
    }


def _drawings(plain: Image.Image, entry: Entry, lines: np.ndarray | None, scale: float) -> Image.Image:
    """Return what is drawn on a picture: its pixels that differ from the plain one's, the others transparent."""
    image = plain.copy()
    if lines is not None:
        mask = Image.fromarray(np.round(255 * lines).astype(np.uint8))
        image.paste(_MAGENTA, (0, 0), mask)
    if entry.bbox is not None:
        corners = [min(max(value * scale, -9.0), 9e4) for value in entry.bbox]
        ImageDraw.Draw(image).rectangle(corners, outline=_YELLOW, width=1 + max(image.size) // 400)
    for pose, dashed in [*((pose, bool(entry.system)) for pose in entry.poses), (entry.predicted, False)]:
        if pose is not None and all(map(math.isfinite, pose.angles)):
            px, py = (None if value is None else value * scale for value in (pose.px, pose.py))
            viewport = None if entry.viewport is None else entry.viewport * scale
            image = draw_axes(image, replace(pose, px=px, py=py), viewport, dashed=dashed)
    is_drawn = (np.asarray(image) != np.asarray(plain)).any(axis=-1, keepdims=True)
    return Image.fromarray(np.concatenate([image * is_drawn, 255 * is_drawn], axis=-1).astype(np.uint8), "RGBA")


def data_url(image: Image.Image, kind: Literal["JPEG", "PNG"]) -> str:
    """Return an image as the address that stands for its bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=82)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(entry: Entry, dataset: Dataset) -> dict[str, Any]:
    """Return what a card says."""
    about = [entry.category, entry.split, entry.status, entry.source, entry.system]
    poses = [f"{'true' if entry.system else 'pose'} {_angles(pose)}" for pose in entry.poses]
    card: dict[str, Any] = {
        "id": entry.id,
        "about": [*filter(None, about), *([f"CAD {entry.cad_index:02d}"] if entry.cad_index else [])],
        "poses": poses,
        "called": entry.pred_category,
        "missing": entry.missing,
        "texts": entry.texts,
    }
    if entry.system:
        answer = "no pose" if entry.predicted is None else f"predicted {_angles(entry.predicted)}"
        error = _error(entry)
        card |= {"answer": f"{answer}, error {error:.1f}°", "is_wrong": error >= _WRONG}
    elif not poses and not dataset.is_text:
        card |= {"answer": "no pose that can be used", "is_wrong": True}
    return card


def _angles(pose: Pose) -> str:
    if not all(map(math.isfinite, pose.angles)):
        return "not finite"
    angles = [round(math.degrees(float(angle))) for angle in canonicalize(*pose.angles)]
    words = f"a {angles[0] % 360}° e {angles[1]}° t {angles[2]}°"
    return words + (f", distance {pose.distance:.2f}" if pose.distance is not None else "")
