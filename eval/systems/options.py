"""The options that systems have in common. Nothing heavy is imported here, so that ``--help`` is there at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import PositiveInt

from llava_pose.train.arguments import RunOptions
from llava_pose.utils.command import Main, run_main
from llava_pose.utils.config import parse_configs
from llava_pose.utils.values import Name, Positive, Rate

Task = Literal["pose", "joint"]
BACKBONE_HELP = "The network: a hub id or folder that AutoModel can load, or tiny, the random tower of --preset tiny."


@dataclass(kw_only=True)
class SystemOptions:
    """The options that all systems have: what they are asked, and where the answers go."""

    data: Name = field(metadata={"help": "The prepared folder."})
    output_dir: Name = field(metadata={"help": "The folder of predictions.jsonl and of all else that is written."})
    system: str = field(default="", metadata={"help": "The name in the tables."})
    split: str = field(default="val", metadata={"help": "The split to predict."})
    categories: list[str] | None = field(
        default=None, metadata={"help": "Predict objects of these categories alone; by default all of the split."}
    )


@dataclass(kw_only=True)
class NetworkOptions(RunOptions, SystemOptions):
    """The options of every baseline that trains a network."""

    image_size: PositiveInt | None = field(
        default=None, metadata={"help": "The side of the input in pixels; by default the backbone's."}
    )
    flip: bool = field(default=True, metadata={"help": "Train on mirror images as well, of categories that allow it."})
    train_categories: list[str] | None = field(
        default=None, metadata={"help": "Train on these categories alone; by default on all of the train split."}
    )
    learning_rate: Rate = field(default=1e-3, metadata={"help": "The learning rate at its height."})
    num_train_epochs: Positive = field(
        default=10.0, metadata={"help": "The passes over the samples, mirror images included."}
    )
    logging_steps: Positive = field(default=20, metadata={"help": "The steps between two lines of the log."})
    save_steps: Positive = field(default=500, metadata={"help": "The steps between two checkpoints."})


def training_command(
    options: type, load: Callable[[], tuple[type, Callable[[Any], Any]]], *, prog: str, description: str, example: str
) -> Main:
    """Make the main function of a command that trains: ``--help`` shows our options, which are light, and no others.

    Args:
        options: the dataclass of our options.
        load: imports and returns the dataclass that joins them with transformers', and the function over it.
    """
    closing = "\nEvery other option of transformers' TrainingArguments that is not refused is taken too; --help-all shows them."

    def run(words: Sequence[str]) -> Any:
        kind, work, below = options, None, closing
        if "--help-all" in words or not {"-h", "--help"} & set(words):
            (kind, work), below = load(), ""
        words = ["--help" if word == "--help-all" else word for word in words]
        (config,) = parse_configs((kind,), words, prog=prog, description=description, example=example, closing=below)
        return work(config) if work else None  # help has ended the program before

    return lambda argv=None: run_main(lambda: run(list(sys.argv[1:] if argv is None else argv)))
