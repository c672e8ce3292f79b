"""Score prediction files: accuracies with intervals, groups, failures and paired tests, from the files alone.

``llava-pose score predictions.jsonl --out scores.json`` prints a table and writes scores.json, the cumulative error
curve and the accuracy of each category. Any system joins by writing predictions.jsonl (docs/EVALUATION.md).

scores.json is what :func:`eval.figures.score_comparison` returns, with the names of the files.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.compared import align, read_systems
from eval.comparison import ComparisonConfig
from eval.figures import score_comparison
from eval.report.plots import categories_figure, curve_figure, save_figure
from eval.report.table import score_text
from llava_pose.errors import InputError
from llava_pose.utils.config import command
from llava_pose.utils.files import printable, write_json
from llava_pose.utils.output_folder import own_file, require_other


@dataclass
class ScoreConfig(ComparisonConfig):
    """Options of ``llava-pose score``."""

    out: str = field(default="scores.json", metadata={"help": "where the scores go; the plots are written beside it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix != ".json":
            raise InputError(f"--out {self.out}: the scores are JSON; give a name that ends in .json")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score prediction files and write scores.json and the plots beside it.

    Returns:
        What scores.json holds.

    Raises:
        InputError: a file is bad, the systems cannot be compared, or an option is wrong.
    """
    require_other("--out", (config.out, *plot_paths(config.out)), config.predictions)
    with own_file(config.out, "--out", "score"):
        return _score(config)


def _score(config: ScoreConfig) -> dict[str, Any]:
    comparison = align(read_systems(config.predictions, config.names), config.samples)
    scores = score_comparison(comparison, thresholds=config.radians, reference=config.reference, seed=config.seed)
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
    sys.stdout.write(printable(score_text(scores)))
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
