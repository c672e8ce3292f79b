"""Load processors, each tried on a picture and a chat before it is used: their files are somebody else's."""

from __future__ import annotations

import os
import string
from contextlib import suppress
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin

from llava_pose.compact import CompactLlavaProcessor
from llava_pose.data.conversation import IMAGE_TOKEN, POSE_ANSWER, POSE_QUESTIONS, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import NO_CODE, blaming
from llava_pose.model.processing import LlavaPoseProcessor, input_size
from llava_pose.model.trial import at_most, try_apart
from llava_pose.utils.files import shortened

MAX_INPUT_SIDE = 4096  # pixels of a tower's input
MAX_IMAGE_TOKENS = 65536
TEMPLATE_SECONDS = 4  # for three short chats, which take milliseconds
MAX_GROWTH = 100  # tokens that a tokenizer makes of a letter, or letters that it makes of the tokens of one


def load_processor(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    """The processor of a base or checkpoint (folder or hub id), tried on a picture and a question.

    A chat template is a program, and a size of a picture can ask for any memory: both are tried in a child process first.

    Raises:
        InputError: there is none, its sizes are out of bounds, or it does not take a question with a picture.
    """

    def attempt() -> None:
        processor = _read(path)
        try_template(processor, path)
        _try(processor, path)

    try_apart(path, "tokenizer.json, processor_config.json and chat_template.jinja", attempt)
    processor = _read(path)
    _try(processor, path)
    return processor


def _read(path: str | os.PathLike[str]) -> LlavaPoseProcessor:
    with blaming(f"{path}: no LLaVA-pose processor there"):
        return LlavaPoseProcessor(backbone_processor(path))


def _try(processor: LlavaPoseProcessor, path: str | os.PathLike[str]) -> None:
    with blaming(f"{path}: the processor cannot be used; take its files from the base again"):
        if isinstance(processor.processor, CompactLlavaProcessor):
            _require_sizes(processor.processor)
        try_processor(processor)


def backbone_processor(path: str | os.PathLike[str]) -> ProcessorMixin:
    """A backbone's own processor, as AutoProcessor finds it.

    Raises:
        InputError: it is none of text and pictures.
        Exception: whatever transformers raises at files that are not right.
    """
    processor = AutoProcessor.from_pretrained(path, **NO_CODE)
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"{path}: {type(processor).__name__} is no processor of pictures and text")
    return processor


def _require_sizes(processor: CompactLlavaProcessor) -> None:
    for name, least in (("patch_size", 1), ("vision_merge", 1), ("num_additional_image_tokens", 0)):
        number = getattr(processor, name)
        if not isinstance(number, int) or not least <= number <= MAX_INPUT_SIDE:
            raise ValueError(f"{name} is {shortened(str(number))}")
    size = input_size(processor.image_processor)
    if not all(0 < side <= MAX_INPUT_SIDE for side in size):
        raise ValueError(f"the size of a picture is {size}, not between 1 and {MAX_INPUT_SIDE} pixels")
    if not 0 < processor.count_image_tokens(*size) <= MAX_IMAGE_TOKENS:
        raise ValueError("the size of a picture, patch_size and vision_merge do not fit each other")
    pixels = processor.image_processor([picture_to_try()], return_tensors="pt")["pixel_values"]
    if pixels.shape != (1, 3, *size):
        raise ValueError(f"the image processor makes {tuple(pixels.shape)} numbers of a picture")


def _turns_to_try() -> list[dict[str, str]]:
    """A question about a picture, its answer, and another question."""
    words = {"object": "object", "pose": POSE_TOKEN}
    question, answer = POSE_QUESTIONS[0].format(**words), POSE_ANSWER.format(**words)
    return [
        {"role": "user", "content": f"{IMAGE_TOKEN}\n{question}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]


def try_template(processor: LlavaPoseProcessor, path: str | os.PathLike[str]) -> None:
    """Render a chat, for a chat template is a program, and some never end. For a child of :func:`try_apart`.

    Raises:
        InputError: it takes longer than any sound one.
    """
    turns = _turns_to_try()
    with (
        at_most(TEMPLATE_SECONDS, f"{path}: its chat template"),
        suppress(TemplateError),
    ):  # which has its sentence later
        for count in range(1, len(turns) + 1):
            processor.render(turns[:count], add_generation_prompt=count % 2 == 1)


def try_processor(processor: LlavaPoseProcessor) -> None:
    """Encode a small picture with a question and its answer, and look at pictures of other sizes.

    Raises:
        ValueError: numbers of the picture are not finite, or not as many as the tokens have it.
        InputError: the chat template does not take the chat, or rewrites it.
    """
    turns = _turns_to_try()
    chat = processor.encode_chat(turns[:2], picture_to_try())
    if not chat.pictures:
        raise ValueError("the chat template leaves the picture out")
    if len(chat.input_ids) > MAX_IMAGE_TOKENS:
        raise ValueError(f"a small picture has {len(chat.input_ids)} tokens")
    for name, value in chat.pictures.items():
        if torch.is_floating_point(value) and not torch.isfinite(value).all():
            raise ValueError(f"the image processor makes numbers ({name}) that are not finite")
    if (chat.labels == processor.pose_token_id).sum() != 1:
        raise ValueError(f"{POSE_TOKEN} is not one token of an answer")
    processor.encode_chat(turns, picture_to_try(), add_generation_prompt=True)
    if len(processor.expanded_image or "") > MAX_GROWTH * MAX_IMAGE_TOKENS:
        raise ValueError("a picture becomes a text without end")
    try_text(processor.tokenizer)


def try_text(tokenizer: Any) -> None:
    """Tokenise a text of every plain letter and sign, and turn the tokens into text again.

    Raises:
        ValueError: they become far more tokens, or far more text, than they are.
    """
    letters = f"{string.ascii_letters} {string.digits} {string.punctuation}"
    ids = tokenizer(letters, add_special_tokens=True)["input_ids"]
    text = tokenizer.decode(ids)
    if max(len(ids), len(text)) > MAX_GROWTH * len(letters):
        raise ValueError(f"it makes {len(ids)} tokens of {len(letters)} letters, and {len(text)} letters of these")


def load_image_processor(path: str | os.PathLike[str]) -> Any:
    """The image processor of a vision model, tried on a picture.

    Raises:
        InputError: it makes nothing of the picture, or takes more memory or time for it than any does.
    """

    def attempt() -> None:
        with blaming(f"{path}: its image processor cannot be used"):
            AutoImageProcessor.from_pretrained(path, **NO_CODE)([picture_to_try()], return_tensors="pt")

    try_apart(path, "preprocessor_config.json", attempt)
    return AutoImageProcessor.from_pretrained(path, **NO_CODE)


def picture_to_try() -> Image.Image:
    """A small picture of one colour."""
    return Image.new("RGB", (8, 8), (90, 120, 150))
