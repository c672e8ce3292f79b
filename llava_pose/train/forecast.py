"""Memory, disk and time of a run by arithmetic, from the sizes of its model and of its batches.

docs/TRAINING.md says how far these figures were from runs that were measured (scripts/benchmarks/forecast.py).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_pose.train.sizes import Sizes
from llava_pose.train.training_arguments import PoseTrainingArguments

GB = 1e9
_RUNTIME = 1.2 * GB  # the CUDA context and the work space of libraries
_FRAGMENTS = 1.05  # what the allocator holds and nothing uses
_GATHERED = 10**9  # the most weights that ZeRO-3 keeps whole at a time, and updates at a time; zero_configs/ say so
# bytes of a weight's states, by the beginnings of optimisers' names; Adam's two are 8
_STATES = {"sgd": 0, "adafactor": 1, "adamw_bnb": 2, "adamw_8bit": 2, "lion": 4}


@dataclass(frozen=True)
class Batch:
    """A batch of one process.

    Attributes:
        samples: in it.
        tokens, supervised, pictures: of each, on average, tokens with padding.
        mean, longest: tokens of a sample.
    """

    samples: int
    tokens: float
    supervised: float
    pictures: float
    mean: float
    longest: int


@dataclass(frozen=True)
class Way:
    """A way in which the GPUs of a run share out what they hold.

    Attributes:
        name: for people.
        stage: of ZeRO; 0 for none, which with several GPUs is DDP.
        optimizer_on_host, weights_on_host: whether these lie in the memory of the machine.
    """

    name: str
    stage: int = 0
    optimizer_on_host: bool = False
    weights_on_host: bool = False


WAYS = (
    Way("no ZeRO"),
    Way("zero2.json", 2),
    Way("zero2_offload.json", 2, optimizer_on_host=True),
    Way("zero3.json", 3),
    Way("zero3_offload.json", 3, optimizer_on_host=True, weights_on_host=True),
)


def way_of(path: str | None) -> Way:
    """Return what a DeepSpeed configuration asks for, whose form the training arguments have looked at."""
    if path is None:
        return WAYS[0]
    settings: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8-sig")).get("zero_optimization", {})
    on_host = [
        (settings.get(name) or {}).get("device", "none") != "none" for name in ("offload_optimizer", "offload_param")
    ]
    return Way(Path(path).name, settings.get("stage", 0), *on_host)


def memory(sizes: Sizes, batch: Batch, training: PoseTrainingArguments, way: Way, gpus: int) -> float:
    """Return the bytes that a step takes on each of so many GPUs, at its highest."""
    held, _ = state_bytes(sizes, training, way, gpus)
    passing = activations(sizes, batch, training)
    if way.stage and not way.optimizer_on_host:  # the update begins with the gradients in float32, when these are gone
        updated = min(sizes.trains.total() / gpus, _GATHERED if way.stage == 3 else math.inf)
        passing = max(passing, 4 * updated)
    return (held + passing) * _FRAGMENTS + _RUNTIME


def state_bytes(sizes: Sizes, training: PoseTrainingArguments, way: Way, gpus: int) -> tuple[float, float]:
    """Return the bytes of weights, gradients and states of the optimiser: on each of so many GPUs, and on the host for it."""
    trains, states = sizes.trains.total(), _states(training)
    if (
        way.stage == 0
    ):  # in float32, with copies in 16 bits for the products, and the buckets of gradients that DDP sends
        copies = sizes.half if sizes.half < 4 else 0
        return sizes.frozen_bytes + trains * (4 + 4 + states + copies + (4 if gpus > 1 else 0)), 0.0
    # weights and gradients as the forward pass has them, and a float32 copy beside the states
    weights = sizes.frozen_bytes + trains * sizes.half
    gradients = trains * sizes.half / (gpus if way.stage > 1 else 1)
    optimizer = trains * (4 + states) / gpus
    host = 0.0
    if way.optimizer_on_host:  # with the gradients in float32
        host, gradients, optimizer = optimizer + 4 * trains / gpus, 0.0, 0.0
    if way.stage == 3:
        share, weights = weights / gpus, 0.0
        if gpus > 1 or way.weights_on_host:  # of a share on other GPUs or on the host, whole weights for a while
            weights = min(sizes.trains.total() + sizes.frozen.total(), _GATHERED) * sizes.half
        host, weights = (host + share, weights) if way.weights_on_host else (host, weights + share)
    return weights + gradients + optimizer, host


def activations(sizes: Sizes, batch: Batch, training: PoseTrainingArguments) -> float:
    """Return the bytes that a step keeps of its forward pass until it is gone back through."""
    tokens = batch.samples * batch.tokens
    block = tokens * sizes.a_token
    if training.activation_checkpointing:  # the states between blocks, and the block that is run again
        blocks = block + sizes.blocks * tokens * sizes.a_state
    else:
        blocks = sizes.blocks * block
    # logits, their logarithms in float32, and the gradients of both
    logits = batch.samples * batch.supervised * sizes.vocabulary * 2 * (sizes.half + 4)
    return blocks + logits + batch.samples * batch.pictures * sizes.a_picture


def checkpoint_bytes(sizes: Sizes, training: PoseTrainingArguments, *, adapter: bool) -> tuple[float, float]:
    """Return the bytes of a run's result, and of a checkpoint on its way, states of the optimiser included."""
    trains = sizes.trains.total()
    of_a_weight = sizes.half if training.deepspeed else 4
    result = trains * of_a_weight + (0.0 if adapter else sizes.frozen_bytes)
    states = trains * _states(training)
    if training.deepspeed:  # its own files hold the float32 copy, and all weights once more
        states += trains * (4 + sizes.half) + sizes.frozen_bytes
    return result, result + states


