"""`llava-pose report`: one HTML page of prediction files that holds all it shows and opens without a network.

``llava-pose report predictions.jsonl --data prepared --out report.html`` has the tables and plots of ``llava-pose score``, the
sides that are taken for others, how far the confidence can be believed, and the best and worst answers drawn on their pictures.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field

from eval.compared import Comparison, ComparisonConfig, Sample, canonical_category
from eval.confidence import sure_answers
from eval.report.printing import printable_line, printable_sections, render_page
from eval.score import compare
from llava_pose.data.records import ObjectRecord, Prediction, read_records
from llava_pose.errors import InputError, left_out
from llava_pose.pose import categories
from llava_pose.pose.geometry import canonicalize
from llava_pose.utils.command import command
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import write_atomic
from llava_pose.utils.output_folder import own_file, require_other, require_suffix
from llava_pose.utils.values import Name

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
VIEWS = ("front", "left", "rear", "right")  # the side that the camera sees, at azimuths of 0, 90, 180 and 270 degrees
_KINDS = ("best", "worst", "worst of its category")


@dataclass(kw_only=True)
class ReportConfig(ComparisonConfig):
    """The options of ``llava-pose report``."""

    data: Name = field(metadata={"help": "The prepared folder that was predicted, with the pictures."})
    out: str = field(default="report.html", metadata={"help": "The HTML file to write."})
    cases: Annotated[int, Field(ge=1, le=500)] = field(
        default=12,
        metadata={
            "help": "The number of best and of worst answers of a system; the worst of each category comes on top."
        },
    )
    tile: Annotated[int, Field(ge=64, le=1024)] = field(
        default=220, metadata={"help": "The longer side of a picture on the page in pixels."}
    )


class Case(NamedTuple):
    """An answer that is shown: its picture as a data URI, and the words and numbers that it is found by."""

    system: str
    category: str
    named: str
    kinds: str
    error: float  # degrees
    confidence: str
    id: str
    picture: str


def report(config: ReportConfig) -> Path:
    """Write the page and return its path.

    Raises:
        InputError: as :func:`eval.score.score`; the data is missing or bad, or a prediction is of another annotation than the
            object's. Also where lines or pictures cannot be used: the page of the others has been written then.
    """
    require_suffix("--out", config.out, ".html")
    folder = require_folder(config.data, "--data", "make it with llava-pose prepare")
    require_other("--out", [config.out], [*config.predictions, folder / config.split])
    with own_file(config.out, "--out", "report"):
        return _report(config, folder)


def _report(config: ReportConfig, folder: Path) -> Path:
    # half a second, which --help does without
    from eval.report.plots import categories_plot, confidence_plot, curve_plot, png_of
    from eval.report.score_tables import score_notes, score_sections

    comparison, outcomes, scores = compare(config)
    faults: list[InputError] = []
    records = {record.id: record for record in read_records(folder, config.split, faults=faults)}
    cases = list(_cases(comparison, records, config, folder / config.split, faults))
    sure = confident(outcomes, config.radians[0])
    plots = {"error curves": curve_plot(scores), "accuracy by category": categories_plot(scores)}
    if sure:
        plots["error against confidence"] = confidence_plot(sure, math.degrees(config.radians[0]))
    script = resources.files("eval.report").joinpath("report.js").read_text(encoding="utf-8")
    page = render_page(
        "whole_report.html",
        title=f"Report on {printable_line(', '.join(scores['systems']))}",
        sections=printable_sections(score_sections(scores)),
        notes=list(map(printable_line, score_notes(scores))),
        plots={name: _data_uri(png_of(figure), "png") for name, figure in plots.items()},
        views=VIEWS,
        confusions={printable_line(name): rows for name, rows in view_confusions(comparison).items()},
        cases=cases,
        choices={name: sorted({getattr(case, name) for case in cases}) for name in ("system", "category")},
        kinds=_KINDS,
        script=script,
        # no other script runs on the page, and nothing is loaded from anywhere, whatever a text of the data says
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_atomic(config.out, page)
    logger.info("report: %s   %d answers are drawn on it", config.out, len(cases))
    if faults:
        raise left_out(faults, f"{config.out}: {len(faults)} objects cannot be used and are not drawn on it")
    return Path(config.out)


def view_confusions(comparison: Comparison) -> dict[str, np.ndarray]:
    """Return, for each system, how often which side of an object is taken for which.

    Objects whose front and rear cannot be told apart (:attr:`llava_pose.pose.categories.Category.has_front`) are left out.

    Returns:
        System -> (4, 5) counts: a row for each of :data:`VIEWS` as annotated; a column for each as predicted, and one for no
        usable pose.
    """
    rows = [row for row, sample in enumerate(comparison.samples) if _has_front(sample)]
    true = [view_of(comparison.samples[row].true.angles) for row in rows]
    confusions = {}
    for name, answers in comparison.answers.items():
        counts = np.zeros((len(VIEWS), len(VIEWS) + 1), dtype=int)
        for row, view in zip(rows, true, strict=True):
            answer = answers[row]
            pose = None if answer is None else answer.pose
            counts[view, len(VIEWS) if pose is None else view_of(pose.angles)] += 1
        confusions[name] = counts
    return confusions


def _has_front(sample: Sample) -> bool:
    category = categories.find(sample.category)
    return category is None or category.has_front


def view_of(angles: tuple[float, float, float]) -> int:
    """Return the number in :data:`VIEWS` of the side that the camera sees, the nearest of the four; 4 for no finite pose."""
    if not all(map(math.isfinite, angles)):
        return len(VIEWS)
    azimuth = float(canonicalize(*angles)[0])
    return int((azimuth + math.pi / 4) // (math.pi / 2)) % len(VIEWS)


def confident(outcomes: Mapping[str, pd.DataFrame], threshold: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, for each system that gives confidences, those (n,) and the hits (n,) of the answers that have one.

    Args:
        outcomes: system -> what :func:`eval.scoring.outcomes_of` returns.
        threshold: of a hit, radians.
    """
    sure = {name: sure_answers(rows, threshold) for name, rows in outcomes.items()}
    return {name: found for name, found in sure.items() if found is not None}


