"""Configuration of the pose parts, which stands as pose_config.json beside a backbone's own files."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import read_json_object
from llava_pose.pose.rotation_names import DEFAULT_ROTATION, ROTATION_NAMES
from llava_pose.utils.config import check_fields, fill_config
from llava_pose.utils.files import write_json

POSE_CONFIG = "pose_config.json"
_Size = Annotated[int, Field(gt=0, le=2**20)]
_Word = Annotated[str, Field(min_length=1, max_length=100)]
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def fits_attention_heads(heads: int, width: int) -> bool:
    """Return whether a pose head of that width can have so many attention heads: 0 for none, or a divisor of it."""
    return heads == 0 or (heads > 0 and width % heads == 0)


@dataclass(kw_only=True)
class LlavaPoseConfig:
    """The settings of the pose parts: what they are made for, and how they learn.

    Attributes:
        pose_token_id, image_token_id: the ids of `<pose6D>` and of an image token in the backbone's vocabulary.
        hidden_size: numbers of a state that the output layer takes.
        embedding_size: numbers of a token's embedding, which image tokens have as well.
        pooled_size: numbers of a patch before the backbone's connector, or of an image token where there is none.
        image_places: places of image tokens that the head tells apart; a picture with more tokens begins anew.
        connector: the name in the backbone's base of the module that makes image tokens of patches; None where it has none
            through which patches could be handed in from a cache.
        listed_tokens: whether the backbone takes image tokens as a list, one entry a picture, and not as one tensor.
        base_states: whether the last hidden states of the backbone's base are what its output layer is given.
        transformers_version: the version of transformers with which all of this was found out; "" where nobody wrote it down.
        rotation: the rotation representation of the head, a name of ``llava_pose.model.rotation``.
        pose_head_hidden_size: width of the head's hidden layer.
        pose_head_attention_heads: heads of the pose head's own attention to the image tokens; 0: it does not look at them.
        pose_head_pooled_features: whether the head reads the mean of the patches, too, as a pose classifier does.
        text_loss_weight, rotation_loss_weight, location_loss_weight, confidence_loss_weight: weights of the training loss.
        confidence_threshold: the head's confidence is the probability that its error is under this, radians.
        categories, kinds: the categories and the kinds of questions that training has taught, in alphabetical order.
    """

    pose_token_id: NonNegativeInt
    image_token_id: NonNegativeInt
    hidden_size: _Size
    embedding_size: _Size
    pooled_size: _Size
    image_places: Annotated[int, Field(gt=0, le=2**16)] = 1
    connector: str | None = None
    listed_tokens: bool = True
    base_states: bool = False
    transformers_version: Annotated[str, Field(max_length=40)] = ""
    rotation: Literal[ROTATION_NAMES] = DEFAULT_ROTATION  # type: ignore[valid-type]
    pose_head_hidden_size: PositiveInt = 512
    pose_head_attention_heads: NonNegativeInt = 0
    pose_head_pooled_features: bool = False
    text_loss_weight: _Weight = 1.0
    rotation_loss_weight: _Weight = 1.0
    location_loss_weight: _Weight = 1.0
    confidence_loss_weight: _Weight = 0.1
    confidence_threshold: Annotated[float, Field(gt=0, le=math.pi)] = math.radians(30)
    categories: list[_Word] = field(default_factory=list)
    kinds: list[_Word] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_fields(self)
        if not fits_attention_heads(self.pose_head_attention_heads, self.pose_head_hidden_size):
            raise InputError(
                f"pose_head_attention_heads {self.pose_head_attention_heads}: must be 0 or divide pose_head_hidden_size "
                f"{self.pose_head_hidden_size}"
            )

    def add_taught(self, samples: Iterable[Mapping[str, Any]]) -> None:
        """Add the categories and kinds of training samples to those that were taught before."""
        categories, kinds = set(self.categories), set(self.kinds)
        for sample in samples:
            categories.add(sample.get("category") or "")
            kinds.update(sample.get("kinds", ()))
        self.categories, self.kinds = sorted(categories - {""}), sorted(kinds)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write pose_config.json."""
        write_json(Path(folder) / POSE_CONFIG, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LlavaPoseConfig:
        """Read pose_config.json.

        Raises:
            InputError: it is not there, or a field of it is not known, missing or out of its bounds.
        """
        file = Path(folder) / POSE_CONFIG
        values: dict[str, Any] = read_json_object(file)
        return fill_config(cls, values, source=str(file))


__all__ = ["POSE_CONFIG", "LlavaPoseConfig", "fits_attention_heads"]
