"""transformers' Trainer with what poses need: counts over the whole step, the terms in the log, checkpoints that are whole."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import TrainOutput

from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.jsonl import append_jsonl, drop_torn_line, read_jsonl, write_jsonl
from llava_pose.errors import InputError, NonFiniteLossError, RunError
from llava_pose.model.checkpoint_files import blaming, first_sentence
from llava_pose.model.loading import ADAPTER_WEIGHTS, load_weights
from llava_pose.model.modeling import POSE_WEIGHTS, LlavaPoseForConditionalGeneration, pose_state
from llava_pose.train.checkpoints import StopAtSignal
from llava_pose.train.evaluation import EarlyStop, evaluate
from llava_pose.train.length_groups import LengthGroups
from llava_pose.train.progress import TrainingProgress
from llava_pose.train.saved_states import require_fitting_states
from llava_pose.train.trainable import parts_of
from llava_pose.utils.distributed import broadcast, gathered_parameters, is_first_process, sum_over_processes

if TYPE_CHECKING:
    from llava_pose.train.training_arguments import PoseTrainingArguments

logger = logging.getLogger(__name__)
_EXACT = ("pose_targets", "input_poses", "num_poses_in_batch")


class _WithLengths(Protocol):
    """A dataset that knows the tokens of each sample."""

    def lengths(self) -> Sequence[int]: ...


class _WithEpochs(Protocol):
    """A source of samples that differ from epoch to epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class LostWeightsError(RunError):
    """An error: what was saved is not what was trained; the message names the file and the first weight."""


class StoppedEarlyError(RunError):
    """The run took no step, or was stopped before its last one; the same command goes on with it."""


