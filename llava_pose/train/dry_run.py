"""``train --dry-run``: what a run takes, before it starts. It needs no GPU, and writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_pose.data.conversation import IGNORE_INDEX, pictures_of
from llava_pose.data.dataset import PoseDataset, read_samples
from llava_pose.errors import InputError
from llava_pose.model.loading import require_fit
from llava_pose.model.processors import load_processor, picture_to_try
from llava_pose.train.arguments import DataArguments, ModelArguments
from llava_pose.train.evaluation import require_measurable, validation_samples
from llava_pose.train.feature_cache import can_cache
from llava_pose.train.forecast import (
    GB,
    WAYS,
    Batch,
    activations,
    checkpoint_bytes,
    flops,
    memory,
    most_checkpoints,
    state_bytes,
    steps_of,
    way_of,
)
from llava_pose.train.sizes import Sizes, meta_model, sizes_of
from llava_pose.train.training_arguments import PoseTrainingArguments, require_compatible
from llava_pose.utils.config import require_folder
from llava_pose.utils.files import free_bytes

# name, gigabytes, dense bfloat16 TFLOP/s by the makers' data sheets
GPUS = (("RTX 4090", 24, 165), ("L40S", 48, 362), ("A100", 80, 312), ("H100", 80, 989), ("H200", 141, 989))
UTILISATION = 0.4  # the share of these that a step is taken to reach
_LOOKED_AT = 256  # samples
_OPENED = 32  # of them, with their pictures
_LABEL = 32  # characters of a table's first column


def dry_run(
    model_args: ModelArguments, data_args: DataArguments, training_args: PoseTrainingArguments
) -> Iterator[str]:
    """Yield the lines that say what a run takes, part by part.

    Raises:
        InputError: it cannot work, here or anywhere; all that is known has been yielded before.
    """
    if training_args.process_index > 0:  # of a launcher's processes, one says it
        return
    way = way_of(training_args.deepspeed)
    four_bits = model_args.quantize != "none"
    if four_bits and way.stage == 3:
        raise InputError("--quantize nf4: ZeRO-3 cannot shard 4-bit weights; give --deepspeed zero_configs/zero2.json")
    require_compatible(model_args, data_args, training_args)
    require_folder(data_args.data, "--data", "make it with llava-pose prepare")
    samples, held_out = read_samples(data_args.train_json), validation_samples(data_args)
    require_measurable(held_out, data_args, training_args)
    sizes, batch, tower_runs = look(model_args, data_args, training_args, samples)

    here = torch.cuda.device_count()
    counts = sorted({1, 8, here or 1})
    items = items_of(samples, data_args)
    steps = {gpus: steps_of(items, gpus, training_args) for gpus in counts}
    needs = {
        (gpus, each.name): memory(sizes, batch, training_args, each, gpus)
        for gpus in counts
        for each in WAYS
        if not (four_bits and each.stage == 3)
    }
    features = 0 if tower_runs else views_of(samples, held_out, data_args) * sizes.features
    result, checkpoint = checkpoint_bytes(sizes, training_args, adapter=model_args.language == "lora")
    kept = most_checkpoints(steps[here or 1], training_args)
    disk = (
        ("--cache-dir", Path(data_args.cache_dir or Path(data_args.data) / ".features"), "features", features),
        ("--output-dir", Path(training_args.output_dir), "the run", result + kept * checkpoint),
    )
    work = flops(sizes, batch, training_args, tower_runs=tower_runs) * training_args.gradient_accumulation_steps
    lines = [
        *_of_samples(sizes, batch, training_args, items, min(_LOOKED_AT, len(samples))),
        "",
        *_of_memory(sizes, batch, training_args, needs, counts),
        "",
        *(
            f"disk:    {size / GB:.2f} GB for {what} in {folder}, {free_bytes(folder) / GB:.1f} free"
            for _, folder, what, size in disk
        ),
        f"         of it {kept} checkpoints of {checkpoint / GB:.2f} GB, the one that is being written included",
        "",
        *_of_time(work, steps, needs, bf16=training_args.bf16),
    ]
    yield from (f"{line}\n" for line in lines)
    for option, folder, what, size in disk:
        _require_room(option, folder, what, size)
    gpus = here or 8
    own = memory(sizes, batch, training_args, way, gpus)
    there = torch.cuda.get_device_properties(0).total_memory if here else max(size for _, size, _ in GPUS) * GB
    if own > there:
        raise InputError(
            f"--per-device-train-batch-size {batch.samples}: a step takes {own / GB:.1f} GB on each of {gpus} GPUs, and "
            f"{'these have' if here else 'the largest known here has'} {there / GB:.0f}; make it smaller, or give "
            "--activation-checkpointing, another of zero_configs/ or --quantize nf4"
        )


def look(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: PoseTrainingArguments,
    samples: Sequence[dict[str, Any]],
) -> tuple[Sizes, Batch, bool]:
    """Return the sizes of a run's model, those of a batch, and whether the tower runs in every step."""
    processor = load_processor(model_args.model)
    model = meta_model(model_args.model, model_args)
    require_fit(model, processor, model_args.model)
    caches = data_args.caches_features(tower_trains=model_args.tune_vision) and can_cache(model, processor)
    few = np.random.default_rng(0).permutation(len(samples))[:_LOOKED_AT]
    dataset = PoseDataset(
        [samples[index] for index in few],
        data_args.data,
        processor,
        max_length=data_args.max_length,
        drop_long=data_args.drop_long,
        positions=model.positions,
    )
    sizes = sizes_of(
        model,
        processor.picture_inputs(picture_to_try()),
        model_args,
        half=training_args.bf16,
        float32=training_args.deepspeed is None,
    )
    return sizes, batch_of(dataset, training_args), not caches


