"""What every command over prediction files asks for: the files, the systems' names and samples, thresholds, tests, the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from eval.compared import SampleRule
from llava_pose.errors import InputError
from llava_pose.pose.metrics import DEFAULT_THRESHOLDS
from llava_pose.utils.config import require_seed


@dataclass
class ComparisonConfig:
    """Options that ``llava-pose score`` and ``tables`` share."""

    purpose: ClassVar[str] = "score"  # what the files are for, in messages

    predictions: list[str] = field(
        metadata={"help": "prediction files, of one system each or of several mixed, over the same samples"}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "one system name a file, instead of the names in the files"}
    )
    samples: SampleRule = field(
        default="same",
        metadata={
            "help": "where systems answered different samples: 'same' refuses, 'common' scores what all answered, "
            "'all' counts a missing answer as a failure"
        },
    )
    thresholds: list[float] = field(
        default_factory=lambda: [round(math.degrees(threshold), 9) for threshold in DEFAULT_THRESHOLDS],
        metadata={"help": "error thresholds in degrees; a hit is strictly under"},
    )
    reference: str | None = field(
        default=None, metadata={"help": "the system that the others are tested against; the first by default"}
    )
    seed: int = field(default=0, metadata={"help": "of the bootstrap intervals"})

    def __post_init__(self) -> None:
        if isinstance(self.predictions, str):
            self.predictions = [self.predictions]
        if not self.predictions:
            raise InputError(f"there is no prediction file to {self.purpose}; see --help")
        if not self.thresholds:
            raise InputError("--thresholds needs at least one angle in degrees")
        for degrees in self.thresholds:
            if not 0 < degrees <= 180:
                raise InputError(f"--thresholds {degrees:g}: a threshold is an angle over 0 and up to 180 degrees")
        require_seed(self.seed)

    @property
    def radians(self) -> list[float]:
        """The thresholds, each once."""
        return [math.radians(degrees) for degrees in dict.fromkeys(self.thresholds)]
