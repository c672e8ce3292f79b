"""`llava-pose inspect page DATA`: samples of any stage's output with box, CAD wireframe and axes, in one HTML file."""

from __future__ import annotations

import base64
import html
import io
import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.inspect.entries import KINDS, Dataset, Entry
from data_prep.inspect.overlay import overlay_svg
from data_prep.inspect.page_template import PAGE
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.statistics import statistics
from data_prep.inspect.stats_report import report_text
from data_prep.inspect.subcommand import Subcommand
from data_prep.inspect.wireframes import Wireframes
from llava_pose.data.images import load_rgb
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.pose.geometry import canonicalize
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.files import is_regular, write_atomic
from llava_pose.utils.output_folder import own_file, require_other

logger = logging.getLogger(__name__)
JPEG_QUALITY = 82


@dataclass
class PageConfig:
    """Options of ``llava-pose inspect page``."""

    data: str = field(metadata={"help": "what llava-pose inspect takes: a dataset's folder, or a file of any stage"})
    out: str = field(default="inspect.html", metadata={"help": "the HTML file to write"})
    prepared: str | None = field(
        default=None,
        metadata={"help": "the prepared folder that the pictures of a file are in; the file's own by default"},
    )
    cad: str | None = field(
        default=None,
        metadata={"help": "folder with <category>/NN.off; by default that of the raw dataset, where it is still there"},
    )
    wireframes: bool = field(default=True, metadata={"help": "draw CAD models (needs the render extra)"})
    select: Literal["spread", "random", "worst"] = field(
        default="spread",
        metadata={"help": "spread: as many of each category; random; worst: the largest errors of predictions"},
    )
    count: int = field(default=60, metadata={"help": "how many samples"})
    categories: list[str] = field(default_factory=list, metadata={"help": "only these; all if not given"})
    splits: list[str] = field(default_factory=list, metadata={"help": "only these; all if not given"})
    ids: list[str] = field(default_factory=list, metadata={"help": "only these ids"})
    size: int = field(default=320, metadata={"help": "longer side of a picture on the page, pixels"})
    seed: int = field(default=0, metadata={"help": "of the choice"})

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("size", 48), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")


def inspect_page(config: PageConfig) -> None:
    """Write the page.

    Raises:
        InputError: the data cannot be inspected, nothing is left of it, or CAD models are asked for and cannot be drawn.
    """
    require_other("--out", [config.out], [config.data])
    with own_file(config.out, "--out", "inspect"):
        _write_page(config)


def _write_page(config: PageConfig) -> None:
    dataset = open_dataset(config.data, prepared=config.prepared)
    if config.prepared is not None and dataset.kind in ("predictions", "instructions", "captions"):
        dataset = _with_records(dataset, config.prepared)
    wireframes = _wireframes(config, dataset)
    chosen = choose(dataset, config)
    cards: dict[str, list[str]] = {}
    drawn = 0
    for entry in tqdm(chosen, desc="drawing", unit="sample", delay=2, leave=False, mininterval=0.5):
        lines = None if wireframes is None else wireframes.lines(entry)
        drawn += lines is not None
        cards.setdefault(entry.category or "no category", []).append(_card(entry, lines, dataset, config.size))
    content = _page(dataset, cards, len(chosen), drawn, config)
    write_atomic(config.out, content)
    logger.info(
        "%d samples, %d with a CAD wireframe, in %s (%.1f MB): open it in a browser",
        *(len(chosen), drawn, config.out, len(content.encode()) / 1e6),
    )


def _wireframes(config: PageConfig, dataset: Dataset) -> Wireframes | None:
    if not config.wireframes:
        return None
    if config.cad is None:
        return None if dataset.cad is None else Wireframes(dataset.cad)
    cad = Path(config.cad)
    cad = cad / "CAD" if (cad / "CAD").is_dir() else cad
    if not cad.is_dir():
        raise InputError(f"--cad {cad}: there is no such folder; give the folder that holds <category>/NN.off")
    return Wireframes(cad)


def _with_records(dataset: Dataset, prepared: str) -> Dataset:
    """Predictions and texts with what the records of their objects know: picture, box, camera and CAD model."""
    folder = open_dataset(prepared)
    known = {entry.id: entry for entry in folder.entries}
    joined = []
    for entry in dataset.entries:
        record = known.get(str(entry.fields.get("record") or entry.id))
        if record is not None:
            entry = replace(
                entry,
                split=entry.split or record.split,
                viewport=entry.viewport or record.viewport,
                size=entry.size or record.size,
                bbox=entry.bbox or record.bbox,
                picture=entry.picture if entry.picture is not None and is_regular(entry.picture) else record.picture,
                cad_index=entry.cad_index or record.cad_index,
            )
        joined.append(entry)
    return replace(dataset, entries=tuple(joined), cad=dataset.cad or folder.cad)


def choose(dataset: Dataset, config: PageConfig) -> list[Entry]:
    """The samples of the page, by category.

    Raises:
        InputError: the options leave none, or ask for the worst of what has no errors.
    """
    entries = [
        entry
        for entry in dataset.entries
        if (not config.categories or entry.category in config.categories)
        and (not config.splits or entry.split in config.splits)
        and (not config.ids or entry.id in config.ids)
    ]
    if not entries:
        given = " and ".join(f"--{name}" for name in ("categories", "splits", "ids") if getattr(config, name))
        raise InputError(
            f"{dataset.path}: {f'{given} leave' if given else 'there is'} nothing to show; see llava-pose inspect"
        )
    if config.select == "worst":
        if dataset.kind != "predictions":
            raise InputError(f"--select worst: {dataset.path} is {KINDS[dataset.kind]} and has no errors; use spread")
        return sorted(entries, key=lambda entry: -(_error(entry) or 0))[: config.count]
    order = np.random.default_rng(config.seed).permutation(len(entries))
    if config.select == "spread":
        place: dict[str, int] = {}
        rank = np.empty(len(entries), dtype=int)  # which of its category an entry is
        for index in order:
            rank[index] = place[entries[index].category] = place.get(entries[index].category, -1) + 1
        order = order[np.argsort(rank[order], kind="stable")]
    picked = sorted(order[: config.count], key=lambda index: (entries[index].category, index))
    return [entries[index] for index in picked]