def batch_of(dataset: PoseDataset, training: PoseTrainingArguments) -> Batch:
    """Return what batches of these samples are like, on average."""
    size, lengths = training.per_device_train_batch_size, np.array(dataset.lengths())
    # padded to the longest of a batch, unless like goes with like
    drawn = np.random.default_rng(0).choice(lengths, (64, min(size, 1024)))
    grouped = training.train_sampling_strategy == "group_by_length"
    tokens = float(lengths.mean() if grouped else drawn.max(1).mean())
    opened = [dataset[index] for index in range(min(_OPENED, len(dataset)))]
    supervised = float(np.mean([(sample.labels != IGNORE_INDEX).sum() for sample in opened]))
    items = [dataset.items[index % len(dataset.items)][0] for index in range(len(opened))]
    pictures = float(np.mean([len(pictures_of(dataset.samples[item])) for item in items]))
    return Batch(size, tokens, supervised, pictures, mean=float(lengths.mean()), longest=int(lengths.max()))


def items_of(samples: Sequence[dict[str, Any]], data: DataArguments) -> int:
    """Return the samples of an epoch: mirror images and changed pictures are others."""
    mirrored = sum(bool(sample.get("flippable", False)) for sample in samples) if data.flip else 0
    return (len(samples) + mirrored) * max(1, data.augment)


def views_of(samples: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], data: DataArguments) -> int:
    """Return the pictures whose features are kept, mirror images included; those of the held-out samples lie apart."""
    seen, others = ({image for sample in each for image in pictures_of(sample)} for each in (samples, held_out))
    mirrored = data.flip and any(sample.get("flippable", False) for sample in samples)
    return len(seen) * (1 + mirrored) + len(others)


def _of_samples(sizes: Sizes, batch: Batch, training: PoseTrainingArguments, items: int, looked_at: int) -> list[str]:
    trains = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in sorted(sizes.trains.items()))
    return [
        f"samples: {items} an epoch, mirror images included; {batch.samples} a GPU × "
        f"{training.gradient_accumulation_steps} accumulated make a step",
        f"tokens:  {batch.mean:.0f} a sample, {batch.tokens:.0f} with padding, {batch.longest} at most, "
        f"{batch.supervised:.0f} supervised ({looked_at} samples looked at)",
        f"trains:  {trains}; frozen {sizes.frozen.total() / 1e6:.1f} M",
    ]


def _of_memory(
    sizes: Sizes,
    batch: Batch,
    training: PoseTrainingArguments,
    needs: dict[tuple[int, str], float],
    counts: Sequence[int],
) -> list[str]:
    lines = ["memory on each GPU, GB".ljust(_LABEL) + _row(f"{n} GPU{'s' * (n > 1)}" for n in counts)]
    for way in WAYS:
        if (1, way.name) not in needs:
            continue
        host = [gpus * state_bytes(sizes, training, way, gpus)[1] for gpus in counts]
        beside = f"   and {host[0] / GB:.1f} of the machine's" if any(host) else ""
        row = _row(f"{needs[gpus, way.name] / GB:.1f}" for gpus in counts)
        lines.append(f"  {way.name}".ljust(_LABEL) + row + beside)
    return [
        *lines,
        "  activations among it".ljust(_LABEL)
        + _row(f"{activations(sizes, batch, training) / GB:.1f}" for _ in counts),
    ]


def _of_time(work: float, steps: dict[int, int], needs: dict[tuple[int, str], float], *, bf16: bool) -> list[str]:
    lines = [
        f"steps:   {', '.join(f'{count} on {n} GPU' + 's' * (n > 1) for n, count in steps.items())}, of {work / 1e12:.3g} "
        "TFLOP on each"
    ]
    if not bf16:
        return [*lines, "hours:   are known of runs in bfloat16 alone (--bf16)"]
    lines.append(
        f"hours at {UTILISATION:.0%} of a GPU's rate".ljust(_LABEL) + _row(f"{n} GPU{'s' * (n > 1)}" for n in steps)
    )
    for name, size, rate in GPUS:
        hours = _row(f"{count * work / (rate * 1e12 * UTILISATION) / 3600:.1f}" for count in steps.values())
        fits = next(
            (f"from {n} GPU{'s' * (n > 1)} with {way}" for (n, way), need in needs.items() if need <= size * GB), "not"
        )
        lines.append(f"  {name}, {size} GB".ljust(_LABEL) + f"{hours}   fits {fits}")
    return lines


def _row(figures: Any) -> str:
    return "".join(f"{figure:>10}" for figure in figures)


def _require_room(option: str, folder: Path, what: str, size: float) -> None:
    if size > (free := free_bytes(folder)):
        raise InputError(
            f"{option} {folder}: {size / GB:.1f} GB are wanted there for {what}, and {free / GB:.1f} GB are free; "
            f"choose another disk, or {'--no-cache-features' if what == 'features' else 'keep fewer checkpoints'}"
        )