class ResumableTrainer(Trainer):
    """Trainer whose run has ended only when its last step is taken, and which takes no step without a finite loss."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lap: tuple[int, float] | None = None  # a step, and when it had ended
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        self.add_callback(TrainingProgress())
        if self.args.enable_jit_checkpoint:
            # transformers' own callback saves in the middle of a step, whose random numbers are drawn by then, so that the
            # run could not go on bit for bit; and each process would save at a step of its own
            self.pop_callback(JITCheckpointCallback)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.add_callback(StopAtSignal())

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does.

        Raises:
            InputError: an epoch holds no whole batch, where others are dropped.
            StoppedEarlyError: it ended before the last step of the recipe, for whatever reason.
        """
        batch = self.args.per_device_train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and (samples := len(cast(Sized, self.train_dataset))) < batch:
            raise InputError(
                f"--dataloader-drop-last: no step can be taken, for {samples} samples are no whole batch of "
                f"{batch}; make the batch smaller"
            )
        result = super().train(*args, **kwargs)
        reached, wanted = self.state.global_step, self.state.max_steps
        if reached == 0:
            raise StoppedEarlyError(
                f"{self.args.output_dir}: no step was taken, of {wanted}; run the same command again"
            )
        if reached < wanted:
            raise StoppedEarlyError(
                f"{self.args.output_dir}: stopped after step {reached} of {wanted}; run the same command again to go on"
            )
        return result

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return what Trainer does, and nothing once all steps are done."""
        self._lap = self._lap or (self.state.global_step, time.monotonic())
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the samples that a second of the steps takes in, over all processes."""
        if "loss" in logs and self._lap is not None:
            step, since = self._lap
            samples = (self.state.global_step - step) * self.args.train_batch_size * self.args.world_size
            seconds = max(time.monotonic() - since, 1e-9)
            logs["samples_per_second"] = round(samples * self.args.gradient_accumulation_steps / seconds, 3)
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Do as Trainer does; the time of evaluating and saving, which follow a line of the log, is none of the steps."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            self._lap = (self.state.global_step, time.monotonic())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss; one that is not finite stops the run, before the weights are no numbers any more.

        Raises:
            NonFiniteLossError: naming the samples, where the batch does.
        """
        names = inputs.pop(SAMPLE_NAMES, [])
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            where = f" in a batch of {', '.join(names)}" if names else ""
            remedy = ", or look at these samples in train.json" if names else ""
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}{where}; lower the learning rate{remedy}"
            )
        return (loss, outputs) if return_outputs else loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do as Trainer does; weights that do not suit the model are a sentence."""
        with _resuming(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Do as Trainer does; states that do not suit the model are a sentence."""
        with _resuming(checkpoint):
            if checkpoint is not None and not self.is_deepspeed_enabled:
                optimizer: Any = self.optimizer
                scheduler: Any = self.lr_scheduler  # made by now
                require_fitting_states(Path(checkpoint), getattr(optimizer, "optimizer", optimizer), scheduler)
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do as Trainer does; states that are none are a sentence."""
        with _resuming(checkpoint):
            super()._load_rng_state(checkpoint)


def _resuming(checkpoint: str | None) -> AbstractContextManager[None]:
    return blaming(f"{checkpoint}: cannot be gone on from; delete it, and the run goes on from the one before")


class PoseTrainer(ResumableTrainer):
    """Trainer for LLaVA-pose models."""

    args: PoseTrainingArguments

    def __init__(self, *args: Any, learning_rates: Mapping[str, float] | None = None, **kwargs: Any):
        """
        Args:
            learning_rates: of the parts of :func:`llava_pose.train.trainable.parts_of`; the others have that of the run.
        """
        super().__init__(*args, **kwargs)
        self.learning_rates = dict(learning_rates or {})
        self.model_accepts_loss_kwargs = True  # also behind PEFT, whose wrapper's signature does not say so
        self._terms: dict[str, torch.Tensor] = {}
        self._terms_since = 0
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStop(self.args.early_stopping_patience))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Return what Trainer does, with the number of poses in the step in each batch, as that of the tokens is."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            poses = torch.tensor(float(sum(batch["pose_targets"].shape[0] for batch in batches)), device=device)
            poses = sum_over_processes(poses)
            for batch in batches:
                batch["num_poses_in_batch"] = poses.clamp_min(1.0)
        return batches, tokens

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Return Trainer's sampler, or our own by length: Trainer's way to group wants datasets of another kind."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        groups = LengthGroups(
            cast(_WithLengths, dataset).lengths(), self._train_batch_size * self.args.world_size, seed
        )
        self.add_callback(TellEpoch(groups))
        return groups

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Do as Trainer does, but leave poses exact: DeepSpeed's bfloat16 would round an azimuth by up to a degree."""
        exact = {name: inputs[name].to(self.args.device) for name in _EXACT if name in inputs}
        return super()._prepare_inputs(inputs) | exact

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return what the trainer above does; the terms of the loss are kept for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not self._terms:
            self._terms_since = self.state.global_step
        for name, value in outputs.loss_terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.float()
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the figures of the validation samples, named ``eval_…``, and log them; the same on every process."""
        with self.compute_loss_context_manager():
            model = cast(LlavaPoseForConditionalGeneration, self.model)
            measured = evaluate(
                model,
                cast(PoseDataset, self.eval_dataset),
                cast(PoseCollator, self.data_collator),
                batch_size=self.args.per_device_eval_batch_size,
                prepare=self._prepare_inputs,
                share=(self.args.process_index, self.args.world_size),
                workers=self.args.dataloader_num_workers,
            )
        figures = measured.figures(model.pose_config)
        logs = {f"eval_{name}": round(value, 6) for name, value in figures.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the unweighted terms of the loss: their sums over micro-batches and processes are means over the step."""
        if "loss" in logs and self._terms:
            names = sorted(self._terms)
            sums = sum_over_processes(torch.stack([self._terms[name] for name in names]))
            means = sums / max(1, self.state.global_step - self._terms_since)
            logs |= {f"loss_{name}": round(mean, 6) for name, mean in zip(names, means.tolist(), strict=True)}
            self._terms = {}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save in the place of Trainer, which knows models of transformers and PEFT alone."""
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model)
            folder = output_dir or self.args.output_dir
            model.save_pretrained(folder, state_dict=state_dict)
            cast(Any, self.processing_class).save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do as Trainer does with a checkpoint of ours."""
        with _resuming(resume_from_checkpoint):
            load_weights(cast(LlavaPoseForConditionalGeneration, model or self.model), Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Do as Trainer does with a checkpoint of ours."""
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))
        logger.info(f"the weights are those of the best checkpoint, {self.state.best_model_checkpoint}")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make Trainer's optimizer, with learning rates of their own for parts of the model."""
        if self.optimizer is None and self.learning_rates:
            source: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(source))
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            parts = parts_of(source)
            for name, parameter in source.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault((parts[name], name in decayed), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, source)
            self.optimizer = optimizer_class(
                [
                    {
                        "params": parameters,
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                        "lr": self.learning_rates.get(part, self.args.learning_rate),
                    }
                    for (part, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
                ],
                **options,
            )
        return super().create_optimizer(model)


class TellEpoch(TrainerCallback):
    """Tells an order or a dataset which epoch it is: what transformers and accelerate do for it does not come through where
    processes share out the batches of an epoch that a run goes on in.
    """

    def __init__(self, listener: _WithEpochs):
        self._listener = listener

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._listener.set_epoch(int(state.epoch or 0))


class LossHistory(TrainerCallback):
    """Keeps the log as metrics.jsonl beside the run, the same but for its speed whether or not the run was stopped."""

    def __init__(self, path: Path):
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget what was logged after the checkpoint that the run goes on from."""
        if state.is_world_process_zero and self._path.exists():
            drop_torn_line(self._path)
            entries = [entry for _, entry in read_jsonl(self._path)]
            write_jsonl(self._path, [entry for entry in entries if entry["step"] <= state.global_step])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and not logs.keys().isdisjoint(("loss", "eval_loss")):
            numbers = {name: value if math.isfinite(value) else None for name, value in logs.items()}
            append_jsonl(self._path, [{"step": state.global_step, **numbers}])


def last_loss(log: Path) -> float | None:
    """Return the last training loss of a metrics.jsonl."""
    losses = [entry["loss"] for _, entry in read_jsonl(log) if "loss" in entry] if log.exists() else []
    return losses[-1] if losses else None


def require_saved_adapter(model: LlavaPoseForConditionalGeneration, folder: Path) -> None:
    """Read a saved adapter and the pose parts beside it back and compare them with the model: names, shapes and values.

    Every process must call it: where ZeRO-3 has sharded the weights, all gather them, one after the other.

    Raises:
        LostWeightsError: on every process.
    """
    from peft import get_peft_model_state_dict

    adapted: Any = model.backbone
    # tensors by the model's own names, not the state dict that was saved: under ZeRO-3 it may be what is wrong
    tensors = {**dict(adapted.named_buffers()), **dict(adapted.named_parameters())}
    for file, expected in (
        (folder / ADAPTER_WEIGHTS, get_peft_model_state_dict(adapted, state_dict=tensors, save_embedding_layers=False)),
        (folder / POSE_WEIGHTS, pose_state(dict(model.named_parameters()))),
    ):
        _require_saved(file, expected)


def _require_saved(file: Path, expected: Mapping[str, torch.Tensor]) -> None:
    reads = is_first_process()
    problem, stored = None, {}
    try:
        stored = load_file(file) if reads else {}
    except (OSError, SafetensorError) as error:  # the other processes wait below
        problem = f"cannot be read ({first_sentence(error)})"
    if problem is None and reads and stored.keys() != expected.keys():
        lost, strange = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
        problem = f"{lost[0]} is missing" if lost else f"{strange[0]} is not of the model"
    for name, tensor in sorted(expected.items()):
        with gathered_parameters([tensor]):
            if problem is None and reads:
                problem = _difference(name, stored[name], tensor)
    problem = broadcast(problem)
    if problem is not None:
        raise LostWeightsError(
            f"{file}: was read back, and {problem}; see that the disk is sound and not full, and run the same command again"
        )


def _difference(name: str, stored: torch.Tensor, trained: torch.Tensor) -> str | None:
    if stored.shape != trained.shape:
        return f"{name} has the shape {tuple(stored.shape)} instead of {tuple(trained.shape)}"
    same = torch.equal(stored, trained.detach().to(device="cpu", dtype=stored.dtype))
    return None if same else f"{name} has other values than were trained"
