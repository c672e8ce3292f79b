"""`llava-pose inspect align`: the CAD models of a meta class side by side, so that one that stands wrong is seen at once.

Each model is drawn from the front and at 45°, on its own floor, with its shadow; the green arrow on the floor points to
the front (-y) and the red line to the object's own left (+x). What the taxonomy calls the front stands beside the name.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

from data_prep.inspect.align_views import VIEWS, draw_view, standing
from data_prep.inspect.subcommand import Subcommand
from data_prep.raw.alignment import AlignmentTable, builtin_table, read_table
from data_prep.render.raycast import require_embree
from llava_pose.errors import InputError
from llava_pose.inference.drawing import load_font
from llava_pose.pose import categories
from llava_pose.pose.categories import Category
from llava_pose.pose.meshes import OffMesh, read_off
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import write_atomic
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)

STRIPS = 2  # categories side by side
ROWS = 8  # and beneath each other, on one page
_LABEL = 20  # height of a strip's first line, pixels
_GAP = 8
_PAPER, _INK, _FAINT, _WARNING = (255, 255, 255), (20, 20, 20), (110, 110, 110), (190, 30, 30)


@dataclass
class AlignSheetConfig:
    """Options of ``llava-pose inspect align``."""

    cad: str = field(metadata={"help": "folder with <category>/NN.off, or a raw dataset that has such a folder CAD/"})
    out: str = field(metadata={"help": "folder for the sheets, one or more a meta class, PNG"})
    table: str = field(
        default="none",
        metadata={"help": "draw the models as llava-pose align turns them: none, builtin, or a table's JSON file"},
    )
    categories: list[str] = field(default_factory=list, metadata={"help": "only these; all if not given"})
    models: int = field(default=4, metadata={"help": "CAD models of each category, at most"})
    tile: int = field(default=112, metadata={"help": "side of a view, pixels"})

    def __post_init__(self) -> None:
        for name, least in (("models", 1), ("tile", 48)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")


@dataclass(frozen=True)
class _Strip:
    """One category's line on a sheet."""

    folder: Path
    category: Category
    models: tuple[Path, ...]


def align_sheets(config: AlignSheetConfig) -> None:
    """Draw the sheets.

    Raises:
        InputError: there are no CAD models, a category is not there, or the table or the render extra is missing.
    """
    require_embree()
    with own_folder(config.out, "--out", "inspect"):
        _align_sheets(config)


def _align_sheets(config: AlignSheetConfig) -> None:
    table = {"none": lambda: None, "builtin": builtin_table}.get(config.table, lambda: read_table(config.table))()
    strips = _strips(config)
    sheets = 0
    with tqdm(total=sum(len(s.models) for s in strips), unit="model", desc="drawing", delay=2, leave=False) as progress:
        for name, page in _pages(strips):
            _save(_sheet(page, table, config, progress), Path(config.out) / name)
            sheets += 1
    logger.info(
        "%d categories, %d models on %d sheets in %s   what to look for: docs/results/alignment.md",
        *(len(strips), sum(len(s.models) for s in strips), sheets, config.out),
    )


def _strips(config: AlignSheetConfig) -> list[_Strip]:
    root = require_folder(config.cad, "--cad", "give the folder that holds <category>/NN.off")
    if (root / "CAD").is_dir():
        root = root / "CAD"
    folders = {folder.name: sorted(folder.glob("*.off")) for folder in sorted(root.iterdir()) if folder.is_dir()}
    folders = {name: paths for name, paths in folders.items() if paths}
    if not folders:
        raise InputError(f"--cad {root}: there is no <category>/NN.off in it; give another folder")
    for name in config.categories:
        if name not in folders:
            raise InputError(f"--categories {name}: there is no {root / name}/NN.off; name folders of {root}")
    return [
        _Strip(root / name, categories.get(name, allow_custom=True), tuple(paths[: config.models]))
        for name, paths in folders.items()
        if not config.categories or name in config.categories
    ]


def _pages(strips: Sequence[_Strip]) -> Iterator[tuple[str, list[_Strip]]]:
    """File name and strips of each page: a meta class begins a new one."""
    for meta_class in sorted({strip.category.meta_class for strip in strips}):
        members = [strip for strip in strips if strip.category.meta_class == meta_class]
        for number, start in enumerate(range(0, len(members), STRIPS * ROWS), start=1):
            yield f"{meta_class}_{number}.png", members[start : start + STRIPS * ROWS]


def _sheet(
    page: Sequence[_Strip], table: AlignmentTable | None, config: AlignSheetConfig, progress: tqdm
) -> Image.Image:
    columns, rows = min(STRIPS, -(-len(page) // ROWS)), min(ROWS, len(page))
    width, height = config.models * len(VIEWS) * config.tile, _LABEL + config.tile
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    for number, strip in enumerate(page):
        place = (_GAP + (number // rows) * (width + _GAP), _GAP + (number % rows) * (height + _GAP))
        sheet.paste(_draw_strip(strip, table, config, (width, height), progress), place)
    return sheet


def _draw_strip(
    strip: _Strip, table: AlignmentTable | None, config: AlignSheetConfig, size: tuple[int, int], progress: tqdm
) -> Image.Image:
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    category = strip.category if table is None else table.in_common_frame(strip.category)
    _write_label(draw, strip.folder.name, category, turned=category is not strip.category, width=size[0])
    for column, path in enumerate(strip.models):
        left = column * len(VIEWS) * config.tile
        try:
            mesh = _turned(read_off(path), strip, path, table)
        except InputError as error:  # a bad file stops nothing: it is said, and seen on the sheet
            logger.warning("%s", error)
            draw.text((left + 4, _LABEL + 20), "cannot be read", font=load_font(12), fill=_WARNING)
        else:
            model = standing(mesh)
            for number, view in enumerate(VIEWS):
                image.paste(draw_view(model, view, config.tile), (left + number * config.tile, _LABEL))
        draw.text((left + 3, _LABEL + 2), path.stem, font=load_font(11), fill=_FAINT)
        progress.update()
    return image


def _turned(mesh: OffMesh, strip: _Strip, path: Path, table: AlignmentTable | None) -> OffMesh:
    number = int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0
    rotation = None if table is None else table.rotation(strip.folder.name, number)
    return mesh if rotation is None else mesh._replace(vertices=mesh.vertices @ rotation.T)


def _write_label(draw: ImageDraw.ImageDraw, folder: str, category: Category, *, turned: bool, width: int) -> None:
    font = load_font(15)
    name = f"{folder}{' (turned)' if turned else ''}"
    draw.text((2, 1), name, font=font, fill=_INK)
    text = f"front: {category.front}" if category.front else ""
    left, small = 12 + draw.textlength(name, font=font), load_font(12)
    whole = text
    while text and left + draw.textlength(text, font=small) > width:
        whole = whole[:-1].rstrip()
        text = f"{whole}…" if whole else ""
    draw.text((left, 4), text, font=small, fill=_FAINT)


def _save(sheet: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_atomic(path, buffer.getvalue())


SUBCOMMAND = Subcommand(
    AlignSheetConfig,
    align_sheets,
    prog="llava-pose inspect align",
    description="Draw CAD models of each meta class side by side, from the front and at 45 degrees.",
    example="llava-pose inspect align --cad imagenet3d/CAD --out sheets",
)
