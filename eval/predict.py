"""`llava-pose predict`: a checkpoint's answer for every object of a split, a line each, resumable.

Beside ``predictions.jsonl`` stands ``predictions.jsonl.settings.yaml``: what decides an answer (checkpoint and its weights, an
adapter's base and its weights, records, split, task, candidates, descriptions, mirror images, what is predicted, system). A run
with others does not go on with the file.

Several processes (``torchrun --nproc_per_node 2 -m eval.predict …``) take turns at the batches; the file is the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from tqdm import tqdm

from llava_pose.data.conversation import object_words
from llava_pose.data.images import load_rgb
from llava_pose.data.records import (
    ObjectRecord,
    Prediction,
    append_jsonl,
    read_predictions,
    read_records,
    resume_jsonl,
)
from llava_pose.errors import InputError, RunError, joined, left_out
from llava_pose.pose import categories
from llava_pose.utils.config import command, require, require_folder
from llava_pose.utils.distributed import (
    broadcast,
    first_process_holds,
    is_first_process,
    join_processes,
    map_over_processes,
    process_count,
)
from llava_pose.utils.files import inside, is_regular
from llava_pose.utils.output_folder import keep_settings, own_file

if TYPE_CHECKING:
    from llava_pose.inference.predictor import PoseAnswer, PosePredictor

logger = logging.getLogger(__name__)
TASKS = ("pose", "joint")
T = TypeVar("T")


@dataclass
class PredictConfig:
    """What to predict with, on what, and where the lines go."""

    checkpoint: str = field(default="", metadata={"help": "checkpoint folder or hub id"})
    data: str = field(default="", metadata={"help": "prepared folder"})
    out: str = field(
        default="", metadata={"help": "predictions.jsonl to write; the same command goes on where it was stopped"}
    )
    split: str = field(default="val", metadata={"help": "split of the prepared folder"})
    task: str = field(default="pose", metadata={"help": "pose: the category is given; joint: category and pose"})
    categories: list[str] | None = field(
        default=None, metadata={"help": "candidates of the joint task; default: every category of the prepared folder"}
    )
    describe: bool = field(
        default=False,
        metadata={
            "help": "ask for an object by the taxonomy's description, not by name, as instruct --kinds described does"
        },
    )
    flip: bool = field(
        default=False,
        metadata={
            "help": "ask about the mirror image too, at twice the cost: the answer is the mean of both, its pose where the "
            "category's plane of symmetry is x = 0"
        },
    )
    predict_categories: list[str] | None = field(
        default=None, metadata={"help": "only objects of these; default: every object of the split"}
    )
    system: str | None = field(default=None, metadata={"help": "name in the tables; default: the checkpoint folder's"})
    base: str | None = field(default=None, metadata={"help": "an adapter's base, if it has moved"})
    batch_size: int = field(default=32, metadata={"help": "objects a forward pass"})
    device: str | None = field(default=None, metadata={"help": "default: a GPU if there is one"})
    limit: int | None = field(default=None, metadata={"help": "only the first N objects"})
    allow_custom_categories: bool = field(default=False, metadata={"help": "accept categories outside the taxonomy"})


def predict(config: PredictConfig) -> Path:
    """Write one prediction for each object; objects that the file answers already are left as they are.

    Raises:
        InputError: a path, split, task or category is wrong, the file holds predictions of other settings, or lines or
            pictures cannot be used: then all others have been predicted, and the same command goes on once pictures are
            mended.
    """
    for option in ("checkpoint", "data", "out"):
        require(getattr(config, option), f"--{option}")
    if config.task not in TASKS:
        raise InputError(f"--task {config.task}: not known; choose one of {', '.join(TASKS)}")
    if config.categories and config.task != "joint":
        raise InputError("--categories: are candidates of --task joint, and have no effect with --task pose")
    if config.batch_size < 1:
        raise InputError(f"--batch-size {config.batch_size}: must be at least 1")
    if config.limit is not None and config.limit < 1:
        raise InputError(f"--limit {config.limit}: must be at least 1")
    if config.describe and config.task != "pose":
        raise InputError("--describe: a description tells the category; give it with --task pose alone")
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    bad_lines: list[InputError] = []
    records = read_records(config.data, config.split, faults=bad_lines)
    if not records and bad_lines:
        raise joined(bad_lines, f"--data {config.data} --split {config.split}: none of its lines can be used")
    if not records:
        raise InputError(
            f"--data {config.data} --split {config.split}: there is no object in it; choose another --split"
        )
    if config.predict_categories:
        place = f"{config.data}/{config.split}"
        records = categories.only_of(config.predict_categories, records, option="--predict-categories", place=place)
    candidates = candidate_names(config) if config.task == "joint" else {}
    if config.task == "pose":
        _require_known(records, config)
    system = config.system or Path(config.checkpoint).resolve().name
    join_processes()
    with first_process_holds(own_file(config.out, "--out", "predict")):
        return _predict(config, records, bad_lines, candidates, system)


def _predict(
    config: PredictConfig,
    records: Sequence[ObjectRecord],
    bad_lines: Sequence[InputError],
    candidates: dict[str, str],
    system: str,
) -> Path:
    out = Path(config.out)
    answered: set[str] = set()
    if is_first_process():
        keep_settings(out, "--out", "predict", run_settings(config, list(candidates), system))
        answered = answered_ids(out, records, system, config.task)
    answered = broadcast(answered)
    asked = {record.id for record in records[: config.limit]}
    left = asked - answered
    unreadable: list[InputError] = []
    if left:
        from llava_pose.inference.predictor import PosePredictor  # seconds, which --help does without

        predictor = PosePredictor.from_checkpoint(config.checkpoint, base=config.base, device=config.device)

        def answer(batch: Sequence[ObjectRecord]) -> tuple[list[Prediction], dict[str, InputError]]:
            images, faults = _load_pictures(batch, config)
            if len(faults) == len(batch):
                return [], faults
            predictions = predict_batch(predictor, batch, images, config, candidates, system)
            return [prediction for prediction in predictions if prediction.id not in faults], faults

        # numbers depend on what else is in a batch, in their last digits: a batch is always of the same objects, however the
        # run was begun, and is answered whole for what is left of it
        batches = [batch for batch in _batches(records, config.batch_size) if not left.isdisjoint(r.id for r in batch)]
        rounds = list(_batches(batches, process_count()))
        for batches in tqdm(rounds, desc=f"predict {config.split}", unit="batch", disable=not is_first_process()):
            for predictions, faults in map_over_processes(answer, batches):
                unreadable += [error for id_, error in faults.items() if id_ in left]
                missing = [prediction.to_dict() for prediction in predictions if prediction.id in left]
                if is_first_process() and missing:
                    append_jsonl(out, missing)
    count = len(asked)  # the file may answer more, from a run without the limit
    unreadable = [*bad_lines, *unreadable]
    if unreadable:
        raise left_out(
            unreadable,
            f"{out}: {len(unreadable)} of {count + len(bad_lines)} objects have no prediction, for their lines or pictures "
            "cannot be used",
        )
    logger.info(f"{count} predictions of {system} are in {out}; next: llava-pose score {out} --out scores.json")
    return out


def _load_pictures(
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


def predict_batch(
    predictor: PosePredictor,
    records: Sequence[ObjectRecord],
    images: Sequence[Image.Image],
    config: PredictConfig,
    candidates: dict[str, str],
    system: str,
) -> list[Prediction]:
    """The predictions of one forward pass; one image a record."""
    viewports = [record.viewport * record.focal for record in records]
    if candidates:
        mirrored = {name for name in candidates if _category(name, config).mirror_axis == "x"} if config.flip else None
        answers = predictor.classify(images, candidates, viewports=viewports, flip=mirrored)
    else:
        asked = [_category(record.category, config) for record in records]
        names = [object_words(category)["object"] for category in asked]
        descriptions = [category.description for category in asked] if config.describe else None
        flips = [category.mirror_axis == "x" for category in asked] if config.flip else None
        answers = predictor.predict(images, names, descriptions=descriptions, viewports=viewports, flip=flips)
    return [_prediction(r, a, system, found=bool(candidates)) for r, a in zip(records, answers, strict=True)]


def _prediction(record: ObjectRecord, answer: PoseAnswer, system: str, *, found: bool) -> Prediction:
    category = answer.category if found else None
    return Prediction.of(record, system=system, pose=answer.pose, pred_category=category, confidence=answer.confidence)


def candidate_names(config: PredictConfig) -> dict[str, str]:
    """Canonical category -> its name with article, of the candidates of the joint task, in alphabetical order."""
    names = dict.fromkeys(config.categories or (), "--categories")  # name -> where it stands
    if not names:
        for path in sorted(Path(config.data).glob("*/metadata.jsonl")):
            for record in read_records(config.data, path.parent.name, faults=[]):
                names.setdefault(record.category, str(path))
    chosen = [_category(name, config, source) for name, source in names.items()]
    candidates = {category.name: category.indefinite for category in chosen}
    return dict(sorted(candidates.items()))


def _category(name: str, config: PredictConfig, source: str | None = None) -> categories.Category:
    """``source``: where the name stands; by default the records of the split."""
    source = source or str(Path(config.data) / config.split / "metadata.jsonl")
    return categories.get(name, allow_custom=config.allow_custom_categories, source=source)


def _require_known(records: Sequence[ObjectRecord], config: PredictConfig) -> None:
    for name in sorted({record.category for record in records}):
        if config.describe and not _category(name, config).description:
            raise InputError(f"--describe: the taxonomy has no description of {name!r}; leave it out or --describe")
        _category(name, config)


def run_settings(config: PredictConfig, candidates: list[str], system: str) -> dict[str, Any]:
    """What decides an answer; how many objects, in which batches and on which device does not."""
    from llava_pose.model.rotation import DECODING

    checkpoint = Path(config.checkpoint)
    return {
        "checkpoint": str(checkpoint.resolve()) if checkpoint.exists() else config.checkpoint,
        "base": config.base,
        "data": str(Path(config.data).resolve()),
        "split": config.split,
        "task": config.task,
        "categories": candidates,
        # None where they are not given, as in files that were begun before these options were there
        "describe": config.describe or None,
        "flip": config.flip or None,
        "predict_categories": config.predict_categories or None,
        "system": system,
        "decoding": DECODING,
        "weights_digest": _digest(_weights_of(checkpoint)),
        "base_digest": _base_digest(checkpoint, config.base),
        "records_digest": _digest([Path(config.data) / config.split / "metadata.jsonl"]),
    }


def _weights_of(folder: Path) -> list[Path]:
    return [path for kind in ("*.safetensors", "*config.json") for path in folder.glob(kind) if is_regular(path)]


def _base_digest(checkpoint: Path, base: str | None) -> str | None:
    """Of the base of an adapter, where it is a folder; None otherwise."""
    from llava_pose.model.checkpoint_files import ADAPTER_CONFIG

    adapter = checkpoint / ADAPTER_CONFIG
    if not adapter.is_file():
        return None
    try:
        folder = Path(base or json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # loading it says what is wrong
    return _digest(_weights_of(folder)) or None


def _digest(paths: Iterable[Path]) -> str:
    """Of the files' names and content; "" for none."""
    digest = hashlib.blake2b(digest_size=16)
    paths = sorted(paths)
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if paths else ""


