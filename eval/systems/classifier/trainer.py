"""Trainer with what the published recipes of the pose classifiers have: a rate that falls by epochs, decay of all weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from llava_pose.train.trainer import ResumableTrainer


class ClassifierTrainer(ResumableTrainer):
    """Reads ``lr_step_epochs``, ``lr_step_factor`` and ``decay_all`` of its ClassifierConfig."""

    args: Any
    _steps_an_epoch = 0

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """As Trainer's; the optimiser steps of an epoch are noted for the schedule."""
        values = super().set_initial_training_values(args, dataloader)
        self._steps_an_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As Trainer's, or, with ``lr_step_epochs``, a rate that is multiplied by ``lr_step_factor`` every so many epochs."""
        if self.lr_scheduler is None and self.args.lr_step_epochs:
            if not self._steps_an_epoch:
                self.set_initial_training_values(self.args, self.get_train_dataloader())
            steps, factor = self.args.lr_step_epochs * self._steps_an_epoch, self.args.lr_step_factor

            def share(step: int) -> float:
                # a thousandth of a step: 2.5 epochs of 4 steps are 10, and not 9.999…
                return factor ** int((step + 1e-3) / steps)

            self.lr_scheduler = LambdaLR(
                cast(torch.optim.Optimizer, self.optimizer if optimizer is None else optimizer), share
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """As Trainer's, or, with ``decay_all``, biases and the weights of norms too."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)
