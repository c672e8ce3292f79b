"""How far a checkpoint's answers can be believed, found on held-out objects: calibration.json beside its weights."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt
from scipy.special import expit

from llava_pose.model.checkpoint_files import CALIBRATION, read_json_object
from llava_pose.utils.config import check_fields, fill_config
from llava_pose.utils.files import write_json

_ROUNDING = 1e-6
_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(kw_only=True)
class Calibration:
    """What ``llava-pose calibrate`` finds.

    Attributes:
        scale, shift: of the head's confidence logit, so that its sigmoid is the share of answers within the head's threshold
            (Platt, "Probabilistic outputs for support vector machines", 1999). A scale of 0 says that it tells nothing.
        coverage: the share of objects whose prediction set is to hold a rotation within the threshold.
        mass: a mode is in the prediction set if all that are likelier have no more than this probability together; the first
            always is.
        objects, instances: how many it was found on.
        data: of which data and split.
    """

    scale: Annotated[float, Field(ge=0, le=1e3)]
    shift: _Number
    coverage: Annotated[float, Field(gt=0, lt=1)]
    mass: Annotated[float, Field(ge=0, le=1)]
    objects: PositiveInt
    instances: PositiveInt
    data: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    def confidences(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities of the head's confidence logits, of the same shape."""
        return expit(self.scale * logits + self.shift)

    def set_sizes(self, shares: np.ndarray) -> np.ndarray:
        """(n, k) probabilities of modes, the likeliest first -> (n,) how many of them are in the prediction set."""
        return ((_before(shares) <= self.mass + _ROUNDING) & (shares > 0)).sum(-1).clip(min=1)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write calibration.json."""
        write_json(Path(folder) / CALIBRATION, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Calibration | None:
        """Read calibration.json; None where there is none.

        Raises:
            InputError: it cannot be read, or a field of it is not known, missing or out of its bounds.
        """
        file = Path(folder) / CALIBRATION
        if not os.path.lexists(file):
            return None
        return fill_config(cls, read_json_object(file), source=str(file))


def least_masses(shares: np.ndarray, covering: np.ndarray) -> np.ndarray:
    """Return the least ``mass`` whose prediction set holds the truth, for each object; infinity where none does.

    Args:
        shares: (n, k) probabilities of modes, the likeliest first; 0 where there are fewer.
        covering: (n, k) booleans: whether a mode is within the threshold of the truth.
    """
    return np.where(covering & (shares > 0), _before(shares), np.inf).min(-1)


def _before(shares: np.ndarray) -> np.ndarray:
    """Return what the likelier modes have together, (n, k)."""
    return shares.cumsum(-1) - shares
