"""Measure how fast a step of training is and how much memory it takes, beside the plain Trainer on the same backbone with PEFT.

Each way runs in a process of its own on the same random weights, pictures and tokens, with the same LoRA on the same layers:

- plain: transformers' Trainer and the backbone's own forward, text alone; it learns no pose.
- ours: PoseTrainer, the pose parts on that backbone, and the losses of text and pose.
- cached: ours with the frozen tower's features from a cache, where the backbone can have one.

Rounds alternate between the ways. A way's figure is its best round by processor time, which other work on the machine changes
less than the clock; both are written down. Memory is the largest that the process ever held, libraries and all.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
import transformers
from pydantic import Field, PositiveInt
from torch import Tensor

from llava_pose.compact import CompactLlavaConfig
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.pictures import accepted_names, see_pictures, token_types
from llava_pose.train.trainable import add_lora, connector_modules, lora_targets
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)
Shape = Literal["compact", "llava", "llava_long", "qwen3_vl"]
WAYS = ("plain", "ours", "cached")
IMAGE_ID, POSE_ID = 3, 4


@dataclass
class TrainStepConfig:
    """Options of the benchmark."""

    shapes: list[Shape] = field(
        default_factory=lambda: ["compact", "llava", "llava_long", "qwen3_vl"],
        metadata={
            "help": "The backbones: a compact LLaVA that merges patches, LLaVA with as many image tokens, LLaVA with nine "
            "times as many, Qwen3-VL."
        },
    )
    batch: PositiveInt = field(default=16, metadata={"help": "The samples of a step."})
    steps: PositiveInt = field(
        default=2, metadata={"help": "The steps of a round that are measured, after one that is not."}
    )
    rounds: PositiveInt = field(default=2, metadata={"help": "The rounds of each way."})
    vocabulary: PositiveInt = field(default=49_152, metadata={"help": "The rows of the vocabulary."})
    hidden_size: PositiveInt = field(default=576, metadata={"help": "The width of the language model."})
    layers: PositiveInt = field(
        default=4,
        metadata={
            "help": "The layers of the language model, as many as those of scripts/recipes have; a tower has half of them."
        },
    )
    lora_r: PositiveInt = field(default=32, metadata={"help": "The rank of LoRA."})
    side: Annotated[int, Field(ge=2, multiple_of=2)] = field(
        default=16,
        metadata={
            "help": "The patches along the side of a picture where four become a token; LLaVA's has half as many."
        },
    )
    question: PositiveInt = field(default=40, metadata={"help": "The tokens of a question, beside the picture's."})
    answer: Annotated[int, Field(ge=2)] = field(
        default=20, metadata={"help": "The tokens of an answer, with its pose."}
    )
    threads: PositiveInt = field(default=1, metadata={"help": "The threads of torch."})
    out: str | None = field(default=None, metadata={"help": "The JSON file to write."})

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Round:
    """One round of one way.

    Attributes:
        seconds, processor_seconds: of a sample.
        peak_mb: of the process, megabytes.
        loss: of the last step.
    """

    seconds: float
    processor_seconds: float
    peak_mb: float
    loss: float


def patches_of(shape: Shape, config: TrainStepConfig) -> tuple[int, int]:
    """Return how many patches a picture's side has, and how many pixels a patch's."""
    sides = {"llava": config.side // 2, "llava_long": config.side // 2 * 3}
    return sides.get(shape, config.side), 16 if shape == "qwen3_vl" else 14


def backbone_of(shape: Shape, config: TrainStepConfig) -> Any:
    """Return a backbone with random weights."""
    side, patch = patches_of(shape, config)
    heads = max(1, config.hidden_size // 64)
    text = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 8 // 3,
        "num_hidden_layers": config.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    width, depth = max(8, config.hidden_size // 3 * 2 // 8 * 8), max(1, config.layers // 2)
    if shape == "qwen3_vl":
        head = config.hidden_size // heads
        thirds = [head // 2 - 2 * (head // 6), head // 6, head // 6]
        rope = {"rope_type": "default", "mrope_section": thirds, "mrope_interleaved": True, "rope_theta": 1e4}
        found: Any = transformers.Qwen3VLConfig(
            text_config={**text, "head_dim": head, "rope_parameters": rope},
            vision_config={
                "depth": depth,
                "hidden_size": width,
                "intermediate_size": width * 4,
                "num_heads": max(1, width // 64),
                "patch_size": patch,
                "out_hidden_size": config.hidden_size,
                "num_position_embeddings": side**2,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=IMAGE_ID,
            tie_word_embeddings=True,
        )
    else:
        parts = {
            "vision_config": transformers.CLIPVisionConfig(
                hidden_size=width,
                intermediate_size=width * 4,
                num_hidden_layers=depth,
                num_attention_heads=max(1, width // 64),
                image_size=side * patch,
                patch_size=patch,
            ),
            "text_config": transformers.LlamaConfig(**text),
            "image_token_index": IMAGE_ID,
            "vision_feature_layer": -1,
            "tie_word_embeddings": True,
        }
        merged = {"vision_merge": 2, "projector_norm": True}
        found = CompactLlavaConfig(**parts, **merged) if shape == "compact" else transformers.LlavaConfig(**parts)
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(found)


def pictures_of(shape: Shape, config: TrainStepConfig) -> dict[str, Tensor]:
    """Return random pictures as the backbone's image processor would give them."""
    generator, (side, patch) = torch.Generator().manual_seed(1), patches_of(shape, config)
    if shape != "qwen3_vl":
        return {"pixel_values": torch.randn(config.batch, 3, side * patch, side * patch, generator=generator)}
    patches = torch.randn(config.batch * side**2, 3 * 2 * patch**2, generator=generator)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]] * config.batch)}


