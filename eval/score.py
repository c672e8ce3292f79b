"""Score prediction files: accuracies with intervals, groups, failures and paired tests, from the files alone.

``llava-pose score predictions.jsonl --out scores.json`` prints a table and writes scores.json, the cumulative error
curve and the accuracy of each category. Any system joins by writing predictions.jsonl (docs/EVALUATION.md).

scores.json is what :func:`eval.figures.score_comparison` returns, with the names of the files.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.figures import score_comparison
from eval.report.plots import categories_figure, curve_figure, save_figure
from eval.report.table import score_text
from eval.systems import SampleRule, align, read_systems
from llava_pose.config import command, require_seed, write_json
from llava_pose.errors import InputError
from llava_pose.metrics import DEFAULT_THRESHOLDS


@dataclass
class ScoreConfig:
    """Options of ``llava-pose score``."""

    predictions: list[str] = field(
        metadata={"help": "prediction files, of one system each or of several mixed, over the same samples"}
    )
    out: str = field(default="scores.json", metadata={"help": "where the scores go; the plots are written beside it"})
    names: list[str] | None = field(
        default=None, metadata={"help": "one system name a file, instead of the names in the files"}
    )
    samples: SampleRule = field(
        default="same",
        metadata={
            "help": "where systems answered different samples: 'same' refuses, 'common' scores what all answered, "
            "'all' counts a missing answer as a failure"
        },
    )
    thresholds: list[float] = field(
        default_factory=lambda: [round(math.degrees(threshold), 9) for threshold in DEFAULT_THRESHOLDS],
        metadata={"help": "error thresholds in degrees; a hit is strictly under"},
    )
    reference: str | None = field(
        default=None, metadata={"help": "the system that the others are tested against; the first by default"}
    )
    seed: int = field(default=0, metadata={"help": "of the bootstrap intervals"})

    def __post_init__(self) -> None:
        if isinstance(self.predictions, str):
            self.predictions = [self.predictions]
        if not self.predictions:
            raise InputError("there is no prediction file to score; see --help")
        if not self.thresholds:
            raise InputError("--thresholds needs at least one angle in degrees")
        for degrees in self.thresholds:
            if not 0 < degrees <= 180:
                raise InputError(f"--thresholds {degrees:g}: a threshold is an angle over 0 and up to 180 degrees")
        require_seed(self.seed)
        if Path(self.out).suffix != ".json":
            raise InputError(f"--out {self.out}: the scores are JSON; give a name that ends in .json")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score prediction files and write scores.json and the plots beside it.

    Returns:
        What scores.json holds.

    Raises:
        InputError: a file is bad, the systems cannot be compared, or an option is wrong.
    """
    comparison = align(read_systems(config.predictions, config.names), config.samples)
    thresholds = [math.radians(degrees) for degrees in dict.fromkeys(config.thresholds)]
    scores = score_comparison(comparison, thresholds=thresholds, reference=config.reference, seed=config.seed)
    scores = {"files": [str(path) for path in config.predictions], **scores}
    write_json(config.out, scores)
    for path, figure in zip(plot_paths(config.out), (curve_figure(scores), categories_figure(scores)), strict=True):
        save_figure(figure, path)
    return scores


def plot_paths(out: str | Path) -> tuple[Path, Path]:
    """Where the curve and the categories' plot of a scores file go."""
    out = Path(out)
    return out.with_name(f"{out.stem}_curve.png"), out.with_name(f"{out.stem}_categories.png")


def _score_and_show(config: ScoreConfig) -> None:
    scores = score(config)
    curve, categories = plot_paths(config.out)
    sys.stdout.write(score_text(scores))
    sys.stdout.write(f"\nscores: {config.out}   plots: {curve} {categories}\n")


main = command(
    ScoreConfig,
    _score_and_show,
    prog="llava-pose score",
    description="Score predictions.jsonl files of any systems: table, scores.json, error curve, accuracy by category.",
    example="llava-pose score predictions.jsonl --out scores.json",
    positional="predictions",
)

if __name__ == "__main__":
    raise SystemExit(main())
