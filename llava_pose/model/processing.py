"""The processor: pictures and chats in, model inputs out; labels from the chat template's own offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken
from transformers import LlavaProcessor
from transformers.image_utils import get_image_size, to_numpy_array

from llava_pose.data.chat_templates import CHAT_TEMPLATES as CHAT_TEMPLATES
from llava_pose.data.conversation import IGNORE_INDEX, IMAGE_TOKEN, POSE_TOKEN, ChatTooLongError
from llava_pose.errors import InputError

SPECIAL_TOKENS = (
    AddedToken(IMAGE_TOKEN, special=True, normalized=False),
    # The space before it is part of it. Else a lone space would be the token that predicts it, whose state pretrained models
    # fill with activations hundreds of times larger than what they know of the picture (Sun et al., "Massive activations
    # in large language models", COLM 2024).
    AddedToken(POSE_TOKEN, special=True, normalized=False, lstrip=True),
)


@dataclass(frozen=True)
class EncodedChat:
    """One chat as token ids, image tokens expanded.

    Attributes:
        input_ids: (length,) int64.
        labels: (length,) int64; -100 outside the assistant's answers.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def input_size(image_processor: Any) -> tuple[int, int]:
    """(height, width) in pixels of what an image processor gives a tower, whatever the size of the picture."""
    cropped = bool(getattr(image_processor, "do_center_crop", False))
    size = dict(image_processor.crop_size if cropped else image_processor.size)
    if size.get("height") is not None:
        return int(size["height"]), int(size["width"])
    return int(size["shortest_edge"]), int(size["shortest_edge"])


def set_input_size(image_processor: Any, side: int) -> None:
    """Let an image processor give squares of that side, pixels, with the whole of a square picture in them."""
    image_processor.size = {key: side for key, old in dict(image_processor.size).items() if old is not None}
    if getattr(image_processor, "do_center_crop", False):
        image_processor.crop_size = {"height": side, "width": side}
    if (
        getattr(image_processor, "crop_pct", None) is not None
    ):  # ConvNeXt's, which ResNet has as well, cuts the borders off
        image_processor.crop_pct = 1.0


def keep_borders(image_processor: Any) -> None:
    """Let an image processor that cuts the borders off what it has resized, as those of DINOv2 and ResNet do, give as
    large a square of the whole picture instead: objects of prepared pictures reach to the borders.
    """
    shortest = dict(image_processor.size).get("shortest_edge")
    height, width = input_size(image_processor)
    cropped = bool(getattr(image_processor, "do_center_crop", False)) and shortest is not None and shortest > height
    shrunk = getattr(image_processor, "crop_pct", None) not in (None, 1.0)
    if (cropped or shrunk) and height == width:
        set_input_size(image_processor, height)


class LlavaPoseProcessor(LlavaProcessor):
    """LLaVA's processor with `<pose6D>` and with image tokens merged m x m."""

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
        """See LlavaProcessor. vision_merge: as the model's config has it.

        Raises:
            InputError: the tokenizer does not know `<image>` or `<pose6D>`.
        """
        for token in (image_token, POSE_TOKEN):
            if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
                raise InputError(f"the tokenizer does not know {token}; make a base with llava-pose assemble")
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
        self.pose_token_id = tokenizer.convert_tokens_to_ids(POSE_TOKEN)
        self.vision_merge = vision_merge

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self.count_image_tokens(height, width)

    def count_image_tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of this size, pixels, as the tower gets it."""
        cell = self.patch_size * self.vision_merge
        tokens = (height // cell) * (width // cell)
        if self.vision_feature_select_strategy == "full":
            return tokens + self.num_additional_image_tokens
        return tokens

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the tower gets."""
        return input_size(self.image_processor)

    def encode_chat(
        self, messages: Sequence[dict[str, str]], *, max_length: int | None = None, where: str = "chat"
    ) -> EncodedChat:
        """Token ids and labels of a chat; only the assistant's answers and what ends them are supervised.

        Labels come from character offsets of the rendered template, never from splitting text at words.

        Raises:
            InputError: there is no turn or no question first, no token is supervised, the chat is longer than max_length
                (image tokens are never cut off), or the chat template refuses the chat or is not a plain concatenation of
                turns. ``where`` names the sample.
        """
        if not messages:
            raise InputError(f"{where}: the chat has no turn")
        try:
            text = self.render(messages)
        except TemplateError as error:
            raise InputError(f"{where}: the chat template refuses the chat ({error})") from error
        spans = self.answer_spans(messages, text, where=where)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoding["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        supervised = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            # a token may hold the last character of the prompt too, such as the space that a prompt ends with
            supervised |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
        if spans and not supervised.any():
            raise InputError(f"{where}: no token of the answer is supervised; is the answer empty?")
        labels = np.where(supervised, ids, IGNORE_INDEX)
        repeats = np.where(ids == self.image_token_id, self.count_image_tokens(*self.image_size), 1)
        ids, labels = np.repeat(ids, repeats), np.repeat(labels, repeats)
        if max_length is not None and len(ids) > max_length:
            raise ChatTooLongError(
                f"{where}: {len(ids)} tokens are more than max_length={max_length}; raise it or shorten the text"
            )
        return EncodedChat(ids, labels)

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        """The chat as the text of the chat template, `<image>` not yet expanded."""
        return self.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)

    def answer_spans(
        self, messages: Sequence[dict[str, str]], text: str, *, where: str = "chat"
    ) -> list[tuple[int, int]]:
        """Character spans (start, end) of the assistant's answers, their end tokens included, in the rendered chat.

        Raises:
            InputError: the chat begins with an answer, or the chat template is not a plain concatenation of turns.
        """
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if index == 0:
                raise InputError(f"{where}: the chat begins with an answer; give the question that it answers")
            try:
                before = self.render(messages[:index], add_generation_prompt=True)
                until = self.render(messages[: index + 1]).rstrip()
            except TemplateError as error:
                raise InputError(f"{where}: the chat template refuses a part of the chat ({error})") from error
            if not (text.startswith(before) and text.startswith(until)):
                raise InputError(f"{where}: the chat template rewrites earlier turns; labels cannot be placed with it")
            spans.append((len(before), len(until)))
        return spans


__all__ = ["CHAT_TEMPLATES", "EncodedChat", "LlavaPoseProcessor"]
