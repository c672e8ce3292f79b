"""The arguments of a training run: the model to start from, the data, and the run itself.

Nothing heavy is imported here, so that ``--help`` is there at once. :mod:`llava_pose.train.training_arguments` joins
:class:`RunOptions` with transformers' TrainingArguments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from llava_pose.errors import InputError
from llava_pose.utils.config import check_fields, parse_configs
from llava_pose.utils.values import Name, Positive, Rate

if TYPE_CHECKING:
    from llava_pose.train.training_arguments import PoseTrainingArguments

CLASS_FIGURE = "class_accuracy"
# figure of an evaluation -> whether it is to grow
FIGURES = {"acc_30": True, "acc_10": True, CLASS_FIGURE: True, "median_deg": False, "loss": False}
_SCHEDULE = "How the learning rate falls, as transformers names it."
_WARMUP = "The steps in which the learning rate rises: a number, or under 1 a share of all."


@dataclass(kw_only=True)
class ModelArguments:
    """The base to start from, and which of its parts train."""

    model: Name = field(metadata={"help": "The base: a folder that llava-pose assemble made, or a hub id."})
    language: Literal["full", "lora", "frozen"] = field(
        default="lora", metadata={"help": "Train all of the language model, LoRA adapters on it, or nothing of it."}
    )
    lora_r: PositiveInt = field(default=128, metadata={"help": "The rank of LoRA."})
    lora_alpha: Positive = field(default=256, metadata={"help": "The scale of LoRA."})
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = field(
        default=0.05, metadata={"help": "The dropout before LoRA's layers."}
    )
    quantize: Literal["none", "nf4"] = field(
        default="none", metadata={"help": "Keep the language model in 4 bits (nf4) under its adapters: QLoRA."}
    )
    tune_embeddings: bool = field(
        default=True, metadata={"help": "Train the token embeddings as well, with --language full."}
    )
    tune_vision: bool = field(default=False, metadata={"help": "Train the vision tower as well."})
    text_loss_weight: Rate | None = field(
        default=None,
        metadata={
            "help": "The weight of a token's cross-entropy beside the loss of the pose; by default the base's, which is 1. "
            "A category is one or two tokens of an answer of nine: try 3 or 4 where many are to be told apart."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.quantize != "none" and self.language != "lora":
            raise InputError("--quantize nf4: trains adapters only; it needs --language lora")


@dataclass(kw_only=True)
class DataArguments:
    """The samples, and how their pictures are shown."""

    data: Name = field(metadata={"help": "The prepared folder, which the paths of pictures are relative to."})
    train_json: Name = field(metadata={"help": "The samples, made by llava-pose instruct."})
    flip: bool = field(
        default=True,
        metadata={
            "help": 'Train on the mirror image, too, of each sample with "flippable": true. instruct writes it for '
            "categories whose plane of symmetry is x = 0 (car, chair, …), not for cups, guitars and custom ones."
        },
    )
    augment: NonNegativeInt = field(
        default=0,
        metadata={
            "help": "Train on so many changed pictures of each sample (and of its mirror image) with exact poses: rolled, "
            "nearer or farther and shifted where the answer's words allow it, in other light. 0 leaves them as they are."
        },
    )
    cache_features: bool | None = field(
        default=None,
        metadata={
            "help": "Compute a frozen tower's features once. By default whenever the tower is frozen and nothing is augmented."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "The folder of these features; by default DATA/.features."}
    )
    max_length: PositiveInt | None = field(
        default=None,
        metadata={
            "help": "The most tokens of a sample, by default the language model's positions; nothing is ever cut."
        },
    )
    drop_long: bool = field(
        default=False, metadata={"help": "Drop samples that are longer, and log them; otherwise they are an error."}
    )
    val_json: Name | None = field(
        default=None,
        metadata={
            "help": "Samples to evaluate on while the run trains, with --eval-strategy: made by llava-pose instruct, of "
            "another split of the same prepared folder."
        },
    )
    val_samples: PositiveInt = field(
        default=1024, metadata={"help": "The most samples of --val-json that are asked, the same ones in every run."}
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cache_features and self.augment:
            raise InputError("--cache-features: holds pictures as they are; set --augment to 0")

    def caches_features(self, *, tower_trains: bool) -> bool:
        """Return whether the tower's features are computed once."""
        return not (tower_trains or self.augment) if self.cache_features is None else self.cache_features