def batch_of(shape: Shape, config: TrainStepConfig, backbone: Any) -> dict[str, Tensor]:
    """Return one batch as the plain forward takes it: a picture, a question, and an answer that is supervised."""
    generator = torch.Generator().manual_seed(2)
    image = patches_of(shape, config)[0] ** 2 // (1 if shape.startswith("llava") else 4)
    words = torch.randint(5, config.vocabulary, (config.batch, config.question + config.answer), generator=generator)
    words[:, -2] = POSE_ID
    ids = torch.cat([torch.full((config.batch, image), IMAGE_ID), words], 1)
    labels = ids.clone()
    labels[:, : -config.answer] = -100
    types = token_types(accepted_names(backbone), ids == IMAGE_ID)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        **types,
        **pictures_of(shape, config),
    }


def posed(backbone: Any, pictures: dict[str, Tensor]) -> LlavaPoseForConditionalGeneration:
    """Return pose parts on a backbone, as ``llava-pose assemble`` puts them there."""
    connector = "multi_modal_projector" if hasattr(backbone.base_model, "multi_modal_projector") else None
    with torch.no_grad():
        seen = see_pictures(backbone, None, pictures).output
    size = backbone.config.get_text_config().hidden_size
    pooled = size
    if connector is not None:
        pooled = getattr(backbone.config, "patch_channels", backbone.config.vision_config.hidden_size)
    model = LlavaPoseForConditionalGeneration(
        backbone,
        LlavaPoseConfig(
            pose_token_id=POSE_ID,
            image_token_id=IMAGE_ID,
            hidden_size=size,
            embedding_size=size,
            pooled_size=pooled,
            image_places=1024,
            connector=connector,
            listed_tokens=not isinstance(seen.pooler_output, Tensor),
            pose_head_attention_heads=4,
            pose_head_pooled_features=True,
        ),
    )
    model.draw_weights()
    return model


