"""Fine-tuning: one YAML recipe is one run. ``train.py`` at the root is this file's main."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import set_seed

from llava_pose.data.collator import PoseCollator
from llava_pose.data.dataset import PoseDataset, read_samples
from llava_pose.errors import InputError
from llava_pose.model.loading import load_full, load_processor, require_fit, unwrap_model
from llava_pose.model.processing import LlavaPoseProcessor
from llava_pose.train.checkpoints import CompleteCheckpoints, last_complete_checkpoint
from llava_pose.train.feature_cache import FeatureCache, build_feature_cache
from llava_pose.train.run import DONE_MARK, TRAINED_ON, RunConfig, mark_done, require_same_recipe, start_over
from llava_pose.train.trainable import LANGUAGE_MODES, add_lora, count_parameters, freeze_for, train_in_float32
from llava_pose.train.trainer import LossHistory, PoseTrainer, ResumableTrainer, require_saved_adapter
from llava_pose.utils.config import command, require_folder, save_config
from llava_pose.utils.distributed import broadcast, first_process_holds, gathered_parameters, join_deepspeed, this_place
from llava_pose.utils.files import write_json
from llava_pose.utils.output_folder import own_folder

logger = logging.getLogger(__name__)
RECIPE_FILE = "train.yaml"  # beside the checkpoint: what the run was


@dataclass
class TrainConfig(RunConfig):
    """A run: transformers' TrainingArguments, with our defaults, and what LLaVA-pose adds."""

    sampling_strategies: ClassVar[tuple[str, ...]] = (*RunConfig.sampling_strategies, "group_by_length")

    model: str | None = field(default=None, metadata={"help": "the base: a folder of llava-pose assemble, or a hub id"})
    train_json: str | None = field(default=None, metadata={"help": "the samples, made by llava-pose instruct"})
    language: str = field(default="lora", metadata={"help": "what trains of the language model: full, lora or frozen"})
    lora_r: int = field(default=128, metadata={"help": "rank of LoRA"})
    lora_alpha: float = field(default=256, metadata={"help": "scale of LoRA"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout of LoRA"})
    quantize: str = field(default="none", metadata={"help": "none, or nf4: QLoRA, with --language lora"})
    tune_embeddings: bool = field(default=True, metadata={"help": "train token embeddings, with --language full"})
    tune_vision: bool = field(default=False, metadata={"help": "train the vision tower too"})
    new_module_learning_rate: float | None = field(
        default=None, metadata={"help": "for projector, pose head and encoder; default: learning_rate"}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "for the vision tower, with --tune-vision; default: learning_rate"}
    )
    text_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "of the cross-entropy a token, beside the pose's loss; default: the base's (1). A category is one or two "
            "tokens of an answer of nine: 3 or 4 where many categories are to be told apart"
        },
    )
    flip: bool = field(
        default=True,
        metadata={
            "help": 'train on the mirror image, too, of each sample with "flippable": true in train.json; instruct writes it '
            "for categories whose plane of symmetry is x = 0 (car, chair, …), not for cups, guitars and custom ones"
        },
    )
    augment: int = field(
        default=0,
        metadata={
            "help": "train on so many changed pictures of each sample (and of its mirror image), their poses exact: rolled, "
            "nearer or farther and shifted where the answer's words allow it, in other light; 0: on the pictures as they are"
        },
    )
    cache_features: bool | None = field(
        default=None,
        metadata={
            "help": "compute a frozen tower's features once; default: whenever the tower is frozen and nothing is augmented"
        },
    )
    cache_dir: str | None = field(default=None, metadata={"help": "of the features; default: DATA/.features"})
    max_length: int | None = field(
        default=None, metadata={"help": "tokens a sample at most; image tokens are never cut"}
    )
    drop_long: bool = field(default=False, metadata={"help": "drop (and log) samples over max_length: else an error"})

    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "the order of an epoch: random; sequential (the file's); group_by_length: samples of like length share a "
            "batch, so that less of it is padding"
        },
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "samples a step and device"})
    learning_rate: float = field(default=2e-4, metadata={"help": "of the language model (LLaVA's LoRA recipe)"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "as transformers names them"})
    warmup_steps: float = field(default=0.03, metadata={"help": "a share of all steps, or their number"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the samples, mirror images included"})
    logging_steps: float = field(default=10, metadata={"help": "steps between lines of the log"})
    save_steps: float = field(default=200, metadata={"help": "steps between checkpoints"})

    def __post_init__(self) -> None:
        self.require("model", "data", "train_json", "output_dir")
        if self.language not in LANGUAGE_MODES:
            raise InputError(f"--language {self.language}: not known; choose one of {', '.join(LANGUAGE_MODES)}")
        if self.quantize not in ("none", "nf4"):
            raise InputError(f"--quantize {self.quantize}: not known; choose none or nf4")
        if self.quantize != "none" and self.language != "lora":
            raise InputError("--quantize nf4 trains adapters only: it needs --language lora")
        if self.lora_r < 1:
            raise InputError(f"--lora-r {self.lora_r}: must be at least 1")
        if not 0 < self.lora_alpha < math.inf:
            raise InputError(f"--lora-alpha {self.lora_alpha}: must be over 0")
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"--lora-dropout {self.lora_dropout}: must be at least 0 and less than 1")
        if self.text_loss_weight is not None and not 0 <= self.text_loss_weight < math.inf:
            raise InputError(f"--text-loss-weight {self.text_loss_weight}: must be a number that is not negative")
        if self.augment < 0:
            raise InputError(f"--augment {self.augment}: must not be negative")
        if self.cache_features and self.augment:
            raise InputError("--cache-features holds pictures as they are: set augment to 0")
        if self.cache_features and self.tune_vision:
            raise InputError("--cache-features needs a frozen tower: set tune_vision to false")
        if self.vision_learning_rate is not None and not self.tune_vision:
            raise InputError("--vision-learning-rate has no effect on a frozen tower: set tune_vision to true")
        if self.use_liger_kernel:
            raise InputError(
                "use_liger_kernel: its fused cross-entropy passes the trained row of <pose6D> by; leave it off"
            )
        if not self.average_tokens_across_devices:
            raise InputError(
                "average_tokens_across_devices: must stay true, or the loss depends on how the batch is split"
            )
        if self.ddp_find_unused_parameters is None:
            # every other module runs on every batch, but behind the feature layers a tower has some that nothing uses
            self.ddp_find_unused_parameters = self.tune_vision
        super().__post_init__()
        if self.quantize != "none" and is_deepspeed_zero3_enabled():
            raise InputError(
                "--quantize nf4: ZeRO-3 cannot shard 4-bit weights; give --deepspeed zero_configs/zero2.json"
            )
        if self.n_gpu > 1:
            logger.warning(
                f"training on one of {self.n_gpu} GPUs; for all of them start train.py with deepspeed or torchrun"
            )
            self._n_gpu = 1  # transformers would split each batch among threads, and the poses not by their samples

    @property
    def training_file(self) -> Path:
        return Path(self.train_json)

    @property
    def caches_features(self) -> bool:
        if self.cache_features is None:
            return not self.tune_vision and not self.augment
        return self.cache_features

    @property
    def learning_rates(self) -> dict[str, float]:
        """Of the parts of the model that have one of their own."""
        rates = {"new": self.new_module_learning_rate, "vision": self.vision_learning_rate}
        return {part: rate for part, rate in rates.items() if rate is not None}


def train(config: TrainConfig) -> Path:
    """Run, or go on with, a recipe; the checkpoint to use afterwards is ``output_dir`` itself.

    Raises:
        InputError: bad data or settings, or the folder holds a run of another recipe.
        NonFiniteLossError: the loss became NaN or infinite.
        LostWeightsError: a saved adapter is not what was trained.
    """
    output = Path(config.output_dir)
    with first_process_holds(own_folder(output, "--output_dir", "train")):
        return _train(config, output)


def _train(config: TrainConfig, output: Path) -> Path:
    require_same_recipe(config, output / RECIPE_FILE)
    if (output / DONE_MARK).is_file() and config.resume:
        logger.info(f"{output}: this run has ended; give --resume false or choose another output_dir to run again")
        return output
    require_folder(config.data, "--data", "make it with llava-pose prepare")
    samples = read_samples(config.train_json)
    set_seed(config.seed)
    if config.deepspeed:  # which compiles a kernel at its first start
        join_deepspeed()
    processor = load_processor(config.model)
    model = build_model(config)
    require_fit(model, processor, config.model)
    dataset = build_dataset(config, samples, processor, model)
    parameters = count_parameters(model)
    logger.info(
        f"{len(dataset)} samples (mirror images included), {parameters['trainable'] / 1e6:.2f} M of "
        f"{parameters['all'] / 1e6:.2f} M parameters train"
    )
    history = LossHistory(output / "log.jsonl")
    trainer = PoseTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        data_collator=PoseCollator(processor, runs_tower=dataset.cache is None),
        processing_class=processor,
        learning_rates=config.learning_rates,
        callbacks=[history],
    )
    run_to_end(trainer, config, RECIPE_FILE)
    if config.language == "lora":
        require_saved_adapter(model, output)
    if trainer.is_world_process_zero():
        processor.save_pretrained(output)
        mark_done(output, {"steps": trainer.state.global_step, "loss": history.last_loss(), **parameters})
        logger.info(f"done: the checkpoint is {output}")
        logger.info(
            f"next: llava-pose predict --checkpoint {output} --data {config.data} --split val --out predictions.jsonl"
        )
    trainer.accelerator.wait_for_everyone()
    return output


