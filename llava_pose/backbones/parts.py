"""The backbone of a base: one of transformers' own as it is, or a compact LLaVA joined of parts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from llava_pose.backbones.vocabulary import add_token
from llava_pose.compact import CompactLlavaConfig, CompactLlavaForConditionalGeneration, CompactLlavaProcessor
from llava_pose.compact.modeling import first_patches, tower_patches
from llava_pose.data.conversation import IMAGE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import (
    CONFIG_FILE,
    NO_CODE,
    SAFE,
    blaming,
    bounded_by_weights,
    read_config,
    require_finite,
)
from llava_pose.model.loading import load_vision_backbone, require_complete
from llava_pose.model.processing import CHAT_TEMPLATES, POSE_ADDED_TOKEN, LlavaPoseProcessor, input_size, set_input_size
from llava_pose.model.processors import backbone_processor, picture_to_try, try_processor, try_template, try_text
from llava_pose.model.trial import on_meta, try_apart
from llava_pose.utils.config import require

if TYPE_CHECKING:
    from llava_pose.backbones.assemble import AssembleConfig

# mismatched sizes are "ignored" so that they are listed, and refused by name
_LISTING = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def from_parts(config: AssembleConfig) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Join any AutoModel vision tower and any causal language model to a compact LLaVA."""
    require(config.vision, "--vision")
    require(config.language, "--language")
    vision = _load_tower(config.vision)
    language = _load_part(AutoModelForCausalLM, config.language, "--language")
    if language.config.get_text_config(decoder=True) is not language.config:
        raise InputError(
            f"--language {config.language}: a {language.config.model_type} model is more than a language model; give it with "
            "--vlm, or give its language model alone"
        )
    tokenizer = _load_part(AutoTokenizer, config.language, "--language", weights=False)
    image_processor = _load_part(AutoImageProcessor, config.vision, "--vision", weights=False)
    if config.language_layers is not None:
        _keep_first_layers(language, config.language_layers)
    if config.image_size is not None:
        set_input_size(image_processor, config.image_size)
    image_id = _add_image_token(tokenizer, language)
    model_config = _compact_config(config, vision.config, language.config, image_id)
    _measure_tower(model_config, vision, image_processor)

    model = CompactLlavaForConditionalGeneration(model_config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.causal_lm.load_state_dict(language.state_dict())
    model.model.causal_lm.generation_config = language.generation_config
    if language.generation_config is not None:
        model.generation_config = language.generation_config
    return model, _make_processor(config, model_config, image_processor, tokenizer)


def tiny(config: AssembleConfig) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The random compact LLaVA of the quickstart and the tests."""
    from transformers import ViTImageProcessor

    from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_text_config, tiny_tokenizer, tiny_vision_config

    if config.preset != "tiny":
        raise InputError(f"--preset {config.preset}: not known; there is only 'tiny'")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder))
    image_id = _add_image_token(tokenizer, None)
    if config.vision is None:
        tower = AutoModel.from_config(tiny_vision_config())
        image_processor = ViTImageProcessor(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})
    else:
        tower = _load_tower(config.vision)
        image_processor = _load_part(AutoImageProcessor, config.vision, "--vision", weights=False)
    if config.image_size is not None:
        set_input_size(image_processor, config.image_size)
    model_config = _compact_config(config, tower.config, tiny_text_config(tokenizer), image_id)
    _measure_tower(model_config, tower, image_processor)
    model = CompactLlavaForConditionalGeneration(model_config)
    if config.vision is not None:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    return model, _make_processor(config, model_config, image_processor, tokenizer)


def whole(config: AssembleConfig) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A backbone as it is: any image-text-to-text model that transformers knows, with its own processor."""
    option = "--vlm" if config.llava is None else "--llava"
    path = cast(str, config.vlm or config.llava)

    def attempt() -> None:
        own = _whole_processor(path, config.chat_template)
        add_token(own.tokenizer, POSE_ADDED_TOKEN, None)
        processor = LlavaPoseProcessor(own)
        try_template(processor, path)
        try_processor(processor)

    with blaming(f"{option} {path}: cannot be loaded"):
        try_apart(path, "the files of its processor", attempt)
        processor = _whole_processor(path, config.chat_template)
    backbone = load_vision_backbone(path, named=f"{option} {path}")
    return backbone, processor


def _whole_processor(path: str, template: str | None) -> ProcessorMixin:
    """A backbone's own processor, with a template of ours where it has none, or where one is asked for."""
    processor: Any = backbone_processor(path)
    if template is None and processor.chat_template is None and processor.tokenizer.chat_template is None:
        template = _template_for(processor.tokenizer)
    if template is not None:
        processor.chat_template, processor.tokenizer.chat_template = CHAT_TEMPLATES[template], None
    processor.tokenizer.padding_side = "left"
    return processor


def _load_part(
    auto_class: Any,
    path: str,
    option: str,
    *,
    weights: bool = True,
    all_of_it: bool = True,
    **kwargs: Any,
) -> Any:
    """A part by its Auto class; of a model, every weight, and all that the checkpoint has unless ``all_of_it`` is false."""
    what = f"{option} {path}"
    if not weights:
        with blaming(f"{what}: cannot be loaded"):
            try_apart(path, f"the files of its {auto_class.__name__}", lambda: _try_part(auto_class, path, what))
            return auto_class.from_pretrained(path, **NO_CODE)
    with blaming(f"{what}: cannot be loaded"):
        try_apart(path, CONFIG_FILE, lambda: on_meta(path, auto_class, kwargs.get("config")))
        read_config(path)
        with bounded_by_weights(path):
            model, info = auto_class.from_pretrained(path, dtype="auto", **_LISTING, **SAFE, **kwargs)
    require_complete(info if all_of_it else {**info, "unexpected_keys": []}, what)
    require_finite(model, what)
    return model


def _try_part(auto_class: Any, path: str, what: str) -> None:
    with blaming(f"{what}: cannot be loaded"):
        part = auto_class.from_pretrained(path, **NO_CODE)
        if isinstance(part, PreTrainedTokenizerBase):
            try_text(part)
        elif auto_class is AutoImageProcessor:
            part([picture_to_try()], return_tensors="pt")


def _load_tower(path: str) -> PreTrainedModel:
    config = _load_part(AutoConfig, path, "--vision", weights=False)
    vision_config = getattr(config, "vision_config", None)
    if vision_config is None:
        return _load_part(AutoModel, path, "--vision")
    # a two-tower model such as CLIP: its vision half alone; the text half's weights are not of it
    return _load_part(AutoModel, path, "--vision", all_of_it=False, config=vision_config)


def _keep_first_layers(language: PreTrainedModel, count: int) -> None:
    decoder = language.get_decoder()
    if not 0 < count <= len(decoder.layers):
        raise InputError(f"--language-layers {count}: the language model has {len(decoder.layers)} layers")
    decoder.layers = decoder.layers[:count]
    language.config.num_hidden_layers = count
    if getattr(language.config, "layer_types", None) is not None:
        language.config.layer_types = language.config.layer_types[:count]


def _add_image_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None) -> int:
    """Give `<image>` an id; rows of the embedding are added only where none is free."""
    image = AddedToken(IMAGE_TOKEN, special=True, normalized=False)
    return add_token(tokenizer, image, model)


