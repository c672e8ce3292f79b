"""Pictures and chats in, model inputs out, by the backbone's own processor; labels from its chat template's own offsets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from llava_pose.data.chat_templates import CHAT_TEMPLATES as CHAT_TEMPLATES
from llava_pose.data.conversation import IGNORE_INDEX, IMAGE_TOKEN, POSE_TOKEN, ChatTooLongError
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import blaming

# The space before it is part of it. Else a lone space would be the token that predicts it, whose state pretrained models
# fill with activations hundreds of times larger than what they know of the picture (Sun et al., "Massive activations
# in large language models", COLM 2024).
POSE_ADDED_TOKEN = AddedToken(POSE_TOKEN, special=True, normalized=False, lstrip=True)
# what a processor gives beside the inputs of pictures
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "offset_mapping", "labels")


@dataclass(frozen=True)
class EncodedChat:
    """One chat as token ids, image tokens expanded.

    Attributes:
        input_ids: (length,) int64.
        labels: (length,) int64; -100 outside the assistant's answers.
        pictures: what the backbone is given of the chat's pictures, as its image processor makes it.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    pictures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Expansions:
    """The tokens of pictures in a text: where each ended, and by how many characters it grew."""

    put: Sequence[tuple[int, int]] = ()

    def moved(self, place: int) -> int:
        """Return where a place of the text stands now."""
        return place + sum(growth for end, growth in self.put if place >= end)


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


