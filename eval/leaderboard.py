"""`llava-pose leaderboard`: the static page of a data set's tables from the prediction files that people have sent.

Each file of the folder is looked at by itself: one that is bad, or does not answer every object of the split, is listed on the
page with the reason, and the others are scored. What they say of the annotations is not believed: the data's own stand in the
copies that are scored, and that the page links. All figures are those of ``llava-pose score``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from eval.compared import Degrees, Seed, require_annotation
from eval.score import ScoreConfig, plot_paths, score
from eval.systems.system import PREDICTIONS
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Prediction, read_predictions, read_records
from llava_pose.errors import InputError
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.files import MOST_BYTES, is_plain_name, write_atomic
from llava_pose.utils.output_folder import own_folder, require_other
from llava_pose.utils.values import Name

logger = logging.getLogger(__name__)
COPIES, SCORES, PAGE = "predictions", "scores.json", "index.html"
_MOST_SYSTEMS = 50  # of a file: each takes a line in every table, and a tenth of a second
_LONGEST_NAME = 100  # letters of a system's
_LONGEST_REASON = 500  # letters: it may quote what a file says


@dataclass(kw_only=True)
class LeaderboardConfig:
    """The options of ``llava-pose leaderboard``."""

    folder: Name = field(
        metadata={
            "help": "The folder of prediction files: each .jsonl in it, and predictions.jsonl of each folder in it."
        }
    )
    data: Name = field(metadata={"help": "The prepared folder whose objects the files answer."})
    out: Name = field(metadata={"help": "The folder of the page: index.html, scores.json, plots and the predictions."})
    split: str = field(default="val", metadata={"help": "The split that the files answer, every object of it."})
    thresholds: Annotated[list[Degrees], Field(min_length=1)] = field(
        default_factory=lambda: [30.0, 10.0],
        metadata={"help": "The error thresholds in degrees; the first decides the order of the systems."},
    )
    seed: Seed = field(default=0, metadata={"help": "The seed of the bootstrap intervals."})

    def __post_init__(self) -> None:
        check_fields(self)


def leaderboard(config: LeaderboardConfig) -> Path:
    """Score the files and write the page; return its path.

    Raises:
        InputError: there is no file, or none that can be scored, or the data cannot be read.
    """
    folder, out = require_folder(config.folder, "--folder", "give one with prediction files"), Path(config.out)
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    files = _prediction_files(folder)
    copies = {name: out / COPIES / f"{name}.jsonl" for name in sorted(files)}
    require_other("--out", [out / PAGE, out / SCORES, *copies.values()], files.values())
    records = {record.id: record for record in read_records(config.data, config.split)}
    accepted, refused = _sorted_out({name: files[name] for name in copies}, folder, records)
    if not accepted:
        name, reason = next(iter(refused.items()))
        raise InputError(f"{folder}: none of {len(refused)} files can be scored; the first, {name}: {reason}")
    with own_folder(out, "--out", "leaderboard"):
        for name, predictions in accepted.items():
            write_jsonl(copies[name], (prediction.to_dict() for prediction in predictions))
        scored = [copies[name] for name in accepted]
        scores = score(
            ScoreConfig(
                predictions=[str(path) for path in scored],
                out=str(out / SCORES),
                thresholds=config.thresholds,
                data=config.data,
                split=config.split,
                seed=config.seed,
            )
        )
        write_atomic(out / PAGE, _page(config, scores, scored, refused))
    for name, reason in refused.items():
        logger.warning(f"{name}: is not scored: {reason}")
    logger.info(f"{len(scores['systems'])} systems of {len(accepted)} files are on {out / PAGE}")
    return out / PAGE


def _prediction_files(folder: Path) -> dict[str, Path]:
    named = [(path.stem, path) for path in sorted(folder.glob("*.jsonl"))]
    named += [(path.parent.name, path) for path in sorted(folder.glob(f"*/{PREDICTIONS}"))]
    if not named:
        raise InputError(f"{folder}: there is no prediction file in it; put NAME.jsonl or NAME/{PREDICTIONS} there")
    files = dict(named)
    twice = next((name for name, path in named if files[name] != path), None)
    if twice is not None:
        raise InputError(f"{folder}: {twice}.jsonl and {twice}/{PREDICTIONS} have one name; rename one of them")
    return files


def _sorted_out(
    files: Mapping[str, Path], folder: Path, records: Mapping[str, ObjectRecord]
) -> tuple[dict[str, list[Prediction]], dict[str, str]]:
    """Return the predictions of the files that can be scored, by the file's name, and of the others the reason in words."""
    accepted: dict[str, list[Prediction]] = {}
    refused: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, path in files.items():
        try:
            if not is_plain_name(name):
                raise InputError("its name cannot be a file's on every system; give it another")
            predictions = _checked(name, path, records)
            systems = {prediction.system for prediction in predictions}
            longest = max(map(len, systems))
            if longest > _LONGEST_NAME:
                raise InputError(f"names a system by {longest} letters; give it a name of {_LONGEST_NAME} at most")
            taken = next((system for system in sorted(systems) if system in owner), None)
            if taken is not None:
                raise InputError(f"names its system '{taken}', as {owner[taken]} does; give it another name")
        except InputError as error:
            reason = str(error).replace(f"{folder}/", "")  # where the folder lies is nobody's business
            refused[name] = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
            continue
        owner |= dict.fromkeys(systems, name)
        accepted[name] = predictions
    return accepted, refused


