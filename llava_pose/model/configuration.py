"""Configuration of LLaVA-pose: LLaVA's, and what the pose head and the losses need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

from llava_pose.pose.rotation_names import DEFAULT_ROTATION, ROTATION_NAMES


def fits_attention_heads(heads: int, width: int) -> bool:
    """Whether a pose head of that width can have so many attention heads: 0 for none, or a divisor of it."""
    return heads == 0 or (heads > 0 and width % heads == 0)


@strict
class LlavaPoseConfig(LlavaConfig):
    """LLaVA's configuration with a pose head.

    Attributes:
        pose_token_id: id of `<pose6D>`.
        rotation: the rotation representation of the head, a name of ``llava_pose.model.rotation``.
        pose_head_hidden_size: width of the head's hidden layer.
        pose_head_attention_heads: of the head's own attention to the image tokens; 0: it does not look at them.
        pose_head_pooled_features: the head reads the mean of the tower's features, too, as a pose classifier does.
        vision_merge: m x m neighbouring patches become one image token (1: LLaVA's own projector).
        vision_feature_size: channels of one patch before the merge; None: the tower's hidden size for each feature layer.
        projector_norm: a LayerNorm on the patches before the projector (LLaVA has none).
        text_loss_weight, rotation_loss_weight, location_loss_weight, confidence_loss_weight: of the training loss.
        confidence_threshold: the head's confidence is the probability that its error is under this, radians.
    """

    model_type = "llava_pose"

    if TYPE_CHECKING:  # no dict and not None any more once it is made, and of a kind with sizes
        text_config: Any
        vision_config: Any

    pose_token_id: int | None = None
    rotation: str = DEFAULT_ROTATION
    pose_head_hidden_size: int = 512
    pose_head_attention_heads: int = 0
    pose_head_pooled_features: bool = False
    vision_merge: int = 1
    vision_feature_size: int | None = None
    projector_norm: bool = False
    text_loss_weight: float = 1.0
    rotation_loss_weight: float = 1.0
    location_loss_weight: float = 1.0
    confidence_loss_weight: float = 0.1
    confidence_threshold: float = 0.5235987755982988

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.rotation not in ROTATION_NAMES:
            raise ValueError(f"unknown rotation representation {self.rotation!r}; known: {', '.join(ROTATION_NAMES)}")
        heads = self.pose_head_attention_heads
        if not fits_attention_heads(heads, self.pose_head_hidden_size):
            raise ValueError(
                f"pose_head_attention_heads {heads}: must be 0 or divide pose_head_hidden_size {self.pose_head_hidden_size}"
            )
        if self.vision_merge < 1:
            raise ValueError(f"vision_merge must be at least 1, not {self.vision_merge}")

    @property
    def patch_channels(self) -> int:
        """Channels of one patch as the tower gives it, before the merge."""
        if self.vision_feature_size is not None:
            return self.vision_feature_size
        layers = 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)
        return self.vision_config.hidden_size * layers


__all__ = ["LlavaPoseConfig"]