def build_model(config: TrainConfig) -> nn.Module:
    """The base with what the recipe trains set to train."""
    kwargs: dict[str, Any] = {}
    if config.quantize == "nf4":
        kwargs["quantization_config"] = _nf4()
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    model = load_full(config.model, dtype=dtype, **kwargs)
    model.config.use_cache = False
    if config.text_loss_weight is not None:
        model.config.text_loss_weight = config.text_loss_weight
    if config.language == "lora":
        model = add_lora(
            model,
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            tune_vision=config.tune_vision,
        )
    else:
        freeze_for(
            model, language=config.language, tune_embeddings=config.tune_embeddings, tune_vision=config.tune_vision
        )
    if not config.deepspeed:  # which keeps a float32 copy of what trains itself
        train_in_float32(model)
        unwrap_model(model).model.put_channels_last()
    return model


def _nf4() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        # names from the root: bitsandbytes matches their beginning
        llm_int8_skip_modules=[
            "model.vision_tower",
            "model.multi_modal_projector",
            "pose_head",
            "pose_encoder",
            "lm_head",
        ],
    )


def build_dataset(
    config: TrainConfig, samples: list[dict[str, Any]], processor: LlavaPoseProcessor, model: nn.Module
) -> PoseDataset:
    """The samples, with the frozen tower's features beside them where the recipe allows it."""
    dataset = PoseDataset(
        samples,
        config.data,
        processor,
        flip=config.flip,
        augment=config.augment,
        max_length=config.max_length,
        drop_long=config.drop_long,
        positions=getattr(unwrap_model(model).config.text_config, "max_position_embeddings", None),
    )
    if config.caches_features:  # after the samples are known to be good: it takes long
        dataset.cache = _features(config, samples, processor, model)
    return dataset


