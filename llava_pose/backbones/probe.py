"""A backbone is run to find out what it is and can do: nothing is believed that one small picture can show."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from llava_pose.data.collator import joined_pictures
from llava_pose.data.conversation import IMAGE_TOKEN, JOINT_ANSWER, JOINT_QUESTIONS, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import blaming
from llava_pose.model.configuration import POSE_CONFIG
from llava_pose.model.loading import embedding_shape
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.pictures import accepted_names, token_types, tokens_of_each
from llava_pose.model.processing import EncodedChat, LlavaPoseProcessor

logger = logging.getLogger(__name__)
# what the code of transformers decides, and no weight: another version may have it otherwise and be right
_OF_THE_CODE = frozenset(("connector", "listed_tokens", "base_states"))
TOLERANCE = 1e-3  # of a number's difference, as a share of the largest


def probe_picture() -> Image.Image:
    """Return a smooth random picture."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def probe_chat(processor: LlavaPoseProcessor, an_object: str = "a car") -> EncodedChat:
    """Return a question about that picture with an answer."""
    return processor.encode_chat(
        [
            {"role": "user", "content": f"{IMAGE_TOKEN}\n{JOINT_QUESTIONS[0]}"},
            {"role": "assistant", "content": JOINT_ANSWER.format(an_object=an_object, pose=POSE_TOKEN)},
        ],
        probe_picture(),
        where="the probe",
    )


def sizes_of(backbone: PreTrainedModel, processor: LlavaPoseProcessor) -> dict[str, Any]:
    """Return the fields of a :class:`LlavaPoseConfig` that say what the backbone is.

    Raises:
        InputError: the backbone cannot be one.
    """
    kind = backbone.config.model_type
    image_token_id = getattr(backbone.config, "image_token_id", None)
    if image_token_id is None:
        image_token_id = getattr(backbone.config, "image_token_index", None)
    base: Any = backbone.base_model
    if not isinstance(image_token_id, int) or not hasattr(base, "get_image_features"):
        raise InputError(f"a {kind} model has no image tokens, which its language model reads beside the words")
    if backbone.get_output_embeddings() is None or backbone.get_encoder(modality="image") in (backbone, base):
        raise InputError(f"a {kind} model has no output layer or no vision tower of its own")
    chat = probe_chat(processor)
    tokens = int((chat.input_ids == image_token_id).sum())
    if not tokens:
        raise InputError(f"the processor puts no image token of a {kind} model ({image_token_id}) into a text")
    states: list[Tensor] = []
    watch = backbone.get_output_embeddings().register_forward_pre_hook(lambda _, args: states.append(args[0]))
    inputs = plain_inputs(backbone, chat, image_token_id)
    try:
        with torch.inference_mode(), blaming(f"a {kind} model: does not take a picture and a question"):
            backbone(**inputs)
            last = base(**inputs).last_hidden_state
    finally:
        watch.remove()
    connector, pooled, listed = _connector(backbone, processor)
    size = embedding_shape(backbone)[1]
    return {
        "image_token_id": image_token_id,
        "pose_token_id": processor.pose_token_id,
        "hidden_size": states[0].shape[-1],
        "embedding_size": size,
        "pooled_size": pooled if connector else size,
        "image_places": tokens,
        "connector": connector,
        "listed_tokens": listed,
        "base_states": last.shape == states[0].shape and torch.equal(last, states[0]),
        "transformers_version": transformers.__version__,
    }


def plain_inputs(backbone: PreTrainedModel, chat: EncodedChat, image_token_id: int) -> dict[str, Tensor]:
    """Return what the backbone takes by itself of a chat, pixels and all."""
    ids = torch.from_numpy(chat.input_ids)[None].to(backbone.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **_on(backbone, chat.pictures)}
    return inputs | token_types(accepted_names(backbone), ids == image_token_id)