def _checked(name: str, path: Path, records: Mapping[str, ObjectRecord]) -> list[Prediction]:
    """Read a file, and put the data's own annotations into its lines.

    Raises:
        InputError: it is bad, was made on other annotations, or does not answer every object.
    """
    answers: dict[str, dict[str, Prediction]] = {}
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise InputError(f"has more than {MOST_BYTES >> 20} MiB; send the answers for this data alone")
    for answer in read_predictions(path):
        record = records.get(answer.id)
        if record is None:
            raise InputError(f"answers the id '{answer.id}', which is no object of the split; predict this data")
        require_annotation(answer, record, f"the line of '{answer.id}'")
        of_data = Prediction.of(
            record,
            system=name if answer.system == "unnamed" else answer.system,
            pose=answer.pose,
            pred_category=answer.pred_category,
            confidence=answer.confidence,
            symmetry_order=answer.symmetry_order,
            prediction_set=answer.prediction_set,
        )
        own = answers.setdefault(of_data.system, {})
        if answer.id in own:
            raise InputError(
                f"'{of_data.system}' answers '{answer.id}' twice, for lines that name no system are its own too"
            )
        own[answer.id] = of_data
    if len(answers) > _MOST_SYSTEMS:
        raise InputError(f"names {len(answers)} systems; send {_MOST_SYSTEMS} at most in a file")
    for system, lines in answers.items():
        if len(lines) < len(records):
            raise InputError(
                f"'{system}' answers {len(lines)} of {len(records)} objects; answer all, those without a pose by a line whose "
                "pose is null"
            )
    return [lines[id_] for lines in answers.values() for id_ in records]


def _page(config: LeaderboardConfig, scores: dict[str, Any], scored: Sequence[Path], refused: Mapping[str, str]) -> str:
    from eval.report.printing import as_page, section
    from eval.report.score_tables import score_notes, score_sections

    first = next(iter(scores["chance"]))
    systems = scores["systems"]
    ranking = sorted(systems, key=lambda name: -_merit(systems[name]["overall"], first))
    ordered = {**scores, "systems": {name: systems[name] for name in ranking}}
    sections = score_sections(ordered)
    if refused:
        rows = [[name, reason] for name, reason in refused.items()]
        sections.append(section("Files that are not scored, and why", ["file", "why"], rows))
    send = (
        f"To join, send a JSON Lines file with a line for each of the {scores['n']:,} objects of '{config.split}': id, system, "
        "category, the annotated pose as true, and the predicted pose, angles in radians."
    )
    title = f"Leaderboard of {Path(config.data).resolve().name}"
    files = [f"{COPIES}/{path.name}" for path in scored]
    return as_page(title, sections, [*score_notes(ordered), send], plot_paths(Path(config.out) / SCORES), files)


def _merit(overall: Mapping[str, Any], accuracy: str) -> float:
    """Return what systems are ranked by: the 3D-aware accuracy of one that names categories, else that of the pose."""
    return float(overall.get(f"3d_{accuracy}", overall[accuracy])["value"])


main = command(
    LeaderboardConfig,
    leaderboard,
    prog="llava-pose leaderboard",
    description="Make the static page of tables and predictions of a data set from the prediction files in a folder.",
    example="llava-pose leaderboard sent --data prepared --out site",
    positional="folder",
)

if __name__ == "__main__":
    raise SystemExit(main())
