"""A small random image-text-to-text model of any kind, with a processor that knows how many tokens a picture has.

The image processor is the family's own without torchvision, where it has one. How many tokens a picture has is counted: the
processors themselves differ too much to be made without their hub folders, and those with a video half want torchvision.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.image_utils import make_flat_list_of_images
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from llava_pose.data.conversation import IMAGE_TOKEN
from llava_pose.model.pictures import tokens_of_each
from tests.llava_pose.shrunken import SIDE, drawn, shrunken
from tests.llava_pose.vlm_families import FAMILIES, VICUNA, ImageProcessorAlone

_OF_VISION = ("patch_size", "temporal_patch_size", "merge_size", "spatial_merge_size", "downsample_factor")


class CountedProcessor(ImageProcessorAlone):
    """As many tokens for each picture, which is made a square of one size first."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, tokens=0, side=SIDE, **kwargs):
        self.tokens, self.side = tokens, side
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        squares = [image.resize((self.side, self.side)) for image in make_flat_list_of_images(images)]
        return super()._process_images(squares, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token * self.tokens


def save_whole(kind: str, folder: Path, shared: Path) -> None:
    """Write a model and its processor: as the tests of families have it, or counted."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer")
    if kind in FAMILIES:
        FAMILIES[kind].save(folder, tokenizer=tokenizer)
        return
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    config = shrunken(kind, tokenizer)
    if getattr(config, "image_grid_pinpoints", None) is not None:
        config.image_grid_pinpoints = [[_side(config), _side(config)]]
    _set_image_token(config, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    model = drawn(AutoModelForImageTextToText.from_config(config))
    images = _image_processor(kind, config)
    side = _side(config)
    tokens = _count(model, images, side)
    processor = CountedProcessor(images, tokenizer, chat_template=VICUNA, tokens=tokens, side=side)
    AutoProcessor.register(type(config), CountedProcessor, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _set_image_token(config: PreTrainedConfig, number: int) -> None:
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for name in ("image_token_id", "image_token_index"):
            if getattr(part, name, None) is not None:
                setattr(part, name, number)


def _image_processor(kind: str, config: PreTrainedConfig) -> Any:
    names: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    vision, side = getattr(config, "vision_config", config), _side(config)
    if not isinstance(names, dict) or "pil" not in names:
        return transformers.ViTImageProcessor(size={"height": side, "width": side})
    image_class: Any = getattr(transformers, names["pil"])
    values: dict[str, Any] = {}
    for name in ("size", "crop_size"):
        if isinstance(own := getattr(image_class, name, None), dict):
            values[name] = {key: side if value <= 4096 else side**2 for key, value in own.items()}
    fixed = {
        "min_pixels": side**2 // 4,
        "max_pixels": side**2,
        "image_grid_pinpoints": [[side, side]],
        "crop_to_patches": False,
        "do_image_splitting": False,
        "max_image_size": {"longest_edge": side},
    }
    fixed |= {name: getattr(part, name) for part in (config, vision) for name in _OF_VISION if hasattr(part, name)}
    if "spatial_merge_size" in fixed:
        fixed.setdefault("merge_size", fixed["spatial_merge_size"])
    return image_class(**values, **{name: value for name, value in fixed.items() if hasattr(image_class, name)})


def _side(config: PreTrainedConfig) -> int:
    """Return the side of a square picture, as the tower takes it."""
    side = getattr(getattr(config, "vision_config", config), "image_size", SIDE)
    return side if isinstance(side, int) else SIDE


def _count(model: Any, images: Any, side: int) -> int:
    """Return how many tokens a square picture has."""
    base = model.base_model
    if not hasattr(base, "get_image_features"):
        return 4  # it is refused all the same
    given = images([Image.linear_gradient("L").resize((side, side)).convert("RGB")], return_tensors="pt")
    taken = inspect.signature(base.get_image_features).parameters
    with torch.inference_mode():
        seen = base.get_image_features(**{n: v for n, v in given.items() if n in taken}, return_dict=True)
    return len(torch.cat(tokens_of_each(seen)))


__all__ = ["CountedProcessor", "save_whole"]
