"""Pictures as a backbone sees them, and what its forward takes beside ids; nothing here knows of poses."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass
class Pictures:
    """Pictures as a backbone sees them.

    Attributes:
        output: of the backbone's ``get_image_features``, to hand over as ``mm_encoder_outputs``.
        tokens: (n, embedding size), the image tokens of all pictures in their order.
        counts: tokens of each picture.
        pooled: (pictures, channels), the mean of the patches that the connector is given, or of the image tokens.
        patches: (pictures, …, channels), what the connector was given, where there is one.
    """

    output: Any
    tokens: Tensor
    counts: list[int]
    pooled: Tensor
    patches: Tensor | None = None


def see_pictures(backbone: PreTrainedModel, connector: nn.Module | None, inputs: Mapping[str, Any]) -> Pictures:
    """Run a backbone's tower and connector.

    Args:
        connector: what makes image tokens of patches, if the backbone has such a module.
        inputs: what the backbone's image processor gives; other names are passed over.
    """
    base: Any = backbone.base_model
    dtype = next(backbone.get_encoder(modality="image").parameters()).dtype
    taken = inspect.signature(base.get_image_features).parameters
    pixels = {
        name: value.to(dtype) if torch.is_floating_point(value) else value
        for name, value in inputs.items()
        if name in taken
    }
    patches: list[Tensor] = []
    watch = None
    if connector is not None:
        watch = connector.register_forward_pre_hook(lambda _, args: patches.append(args[0]))
    try:
        output = base.get_image_features(**pixels, return_dict=True)
    finally:
        if watch is not None:
            watch.remove()
    return _pictures(output, patches[0] if patches else None)


def connect_patches(connector: nn.Module, patches: Tensor, *, listed: bool) -> Pictures:
    """Make image tokens of (pictures, …, channels) patches that a tower gave before.

    Args:
        listed: whether the backbone takes tokens as a list, one entry a picture, and not as one tensor.
    """
    tokens = connector(patches)
    pooled = cast(Any, list(tokens) if listed else tokens)
    return _pictures(BaseModelOutputWithPooling(pooler_output=pooled), patches)


def _pictures(output: Any, patches: Tensor | None) -> Pictures:
    tokens = tokens_of_each(output)
    if patches is not None:
        pooled = patches.mean(tuple(range(1, patches.dim() - 1)))
    else:
        pooled = torch.stack([picture.mean(0) for picture in tokens])
    return Pictures(output, torch.cat(tokens), [len(picture) for picture in tokens], pooled, patches)


def tokens_of_each(output: Any) -> list[Tensor]:
    """Return the (tokens, embedding size) of each picture from what ``get_image_features`` gives."""
    pooled = output.pooler_output
    if isinstance(pooled, list | tuple):
        parts = list(pooled)
        return [part.flatten(0, -2) for part in parts]
    return list(pooled) if pooled.dim() == 3 else [pooled]


def accepted_names(backbone: PreTrainedModel) -> set[str]:
    """Return the names of what a backbone's forward takes, or hands to its base's."""
    forwards = (backbone.forward, backbone.base_model.forward)
    return {name for forward in forwards for name in inspect.signature(forward).parameters}


def token_types(taken: Collection[str], at_image: Tensor) -> dict[str, Tensor]:
    """Return what says which tokens are a picture's, under the name that a backbone takes it by, if it takes it."""
    names = (name for name in ("mm_token_type_ids", "token_type_ids") if name in taken)
    return {name: at_image.int() for name in list(names)[:1]}


__all__ = [
    "Pictures",
    "accepted_names",
    "connect_patches",
    "see_pictures",
    "token_types",
    "tokens_of_each",
]
