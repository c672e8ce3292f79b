"""Fine-tune LLaVA-pose: full, LoRA or QLoRA; in one process, with torchrun or with DeepSpeed.

    python train.py --config scripts/recipes/quickstart.yaml --model base --data prepared --train-json train.json \\
        --output-dir runs/first
    deepspeed train.py --config recipe.yaml --deepspeed zero_configs/zero2.json

``llava-pose train`` is this file as well. Started again by the same command, a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_pose.train.arguments import DataArguments, ModelArguments, parse_arguments
from llava_pose.utils.command import run_main, say_next
from llava_pose.utils.config import require_folder

if TYPE_CHECKING:
    from llava_pose.train.training_arguments import PoseTrainingArguments

logger = logging.getLogger("llava_pose.train")


def train(model_args: ModelArguments, data_args: DataArguments, training_args: PoseTrainingArguments) -> Path:
    """Train, or go on with a run that was stopped; return the folder of the checkpoint to use afterwards.

    Raises:
        InputError: bad data or settings, or the folder holds another run.
        RunError: the loss became NaN or infinite, the run was stopped early, or what was saved is not what was trained.
    """
    # Imported only now: --help does without these seconds
    import torch
    from transformers import set_seed

    from llava_pose.backbones.probe import look_again
    from llava_pose.data.collator import PoseCollator
    from llava_pose.data.dataset import PoseDataset, read_samples
    from llava_pose.model.card import bases_of, learning_of, write_card
    from llava_pose.model.loading import load_full, require_fit, require_tower
    from llava_pose.model.processors import load_processor
    from llava_pose.train.evaluation import require_measurable, validation_samples
    from llava_pose.train.feature_cache import cache_features
    from llava_pose.train.run_folder import LOG, own_run
    from llava_pose.train.trainable import choose_what_trains, count_parameters, nf4_config, train_in_float32
    from llava_pose.train.trainer import LossHistory, PoseTrainer, require_saved_adapter
    from llava_pose.train.training_arguments import require_compatible
    from llava_pose.utils.distributed import join_deepspeed

    require_compatible(model_args, data_args, training_args)
    parts = (model_args, data_args, training_args)
    base, samples_file, held_out_file = model_args.model, data_args.train_json, data_args.val_json
    with own_run("train", *parts, base=base, samples=samples_file, validation=held_out_file) as run:
        if run.is_done:
            return run.folder
        require_folder(data_args.data, "--data", "make it with llava-pose prepare")
        samples = read_samples(data_args.train_json)
        held_out = validation_samples(data_args)
        require_measurable(held_out, data_args, training_args)
        set_seed(training_args.seed)
        if training_args.deepspeed:
            join_deepspeed()  # or ZeRO-3 would load the model as if there were one process

        # Processor and model: a vision-language model with a pose head that reads the state predicting <pose6D>
        processor = load_processor(model_args.model)
        model = load_full(
            model_args.model,
            dtype=torch.bfloat16 if training_args.bf16 else torch.float32,
            quantization_config=nf4_config(model_args.model) if model_args.quantize == "nf4" else None,
        )
        if not training_args.deepspeed:  # whose weights may be shards
            look_again(model, processor, model_args.model)
        if model_args.text_loss_weight is not None:
            model.pose_config.text_loss_weight = model_args.text_loss_weight
        model.pose_config.add_taught(samples)

        # What trains: connector and pose parts always, the language model and the tower as the arguments have it
        choose_what_trains(model, model_args)
        if not training_args.deepspeed:  # which keeps a float32 copy of what trains itself
            train_in_float32(model)
            model.put_channels_last()
            require_tower(model, processor, model_args.model)
        require_fit(model, processor, model_args.model)

        # Data: conversations, their pictures, and the pose of every <pose6D>; held-out ones as they are
        conversations = partial(
            PoseDataset,
            data=data_args.data,
            processor=processor,
            max_length=data_args.max_length,
            drop_long=data_args.drop_long,
            positions=model.positions,
        )
        dataset = conversations(samples, flip=data_args.flip, augment=data_args.augment)
        validation = conversations(held_out) if held_out else None
        datasets = [dataset] if validation is None else [dataset, validation]
        if data_args.caches_features(tower_trains=model_args.tune_vision):  # a frozen tower sees each picture once
            cache_features(datasets, data_args, model, processor, device=training_args.device)
        blank = processor.blank()  # for batches without a picture
        if dataset.cache is not None:
            blank = {"image_patches": torch.zeros(1, *dataset.cache.shape)}

        # Trainer: transformers' own, with losses counted over the whole step and checkpoints that are whole
        parameters = count_parameters(model)
        logger.info(
            f"{len(dataset)} samples (mirror images included), {parameters['trainable'] / 1e6:.2f} M of "
            f"{parameters['all'] / 1e6:.2f} M parameters train"
        )
        trainer = PoseTrainer(
            model=model,
            args=training_args,
            train_dataset=dataset,
            eval_dataset=validation,
            data_collator=PoseCollator(processor, blank=blank),
            processing_class=processor,
            learning_rates=training_args.learning_rates,
            callbacks=[LossHistory(run.folder / LOG)],
        )

        # Train from the last whole checkpoint, if there is one, and save; an adapter is read back and compared
        trainer.train(resume_from_checkpoint=run.begin(trainer))
        trainer.save_model()
        if model_args.language == "lora":
            require_saved_adapter(model, run.folder)
        if trainer.is_world_process_zero():
            processor.save_pretrained(run.folder)
            data = f"{len(samples)} conversations, {Path(data_args.train_json).name}"
            write_card(run.folder, bases_of(model_args.model), learning=learning_of(data, run.unusual_settings()))
        run.finish(trainer, **parameters)
    logger.info(f"done: the checkpoint is {run.folder}")
    say_next(
        f"llava-pose predict --checkpoint {run.folder} --data {data_args.data} --split val --out predictions.jsonl"
    )
    return run.folder


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments and train, or with ``--dry-run`` say what that would take; return the exit code."""

    def run() -> None:
        arguments = parse_arguments(argv)
        if arguments[-1].dry_run:
            from llava_pose.train.dry_run import dry_run

            sys.stdout.writelines(dry_run(*arguments))
        else:
            train(*arguments)

    return run_main(run)


if __name__ == "__main__":
    raise SystemExit(main())
