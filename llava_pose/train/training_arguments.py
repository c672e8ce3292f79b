"""transformers' TrainingArguments with our defaults: each field is honoured, or refused before a model is loaded.

A run here promises to go on bit for bit after a kill, and to compute the loss of the whole optimiser step. Fields that would
break one of the two, or that nothing here reads, are refused by name; ``--help`` does not show them.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    is_deepspeed_zero3_enabled,
)

from llava_pose.data.jsonl import parse_json
from llava_pose.errors import InputError
from llava_pose.train.arguments import FIGURES, DataArguments, ModelArguments, PoseRunOptions, RunOptions
from llava_pose.utils.config import check_fields
from llava_pose.utils.distributed import leave_at_exit
from llava_pose.utils.files import read_text

logger = logging.getLogger(__name__)

_NO_EVALUATION = "a run of this kind evaluates nothing while it trains; predict with its result and score that"
_NO_LOGITS = "an evaluation keeps sums and errors, and no logits"
_AS_TRAINING = "an evaluation computes as training does"
_NO_HUB = "a run uploads nothing; upload the finished folder"
_NO_RESUMING = "a run that was killed could not go on bit for bit"
_OWN_LOSS = "the loss is the model's own, which does not read it"
_OTHER_SPLIT = "the loss would depend on how a batch is split"
_ZERO_INSTEAD = "is not supported; shard with --deepspeed zero_configs/zero3.json"
_NOT_READ = "has no effect here"
_MEASURED_BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules
# fields of a run that evaluates, which all others refuse
EVALUATION = (
    *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size"),
    *("load_best_model_at_end", "metric_for_best_model"),
)
# field -> why another value than transformers' default is refused
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics"),
            *("batch_eval_metrics", "prediction_loss_only"),
        ),
        _NO_LOGITS,
    ),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _AS_TRAINING),
    "greater_is_better": "each figure knows whether it is to grow",
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
            *("hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ),
        _NO_HUB,
    ),
    **dict.fromkeys(
        ("save_only_model", "ignore_data_skip", "auto_find_batch_size", "dataloader_in_order", "eval_on_start"),
        _NO_RESUMING,
    ),
    **dict.fromkeys(("label_smoothing_factor", "label_names", "neftune_noise_alpha"), _OWN_LOSS),
    **dict.fromkeys(("average_tokens_across_devices", "accelerator_config"), _OTHER_SPLIT),
    **dict.fromkeys(("fsdp", "fsdp_config", "parallelism_config"), _ZERO_INSTEAD),
    **dict.fromkeys(("length_column_name", "optim_target_modules", "use_cache", "debug"), _NOT_READ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _NOT_READ),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "its fused loss passes the row of <pose6D> by"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), "is not tested with a pose head"),
    "ddp_static_graph": "the parts that take part differ where a batch has no picture or no pose",
    "restore_callback_states_from_checkpoint": "a run that goes on has the callbacks of its command",
    "resume_from_checkpoint": "a run goes on from its last whole checkpoint by itself, or starts over with --no-resume",
    "save_on_each_node": "the first process writes; see that its folder is on a disk that all nodes see",
}


@dataclass(kw_only=True)
class RunArguments(RunOptions, TrainingArguments):  # type: ignore[misc]  # its fields replace those of that name
    """TrainingArguments as every run here has them."""

    refused: ClassVar[Mapping[str, str]] = {**REFUSED, **dict.fromkeys(EVALUATION, _NO_EVALUATION)}
    hidden_options: ClassVar[frozenset[str]] = frozenset((*refused, "remove_unused_columns", "local_rank"))
    sampling_strategies: ClassVar[tuple[str, ...]] = ("random", "sequential")

    remove_unused_columns: bool = False  # or samples would reach the collator without their names

    def __post_init__(self) -> None:
        """
        Raises:
            InputError: a field is out of its bounds, refused, or cannot be had on this machine.
        """
        check_fields(self, {name for kind in type(self).__mro__ for name in _own_fields(kind)})
        self._refuse()
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise InputError("--num-train-epochs: must be over 0, or --max-steps given")
        if self.train_sampling_strategy not in self.sampling_strategies:
            raise InputError(
                f"--train-sampling-strategy {self.train_sampling_strategy}: not for this kind of run; choose one of "
                f"{', '.join(self.sampling_strategies)}"
            )
        _require_reporters(self.report_to)
        _require_deepspeed_config(self.deepspeed)
        if Path(self.output_dir).is_file():
            raise InputError(f"--output-dir {self.output_dir}: is a file; give a folder")
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        for name in ("bf16", "fp16"):
            if getattr(self, name) and self.use_cpu:
                raise InputError(f"--{name}: half precision is for a GPU, and this run is on the CPU; leave it out")
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        try:
            super().__post_init__()  # which joins the processes of a launcher
            _try_optimizer(self)
            _try_loader(self)
            self.get_process_log_level()
        except InputError:
            raise
        except (ValueError, ImportError, TypeError, KeyError) as error:
            raise InputError(f"the training options: {' '.join(str(error).split())[:300]}") from error
        leave_at_exit()
        if self.n_gpu > 1:
            logger.warning(f"training on one of {self.n_gpu} GPUs; for all of them start it with deepspeed or torchrun")
            self._n_gpu = 1  # transformers would split each batch among threads, and the poses not by their samples

    def _refuse(self) -> None:
        for name, default in _transformers_defaults().items():
            value = getattr(self, name)
            if name in self.refused and value != default and str(value) != str(getattr(default, "value", default)):
                raise InputError(f"--{name.replace('_', '-')} {value}: {self.refused[name]}; leave it out")
        if str(getattr(self.save_strategy, "value", self.save_strategy)) == "best":
            raise InputError(
                "--save-strategy best: a run that was killed would go back to its best step; save at intervals, which keeps "
                "the best checkpoint as well"
            )
        if self.lr_scheduler_type in _MEASURED_BY_EVALUATION:
            raise InputError(
                f"--lr-scheduler-type {self.lr_scheduler_type}: its rates would hang on a sample of the validation set; "
                "choose another"
            )
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            if isinstance(options := getattr(self, name), str):
                options = json.loads(options) if options.startswith("{") else {options: None}
            if set(options or {}) - {"use_reentrant"}:
                raise InputError(
                    f'--{name.replace("_", "-")}: takes use_reentrant alone, as {{"use_reentrant": false}}'
                )
        if self.remove_unused_columns:
            raise InputError(
                "--remove-unused-columns: samples would reach the collator without their names; leave it out"
            )


@dataclass(kw_only=True)
class PoseTrainingArguments(PoseRunOptions, RunArguments):  # type: ignore[misc]  # as above
    """The arguments of a LLaVA-pose run."""

    refused: ClassVar[Mapping[str, str]] = REFUSED
    hidden_options: ClassVar[frozenset[str]] = frozenset((*REFUSED, "remove_unused_columns", "local_rank"))
    sampling_strategies: ClassVar[tuple[str, ...]] = ("random", "sequential", "group_by_length")

    def __post_init__(self) -> None:
        """
        Raises:
            InputError: as any run's, or an option of evaluations is given to a run without.
        """
        evaluates = str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"
        if evaluates:
            self.eval_steps = self.eval_steps or self.save_steps
            # the best one is kept beside the last two, of which the older is removed before the newer is whole
            self.save_total_limit = self.save_total_limit and max(3, self.save_total_limit)
        else:
            for name in ("eval_steps", "load_best_model_at_end", "early_stopping_patience"):
                if value := getattr(self, name):
                    raise InputError(
                        f"--{name.replace('_', '-')} {value}: has no effect on a run that evaluates nothing; give "
                        "--eval-strategy steps"
                    )
        asked = self.deepspeed, self.bf16, self.fp16
        if self.dry_run:  # which wants no GPU, and builds its model without DeepSpeed
            _require_deepspeed_config(self.deepspeed)
            self.deepspeed, self.bf16, self.fp16 = None, False, False
        super().__post_init__()
        self.deepspeed, self.bf16, self.fp16 = asked if self.dry_run else (self.deepspeed, self.bf16, self.fp16)
        self.greater_is_better = FIGURES[self.metric_for_best_model]

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the parts that have one of their own (:func:`llava_pose.train.trainable.parts_of`)."""
        rates = {"new": self.new_module_learning_rate, "vision": self.vision_learning_rate}
        return {part: rate for part, rate in rates.items() if rate is not None}