def _error(entry: Entry) -> float | None:
    """Radians of a prediction, pi where there is no pose; None of what is no prediction."""
    if not entry.system:
        return None
    return math.pi if entry.predicted is None else float(pose_error(entry.predicted.angles, entry.poses[0].angles))


def _card(entry: Entry, lines: np.ndarray | None, dataset: Dataset, side: int) -> str:
    return f"<figure>{_picture(entry, lines, side)}<figcaption>{_words(entry, dataset)}</figcaption></figure>"


def _picture(entry: Entry, lines: np.ndarray | None, side: int) -> str:
    if entry.picture is None:
        return '<div class="none">no picture is known; give --prepared</div>'
    try:
        image = load_rgb(entry.picture, remedy="look at the file")
        if entry.size is not None and entry.size not in (image.size, image.size[::-1]):
            logger.warning(
                "%s: it is %s × %s pixels, not %s × %s as annotated", entry.picture, *image.size, *entry.size
            )
        elif entry.size is not None and entry.size != image.size:  # annotated as EXIF turns it
            image = load_rgb(entry.picture, upright=True)
    except InputError as error:
        return f'<div class="none bad">{html.escape(str(error))}</div>'
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    poses = [(_scaled(pose, scale), bool(entry.system)) for pose in entry.poses]
    if entry.predicted is not None:
        poses.append((_scaled(entry.predicted, scale), False))
    svg = overlay_svg(
        size,
        bbox=None if entry.bbox is None else [value * scale for value in entry.bbox],
        lines=None if lines is None else lines * scale,
        poses=poses,
        viewport=None if entry.viewport is None else entry.viewport * scale,
    )
    return (
        f'<div class="picture"><div><img src="{_data_url(image, size)}" width="{size[0]}" height="{size[1]}" '
        f'alt="{html.escape(entry.id)}">{svg}</div></div>'
    )


def _scaled(pose: Pose, scale: float) -> Pose:
    px, py = (None if value is None else value * scale for value in (pose.px, pose.py))
    return replace(pose, px=px, py=py)


def _data_url(image: Image.Image, size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(entry: Entry, dataset: Dataset) -> str:
    lines = [f"<b>{html.escape(entry.id)}</b>"]
    about = [entry.category, entry.split, entry.status, entry.source, entry.system]
    if entry.cad_index:
        about.append(f"CAD {entry.cad_index:02d}")
    lines.append(f'<span class="faint">{html.escape(" · ".join(filter(None, about)))}</span>')
    name = "true" if entry.system else "pose"
    lines += [f"{name} {_angles(pose)}" for pose in entry.poses]
    if entry.system:
        degrees = math.degrees(cast(float, _error(entry)))
        answer = "no pose" if entry.predicted is None else f"predicted {_angles(entry.predicted)}"
        lines.append(f"<span{' class=bad' if degrees >= 30 else ''}>{answer}, error {degrees:.1f}°</span>")
        if entry.pred_category is not None:
            lines.append(f"called {html.escape(entry.pred_category)}")
    if not entry.poses and not dataset.is_text:
        lines.append('<span class="bad">no pose that can be used</span>')
    if entry.missing:
        lines.append(f'<span class="faint">missing: {html.escape(", ".join(entry.missing))}</span>')
    texts = "".join(f'<p class="text">{html.escape(text)}</p>' for text in entry.texts)
    return "<br>".join(lines) + texts


def _angles(pose: Pose) -> str:
    if not all(map(math.isfinite, pose.angles)):
        return "not finite"
    angles = [round(math.degrees(float(angle))) for angle in canonicalize(*pose.angles)]
    words = f"a {angles[0] % 360}° e {angles[1]}° t {angles[2]}°"
    return words + (f", distance {pose.distance:.2f}" if pose.distance is not None else "")


def _page(dataset: Dataset, cards: dict[str, list[str]], count: int, drawn: int, config: PageConfig) -> str:
    shown = sorted(cards)
    sections = [
        f'<h2 id="c{number}">{html.escape(name)} <small>{len(cards[name])} shown</small></h2>'
        f'<div class="cards">{"".join(cards[name])}</div>'
        for number, name in enumerate(shown)
    ]
    summary = (
        f"{KINDS[dataset.kind]}; {count} of {len(dataset.entries):,} shown ({config.select}), {drawn} with a wireframe"
    )
    return PAGE.substitute(
        title=html.escape(str(dataset.path)),
        summary=html.escape(summary),
        links=" ".join(f'<a href="#c{number}">{html.escape(name)}</a>' for number, name in enumerate(shown)),
        statistics=html.escape(report_text(statistics(dataset, compare_pictures=False))),
        legend="; dashed: the true pose" if dataset.kind == "predictions" else "",
        sections="\n".join(sections),
        column=f"{max(160, config.size - 20)}px",
    )


SUBCOMMAND = Subcommand(
    PageConfig,
    inspect_page,
    prog="llava-pose inspect page",
    description="Show samples of any stage's output with box, CAD wireframe and axes, in one HTML file.",
    example="llava-pose inspect page prepared --out samples.html --count 100",
    positional="data",
)
