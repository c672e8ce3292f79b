"""One line that shows how far a training is, what its loss is made of, and how fast it goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class TrainingProgress(TrainerCallback):
    """A progress bar with the last logged losses; without a bar (``disable_tqdm``), a line of the log each time.

    It stands in for transformers' ProgressCallback and PrinterCallback, which write every entry of the log as a dictionary.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar, at the step that the run goes on from."""
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = tqdm(desc="training", total=state.max_steps, initial=state.global_step, unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show losses and the figures of an evaluation; what else transformers logs at the end of a run is left out."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            with tqdm.external_write_mode():
                logger.info(f"step {state.global_step} of {state.max_steps}: {figure_line(logs)}")
        elif "loss" not in logs:
            return
        elif self._bar is not None:
            self._bar.set_postfix_str(loss_line(logs))
        else:
            logger.info(f"step {state.global_step} of {state.max_steps}: {loss_line(logs)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def loss_line(logs: Mapping[str, float]) -> str:
    """Return an entry of the log as ``loss 3.21 (rotation 2.84, text 0.37), learning rate 1.5e-04``, its terms unweighted."""
    terms = ", ".join(
        f"{name.removeprefix('loss_')} {logs[name]:.3g}" for name in sorted(logs) if name.startswith("loss_")
    )
    line = f"loss {logs['loss']:.3g}" + (f" ({terms})" if terms else "")
    return line + (f", learning rate {logs['learning_rate']:.1e}" if "learning_rate" in logs else "")


def figure_line(logs: Mapping[str, float]) -> str:
    """Return an evaluation as ``validation acc_30 71.2%, acc_10 30.1%, class_accuracy 90.0%, median 12.3°, loss 1.23``."""
    shares = [f"{name.removeprefix('eval_')} {logs[name]:.1%}" for name in logs if "_acc" in name]
    return f"validation {', '.join(shares)}, median {logs['eval_median_deg']:.1f}°, loss {logs['eval_loss']:.3g}"