def require_compatible(model: ModelArguments, data: DataArguments, training: PoseTrainingArguments) -> None:
    """Hold the three against one another, and settle what one decides for another.

    Raises:
        InputError: two options do not go together.
    """
    if data.cache_features and model.tune_vision:
        raise InputError("--cache-features: needs a frozen tower; leave out --tune-vision")
    if training.vision_learning_rate is not None and not model.tune_vision:
        raise InputError("--vision-learning-rate: has no effect on a frozen tower; give --tune-vision as well")
    if (data.val_json is None) != (training.eval_strategy == "no"):
        raise InputError(
            "--val-json: is for a run that evaluates; give --eval-strategy steps as well"
            if data.val_json
            else "--eval-strategy: there is nothing to evaluate on; give --val-json as well"
        )
    if model.quantize != "none" and is_deepspeed_zero3_enabled():
        raise InputError("--quantize nf4: ZeRO-3 cannot shard 4-bit weights; give --deepspeed zero_configs/zero2.json")
    if training.ddp_find_unused_parameters is None:
        # every other module runs on every batch, but behind the feature layers a tower has some that nothing uses
        training.ddp_find_unused_parameters = model.tune_vision


def _own_fields(kind: type) -> list[str]:
    if kind.__module__.startswith("transformers.") or not dataclasses.is_dataclass(kind):
        return []
    return [name for name in inspect.get_annotations(kind) if name in {f.name for f in dataclasses.fields(kind)}]


