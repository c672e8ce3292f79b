"""``llava-pose calibrate``: how far a checkpoint's confidence can be believed, found on objects that it has not learnt from.

Two things are found, and stand as calibration.json in the checkpoint, where every answer from then on takes them from. The
confidence becomes the share of such answers that are right, and the less like those of training a picture is, the lower it is;
and each answer gets a prediction set: the rotations that are to
hold the true one, within the head's threshold, in a given share of objects. A guarantee of that kind is as good as the objects
are like those that will be asked about (Vovk et al., "Algorithmic learning in a random world", 2005).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt
from scipy.special import expit
from tqdm import tqdm

from eval.compared import instance_of
from eval.confidence import fit_logistic, logits_of
from eval.predict import PredictConfig, answer_batch, load_pictures
from eval.systems.record_choice import select_records
from llava_pose.data.records import METADATA_FILE, ObjectRecord, Prediction
from llava_pose.errors import InputError, left_out
from llava_pose.pose.metrics import calibration_error, pose_error
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.output_folder import own_file
from llava_pose.utils.values import Name

if TYPE_CHECKING:
    from PIL import Image

    from llava_pose.inference.answers import PoseAnswer
    from llava_pose.inference.predictor import PosePredictor
    from llava_pose.model.calibration import Calibration, Neighbours

logger = logging.getLogger(__name__)
_LEAST_INSTANCES = 10
_TRAIN = "train"


@dataclass(kw_only=True)
class CalibrateConfig:
    """The options of ``llava-pose calibrate``."""

    checkpoint: Name = field(metadata={"help": "The checkpoint's folder, into which calibration.json goes."})
    data: Name = field(metadata={"help": "The prepared folder."})
    split: str = field(
        default="val", metadata={"help": "The split whose objects are asked about; training must not have had them."}
    )
    categories: list[str] | None = field(
        default=None,
        metadata={"help": "Ask about objects of these categories alone; by default about all of the split."},
    )
    coverage: Annotated[float, Field(gt=0, lt=1)] = field(
        default=0.9, metadata={"help": "The share of objects whose prediction set is to hold the true rotation."}
    )
    neighbours: NonNegativeInt = field(
        default=2000,
        metadata={
            "help": "The pictures of the split train, drawn by lot, with which others are compared: an answer about one "
            "that is unlike them is less sure. With 0 none are."
        },
    )
    flip: bool = field(
        default=False, metadata={"help": "Ask about the mirror image too, for answers that will be asked for so."}
    )
    base: str | None = field(default=None, metadata={"help": "The base of an adapter, if it has moved."})
    batch_size: PositiveInt = field(default=32, metadata={"help": "The objects of a forward pass."})
    device: str | None = field(default=None, metadata={"help": "The device; by default a GPU if there is one."})
    allow_custom_categories: bool = field(
        default=False, metadata={"help": "Accept categories that are not in the taxonomy."}
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Asked:
    """The answers of a checkpoint without calibration for n objects.

    Attributes:
        logits: (n,) of the confidence.
        shares: (n, k) probabilities of the modes of the rotation, the likeliest first; 0 where there are fewer.
        covering: (n, k) booleans: whether a mode is within the head's threshold of the truth; the first is the answer.
        instances: (n,) numbers; objects of one number show the same thing.
        strangeness: (n,) of the pictures, as ``Neighbours`` has it; None where they are not compared.
    """

    logits: np.ndarray
    shares: np.ndarray
    covering: np.ndarray
    instances: np.ndarray
    strangeness: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> Asked:
        """Return what was said of these objects."""
        strangeness = None if self.strangeness is None else self.strangeness[rows]
        return Asked(self.logits[rows], self.shares[rows], self.covering[rows], self.instances[rows], strangeness)


def calibrate(config: CalibrateConfig) -> Path:
    """Ask a checkpoint about held-out objects, and write calibration.json into its folder.

    Returns:
        The file.

    Raises:
        InputError: a path, the split or a category is wrong, there are too few instances, or lines or pictures cannot be used:
            then nothing is written.
    """
    from llava_pose.model.checkpoint_files import CALIBRATION

    folder = require_folder(config.checkpoint, "--checkpoint", "give a checkpoint on this machine")
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    records = select_records(config.data, config.split, config.categories, "--categories")
    lines = (Prediction.of(r, system="", pose=None, pred_category=None, confidence=None) for r in records)
    instances = pd.factorize(pd.Series([instance_of(line) for line in lines]))[0]  # as scores tell them apart
    count = len(np.unique(instances))
    if count < _LEAST_INSTANCES:
        raise InputError(
            f"{config.data}, {config.split}: {len(records)} objects show {count} instances, and a calibration needs "
            f"{_LEAST_INSTANCES} at least; prepare more"
        )
    out = folder / CALIBRATION
    with own_file(out, "--checkpoint", "calibrate"):
        asked, neighbours = _ask(config, records, instances)
        found = fit(asked, config.coverage, f"{Path(config.data).name}, {config.split}")
        if neighbours is not None and found.strangeness:
            found = replace(found, neighbours=neighbours.packed())
        found.save(folder)
    logger.info(f"{out}: {_tried_on_halves(asked, config.coverage)}")
    return out


def _ask(
    config: CalibrateConfig, records: Sequence[ObjectRecord], instances: np.ndarray
) -> tuple[Asked, Neighbours | None]:
    from llava_pose.inference.predictor import PosePredictor  # seconds, which --help does without

    predictor = PosePredictor.from_checkpoint(
        config.checkpoint, base=config.base, device=config.device, calibrated=False
    )
    options = PredictConfig(
        checkpoint=config.checkpoint,
        data=config.data,
        out=config.checkpoint,
        split=config.split,
        flip=config.flip,
        allow_custom_categories=config.allow_custom_categories,
    )
    neighbours = _neighbours(config, predictor, options)
    answers: list[PoseAnswer] = []
    strangeness: list[float] = []
    for batch, images in _batches(config, records, options, f"asking about {config.split}"):
        answers += answer_batch(predictor, batch, images, options, {})
        if neighbours is not None:
            strangeness += neighbours.strangeness(predictor.features(images)).tolist()
    confidence = np.array([answer.confidence for answer in answers])
    modes = np.array([answer.modes for answer in answers])  # (n, k, 4)
    if not (np.isfinite(confidence).all() and np.isfinite(modes).all()):
        raise InputError(f"{config.checkpoint}: its answers are not finite; take an older checkpoint")
    true = np.array([record.pose.angles for record in records])[:, None]
    asked = Asked(
        logits=logits_of(confidence),
        shares=modes[..., 3],
        covering=pose_error(modes[..., :3], np.broadcast_to(true, modes[..., :3].shape))
        < predictor.confidence_threshold,
        instances=instances,
        strangeness=None if neighbours is None else np.array(strangeness),
    )
    return asked, neighbours


def _neighbours(config: CalibrateConfig, predictor: PosePredictor, options: PredictConfig) -> Neighbours | None:
    """Return what pictures are compared with; None where there is nothing, or the head does not look at pictures."""
    from llava_pose.model.calibration import Neighbours

    if not config.neighbours or not predictor.looks or not (Path(config.data) / _TRAIN / METADATA_FILE).is_file():
        return None
    records = select_records(config.data, _TRAIN, config.categories, "--categories")
    drawn = np.random.default_rng(0).permutation(len(records))[: config.neighbours]
    chosen, options = [records[index] for index in sorted(drawn)], replace(options, split=_TRAIN)
    features = [predictor.features(images) for _, images in _batches(config, chosen, options, "looking at train")]
    return Neighbours.of(np.concatenate(features))


def _batches(
    config: CalibrateConfig, records: Sequence[ObjectRecord], options: PredictConfig, what: str
) -> Iterator[tuple[Sequence[ObjectRecord], list[Image.Image]]]:
    for start in tqdm(range(0, len(records), config.batch_size), desc=what, unit="batch"):
        batch = records[start : start + config.batch_size]
        images, unreadable = load_pictures(batch, options)
        if unreadable:
            raise left_out(list(unreadable.values()), f"{config.data}: pictures of {options.split} cannot be used")
        yield batch, images


def fit(asked: Asked, coverage: float, data: str) -> Calibration:
    """Return the calibration under which the objects' confidences and prediction sets come true.

    Every instance counts once, however many pictures show it. The confidence is fitted by Platt's logistic regression, with
    his targets (1999, eq. 4), on its logit and on the pictures' strangeness. The mass of the prediction sets is the quantile
    of split conformal prediction for data in groups (Lee, Barber and Willett, "Distribution-free inference with hierarchical
    data", 2023): of K instances each weighs 1 / (K + 1), and what is left of 1 weighs as an object that no set holds.
    """
    from llava_pose.model.calibration import Calibration, least_masses

    _, index, pictures = np.unique(asked.instances, return_inverse=True, return_counts=True)
    count = len(pictures)
    weights = 1 / pictures[index]  # sum to the number of instances
    hits = asked.covering[:, 0]
    right = float(weights[hits].sum())
    targets = np.where(hits, (right + 1) / (right + 2), 1 / (count - right + 2))

    columns = [asked.logits] if asked.strangeness is None else [asked.logits, -asked.strangeness]
    scale, *strangeness, shift = fit_logistic(np.stack(columns, -1), targets, weights)
    least = least_masses(asked.shares, asked.covering)
    order = np.argsort(least)
    held = np.cumsum(weights[order]) / (count + 1)
    at = int(np.searchsorted(held, coverage - 1e-12))
    mass = float(least[order[at]]) if at < len(order) else math.inf
    return Calibration(
        scale=scale,
        shift=shift,
        coverage=coverage,
        mass=min(mass, 1.0),  # where even all modes hold too few, all of them are in the set
        objects=len(hits),
        instances=count,
        data=data,
        strangeness=sum(strangeness),  # of none or of one
    )


def _tried_on_halves(asked: Asked, coverage: float) -> str:
    """Say what each half of the instances is worth, calibrated on the other half: what comes of objects never seen."""
    order = np.random.default_rng(0).permutation(np.unique(asked.instances))
    first = np.isin(asked.instances, order[: len(order) // 2])
    confidence, held, sizes = (np.zeros(len(first)) for _ in range(3))
    for half in (first, ~first):
        found, rest = fit(asked.of(~half), coverage, ""), asked.of(half)
        confidence[half] = found.confidences(rest.logits, rest.strangeness)
        sizes[half] = found.set_sizes(rest.shares)
        held[half] = (rest.covering & (np.arange(rest.shares.shape[1]) < sizes[half][:, None])).any(1)
    hits = asked.covering[:, 0]
    before, after = (calibration_error(c, hits) for c in (expit(asked.logits), confidence))
    text = (
        f"{len(hits)} objects of {len(order)} instances, {hits.mean():.1%} right. Each half calibrated on the other: the "
        f"confidence is off by {after:.1%} (ECE; {before:.1%} before), and the prediction sets hold the true rotation in "
        f"{held.mean():.1%}, with {sizes.mean():.2f} rotations each"
    )
    if held.mean() < coverage - 0.02:
        text += f"; {coverage:.0%} were asked for, which its modes do not reach here"
    return text


def run(config: CalibrateConfig) -> None:
    """Do what :func:`calibrate` does, and say what comes next."""
    calibrate(config)
    say_next(f"llava-pose predict --checkpoint {config.checkpoint} --data {config.data} --out predictions.jsonl")


main = command(
    CalibrateConfig,
    run,
    prog="llava-pose calibrate",
    description="Find on held-out objects how far a checkpoint's confidence can be believed, and keep it in the checkpoint: "
    "confidences become shares of right answers, and answers get prediction sets.",
    example="llava-pose calibrate --checkpoint runs/first --data prepared --split val",
)

if __name__ == "__main__":
    raise SystemExit(main())
