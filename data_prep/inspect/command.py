"""`llava-pose inspect …`: statistics, a page of samples, and sheets of CAD models."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.inspect.align_sheet import AlignSheetConfig, align_sheets
from data_prep.inspect.page import PageConfig, inspect_page
from data_prep.inspect.reading import open_dataset
from data_prep.inspect.report import statistics_page, statistics_text
from data_prep.inspect.statistics import statistics
from llava_pose.utils.command import command
from llava_pose.utils.files import printable, write_atomic, write_json
from llava_pose.utils.output_folder import own_folder, require_other

logger = logging.getLogger(__name__)


@dataclass
class StatsConfig:
    """The options of ``llava-pose inspect DATA``."""

    data: str = field(
        metadata={
            "help": "A raw dataset, a prepared folder, metadata.jsonl, captions.jsonl, train.json or predictions.jsonl."
        }
    )
    out: str | None = field(
        default=None,
        metadata={"help": "The folder for statistics.json and statistics.html; by default there is only the text."},
    )
    prepared: str | None = field(
        default=None,
        metadata={"help": "The prepared folder that the pictures of a file are in; by default where the file lies."},
    )


def inspect_statistics(config: StatsConfig) -> None:
    """Print what a dataset holds, and write it to a folder where that is asked for.

    Raises:
        InputError: the path is none of what can be inspected.
    """
    outputs = [] if config.out is None else [Path(config.out) / f"statistics.{kind}" for kind in ("json", "html")]
    require_other("--out", outputs, [config.data])
    with nullcontext() if config.out is None else own_folder(config.out, "--out", "inspect"):
        dataset = open_dataset(config.data, prepared=config.prepared)
        found = statistics(dataset)
        if outputs:
            write_json(outputs[0], found)
            write_atomic(outputs[1], statistics_page(found))
            logger.info("statistics: %s   samples: llava-pose inspect page %s --out page.html", config.out, config.data)
    sys.stdout.write(printable(statistics_text(found)))


ROOMS: dict[str, Callable[[Sequence[str]], int]] = {
    "stats": command(
        StatsConfig,
        inspect_statistics,
        prog="llava-pose inspect",
        description=(
            "Count what any stage's output holds: categories, splits, angles, boxes, what is missing and what is there\n"
            "twice. Beside it: llava-pose inspect page DATA (samples in one HTML file) and llava-pose inspect align --cad\n"
            "FOLDER (CAD models side by side); each has its own --help."
        ),
        example="llava-pose inspect prepared --out statistics",
        positional="data",
    ),
    "page": command(
        PageConfig,
        inspect_page,
        prog="llava-pose inspect page",
        description="Show samples of any stage's output with box, CAD outline and axes, in one HTML file.",
        example="llava-pose inspect page prepared --out samples.html --count 100",
        positional="data",
    ),
    "align": command(
        AlignSheetConfig,
        align_sheets,
        prog="llava-pose inspect align",
        description="Draw CAD models of each meta class side by side, from the front and at 45 degrees.",
        example="llava-pose inspect align --cad imagenet3d/CAD --out sheets",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``inspect stats``, ``page`` or ``align``; without such a word, ``stats``. A folder called "page" is ``./page``.

    Returns:
        0 done, 2 bad input or usage, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return ROOMS[words.pop(0) if words and words[0] in ROOMS else "stats"](words)


if __name__ == "__main__":
    raise SystemExit(main())
