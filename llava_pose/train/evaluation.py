"""Validation while a run trains: one forward pass over held-out conversations, whose answers are given, at intervals.

The pose is read from the state that predicts `<pose6D>`, as in an answer, and compared by the metrics of every score. Batches
are the same however many processes share them, so that the figures are, too; no logits are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
from llava_pose.data.conversation import IGNORE_INDEX, POSE_TOKEN
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.samples import read_samples
from llava_pose.errors import InputError
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.pose.geometry import angles_from_rotation
from llava_pose.pose.metrics import DEFAULT_THRESHOLDS, accuracy, pose_error, threshold_name
from llava_pose.train.arguments import CLASS_FIGURE, DataArguments
from llava_pose.utils.distributed import gathered

if TYPE_CHECKING:
    from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
    from llava_pose.train.training_arguments import PoseTrainingArguments

_JOINT = "joint"  # the kind of question whose answer names the category


@dataclass
class Measured:
    """The measurements of some validation samples.

    Attributes:
        errors: of each pose, radians.
        named: of each joint question, whether greedy decoding would write its answer, category and all.
        tokens: that are supervised.
        losses: the unweighted terms, summed over tokens (text) and poses (the others).
    """

    errors: list[float] = field(default_factory=list)
    named: list[bool] = field(default_factory=list)
    tokens: int = 0
    losses: dict[str, float] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        """Take in another's samples."""
        self.errors += other.errors
        self.named += other.named
        self.tokens += other.tokens
        for name, value in other.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value

    def figures(self, config: LlavaPoseConfig) -> dict[str, float]:
        """Return loss and its terms, "acc_30", "acc_10", "median_deg", and "class_accuracy" where categories are asked for.

        A hit is strictly under its threshold; a pose that is no number counts as 180 degrees.
        """
        counts = {name: self.tokens if name == "text" else len(self.errors) for name in self.losses}
        terms = {name: value / max(1, counts[name]) for name, value in self.losses.items()}
        weighted = (getattr(config, f"{name}_loss_weight") * value for name, value in terms.items())
        figures = {"loss": sum(weighted), **{f"loss_{name}": value for name, value in sorted(terms.items())}}
        for threshold in DEFAULT_THRESHOLDS:
            figures[threshold_name(threshold).replace("@", "_")] = accuracy(self.errors, threshold)
        figures["median_deg"] = math.degrees(float(np.median(self.errors)))
        if self.named:
            figures[CLASS_FIGURE] = float(np.mean(self.named))
        return figures


def validation_samples(data: DataArguments) -> Sequence[dict[str, Any]]:
    """Return the samples of ``val_json``, if there is one, or as many of them as are asked for: the same in every run.

    Raises:
        InputError: as ``read_samples``.
    """
    samples: Sequence[dict[str, Any]] = [] if data.val_json is None else read_samples(data.val_json)
    if len(samples) > data.val_samples:
        drawn = np.random.default_rng(0).choice(len(samples), data.val_samples, replace=False)
        samples = [samples[index] for index in sorted(drawn)]
    return samples


def require_measurable(
    samples: Sequence[Mapping[str, Any]], data: DataArguments, training: PoseTrainingArguments
) -> None:
    """Refuse validation samples that the figures cannot be made of.

    Raises:
        InputError: no answer holds a pose, or the best checkpoint is told by categories and no question asks for one.
    """
    if not samples:
        return
    answers = (turn["value"] for sample in samples for turn in sample["conversations"] if turn["from"] == "gpt")
    if not any(POSE_TOKEN in answer for answer in answers):
        raise InputError(f"--val-json {data.val_json}: no answer in it holds a pose; make it with llava-pose instruct")
    asked = any(_JOINT in (sample.get("kinds") or ()) for sample in samples)
    if training.metric_for_best_model == CLASS_FIGURE and not asked:
        raise InputError(
            f"--metric-for-best-model {CLASS_FIGURE}: no question of {data.val_json} asks for a category; make it with "
            "llava-pose instruct --kinds pose joint"
        )


