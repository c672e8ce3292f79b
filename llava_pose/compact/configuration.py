"""Configuration of the compact LLaVA: LLaVA's, and how patches become image tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig


@strict
class CompactLlavaConfig(LlavaConfig):
    """LLaVA's configuration for any tower and any language model.

    Attributes:
        vision_merge: m x m neighbouring patches become one image token (1: LLaVA's own projector).
        vision_feature_size: channels of one patch before the merge; None: the tower's hidden size for each feature layer.
        projector_norm: a LayerNorm on the patches before the projector (LLaVA has none).
    """

    model_type = "compact_llava"

    if TYPE_CHECKING:  # no dict and not None any more once it is made, and of a kind with sizes
        text_config: Any
        vision_config: Any

    vision_merge: int = 1
    vision_feature_size: int | None = None
    projector_norm: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.vision_merge < 1:
            raise ValueError(f"vision_merge must be at least 1, not {self.vision_merge}")

    @property
    def patch_channels(self) -> int:
        """Channels of one patch as the tower gives it, before the merge."""
        if self.vision_feature_size is not None:
            return self.vision_feature_size
        layers = 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)
        return self.vision_config.hidden_size * layers


__all__ = ["CompactLlavaConfig"]