def flops(sizes: Sizes, batch: Batch, training: PoseTrainingArguments, *, tower_runs: bool) -> float:
    """Return the floating point operations of a batch, forward and backward, products of matrices alone.

    Of each weight of a product, two for the forward pass, two for the gradient of what went in, and two for its own if it
    trains; two more where the forward pass is done again.
    """
    again = 2 if training.activation_checkpointing else 0
    learns = min(sizes.block_weights, sizes.trains["language"] + sizes.trains["LoRA"])  # of these weights
    a_token: float = (4 + again) * sizes.block_weights + 2 * learns
    # a token looks at half of the others on average; scores and sums are two products, and the way back is twice as much
    a_token += sizes.blocks * sizes.attention_width * 4 * batch.tokens / 2 * (3 + again / 2)
    logits = batch.supervised * sizes.vocabulary * sizes.width * 4
    picture = sizes.picture_flops * (3 + again / 2 if sizes.trains["vision"] else 1) if tower_runs else 0
    return batch.samples * (batch.tokens * a_token + logits + batch.pictures * picture)


def _states(training: PoseTrainingArguments) -> float:
    name = str(getattr(training.optim, "value", training.optim))
    return next((size for beginning, size in _STATES.items() if name.startswith(beginning)), 8)


def steps_of(items: int, gpus: int, training: PoseTrainingArguments) -> int:
    """Return the steps that transformers makes of so many samples."""
    if training.max_steps > 0:
        return training.max_steps
    batches = math.ceil(items / (training.per_device_train_batch_size * gpus))
    return math.ceil(math.ceil(batches / training.gradient_accumulation_steps) * training.num_train_epochs)


def most_checkpoints(steps: int, training: PoseTrainingArguments) -> int:
    """Return the checkpoints that are on the disk at once: those that are kept, and the one that is being written."""
    strategy = str(getattr(training.save_strategy, "value", training.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "epoch":
        written = math.ceil(training.num_train_epochs)
    else:  # under 1, a share of all steps
        every = training.save_steps if training.save_steps >= 1 else max(1, math.ceil(training.save_steps * steps))
        written = math.ceil(steps / every)
    return min(written, training.save_total_limit + 1) if training.save_total_limit else written
