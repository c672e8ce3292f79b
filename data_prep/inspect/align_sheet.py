"""`llava-pose inspect align`: the CAD models of a meta class side by side, so that one that stands wrong is seen at once.

Each model is drawn from the front and at 45°, on its own floor, with its shadow; the green arrow on the floor points to
the front (-y) and the red line to the object's own left (+x). What the taxonomy calls the front stands beside the name.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from tqdm import tqdm

from data_prep.inspect.align_views import VIEWS, draw_view, standing
from data_prep.inspect.page import data_url
from data_prep.inspect.report import fill
from data_prep.raw.alignment import AlignmentTable, builtin_table, read_table
from data_prep.render.raycast import require_embree
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.meshes import read_off
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import write_atomic
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)


@dataclass
class AlignSheetConfig:
    """The options of ``llava-pose inspect align``."""

    cad: str = field(metadata={"help": "A folder of <category>/NN.off, or a raw dataset with such a folder CAD/."})
    out: str = field(metadata={"help": "The folder for the sheets, an HTML file for each meta class."})
    table: str = field(
        default="none",
        metadata={"help": "Draw the models as llava-pose align turns them: none, builtin, or a table's JSON file."},
    )
    categories: list[str] = field(default_factory=list, metadata={"help": "Draw these categories only."})
    models: PositiveInt = field(default=4, metadata={"help": "The most CAD models of each category."})
    tile: Annotated[int, Field(ge=48)] = field(default=112, metadata={"help": "The side of a view, in pixels."})

    def __post_init__(self) -> None:
        check_fields(self)


def align_sheets(config: AlignSheetConfig) -> None:
    """Draw the sheets.

    Raises:
        InputError: there are no CAD models, a category is not there, or the table or the render extra is missing.
    """
    require_embree()
    with own_folder(config.out, "--out", "inspect"):
        table = {"none": lambda: None, "builtin": builtin_table}.get(config.table, lambda: read_table(config.table))()
        folders = _folders(config)
        sheets: dict[str, list[dict[str, Any]]] = defaultdict(list)
        bar = tqdm(folders.items(), desc="drawing", unit="category", delay=2, leave=False)
        for folder, paths in bar:
            category = categories.get(folder, allow_custom=True)
            turned = category if table is None else table.in_common_frame(category)
            sheets[category.meta_class].append(
                {
                    "name": folder if turned is category else f"{folder} (turned)",
                    "front": turned.front,
                    "models": [{"name": path.stem, "views": _views(path, table, config.tile)} for path in paths],
                }
            )
        for meta_class, strips in sheets.items():
            summary = "each model from the front and at 45°; green points to its front, red to its own left"
            page = fill("align.html", title=meta_class, summary=summary, strips=strips, column=config.tile)
            write_atomic(Path(config.out) / f"{meta_class}.html", page)
    logger.info(
        "%d categories, %d models on %d sheets in %s   what to look for: docs/results/alignment.md",
        *(len(folders), sum(map(len, folders.values())), len(sheets), config.out),
    )


def _folders(config: AlignSheetConfig) -> dict[str, list[Path]]:
    """Return the files of each category that is drawn."""
    root = require_folder(config.cad, "--cad", "give the folder that holds <category>/NN.off")
    if (root / "CAD").is_dir():
        root = root / "CAD"
    folders = {folder.name: sorted(folder.glob("*.off")) for folder in sorted(root.iterdir()) if folder.is_dir()}
    folders = {name: paths[: config.models] for name, paths in folders.items() if paths}
    if not folders:
        raise InputError(f"--cad {root}: there is no <category>/NN.off in it; give another folder")
    for name in config.categories:
        if name not in folders:
            raise InputError(f"--categories {name}: there is no {root / name}/NN.off; name folders of {root}")
    return {name: folders[name] for name in folders if not config.categories or name in config.categories}


def _views(path: Path, table: AlignmentTable | None, side: int) -> list[str]:
    """Return the pictures of a model; of a bad file, which stops nothing, there are none."""
    try:
        mesh = read_off(path)
    except InputError as error:
        logger.warning("%s", error)
        return []
    number = int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0
    rotation = None if table is None else table.rotation(path.parent.name, number)
    if rotation is not None:
        mesh = mesh._replace(vertices=mesh.vertices @ rotation.T)
    model = standing(mesh)
    return [data_url(draw_view(model, view, side), "PNG") for view in VIEWS]