class Clock(transformers.TrainerCallback):
    """Measures the steps after the first."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.seconds, self.processor_seconds = -time.perf_counter(), -time.process_time()
        if state.global_step == state.max_steps:
            self.seconds += time.perf_counter()
            self.processor_seconds += time.process_time()


def run_round(shape: Shape, way: str, config: TrainStepConfig) -> Round:
    """Train for a few steps. For a process of its own, whose largest memory is that of this way."""
    from llava_pose.train.trainer import PoseTrainer
    from llava_pose.train.training_arguments import PoseTrainingArguments

    torch.set_num_threads(config.threads)
    transformers.logging.disable_progress_bar()
    backbone = backbone_of(shape, config)
    batch, clock = batch_of(shape, config, backbone), Clock()
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "per_device_train_batch_size": config.batch,
            "max_steps": config.steps + 1,
            "learning_rate": 1e-4,
            "save_strategy": "no",
            "logging_steps": config.steps + 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        samples: Any = list(range(config.batch * (config.steps + 1)))
        if way == "plain":
            from peft import LoraConfig, get_peft_model

            whole = connector_modules(backbone)
            lora = LoraConfig(
                r=config.lora_r, lora_alpha=64, target_modules=lora_targets(backbone), modules_to_save=whole or None
            )
            trainer: transformers.Trainer = transformers.Trainer(
                model=get_peft_model(backbone, lora),
                args=transformers.TrainingArguments(**common, remove_unused_columns=False),
                train_dataset=samples,
                data_collator=lambda _: dict(batch),
                callbacks=[clock],
            )
        else:
            model = add_lora(posed(backbone, batch), r=config.lora_r, alpha=64, dropout=0.0, tune_vision=False)
            names = ("input_ids", "attention_mask", "labels")
            given = {
                name: value for name, value in batch.items() if name in names or name.startswith(("pixel", "image"))
            }
            given["pose_targets"] = torch.rand(config.batch, 6, generator=torch.Generator().manual_seed(3))
            if way == "cached":
                patches = model.patches({"pixel_values": given.pop("pixel_values")}).clone()
                given["image_patches"] = patches
            trainer = PoseTrainer(
                model=model,
                args=PoseTrainingArguments(**common),
                train_dataset=samples,
                data_collator=lambda _: dict(given),
                callbacks=[clock],
            )
        loss = trainer.train().training_loss
    count = config.steps * config.batch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform.startswith("linux") else 1e6)
    return Round(clock.seconds / count, clock.processor_seconds / count, peak, loss)


def measure(config: TrainStepConfig) -> dict[str, Any]:
    """Measure all ways on all shapes, write the figures to the log and, if asked for, to the file; return them."""
    figures: dict[str, Any] = {}
    result = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "config": asdict(config),
        "figures": figures,
    }
    for shape in config.shapes:
        ways = [way for way in WAYS if way != "cached" or shape != "qwen3_vl"]
        rounds: dict[str, list[Round]] = {way: [] for way in ways}
        for _ in range(config.rounds):
            for way in ways:
                # a process a round: its largest memory is that of no other
                with multiprocessing.get_context("spawn").Pool(1) as alone:
                    rounds[way].append(alone.apply(run_round, (shape, way, config)))
        figures[shape] = _summary(rounds)
        for way, found in figures[shape].items():
            logger.info(
                f"{shape:10} {way:7} {found['samples_per_processor_second']:8.2f} samples a second of one core "
                f"({found['times_plain']:.2f} times the plain way), {found['peak_mb']:6.0f} MB ({found['memory_of_plain']:.2f})"
            )
        if config.out is not None:
            write_json(config.out, result)
    return result


def _summary(rounds: dict[str, Sequence[Round]]) -> dict[str, Any]:
    best = {way: min(found, key=lambda one: one.processor_seconds) for way, found in rounds.items()}
    peaks = {way: max(one.peak_mb for one in found) for way, found in rounds.items()}
    return {
        way: {
            "samples_per_processor_second": 1 / one.processor_seconds,
            "times_plain": best["plain"].processor_seconds / one.processor_seconds,
            "samples_per_second": 1 / min(each.seconds for each in rounds[way]),
            "peak_mb": peaks[way],
            "memory_of_plain": peaks[way] / peaks["plain"],
            "rounds": [asdict(each) for each in rounds[way]],
        }
        for way, one in best.items()
    }


main = command(
    TrainStepConfig,
    measure,
    prog="python scripts/benchmarks/train_step.py",
    description="Measure a step of training beside the plain Trainer on the same backbone with PEFT.",
    example="python scripts/benchmarks/train_step.py --out train_step.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