def evaluate(
    model: LlavaPoseForConditionalGeneration,
    dataset: PoseDataset,
    collator: PoseCollator,
    *,
    batch_size: int,
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    share: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Measured:
    """Ask a model about every sample, in the order of the file, and leave it in the mode that it was in. Waits for all.

    Args:
        prepare: what brings a batch to the model's device.
        share: (index, count): of ``count`` processes that take turns at the batches, this is number ``index``.
        workers: processes that load pictures.
    """
    index, count = share
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    # each process runs as many batches as any other, the last one again if need be: ZeRO-3's would wait for each other
    mine = [min(first + index, len(batches) - 1) for first in range(0, len(batches), count)]
    loader = DataLoader(
        dataset,
        batch_sampler=[list(batches[number]) for number in mine],
        collate_fn=collator,
        num_workers=workers,
        generator=torch.Generator(),  # a loader draws a number, which would be one of the training's otherwise
    )
    trains = model.training
    model.eval()
    try:
        found = {
            number: _measure(model, prepare(batch), [dataset.kinds(item) for item in batches[number]])
            for number, batch in zip(mine, loader, strict=True)
        }
    finally:
        model.train(trains)
    everything = dict(pair for pairs in gathered(list(found.items())) for pair in pairs)
    whole = Measured()
    for number in range(len(batches)):
        whole.add(everything[number])
    return whole


@torch.no_grad()
def _measure(
    model: LlavaPoseForConditionalGeneration, batch: dict[str, Any], kinds: Sequence[Sequence[str]]
) -> Measured:
    batch.pop(SAMPLE_NAMES, None)
    output = model(**batch, num_items_in_batch=1, num_poses_in_batch=1)
    targets = batch["pose_targets"][:, :3].double().cpu()
    angles = torch.stack(angles_from_rotation(output.rotations.double().cpu()), -1)
    labels = batch["labels"][:, 1:].cpu().numpy()
    return Measured(
        errors=np.atleast_1d(pose_error(angles.numpy(), targets.numpy())).tolist(),
        named=_named(labels, output.hits, model.pose_config.pose_token_id, kinds),
        tokens=int((labels != IGNORE_INDEX).sum()),
        losses={name: float(value) for name, value in output.loss_terms.items()},
    )


def _named(labels: np.ndarray, hits: Tensor, pose: int, kinds: Sequence[Sequence[str]]) -> list[bool]:
    """Return, for each answer to a joint question, whether every token up to its pose is the likeliest one.

    Args:
        labels: (batch, length - 1), -100 where no token is supervised.
        hits: of the supervised tokens, row by row.
        kinds: of the questions of each row.
    """
    right = np.zeros(labels.shape, dtype=bool)
    right[labels != IGNORE_INDEX] = hits.cpu().numpy()
    named = []
    for row, asked in enumerate(kinds):
        places = np.flatnonzero(labels[row] != IGNORE_INDEX)
        answers = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        if _JOINT not in asked or len(answers) != len(asked):
            continue
        for kind, answer in zip(asked, answers, strict=True):
            poses = answer[labels[row, answer] == pose]
            if kind == _JOINT and len(poses):
                named.append(bool(right[row, answer[answer <= poses[0]]].all()))
    return named


class EarlyStop(TrainerCallback):
    """Ends a run at the evaluation that is so many after the best one: its last step is that one.

    It counts in the log that every checkpoint holds. transformers' own counts in itself, so that a run which was killed would
    stop at another step.
    """

    def __init__(self, patience: int):
        self._patience = patience
        self._had_ended = False

    def _look(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> bool:
        name = f"eval_{args.metric_for_best_model}"
        figures = np.array([entry[name] for entry in state.log_history if name in entry], dtype=np.float64)
        figures = np.nan_to_num(figures if args.greater_is_better else -figures, nan=-math.inf)
        due = len(figures) > 0 and len(figures) - 1 - int(figures.argmax()) >= self._patience
        if due:
            control.should_training_stop = True
            state.max_steps = state.global_step
        return due

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._look(args, state, control)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take no step more where the checkpoint that the run goes on from is the last."""
        self._had_ended = self._look(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave an epoch that was no more than begun as it is."""
        if self._had_ended:
            control.should_evaluate = control.should_save = False