def _compact_config(
    config: AssembleConfig, vision: PreTrainedConfig, text: PreTrainedConfig, image_id: int
) -> CompactLlavaConfig:
    try:
        layers = [int(word) for word in str(config.vision_layers).split(",")]
    except ValueError as error:
        raise InputError(f"--vision-layers {config.vision_layers}: expected whole numbers with commas") from error
    with blaming(f"a {text.model_type} model: makes no compact LLaVA"):
        return CompactLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image_id,
            vision_feature_layer=layers[0] if len(layers) == 1 else layers,
            vision_feature_select_strategy="default",
            vision_merge=config.vision_merge,
            projector_norm=True,
            tie_word_embeddings=bool(text.tie_word_embeddings),
        )


def _measure_tower(model_config: CompactLlavaConfig, tower: PreTrainedModel, image_processor: Any) -> None:
    """Set the channels of a patch and the tokens of a picture by running the tower once."""
    height, width = input_size(image_processor)
    tower = tower.eval().float()
    with (
        torch.inference_mode(),
        blaming(
            f"--vision-layers {model_config.vision_feature_layer}: a {tower.config.model_type} model gives no such map of "
            f"patches of {height}x{width} pixels; give other layers, another --image-size or another --vision"
        ),
    ):
        patches = tower_patches(tower, model_config, torch.zeros(1, 3, height, width))
        _require_places(tower, model_config, height, width)
    _, rows, columns, channels = patches.shape
    merge = model_config.vision_merge
    if rows % merge or columns % merge:
        raise InputError(
            f"--vision-merge {merge}: the tower gives {rows}x{columns} patches; choose another --image-size"
        )
    model_config.vision_feature_size = channels
    model_config.image_seq_length = rows * columns // merge**2


def _require_places(tower: PreTrainedModel, model_config: CompactLlavaConfig, height: int, width: int) -> None:
    """Refuse a tower whose tokens are not one for each patch in their order, the last at the end.

    Before the first layer a token knows of its own patch alone: a picture that differs in one corner differs in that one.

    Raises:
        ValueError: it differs elsewhere.
    """
    plain = torch.zeros(1, 3, height, width)
    before = first_patches(tower, model_config, plain)
    if before is None:
        return
    _, rows, columns, _ = before.shape
    down, right = height // rows, width // columns
    for place, at in ((0, (slice(down), slice(right))), (-1, (slice(-down, None), slice(-right, None)))):
        pixels = plain.clone()
        pixels[..., at[0], at[1]] = 1.0
        changed = cast(torch.Tensor, first_patches(tower, model_config, pixels)) - before
        if int(changed.norm(dim=-1).argmax()) != place % (rows * columns):
            raise ValueError("its tokens do not end with those of the patches in their order")


def _make_processor(
    config: AssembleConfig,
    model_config: CompactLlavaConfig,
    image_processor: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> CompactLlavaProcessor:
    name = config.chat_template or _template_for(tokenizer)
    tokenizer.chat_template = None  # the processor's is the one there is
    tokenizer.padding_side = "left"
    return CompactLlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=_total_stride(model_config, image_processor),
        vision_feature_select_strategy=model_config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATES[name],
        vision_merge=model_config.vision_merge,
    )


def _template_for(tokenizer: PreTrainedTokenizerBase) -> str:
    return "chatml" if "<|im_start|>" in tokenizer.get_vocab() else "vicuna"


def _total_stride(model_config: CompactLlavaConfig, image_processor: Any) -> int:
    """Pixels of the tower's input for each patch along a side."""
    height, width = input_size(image_processor)
    merge = model_config.vision_merge
    tokens = model_config.image_seq_length
    stride = round((height * width / (tokens * merge**2)) ** 0.5)
    if (height // (stride * merge)) * (width // (stride * merge)) != tokens:
        raise InputError(
            f"the tower's {tokens} tokens do not tile its {height}x{width} input; choose another --image-size"
        )
    return stride
