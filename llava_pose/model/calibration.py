"""The calibration of a checkpoint's confidence, found on held-out objects: calibration.json beside its weights."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.special import expit

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import CALIBRATION, read_json_object
from llava_pose.utils.config import check_fields, fill_config
from llava_pose.utils.files import write_json

_ROUNDING = 1e-6
_DIRECTIONS = 64
_NEAREST = 400  # one picture in so many is nearer
_Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Neighbours:
    """Pictures that training has had, by which one that is unlike them all is found.

    Attributes:
        mean, spread: (channels,) of their features.
        directions: (channels, d) in which features, less the mean and over the spread, differ most.
        features: (n, d), of length 1.
    """

    mean: np.ndarray
    spread: np.ndarray
    directions: np.ndarray
    features: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Neighbours:
        """Of (n, channels) features, the mean of a tower's patches."""
        mean, spread = features.mean(0), features.std(0)
        spread = spread + 1e-3 * spread.mean() + 1e-12  # a channel that says next to nothing is not to decide
        directions = np.linalg.svd((features - mean) / spread, full_matrices=False)[2][:_DIRECTIONS].T
        # as they are kept, so that the first answers are those of a checkpoint that is loaded
        mean, spread, directions = (part.astype(np.float32) for part in (mean, spread, directions))
        return cls(mean, spread, directions, _along((features - mean) / spread, directions).astype(np.float16))

    def strangeness(self, features: np.ndarray) -> np.ndarray:
        """(n, channels) -> (n,), the logarithm of the cosine distance to the k-th nearest picture, k one in 400 of all (Sun et
        al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022).
        """
        found = _along((features - self.mean) / self.spread, self.directions)
        distances = 1 - found @ self.features.astype(np.float32).T
        nearest = max(1, len(self.features) // _NEAREST) - 1
        return np.log(np.partition(distances, nearest, -1)[:, nearest].clip(1e-6))

    def packed(self) -> str:
        """Return all of it as text: a safetensors file in base64."""
        parts = {name: np.ascontiguousarray(part) for name, part in vars(self).items()}
        return base64.b64encode(save(parts)).decode()

    @classmethod
    def unpacked(cls, text: str) -> Neighbours:
        """Return what :meth:`packed` gave.

        Raises:
            ValueError: the text is something else.
        """
        try:
            found = cls(**load(base64.b64decode(text, validate=True)))
        except (binascii.Error, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(str(error)) from error
        parts = (found.mean, found.spread, found.directions, found.features)
        channels, d = len(found.mean), found.features.shape[-1]
        if [part.shape for part in parts[:3]] != [(channels,), (channels,), (channels, d)] or found.features.ndim != 2:
            raise ValueError("its parts do not fit together")
        if not (len(found.features) and all(np.isfinite(part).all() for part in parts) and (found.spread > 0).all()):
            raise ValueError("a part of it is not finite, or empty")
        return found


def _along(features: np.ndarray, directions: np.ndarray) -> np.ndarray:
    found = features @ directions
    return (found / np.linalg.norm(found, axis=-1, keepdims=True).clip(1e-12)).astype(np.float32)


@dataclass(kw_only=True)
class Calibration:
    """The findings of ``llava-pose calibrate``.

    Attributes:
        scale, shift: of the head's confidence logit, so that its sigmoid is the share of answers within the head's threshold
            (Platt, "Probabilistic outputs for support vector machines", 1999). A scale of 0 says that it tells nothing.
        coverage: the share of objects whose prediction set is to hold a rotation within the threshold.
        mass: a mode is in the prediction set if all that are likelier have no more than this probability together; the first
            always is.
        objects, instances: how many it was found on.
        data: of which data and split.
        strangeness: what a unit of :meth:`Neighbours.strangeness` takes off the logit.
        neighbours: what :meth:`Neighbours.packed` gives; empty where nothing is taken off.
    """

    scale: Annotated[float, Field(ge=0, le=1e3)]
    shift: _Number
    coverage: Annotated[float, Field(gt=0, lt=1)]
    mass: Annotated[float, Field(ge=0, le=1)]
    objects: PositiveInt
    instances: PositiveInt
    data: str = ""
    strangeness: Annotated[NonNegativeFloat, Field(le=1e3)] = 0.0
    neighbours: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            bool(self.pictures)
        except ValueError as error:
            raise InputError(f"neighbours: cannot be read ({error}); run llava-pose calibrate again") from error

    @cached_property
    def pictures(self) -> Neighbours | None:
        """The pictures that answers are compared with; None where they are not."""
        return Neighbours.unpacked(self.neighbours) if self.neighbours else None

    def confidences(self, logits: np.ndarray, strangeness: np.ndarray | None = None) -> np.ndarray:
        """Return probabilities of the head's confidence logits, of the same shape.

        Args:
            strangeness: of the pictures, of that shape, too; None where they are not compared.
        """
        against = 0.0 if strangeness is None else self.strangeness * strangeness
        return expit(self.scale * logits + self.shift - against)

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
