"""`llava-pose tables`: one of the three tables of the ImageNet3D report from the prediction files of any systems.

Table 1 is linear probing, table 2 open-vocabulary pose (scored on novel categories), table 3 joint classification and pose
(3D-aware accuracy). Each has an average and a column for each of the seven meta classes, with intervals, counts and paired
tests, and the published rows beside it. All scores come from ``eval.scoring``, as those of ``llava-pose score`` do.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from eval.compared import ComparisonConfig, Degrees, align, canonical_category, read_meta_classes, read_systems
from llava_pose.data.jsonl import parse_json
from llava_pose.data.records import Prediction, read_predictions
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.metrics import threshold_name
from llava_pose.utils.command import command
from llava_pose.utils.files import printable, read_text, write_atomic, write_json
from llava_pose.utils.output_folder import own_file, require_other, require_suffix, require_together

logger = logging.getLogger(__name__)
PROBE_GRID = "probe_grid.json"  # what linear probing leaves beside its predictions
_OURS = "llava-pose"
TableNumber = Annotated[int, Field(ge=1, le=3)]
Systems = Mapping[str, Sequence[Prediction]]


@dataclass(kw_only=True)
class TablesConfig(ComparisonConfig):
    """The options of ``llava-pose tables``."""

    table: TableNumber = field(
        default=3,
        metadata={
            "help": "Which table to make: 1 is linear probing, 2 open vocabulary, 3 joint classification and pose."
        },
    )
    out: str = field(
        default="table.md",
        metadata={"help": "The Markdown file; its scores (.json), a page (.html) and a plot (.png) stand beside it."},
    )
    thresholds: Annotated[list[Degrees], Field(min_length=1)] = field(
        default_factory=lambda: [30.0],
        metadata={"help": "The error thresholds in degrees, a table for each; the report has 30 and 10."},
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": f"The system that the others are tested against; by default {_OURS}'s, or the first without one."
        },
    )
    novel: list[str] | None = field(
        default=None,
        metadata={
            "help": "The novel categories of table 2, or all; by default those that the taxonomy does not call known."
        },
    )
    oracle: list[str] | None = field(
        default=None,
        metadata={
            "help": "The systems of table 2 that were trained on all categories; by default those with oracle in their name."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix not in (".md", ".json"):
            raise InputError(f"--out {self.out}: the table is Markdown and JSON; give a name that ends in .md or .json")
        for option in ("novel", "oracle"):
            if getattr(self, option) and self.table != 2:
                raise InputError(f"--{option}: belongs to --table 2")


def tables(config: TablesConfig) -> dict[str, Any]:
    """Score the systems and write the table as Markdown, JSON, a page and a plot.

    Returns:
        What the JSON file holds: what :func:`eval.report.table_kinds.make_table` returns, and the names of the files.

    Raises:
        InputError: a file is bad, the systems cannot be compared, or they lack what the table shows.
    """
    outputs = output_paths(config.out)
    require_suffix("--out", config.out, ".md", ".json", ".html")
    require_other("--out", outputs, config.predictions)
    with own_file(outputs[0], "--out", "tables"):
        require_together("--out", config.out, outputs)
        return _tables(config)


def _tables(config: TablesConfig) -> dict[str, Any]:
    # half a second, which --help does without
    from eval.place_errors import read_shapes
    from eval.report.plots import meta_classes_plot, save_plot
    from eval.report.printing import as_markdown, as_page
    from eval.report.table_kinds import make_table, report_notes, report_sections, title_of
    from eval.scoring import score_comparison

    metas = read_meta_classes(config.meta_classes)
    systems = read_systems(config.predictions, config.names)
    oracles: list[str] = []
    known: dict[str, list[Prediction]] = {}
    if config.table == 2:
        oracles = _oracles(systems, config.oracle)
        answers, systems = systems, only_novel(systems, config.novel)
        novel = {name: {p.id for p in systems[name]} for name in systems}
        known = {name: [p for p in answers[name] if p.id not in novel[name]] for name in systems}
    if config.table == 3:
        _require_categories(systems)
    comparison = align(systems, config.samples)
    scores = score_comparison(
        comparison,
        thresholds=config.radians,
        reference=config.reference or _ours([name for name in systems if name not in oracles]),
        seed=config.seed,
        meta_classes=metas,
        shapes=read_shapes(config.data, config.split, config.cad, comparison.samples, comparison.answers),
    )
    accuracies = [threshold_name(t) for t in config.radians]
    grids = _probe_grids(config, accuracies) if config.table == 1 else {}
    table = {
        "files": [str(path) for path in config.predictions],
        **make_table(
            config.table,
            scores,
            oracles=oracles,
            test_selected={name: selected for name, (selected, _) in grids.items()},
            neighbours={name: found for name, (_, found) in grids.items() if found},
            known=_scores_of_known(config, known),
        ),
    }
    if config.meta_classes:
        table["meta_classes_of"] = Path(config.meta_classes).name
    markdown, numbers, plot, page = output_paths(config.out)
    sections, notes = report_sections(table), report_notes(table)
    write_atomic(markdown, as_markdown(title_of(table), sections, notes))
    write_json(numbers, table)
    save_plot(meta_classes_plot(table), plot)
    write_atomic(page, as_page(title_of(table), sections, notes, [plot]))
    return table


def output_paths(out: str | Path) -> tuple[Path, Path, Path, Path]:
    """Return where the Markdown, the scores, the plot and the page go."""
    out = Path(out)
    return out.with_suffix(".md"), out.with_suffix(".json"), out.with_suffix(".png"), out.with_suffix(".html")


def _ours(names: Sequence[str]) -> str | None:
    return next((name for name in names if name.lower().startswith(_OURS)), None)


def _oracles(systems: Systems, named: Sequence[str] | None) -> list[str]:
    if named is None:
        return [name for name in systems if "oracle" in name.lower()]
    for name in named:
        if name not in systems:
            raise InputError(f"--oracle {name}: there is no such system; there are {', '.join(systems)}")
    return list(named)


def only_novel(systems: Systems, named: Sequence[str] | None) -> dict[str, list[Prediction]]:
    """Return the predictions for objects of novel categories.

    Args:
        named: the novel categories, or ["all"] where the files hold no others; None for those that the taxonomy does not
            call known.

    Raises:
        InputError: a system has no such prediction.
    """
    novel = None if named is None else {canonical_category(name) for name in named}

    def is_novel(name: str) -> bool:
        category = categories.find(name)
        if novel is None:
            return category is None or not category.known
        return novel == {"all"} or canonical_category(name) in novel

    kept = {system: [p for p in answers if is_novel(p.category)] for system, answers in systems.items()}
    for system, answers in kept.items():
        if not answers:
            raise InputError(
                f"--table 2: '{system}' answers no object of a novel category; predict novel ones with it, or say with "
                "--novel which they are"
            )
        left_out = len(systems[system]) - len(answers)
        if left_out:
            logger.info("%s: %d answers for known categories stand beside table 2, and not in it", system, left_out)
    return kept


def _require_categories(systems: Systems) -> None:
    for system, answers in systems.items():
        if all(answer.pred_category is None for answer in answers):
            raise InputError(
                f"--table 3: '{system}' names no category ('pred_category' is null in all of its lines), and 3D-aware "
                "accuracy needs one; predict with --task joint, or leave the file out"
            )


def _scores_of_known(config: TablesConfig, known: Systems) -> dict[str, Any]:
    """Return each system's scores over all objects of known categories that it answers, where it answers any."""
    from eval.scoring import score_comparison

    scored = {
        name: score_comparison(align({name: lines}), thresholds=config.radians, seed=config.seed)
        for name, lines in known.items()
        if lines
    }
    return {name: scores["systems"][name]["overall"] for name, scores in scored.items()}