def _connector(backbone: PreTrainedModel, processor: LlavaPoseProcessor) -> tuple[str | None, int, bool]:
    """Find the child of the base that makes image tokens of patches, one picture as another.

    Returns:
        Its name, the channels of a patch, and whether the base gives tokens as a list; without such a child (None, 0, True).
    """
    base: Any = backbone.base_model
    inside = {id(part) for half in (base.get_encoder(modality="image"), base.get_decoder()) for part in half.modules()}
    pictures = _on(backbone, joined_pictures([processor.picture_inputs(probe_picture())] * 2))
    taken = inspect.signature(base.get_image_features).parameters
    given = {name: value for name, value in pictures.items() if name in taken}
    for name, child in base.named_children():
        if inside & {id(module) for module in child.modules()} or not list(child.parameters()):
            continue
        calls: list[tuple[Any, Any]] = []
        watch = child.register_forward_hook(lambda _, args, output, calls=calls: calls.append((args, output)))
        try:
            with torch.inference_mode():
                pooled = base.get_image_features(**given, return_dict=True)
        finally:
            watch.remove()
        if len(calls) != 1 or len(calls[0][0]) != 1 or not isinstance(calls[0][0][0], Tensor):
            continue
        (patches,), output = calls[0]
        tokens = tokens_of_each(pooled)
        if (
            isinstance(output, Tensor)
            and output.dim() == 3
            and patches.dim() >= 3
            and len(patches) == len(output) == len(tokens) == 2
            and all(torch.equal(one, other) for one, other in zip(tokens, output, strict=True))
        ):
            return name, patches.shape[-1], not isinstance(pooled.pooler_output, Tensor)
    return None, 0, True


def _on(backbone: PreTrainedModel, pictures: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return pictures on the backbone's device and in its type."""
    return {
        name: value.to(backbone.device, backbone.dtype if torch.is_floating_point(value) else None)
        for name, value in pictures.items()
    }


def require_same_as_plain(model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor) -> None:
    """Compare fresh pose parts on a backbone with the backbone by itself: they change nothing before they have learned.

    The backbone is asked whether it looks ahead, too: one that does would be taught an answer that it reads.

    Raises:
        InputError: logits differ, or depend on later tokens, or the state that predicts the token is not the one that the
            output layer is given.
    """
    vlm = model.vlm
    with torch.inference_mode(), blaming(f"a {vlm.config.model_type} model: cannot be a backbone"):
        _compare_with_plain(model, vlm, processor)


def _compare_with_plain(
    model: LlavaPoseForConditionalGeneration, vlm: PreTrainedModel, processor: LlavaPoseProcessor
) -> None:
    chat = probe_chat(processor)
    ids = torch.from_numpy(chat.input_ids)[None].to(vlm.device)
    pictures = {name: value.to(vlm.device) for name, value in chat.pictures.items()}
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, -6:] = True
    inputs = plain_inputs(vlm, chat, model.pose_config.image_token_id)
    whole = vlm(**inputs).logits
    other = torch.cat([ids[:, :-6], ids[:, -6:].flip(1)], 1)
    ahead = _difference(vlm(**{**inputs, "input_ids": other}).logits[~keep], whole[~keep])
    if not ahead <= TOLERANCE:
        raise InputError(
            f"a {vlm.config.model_type} model: its language model ({vlm.config.get_text_config().model_type}) looks ahead, for "
            f"what it makes of a word depends on later words, by {ahead:.1e} of its logits; it cannot be a backbone"
        )
    plain = whole[keep]
    ours = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=keep, **pictures)
    difference = _difference(ours.logits, plain)
    if not difference <= TOLERANCE or ours.states.shape[:-1] != (6,):
        raise InputError(
            f"a {vlm.config.model_type} model: with image tokens handed over it answers otherwise than with pixels, by "
            f"{difference:.1e} of its logits; it cannot be a backbone"
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)


def look_again(
    model: LlavaPoseForConditionalGeneration, processor: LlavaPoseProcessor, path: str | os.PathLike[str]
) -> None:
    """Find out anew what a backbone is where that was done with another version of transformers; else do nothing.

    It takes a few passes of one small picture. The model's config is brought up to date; nothing is written.

    Raises:
        InputError: with this version it is another model, or answers otherwise with image tokens handed over.
    """
    config, now = model.pose_config, transformers.__version__
    then = config.transformers_version
    if then == now:
        return
    remedy = f"; install {then}, with which its base was made" if then else ""
    was_training = model.training
    model.eval()
    with blaming(f"{path}: its backbone cannot be used with transformers {now}{remedy}"):
        found = sizes_of(model.vlm, processor)
        found["image_places"] = config.image_places  # so many the head has learned, whatever a picture has now
        changes = []
        for name, value in found.items():
            old = getattr(config, name)
            if value == old or name == "transformers_version":
                continue
            if name not in _OF_THE_CODE or value is None or old is None:  # the head has learned from something else
                raise InputError(f"{name} is {value}, and {old} in {POSE_CONFIG}")
            changes.append(f"{name} is {value} and no longer {old}")
        for name, value in found.items():
            setattr(config, name, value)
        require_same_as_plain(model, processor)
    model.train(was_training)
    logger.info(
        f"{path}: made with transformers {then or 'of unknown version'}, and tried again with {now}: "
        f"{', '.join(changes) or 'it does what it did'}"
    )