@dataclass(kw_only=True)
class RunOptions:
    """Options of every training run, whatever it trains; each replaces the field of that name of TrainingArguments."""

    output_dir: Name = field(metadata={"help": "The folder of checkpoints, of the log and of the result."})
    resume: bool = field(
        default=True, metadata={"help": "Go on from the last whole checkpoint in the output folder, if there is one."}
    )
    per_device_train_batch_size: PositiveInt = field(
        default=16, metadata={"help": "The samples of a step on each device."}
    )
    gradient_accumulation_steps: PositiveInt = field(
        default=1, metadata={"help": "The batches whose gradients make one step."}
    )
    num_train_epochs: Annotated[Positive, Field(le=1e6)] = field(
        default=1.0, metadata={"help": "The passes over the samples, mirror images included."}
    )
    max_steps: int = field(
        default=-1, metadata={"help": "The steps of the run, instead of epochs, where it is over 0."}
    )
    learning_rate: Rate = field(default=2e-4, metadata={"help": "The learning rate at its height."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": _SCHEDULE})
    warmup_steps: Rate = field(default=0.0, metadata={"help": _WARMUP})
    weight_decay: Rate = field(default=0.0, metadata={"help": "The weight decay of AdamW."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16, on a GPU that has it."})
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = field(
        default="random",
        metadata={
            "help": "The order of an epoch: random, the file's, or random with samples of like length in a batch, so that "
            "less of it is padding."
        },
    )
    logging_steps: Positive = field(default=10, metadata={"help": "The steps between two lines of the log."})
    save_steps: Positive = field(default=200, metadata={"help": "The steps between two checkpoints."})
    save_total_limit: Annotated[int, Field(ge=2)] | None = field(
        # the one before is deleted before the new one is whole
        default=2,
        metadata={"help": "The checkpoints that are kept, at least two."},
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = field(
        default=42, metadata={"help": "The seed of the order, of dropout and of new weights."}
    )
    dataloader_num_workers: NonNegativeInt = field(default=0, metadata={"help": "The processes that load pictures."})
    report_to: str | list[str] = field(
        default="none", metadata={"help": "Where the log goes as well: tensorboard, wandb, …"}
    )
    deepspeed: str | None = field(
        default=None, metadata={"help": "A DeepSpeed configuration, such as zero_configs/zero2.json."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})


@dataclass(kw_only=True)
class PoseRunOptions(RunOptions):
    """Options of a LLaVA-pose run, whose defaults are those of LLaVA's LoRA recipe."""

    lr_scheduler_type: str = field(default="cosine", metadata={"help": _SCHEDULE})
    warmup_steps: Rate = field(default=0.03, metadata={"help": _WARMUP})

    new_module_learning_rate: Rate | None = field(
        default=None,
        metadata={"help": "The learning rate of projector, pose head and pose encoder; by default --learning-rate."},
    )
    vision_learning_rate: Rate | None = field(
        default=None, metadata={"help": "The learning rate of the vision tower, with --tune-vision."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Say what the run takes (memory, disk, steps, hours), and do not train. It needs no GPU."},
    )
    eval_strategy: Literal["no", "steps", "epoch"] = field(
        default="no",
        metadata={"help": "When to evaluate on --val-json: never, every --eval-steps, or after each epoch."},
    )
    eval_steps: Positive | None = field(
        default=None, metadata={"help": "The steps between two evaluations; by default --save-steps."}
    )
    per_device_eval_batch_size: PositiveInt = field(
        default=16, metadata={"help": "The samples of a batch of an evaluation, on each device."}
    )
    metric_for_best_model: Literal["acc_30", "acc_10", "class_accuracy", "median_deg", "loss"] = field(
        default="acc_30",
        metadata={"help": "The figure of the evaluations by which the best checkpoint is told, which is always kept."},
    )
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "End with the weights of the best checkpoint in place of the last ones."}
    )
    early_stopping_patience: PositiveInt | None = field(
        default=None, metadata={"help": "End the run after so many evaluations without a better one."}
    )


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, PoseTrainingArguments]:
    """Read the arguments of ``train.py`` from a YAML recipe and the command line.

    Raises:
        InputError: an option is not known, missing, out of its bounds or refused.
        SystemExit: ``--help`` was given (0).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    training: type = PoseRunOptions
    closing = "\nEvery other option of transformers' TrainingArguments that is not refused is taken too; --help-all shows them."
    if "--help-all" in words or not {"-h", "--help"} & set(words):
        from llava_pose.train.training_arguments import PoseTrainingArguments  # seconds, which --help does without

        words = ["--help" if word == "--help-all" else word for word in words]
        training, closing = PoseTrainingArguments, ""
    return parse_configs(  # type: ignore[return-value]
        (ModelArguments, DataArguments, training),
        words,
        prog="llava-pose train",
        description="Fine-tune a LLaVA-pose base on instruction data. python, torchrun and deepspeed start it as train.py.",
        example="llava-pose train --config scripts/recipes/quickstart.yaml --model base --data prepared \\\n"
        "      --train-json train.json --output-dir runs/first",
        closing=closing,
    )
