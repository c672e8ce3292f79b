"""`llava-pose inspect DATA`: statistics of any stage's output as text, JSON and plots."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.inspect.reading import open_dataset
from data_prep.inspect.statistics import statistics
from data_prep.inspect.stats_report import report_plots, report_text
from data_prep.inspect.subcommand import Subcommand
from llava_pose.utils.files import write_atomic, write_json
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)

TEXT_FILE, JSON_FILE, PLOTS_FILE = "statistics.txt", "statistics.json", "statistics.png"


@dataclass
class StatsConfig:
    """Options of ``llava-pose inspect DATA``."""

    data: str = field(
        metadata={
            "help": "a raw dataset, a prepared folder, metadata.jsonl, captions.jsonl, train.json or predictions.jsonl"
        }
    )
    out: str | None = field(
        default=None, metadata={"help": f"folder for {TEXT_FILE}, {JSON_FILE} and {PLOTS_FILE}; text only if not given"}
    )
    prepared: str | None = field(
        default=None,
        metadata={"help": "the prepared folder that the pictures of a file are in; the file's own by default"},
    )
    compare_pictures: bool = field(
        default=True, metadata={"help": "read all pictures, to find the same one under several names"}
    )


def inspect_statistics(config: StatsConfig) -> str:
    """Count what a dataset holds, and write it to a folder where that is asked for.

    Returns:
        the statistics as text.

    Raises:
        InputError: the path is none of what can be inspected.
    """
    with nullcontext() if config.out is None else own_folder(config.out, "--out", "inspect"):
        return _inspect(config)


def _inspect(config: StatsConfig) -> str:
    dataset = open_dataset(config.data, prepared=config.prepared)
    found = statistics(dataset, compare_pictures=config.compare_pictures)
    text = report_text(found)
    if config.out is not None:
        out = Path(config.out)
        write_atomic(out / TEXT_FILE, text)
        write_json(out / JSON_FILE, found)
        write_atomic(out / PLOTS_FILE, report_plots(found))
        logger.info("statistics: %s   look at samples: llava-pose inspect page %s --out page.html", out, config.data)
    return text


SUBCOMMAND = Subcommand(
    StatsConfig,
    inspect_statistics,
    prog="llava-pose inspect",
    description=(
        "Count what any stage's output holds: categories, splits, angles, boxes, what is missing and what is there twice.\n"
        "Beside it: llava-pose inspect page DATA (samples in one HTML file), llava-pose inspect diff A B (two datasets\n"
        "compared), llava-pose inspect align --cad FOLDER (CAD models side by side); each has its own --help."
    ),
    example="llava-pose inspect prepared --out statistics",
    positional="data",
)
