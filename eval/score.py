"""Score prediction files: accuracies with intervals, groups, failures and paired tests, from the files alone.

``llava-pose score predictions.jsonl --out scores.json`` prints tables and writes beside scores.json the plots and a page that
holds both. Any system joins by writing predictions.jsonl (docs/EVALUATION.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.compared import Comparison, ComparisonConfig, align, read_meta_classes, read_systems
from llava_pose.errors import InputError
from llava_pose.utils.command import command
from llava_pose.utils.files import printable, write_atomic, write_json
from llava_pose.utils.output_folder import own_file, require_other, require_suffix, require_together

if TYPE_CHECKING:
    import pandas as pd


@dataclass(kw_only=True)
class ScoreConfig(ComparisonConfig):
    """The options of ``llava-pose score``."""

    out: str = field(
        default="scores.json", metadata={"help": "The JSON file of the scores; plots and a page are written beside it."}
    )

    model_card: str | None = field(
        default=None,
        metadata={
            "help": "A checkpoint, into whose model card (README.md) the tables go, in the place of those before."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix != ".json":
            raise InputError(f"--out {self.out}: the scores are JSON; give a name that ends in .json")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score prediction files and write scores.json, the plots and the page.

    Returns:
        What scores.json holds: what :func:`eval.scoring.score_comparison` returns, and the names of the files.

    Raises:
        InputError: a file is bad, the systems cannot be compared, or an option is wrong.
    """
    outputs = (config.out, *plot_paths(config.out), page_path(config.out))
    require_suffix("--out", config.out, ".json")
    require_other("--out", outputs, config.predictions)
    if config.model_card is not None:
        from llava_pose.model.card import require_part  # seconds, which no other score needs

        require_part(config.model_card, "scores")
    with own_file(config.out, "--out", "score"):
        require_together("--out", config.out, outputs[1:])
        return _score(config)


def _score(config: ScoreConfig) -> dict[str, Any]:
    # half a second, which --help does without
    from eval.report.plots import categories_plot, curve_plot, save_plot
    from eval.report.printing import as_markdown, as_page
    from eval.report.score_tables import score_notes, score_sections

    _, _, scores = compare(config)
    scores = {"files": [_named_from(Path(config.out).parent, path) for path in config.predictions], **scores}
    write_json(config.out, scores)
    plots = plot_paths(config.out)
    for path, figure in zip(plots, (curve_plot(scores), categories_plot(scores)), strict=True):
        save_plot(figure, path)
    title = f"Scores of {', '.join(scores['systems'])}"
    write_atomic(page_path(config.out), as_page(title, score_sections(scores), score_notes(scores), plots))
    if config.model_card is not None:
        from llava_pose.model.card import put_part

        put_part(config.model_card, "scores", as_markdown("", score_sections(scores), score_notes(scores)))
    return scores


def _named_from(folder: Path, path: str) -> str:
    """Return how a scores file of the folder names a prediction file: what lies below it moves with it."""
    below = Path(path).is_relative_to(folder)
    return str(Path(path).relative_to(folder)) if below else str(path)


def compare(config: ComparisonConfig) -> tuple[Comparison, dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the systems over the same samples, the outcomes of each, and their scores, as :mod:`eval.scoring` gives them.

    Raises:
        InputError: as :func:`score`.
    """
    from eval.place_errors import read_shapes
    from eval.scoring import outcomes_by_system, score_comparison

    metas = read_meta_classes(config.meta_classes)
    comparison = align(read_systems(config.predictions, config.names), config.samples)
    outcomes = outcomes_by_system(comparison)
    scores = score_comparison(
        comparison,
        thresholds=config.radians,
        reference=config.reference,
        seed=config.seed,
        meta_classes=metas,
        shapes=read_shapes(config.data, config.split, config.cad, comparison.samples, comparison.answers),
        outcomes=outcomes,
    )
    return comparison, outcomes, scores


def plot_paths(out: str | Path) -> tuple[Path, Path]:
    """Return where the curve and the categories' plot of a scores file go."""
    out = Path(out)
    return out.with_name(f"{out.stem}_curve.png"), out.with_name(f"{out.stem}_categories.png")


def page_path(out: str | Path) -> Path:
    """Return where the page of a scores file goes."""
    return Path(out).with_suffix(".html")


def _score_and_show(config: ScoreConfig) -> None:
    from eval.report.printing import as_text
    from eval.report.score_tables import score_notes, score_sections

    scores = score(config)
    curve, categories = plot_paths(config.out)
    sys.stdout.write(printable(as_text(score_sections(scores), score_notes(scores), beside=True)))
    sys.stdout.write(
        printable(f"\nscores: {config.out}   page: {page_path(config.out)}   plots: {curve} {categories}\n")
    )


main = command(
    ScoreConfig,
    _score_and_show,
    prog="llava-pose score",
    description="Score predictions.jsonl files of any systems: tables, scores.json, error curve, accuracy by category.",
    example="llava-pose score predictions.jsonl --out scores.json",
    positional="predictions",
)

if __name__ == "__main__":
    raise SystemExit(main())