def _transformers_defaults() -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(TrainingArguments)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }


def _try_optimizer(args: TrainingArguments) -> None:
    """Make optimiser and schedule of one number, so that what they refuse is refused now and not after a model is loaded."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = optimizer_class([parameter], **options)
    for key in (pair.partition("=")[0].strip() for pair in (args.optim_args or "").split(",") if pair.strip()):
        if key not in options and not key.startswith("beta"):  # which become one pair of numbers
            raise InputError(f"--optim-args {key}: has no effect on --optim {getattr(args.optim, 'value', args.optim)}")
    kwargs = cast(dict[str, Any], args.lr_scheduler_kwargs or {})  # transformers has parsed a text
    get_scheduler(
        args.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=2, scheduler_specific_kwargs=kwargs
    )


def _try_loader(args: TrainingArguments) -> None:
    """Make a loader with the workers that are asked for; none is started before it is iterated over."""
    DataLoader(
        [0],  # type: ignore[arg-type]
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def _require_reporters(report_to: str | list[str] | None) -> None:
    names = report_to if isinstance(report_to, list) else [report_to or "none"]
    for name in set(names) - {"none", "all"}:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise InputError(f"--report-to {name}: is not known; choose none or one of {known}")
        if name not in get_available_reporting_integrations():
            package = "'llava-pose[tensorboard]'" if name == "tensorboard" else "its package"
            raise InputError(f"--report-to {name}: is not installed; install {package}, or leave it at none")


def _require_deepspeed_config(path: str | None) -> None:
    if path is None:
        return
    if not Path(path).is_file():
        there = sorted(map(str, Path("zero_configs").glob("*.json")))
        near = difflib.get_close_matches(path, there, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(there)}" if there else ""
        raise InputError(f"--deepspeed {path}: there is no such file{hint}")
    remedy = "give one of zero_configs/, or mend it"
    text = read_text(path, name=f"--deepspeed {path}", remedy=remedy, most=1 << 20)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise InputError(f"--deepspeed {path}: is not JSON ({error}); {remedy}") from error
    zero = values.get("zero_optimization", {}) if isinstance(values, dict) else None
    if not isinstance(zero, dict):
        raise InputError(f"--deepspeed {path}: must hold an object, and zero_optimization another; {remedy}")
    if zero.get("stage", 0) not in (0, 1, 2, 3):
        raise InputError(f"--deepspeed {path}: the stage of zero_optimization must be 0, 1, 2 or 3; {remedy}")
    for name in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(name), dict | None):
            raise InputError(f"--deepspeed {path}: {name} of zero_optimization must be an object; {remedy}")
