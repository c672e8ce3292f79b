"""`llava-pose predict`: a checkpoint's answer for every object of a split, a line each, resumable.

Beside ``predictions.jsonl`` stands ``predictions.jsonl.settings.yaml``: what decides an answer (checkpoint and its weights, an
adapter's base and its weights, records, split, task, candidates, descriptions, mirror images, categories, system). A run with
others does not go on with the file.

Several processes (``torchrun --nproc_per_node 2 -m eval.predict …``) take turns at the batches; the file is the same.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from pydantic import PositiveInt
from tqdm import tqdm

from eval.systems.options import Task
from eval.systems.record_choice import select_records
from llava_pose.data.conversation import object_words
from llava_pose.data.descriptions import description_of, read_descriptions
from llava_pose.data.images import load_rgb
from llava_pose.data.jsonl import append_jsonl, resume_jsonl
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Prediction, read_predictions, read_records
from llava_pose.errors import InputError, RunError, left_out
from llava_pose.pose import categories
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.distributed import (
    first_process_holds,
    from_first_process,
    is_first_process,
    join_processes,
    map_over_processes,
    process_count,
)
from llava_pose.utils.files import file_digest, inside
from llava_pose.utils.output_folder import keep_settings, own_file
from llava_pose.utils.values import Name

if TYPE_CHECKING:
    from llava_pose.inference.answers import PoseAnswer
    from llava_pose.inference.predictor import PosePredictor

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(kw_only=True)
class PredictConfig:
    """The options of ``llava-pose predict``."""

    checkpoint: Name = field(metadata={"help": "The checkpoint: a folder or a hub id."})
    data: Name = field(metadata={"help": "The prepared folder."})
    out: Name = field(
        metadata={"help": "The predictions.jsonl to write; the same command goes on where it was stopped."}
    )
    split: str = field(default="val", metadata={"help": "The split to predict."})
    task: Task = field(
        default="pose", metadata={"help": "Whether the category is given (pose) or found as well (joint)."}
    )
    candidates: list[str] | None = field(
        default=None,
        metadata={"help": "The categories to choose from in the joint task; by default all of the prepared folder."},
    )
    describe: bool = field(
        default=False,
        metadata={
            "help": "Ask for an object by the taxonomy's description, not by its name, as instruct --kinds described does."
        },
    )
    descriptions: str | None = field(
        default=None,
        metadata={
            "help": "With --describe, a JSON file of your own descriptions, category -> text, in place of the taxonomy's."
        },
    )
    flip: bool = field(
        default=False,
        metadata={
            "help": "Ask about the mirror image too, at twice the cost: the answer is the mean of both, its pose where the "
            "category's plane of symmetry is x = 0."
        },
    )
    categories: list[str] | None = field(
        default=None, metadata={"help": "Predict objects of these categories alone; by default all of the split."}
    )
    system: str | None = field(
        default=None, metadata={"help": "The name in the tables; by default the checkpoint folder's."}
    )
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    batch_size: PositiveInt = field(default=32, metadata={"help": "The objects of a forward pass."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})
    limit: PositiveInt | None = field(default=None, metadata={"help": "Predict the first so many objects alone."})
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "Accept categories that are not in the taxonomy."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.candidates and self.task != "joint":
            raise InputError("--candidates: are those of --task joint, and have no effect with --task pose")
        if self.describe and self.task != "pose":
            raise InputError("--describe: a description tells the category; give it with --task pose alone")
        if self.descriptions is not None and not self.describe:
            raise InputError("--descriptions: are asked with under --describe alone; add it")

    @property
    def name(self) -> str:
        """The name in the tables."""
        return self.system or os.path.basename(os.path.realpath(self.checkpoint))


def predict(config: PredictConfig) -> Path:
    """Write one prediction for each object; objects that the file answers already are left as they are.

    Raises:
        InputError: a path, split, task or category is wrong, the file holds predictions of other settings, or lines or
            pictures cannot be used: then all others have been predicted, and the same command goes on once pictures are
            mended.
    """
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    faults: list[InputError] = []
    records = select_records(config.data, config.split, config.categories, "--categories", faults=faults)
    candidates = candidate_names(config) if config.task == "joint" else {}
    if config.task == "pose":
        _require_known(records, config)
    out = Path(config.out)
    join_processes()
    with first_process_holds(own_file(out, "--out", "predict")):

        def begin() -> set[str]:
            keep_settings(out, "--out", "predict", run_settings(config, list(candidates)))
            return answered_ids(out, records, config)

        asked = {record.id for record in records[: config.limit]}
        left = asked - from_first_process(begin)
        count = len(asked) + len(faults)
        if left:
            faults += _answer(config, records, left, candidates)
    if faults:
        message = (
            f"{out}: {len(faults)} of {count} objects have no prediction, for their lines or pictures cannot be used"
        )
        raise left_out(faults, message)
    logger.info(f"{len(asked)} predictions of {config.name} are in {out}")
    return out


def _answer(
    config: PredictConfig, records: Sequence[ObjectRecord], left: set[str], candidates: dict[str, str]
) -> list[InputError]:
    """Append a line for each object that is left; return what is wrong with those that cannot be answered."""
    from llava_pose.inference.predictor import PosePredictor  # seconds, which --help does without

    predictor = PosePredictor.from_checkpoint(config.checkpoint, base=config.base, device=config.device)

    def answer(batch: Sequence[ObjectRecord]) -> tuple[list[Prediction], dict[str, InputError]]:
        images, unreadable = load_pictures(batch, config)
        if len(unreadable) == len(batch):
            return [], unreadable
        predictions = predict_batch(predictor, batch, images, config, candidates)
        return [prediction for prediction in predictions if prediction.id not in unreadable], unreadable

    faults: list[InputError] = []
    # numbers depend on what else is in a batch, in their last digits: a batch is always of the same objects, however the run
    # was begun, and is answered whole for what is left of it
    batches = [batch for batch in _batches(records, config.batch_size) if not left.isdisjoint(r.id for r in batch)]
    rounds = list(_batches(batches, process_count()))
    for batches in tqdm(rounds, desc=f"predict {config.split}", unit="batch", disable=not is_first_process()):
        for predictions, unreadable in map_over_processes(answer, batches):
            faults += [error for id_, error in unreadable.items() if id_ in left]
            missing = [prediction.to_dict() for prediction in predictions if prediction.id in left]
            if is_first_process() and missing:
                append_jsonl(config.out, missing)
    return faults


def load_pictures(
    records: Sequence[ObjectRecord], config: PredictConfig
) -> tuple[list[Image.Image], dict[str, InputError]]:
    """Return a picture a record, and what is wrong with those that cannot be read, by the record's id.

    A blank one stands in for these, so that the others are answered as they are once it is mended.
    """
    images, unreadable = [], {}
    for record in records:
        try:
            images.append(load_rgb(inside(Path(config.data) / config.split, record.file_name)))
        except InputError as error:
            images.append(Image.new("RGB", (16, 16)))
            unreadable[record.id] = error
    return images, unreadable


def answer_batch(
    predictor: PosePredictor,
    records: Sequence[ObjectRecord],
    images: Sequence[Image.Image],
    config: PredictConfig,
    candidates: dict[str, str],
) -> list[PoseAnswer]:
    """Return the answers of one forward pass, of one image a record."""
    viewports = [record.viewport * record.focal for record in records]
    if candidates:
        mirrored = {name for name in candidates if _category(name, config).mirror_axis == "x"} if config.flip else None
        return predictor.classify(images, candidates, viewports=viewports, flip=mirrored, probabilities=False)
    asked = [_category(record.category, config) for record in records]
    names = [object_words(category)["object"] for category in asked]
    descriptions = _descriptions(asked, config) if config.describe else None
    flips = [category.mirror_axis == "x" for category in asked] if config.flip else None
    return predictor.predict(images, names, descriptions=descriptions, viewports=viewports, flip=flips)


def predict_batch(
    predictor: PosePredictor,
    records: Sequence[ObjectRecord],
    images: Sequence[Image.Image],
    config: PredictConfig,
    candidates: dict[str, str],
) -> list[Prediction]:
    """Return the predictions of one forward pass, of one image a record."""
    return [
        Prediction.of(
            record,
            system=config.name,
            pose=answer.pose,
            pred_category=answer.category if candidates else None,
            confidence=answer.confidence,
            prediction_set=answer.prediction_set,
        )
        for record, answer in zip(records, answer_batch(predictor, records, images, config, candidates), strict=True)
    ]


def _descriptions(asked: Sequence[categories.Category], config: PredictConfig) -> list[str]:
    own = read_descriptions(config.descriptions)
    return [description_of(category, own) for category in asked]


def candidate_names(config: PredictConfig) -> dict[str, str]:
    """Return canonical category -> its name with article, of the candidates of the joint task, in alphabetical order."""
    names = dict.fromkeys(config.candidates or (), "--candidates")  # name -> where it stands
    if not names:
        for path in sorted(Path(config.data).glob(f"*/{METADATA_FILE}")):
            for record in read_records(config.data, path.parent.name, faults=[]):
                names.setdefault(record.category, str(path))
    chosen = [_category(name, config, source) for name, source in names.items()]
    return dict(sorted((category.name, category.indefinite) for category in chosen))


def _category(name: str, config: PredictConfig, source: str | None = None) -> categories.Category:
    """Return a category by its name.

    Args:
        source: where the name stands, for messages; by default the records of the split.
    """
    source = source or str(Path(config.data) / config.split / METADATA_FILE)
    return categories.get(name, allow_custom=config.allow_custom_categories, source=source)


def _require_known(records: Sequence[ObjectRecord], config: PredictConfig) -> None:
    names = sorted({record.category for record in records})
    asked = [_category(name, config) for name in names]
    if not config.describe:
        return
    for name, text in zip(names, _descriptions(asked, config), strict=True):
        if not text:
            raise InputError(
                f"--describe: the taxonomy has no description of {name!r}; give one with --descriptions, or leave it out"
            )


def run_settings(config: PredictConfig, candidates: Sequence[str]) -> dict[str, Any]:
    """Return what decides an answer; how many objects, in which batches and on which device does not."""
    from llava_pose.model.checkpoint_files import settings_of_checkpoint

    return {
        **settings_of_checkpoint(config.checkpoint, config.base),
        "data": str(Path(config.data).resolve()),
        "split": config.split,
        "task": config.task,
        "candidates": list(candidates),
        "describe": config.describe,
        # only where there are any: a file from before there was a choice is gone on with
        **({"descriptions_digest": file_digest(Path(config.descriptions))} if config.descriptions else {}),
        "flip": config.flip,
        "categories": config.categories,
        "system": config.name,
        "records_digest": file_digest(Path(config.data) / config.split / METADATA_FILE),
    }


def answered_ids(out: Path, records: Iterable[ObjectRecord], config: PredictConfig) -> set[str]:
    """Return the ids that a predictions file answers already.

    Raises:
        InputError: the file holds predictions of another system or task, or for objects that are not among the records.
    """
    ids = {record.id for record in records}
    answered: set[str] = set()
    for where, value in resume_jsonl(out, "id"):
        line = Prediction.from_dict(value, where=where)
        if line.system != config.name:
            raise InputError(
                f"{out}: holds predictions of {line.system!r}, not of {config.name!r}; choose another --out"
            )
        if (line.pred_category is None) != (config.task == "pose"):
            raise InputError(f"{out}: holds predictions of another task than {config.task!r}; choose another --out")
        if line.id not in ids:
            raise InputError(f"{out}: answers {line.id!r}, which is not in this split; choose another --out")
        if line.id in answered:
            raise InputError(f"{where}: the id {line.id!r} stands on two lines; ids must be unique")
        answered.add(line.id)
    if answered:
        logger.info(f"{out}: {len(answered)} of {len(ids)} are answered already")
    return answered


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def run(config: PredictConfig) -> Path:
    """Do what :func:`predict` does, and fail at the end where answers are no poses, for the network has overflowed.

    Raises:
        RunError: counting them. They stand in the file, and count as errors of 180 degrees.
    """
    out = predict(config)
    if is_first_process():
        answers = read_predictions(out)
        lost = [p.id for p in answers if p.pose is not None and not all(map(math.isfinite, p.pose.angles))]
        if lost:
            raise RunError(
                f"{out}: {len(lost)} of {len(answers)} answers are no poses, for their numbers are not finite; the first is "
                f"{lost[0]!r}; take an older checkpoint, or one that was trained with a lower learning rate"
            )
        say_next(f"llava-pose score {out} --out scores.json")
    return out


main = command(
    PredictConfig,
    run,
    prog="llava-pose predict",
    description="Predict poses (and categories) for every object of a prepared split, one forward pass a batch. For "
    "photographs without annotations see llava-pose predict photo.jpg --help.",
    example="llava-pose predict --checkpoint runs/first --data prepared --split val --out predictions.jsonl",
)

if __name__ == "__main__":
    raise SystemExit(main())
