"""The outputs of the model: of a forward pass, and of an answer that it has written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

from llava_pose.model.pose_head import ImageTokens


@dataclass
class LlavaPoseOutput(ModelOutput):
    """Output of a forward pass.

    Attributes:
        loss: scalar, with labels.
        logits: (batch, positions, vocabulary), without labels only: training and evaluation keep none.
        states: (batch, positions, hidden size), what the output layer was given there; without labels only.
        loss_terms: the unweighted terms of the loss, detached, for the log.
        image_tokens: what :meth:`LlavaPoseForConditionalGeneration.read_poses` sees of the pictures, where the head looks at
            them.
        rotations: (n, 3, 3) that the head reads for the supervised `<pose6D>`, and
        hits: booleans, whether each supervised token is the likeliest; both row by row, with labels and in evaluation mode
            only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    states: Tensor | None = None
    past_key_values: Cache | None = None
    image_tokens: ImageTokens | None = None
    loss_terms: dict[str, Tensor] | None = None
    rotations: Tensor | None = None
    hits: Tensor | None = None


@dataclass
class GeneratedAnswer:
    """An answer that a backbone has written.

    Attributes:
        tokens: (batch, steps) new tokens.
        states: (batch, steps, hidden size), from which each token was predicted.
        image_tokens: as of :class:`LlavaPoseOutput`.
    """

    tokens: Tensor
    states: Tensor
    image_tokens: ImageTokens | None