def _features(
    config: TrainConfig, samples: list[dict[str, Any]], processor: LlavaPoseProcessor, model: nn.Module
) -> FeatureCache | None:
    images = sorted({sample["image"] for sample in samples if sample.get("image")})
    if not images:
        return None
    place = this_place()
    cache_dir = Path(config.cache_dir or Path(config.data) / ".features")
    if place.nodes > 1:  # a memory map must not be written from two machines
        cache_dir = cache_dir / f"node{place.node}"
    base = unwrap_model(model)
    with gathered_parameters(base.model.vision_tower.parameters()):
        base.model.vision_tower.to(config.device)
        cache = build_feature_cache(
            cache_dir,
            config.data,
            images,
            base,
            processor.image_processor,
            flips=config.flip,
            device=config.device,
            share=(place.index, place.count),
        )
    broadcast(None)  # the others have computed their share too
    return cache


def run_to_end(trainer: ResumableTrainer, config: RunConfig, recipe: str) -> None:
    """Train, or go on from the last whole checkpoint, and save the model; the settings go to the file ``recipe`` of the
    output folder before.
    """
    output = Path(config.output_dir)
    trainer.add_callback(CompleteCheckpoints(trainer.accelerator))
    checkpoint = find_checkpoint(config)
    if trainer.is_world_process_zero():
        if not config.resume:
            start_over(config)
        save_config(config.resolved(), output / recipe)
        if checkpoint is None:
            write_json(output / TRAINED_ON, {"digest": config.training_digest})
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(output))


def find_checkpoint(config: RunConfig) -> Path | None:
    """The checkpoint to go on from; every process gets the same answer."""
    if not config.resume:
        return None
    checkpoint = broadcast(last_complete_checkpoint(Path(config.output_dir)) if config.process_index == 0 else None)
    if checkpoint is not None:
        logger.info(f"going on from {checkpoint}")
    return checkpoint


main = command(
    TrainConfig,
    train,
    prog="llava-pose train",
    description="Fine-tune a LLaVA-pose base on instruction data. train.py is the same, for python, torchrun and deepspeed.",
    example="llava-pose train --config scripts/recipes/quickstart.yaml --output-dir runs/first",
)

if __name__ == "__main__":
    raise SystemExit(main())