def _probe_grids(
    config: TablesConfig, accuracies: Sequence[str]
) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """Return, by system, what linear probing left beside its file: by accuracy the score of the probe that is best on the test
    set, and the errors of the nearest neighbours by the features of the probe that was chosen ({} where there are none).
    """
    found: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
    for number, path in enumerate(config.predictions):
        file = Path(path).with_name(PROBE_GRID)
        if not file.is_file():
            continue
        try:
            grid = parse_json(read_text(file))
            best = grid["selected_on_predicted"]["predicted"]
            values = {name: float(best[name]) for name in accuracies if name in best}
            neighbours = _neighbours_of_selected(grid)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{file}: cannot be read as linear probing writes it ({error!r}); make it anew, or move it away"
            ) from error
        names = [config.names[number]] if config.names else {p.system for p in read_predictions(path)}
        found |= dict.fromkeys(names, (values, neighbours))
    return found


def _neighbours_of_selected(grid: Mapping[str, Any]) -> dict[str, float]:
    chosen = {key: grid["selected"][key] for key in ("layers", "pooling")} if grid.get("retrieval") else {}
    for scores in grid.get("retrieval", ()):
        if all(scores[key] == value for key, value in chosen.items()) and scores["n"]:
            return {key: float(scores[key]) for key in ("mean_deg", "mean_of_5_deg", "random_deg")}
    return {}


def make_and_show(config: TablesConfig) -> None:
    """Make the table, and print it."""
    from eval.report.printing import as_text
    from eval.report.table_kinds import report_notes, report_sections

    table = tables(config)
    markdown, numbers, plot, page = output_paths(config.out)
    sys.stdout.write(printable(as_text(report_sections(table), report_notes(table))))
    sys.stdout.write(printable(f"\ntable: {markdown}   scores: {numbers}   page: {page}   plot: {plot}\n"))


main = command(
    TablesConfig,
    make_and_show,
    prog="llava-pose tables",
    description="Make one of the three tables of the ImageNet3D report from predictions.jsonl files of any systems.",
    example="llava-pose tables --table 3 runs/ours/predictions.jsonl runs/resnet50/predictions.jsonl --out table3.md",
    positional="predictions",
)

if __name__ == "__main__":
    raise SystemExit(main())