class LlavaPoseProcessor:
    """A backbone's own processor, whose tokenizer knows `<pose6D>`, with labels for training."""

    def __init__(self, processor: ProcessorMixin):
        """
        Args:
            processor: with a fast tokenizer, an image processor and a chat template.

        Raises:
            InputError: one of these is missing, or the tokenizer does not know `<pose6D>` or the image token.
        """
        self.processor: Any = processor
        self.tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        self.image_processor: Any = self.processor.image_processor
        self.image_token: str = getattr(processor, "image_token", IMAGE_TOKEN)
        if not getattr(self.tokenizer, "is_fast", False):
            raise InputError("the tokenizer has no character offsets, by which labels are placed; give its fast form")
        if self.chat_template is None:
            raise InputError("the processor has no chat template; take the one of an instruction-tuned model")
        for token in (self.image_token, POSE_TOKEN):
            if self.tokenizer.convert_tokens_to_ids(token) in (None, self.tokenizer.unk_token_id):
                raise InputError(f"the tokenizer does not know {token}; make a base with llava-pose assemble")
        # `encode` would give a piece of white space first with some sentencepiece tokenizers
        self.pose_token_id: int = self.tokenizer.convert_tokens_to_ids(POSE_TOKEN)

    @property
    def chat_template(self) -> str | None:
        """The processor's chat template, or its tokenizer's."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def has_own_template(self) -> bool:
        """Say whether the chat template is one of ``llava-pose assemble``'s own, which hold all special tokens."""
        return self.chat_template in CHAT_TEMPLATES.values()

    def save_pretrained(self, folder: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write the backbone's processor."""
        self.processor.save_pretrained(folder)

    # Pictures

    @cached_property
    def expanded_image(self) -> str | None:
        """Return what a picture's token becomes in a text, where it is the same for every picture, and None elsewhere."""
        found = {self._seen([picture])[0][0] for picture in _pictures_to_try()}
        return found.pop() if len(found) == 1 else None

    @cached_property
    def _image_processor_suffices(self) -> bool:
        """Say whether the image processor alone gives what the processor gives of a picture, in a third of the time."""
        if self.expanded_image is None:
            return False
        for picture in _pictures_to_try():
            alone, with_text = self._seen_alone(picture), self._seen([picture])[1]
            if alone.keys() != with_text.keys() or not all(torch.equal(alone[name], with_text[name]) for name in alone):
                return False
        return True

    def image_ids(self, picture: Image.Image) -> np.ndarray:
        """Return the token ids that stand for this picture."""
        ids = self.tokenizer(self._seen([picture])[0][0], add_special_tokens=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64)

    def picture_inputs(self, picture: Image.Image) -> dict[str, Tensor]:
        """Return what the backbone is given of one picture."""
        return self._seen_alone(picture) if self._image_processor_suffices else self._seen([picture])[1]

    def blank(self) -> dict[str, Tensor]:
        """Return the inputs of a black picture, which keep a tower that trains running where a batch has no picture."""
        inputs = self.picture_inputs(Image.new("RGB", (64, 64)))
        return {name: torch.zeros_like(v) if torch.is_floating_point(v) else v for name, v in inputs.items()}

    # Chats

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Image.Image | Sequence[Image.Image] | None = None,
        *,
        add_generation_prompt: bool = False,
        max_length: int | None = None,
        where: str = "chat",
    ) -> EncodedChat:
        """Return token ids and labels of a chat; only the assistant's answers and what ends them are supervised.

        Labels come from character offsets of the rendered template, never from splitting text at words.

        Args:
            messages: {"role", "content"}; `<image>` stands in a text where a picture does.
            pictures: one, or one for each `<image>` in their order; they can be left out where every picture has the same
                tokens.

        Raises:
            InputError: there is no turn or no question first, no token is supervised, the chat is longer than max_length
                (image tokens are never cut off), pictures and `<image>` do not agree, the backbone's processor does not take
                so many of them, or the chat template refuses the chat or is not a plain concatenation of turns. ``where``
                names the sample.
        """
        if not messages:
            raise InputError(f"{where}: the chat has no turn")
        try:
            text = self.render(messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise InputError(f"{where}: the chat template refuses the chat ({error})") from error
        spans = self.answer_spans(messages, text, where=where)
        wanted = sum(part.get("type") == "image" for message in messages for part in _parts(message["content"]))
        encoding, inputs, expansions = self._tokens(text, listed_pictures(pictures), wanted, where)
        ids = np.asarray(encoding["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        supervised = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            start, end = (expansions.moved(place) for place in (start, end))
            # a token may hold the last character of the prompt too, such as the space that a prompt ends with
            supervised |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
        if spans and not supervised.any():
            raise InputError(f"{where}: no token of the answer is supervised; is the answer empty?")
        labels = np.where(supervised, ids, IGNORE_INDEX)
        if max_length is not None and len(ids) > max_length:
            raise ChatTooLongError(
                f"{where}: {len(ids)} tokens are more than max_length={max_length}; raise it or shorten the text"
            )
        return EncodedChat(ids, labels, inputs)

    def _tokens(
        self, text: str, pictures: Sequence[Image.Image], wanted: int, where: str
    ) -> tuple[Any, dict[str, Tensor], _Expansions]:
        """Return the encoding of a text with its pictures' tokens, the inputs of the pictures, and what was put in."""
        options = {"add_special_tokens": self._adds_special_tokens(text), "return_offsets_mapping": True}
        if pictures and len(pictures) != wanted:
            raise InputError(
                f"{where}: {wanted} `<image>` in the chat, but {len(pictures)} pictures; give one for each, in their order"
            )
        count = text.count(self.image_token)
        if not count:
            return self.tokenizer(text, **options), {}, _Expansions()
        if count != wanted:
            raise InputError(
                f"{where}: {self.image_token} stands {count} times in a chat of {wanted} pictures; leave it out of the words"
            )
        inputs: dict[str, Tensor] = {}
        expanded: Sequence[str | None] = [self.expanded_image] * count
        if len(pictures) == 1 and self._image_processor_suffices:
            inputs = self._seen_alone(pictures[0])
        elif pictures:
            several = blaming(f"{where}: the backbone's processor does not take {count} pictures in one chat")
            with several if count > 1 else nullcontext():
                expanded, inputs = self._seen(pictures)
        whole, *rest = text.split(self.image_token)
        put: list[tuple[int, int]] = []
        end = len(whole)
        for replacement, part in zip(expanded, rest, strict=True):
            if replacement is None:
                raise InputError(f"{where}: `<image>` in the text, but no picture, whose size decides about its tokens")
            end += len(self.image_token)
            put.append((end, len(replacement) - len(self.image_token)))
            whole, end = whole + replacement + part, end + len(part)
        return self.tokenizer(whole, **options), inputs, _Expansions(put)

    def _seen(self, pictures: Sequence[Image.Image]) -> tuple[list[str], dict[str, Tensor]]:
        """Return what the tokens of a chat's pictures become in its text, and what the backbone is given of the pictures."""
        images = list(pictures)
        seen = self.processor(
            # several in a list of their own, by which processors know the pictures of one chat
            images=images if len(images) == 1 else [images],
            text=[self.image_token * len(images)],
            return_text_replacement_offsets=True,
            return_tensors="pt",
        )
        inputs = {name: v for name, v in seen.items() if name not in _OF_TEXT and isinstance(v, Tensor)}
        return [put["replacement"] for put in seen["text_replacement_offsets"][0]], inputs

    def _seen_alone(self, picture: Image.Image) -> dict[str, Tensor]:
        return {
            name: v for name, v in self.image_processor([picture], return_tensors="pt").items() if isinstance(v, Tensor)
        }

    def _adds_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer puts its own first token before a rendered chat, as ``apply_chat_template`` has it."""
        begin = self.tokenizer.bos_token
        return not self.has_own_template and not (begin is not None and text.startswith(begin))

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Return the chat as the text of the chat template, the picture's token not yet expanded."""
        return self.processor.apply_chat_template(
            [{**message, "content": _parts(message["content"])} for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=self.chat_template,
        )

    def answer_spans(
        self, messages: Sequence[Mapping[str, Any]], text: str, *, where: str = "chat"
    ) -> list[tuple[int, int]]:
        """Return character spans (start, end) of the assistant's answers, their end tokens included, in the rendered chat.

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


def listed_pictures(pictures: Image.Image | Sequence[Image.Image] | None) -> list[Image.Image]:
    """Return one picture, several or none as a list."""
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures or ())


def _pictures_to_try() -> list[Image.Image]:
    """Return pictures of unlike sizes, with something to be seen in them."""
    shades = Image.linear_gradient("L").convert("RGB")
    return [shades.resize(size) for size in ((48, 48), (96, 640), (1400, 1000))]


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a turn's text as chat templates of transformers have it: parts of text, and pictures between them."""
    if not isinstance(content, str):
        return content
    parts: list[dict[str, str]] = []
    for number, text in enumerate(content.split(IMAGE_TOKEN)):
        if number:
            parts.append({"type": "image"})
            text = text.removeprefix("\n")  # a template says itself what stands between picture and text
        if text or not content:
            parts.append({"type": "text", "text": text})
    return parts


__all__ = ["CHAT_TEMPLATES", "EncodedChat", "LlavaPoseProcessor"]