def _cases(
    comparison: Comparison,
    records: Mapping[str, ObjectRecord],
    config: ReportConfig,
    split: Path,
    faults: list[InputError],
) -> Iterator[Case]:
    from eval.report.contact_sheet import draw_item, of_the_data, read_items

    for system, answers in comparison.answers.items():
        known = of_the_data([answer for answer in answers if answer is not None], records, split, f"system '{system}'")
        kinds = chosen_cases(known, config.cases)
        chosen = [answer for answer in known if answer.id in kinds]
        for item in read_items(chosen, records, split, faults):
            stream = io.BytesIO()
            draw_item(item, config.tile).save(stream, "JPEG", quality=85)
            answer = item.prediction
            yield Case(
                printable_line(system),
                _spoken(answer.category),
                "" if answer.pred_category is None else _spoken(answer.pred_category),
                ", ".join(kinds[answer.id]),
                math.degrees(item.error),
                "" if answer.confidence is None else f"{answer.confidence:.0%}",
                printable_line(answer.id),
                _data_uri(stream.getvalue(), "jpeg"),
            )


def chosen_cases(answers: Sequence[Prediction], count: int) -> dict[str, list[str]]:
    """Return which answers of one system are shown: id -> whether as one of the best, the worst or the worst of a category."""
    from eval.report.contact_sheet import choose

    by_category: dict[str, list[Prediction]] = {}
    for answer in answers:
        by_category.setdefault(canonical_category(answer.category), []).append(answer)
    chosen = zip(
        _KINDS,
        (
            choose(answers, "best", count),
            choose(answers, "worst", count),
            [choose(of_category, "worst", 1)[0] for of_category in by_category.values()],
        ),
        strict=True,
    )
    kinds: dict[str, list[str]] = {}
    for kind, of_kind in chosen:
        for answer in of_kind:
            kinds.setdefault(answer.id, []).append(kind)
    return kinds


def _spoken(category: str) -> str:
    return printable_line(canonical_category(category)).replace("_", " ")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


main = command(
    ReportConfig,
    report,
    prog="llava-pose report",
    description="Make one HTML page of prediction files: tables, curves, sides, confidence, best and worst answers drawn.",
    example="llava-pose report predictions.jsonl --data prepared --out report.html",
    positional="predictions",
)

if __name__ == "__main__":
    raise SystemExit(main())
