"""The compact LLaVA's processor: LLaVA's, with image tokens merged m x m."""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor
from transformers.image_utils import get_image_size, to_numpy_array

from llava_pose.data.conversation import IMAGE_TOKEN


class CompactLlavaProcessor(LlavaProcessor):
    """LLaVA's processor with image tokens merged m x m."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = IMAGE_TOKEN,
        num_additional_image_tokens: int = 0,
        vision_merge: int = 1,
        **kwargs,
    ):
        """See LlavaProcessor. vision_merge: as the model's config has it."""
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )
        # `encode` would give a piece of white space first with some sentencepiece tokenizers
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.vision_merge = vision_merge

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Return the image token as often as the picture has tokens."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self.count_image_tokens(height, width)

    def count_image_tokens(self, height: int, width: int) -> int:
        """Return the image tokens of a picture of this size, pixels, as the tower gets it."""
        cell = self.patch_size * self.vision_merge
        tokens = (height // cell) * (width // cell)
        if self.vision_feature_select_strategy == "full":
            return tokens + self.num_additional_image_tokens
        return tokens


__all__ = ["CompactLlavaProcessor"]