def answered_ids(out: Path, records: Sequence[ObjectRecord], system: str, task: str) -> set[str]:
    """The ids that a predictions file answers already.

    Raises:
        InputError: the file holds predictions of another system or task, or for objects that are not among the records.
    """
    ids = {record.id for record in records}
    answered: set[str] = set()
    for where, value in resume_jsonl(out, "id"):
        line = Prediction.from_dict(value, where=where)
        if line.system != system:
            raise InputError(f"{out}: holds predictions of {line.system!r}, not of {system!r}; choose another --out")
        if (line.pred_category is None) != (task == "pose"):
            raise InputError(f"{out}: holds predictions of another task than {task!r}; choose another --out")
        if line.id not in ids:
            raise InputError(f"{out}: answers {line.id!r}, which is not in this split; choose another --out")
        if line.id in answered:
            raise InputError(f"{where}: the id {line.id!r} stands on two lines; ids must be unique")
        answered.add(line.id)
    if answered:
        logger.info(f"{out}: {len(answered)} of {len(records)} are answered already")
    return answered


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def run(config: PredictConfig) -> Path:
    """:func:`predict`, and a failure at the end where answers are no poses: the network has overflowed.

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
    return out


main = command(
    PredictConfig,
    run,
    prog="llava-pose predict",
    description="Predict poses (and categories) for every object of a prepared split, one forward pass a batch.",
    example="llava-pose predict --checkpoint runs/first --data prepared --split val --out predictions.jsonl",
)

if __name__ == "__main__":
    raise SystemExit(main())
