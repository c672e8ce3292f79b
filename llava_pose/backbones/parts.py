"""The parts of a base, loaded and joined as ``llava-pose assemble`` is told."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN
from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import CONFIG_FILE, NO_CODE, SAFE, building, loading, read_config, require_finite
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.loading import picture_to_try, require_complete, try_text
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration, LlavaPoseModel
from llava_pose.model.processing import CHAT_TEMPLATES, SPECIAL_TOKENS, LlavaPoseProcessor, input_size, set_input_size
from llava_pose.model.trial import on_meta, try_apart
from llava_pose.utils.config import require

if TYPE_CHECKING:
    from llava_pose.backbones.assemble import AssembleConfig

# mismatched sizes are "ignored" so that they are listed, and refused by name
_LISTING = {"output_loading_info": True, "ignore_mismatched_sizes": True}
# LLaVA checkpoints have names older than the modules'; transformers knows that of its own LLaVA, by the model type alone
_LLAVA_NAMES = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.language_model.",
    r"^vision_tower\.": "model.vision_tower.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
}
_NEW_MODULES = ("pose_head.", "pose_encoder.", "pose_token_embedding.", "pose_token_output.")


def from_parts(config: AssembleConfig) -> tuple[LlavaPoseForConditionalGeneration, LlavaPoseProcessor]:
    """Join any AutoModel vision tower and any causal language model."""
    require(config.vision, "--vision")
    require(config.language, "--language")
    vision = _load_tower(config.vision)
    language = _load_part(AutoModelForCausalLM, config.language, "--language")
    tokenizer = _load_part(AutoTokenizer, config.language, "--language", weights=False)
    image_processor = _load_part(AutoImageProcessor, config.vision, "--vision", weights=False)
    if config.language_layers is not None:
        _keep_first_layers(language, config.language_layers)
    if config.image_size is not None:
        set_input_size(image_processor, config.image_size)
    ids = _add_tokens(tokenizer, language)
    model_config = _pose_config(config, vision.config, language.config, ids)
    _measure_tower(model_config, vision, image_processor)

    model = LlavaPoseForConditionalGeneration(model_config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.get_decoder().state_dict())
    if not model_config.tie_word_embeddings:
        model.lm_head.load_state_dict(language.get_output_embeddings().state_dict())
    model.tie_weights()
    return model, _make_processor(config, model.model, image_processor, tokenizer)


def tiny_base(config: AssembleConfig) -> tuple[LlavaPoseForConditionalGeneration, LlavaPoseProcessor]:
    """The random base of the quickstart and the tests."""
    from transformers import ViTImageProcessor

    from llava_pose.backbones.tiny import TINY_IMAGE_SIZE, tiny_text_config, tiny_tokenizer, tiny_vision_config

    if config.preset != "tiny":
        raise InputError(f"--preset {config.preset}: not known; there is only 'tiny'")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder))
    ids = _add_tokens(tokenizer, None)
    if config.vision is None:
        tower = AutoModel.from_config(tiny_vision_config())
        image_processor = ViTImageProcessor(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})
    else:
        tower = _load_tower(config.vision)
        image_processor = _load_part(AutoImageProcessor, config.vision, "--vision", weights=False)
    if config.image_size is not None:
        set_input_size(image_processor, config.image_size)
    model_config = _pose_config(config, tower.config, tiny_text_config(tokenizer), ids)
    _measure_tower(model_config, tower, image_processor)
    model = LlavaPoseForConditionalGeneration(model_config)
    if config.vision is not None:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    return model, _make_processor(config, model.model, image_processor, tokenizer)


def from_llava(config: AssembleConfig) -> tuple[LlavaPoseForConditionalGeneration, LlavaPoseProcessor]:
    """Give a LLaVA checkpoint its pose head; its own weights are kept whole."""
    llava_config = _load_part(AutoConfig, config.llava, "--llava", weights=False)
    if type(llava_config) is not LlavaConfig:  # a base of ours is one by inheritance
        raise InputError(f"--llava {config.llava}: a {llava_config.model_type} model, not a llava one")
    tokenizer = _load_part(AutoTokenizer, config.llava, "--llava", weights=False)
    image_processor = _load_part(AutoImageProcessor, config.llava, "--llava", weights=False)
    values = llava_config.to_dict()
    values.pop("model_type", None)
    values.pop("architectures", None)
    with loading(f"--llava {config.llava}: cannot be used"):
        model_config = LlavaPoseConfig(
            **{
                **values,
                "rotation": config.rotation,
                "pose_head_hidden_size": config.pose_head_hidden_size,
                "pose_head_attention_heads": config.pose_head_attention_heads,
                "pose_head_pooled_features": config.pose_head_pooled_features,
            }
        )
    model = _load_part(
        LlavaPoseForConditionalGeneration,
        config.llava,
        "--llava",
        may_miss=_NEW_MODULES,
        config=model_config,
        key_mapping=_LLAVA_NAMES,
    )
    ids = _add_tokens(tokenizer, model)
    if ids[IMAGE_TOKEN] != model.config.image_token_id:
        raise InputError(
            f"--llava {config.llava}: the tokenizer's {IMAGE_TOKEN} is {ids[IMAGE_TOKEN]}, "
            f"the model's {model.config.image_token_id}"
        )
    model.config.pose_token_id = ids[POSE_TOKEN]
    return model, _make_processor(config, model.model, image_processor, tokenizer)


def _load_part(
    auto_class: Any,
    path: str,
    option: str,
    *,
    weights: bool = True,
    all_of_it: bool = True,
    may_miss: tuple[str, ...] = (),
    **kwargs: Any,
) -> Any:
    """A part by its Auto class; of a model, every weight, and all that the checkpoint has unless ``all_of_it`` is false."""
    what = f"{option} {path}"
    if not weights:
        with loading(f"{what}: cannot be loaded"):
            try_apart(path, f"the files of its {auto_class.__name__}", lambda: _try_part(auto_class, path, what))
            return auto_class.from_pretrained(path, **NO_CODE)
    with loading(f"{what}: cannot be loaded"):
        try_apart(path, CONFIG_FILE, lambda: on_meta(path, auto_class, kwargs.get("config")))
        read_config(path)
        with building(path):
            model, info = auto_class.from_pretrained(path, dtype="auto", **_LISTING, **SAFE, **kwargs)
    require_complete(info if all_of_it else {**info, "unexpected_keys": []}, what, may_miss=may_miss)
    require_finite(model, what)
    return model


def _try_part(auto_class: Any, path: str, what: str) -> None:
    with loading(f"{what}: cannot be loaded"):
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


def _add_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None) -> dict[str, int]:
    """Give `<image>` and `<pose6D>` an id; rows of the embedding are added only where none is free."""
    tokenizer.add_tokens([t for t in SPECIAL_TOKENS if t.content not in tokenizer.get_vocab()], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model is not None and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    return {t: tokenizer.convert_tokens_to_ids(t) for t in (IMAGE_TOKEN, POSE_TOKEN)}


def _pose_config(
    config: AssembleConfig, vision: PreTrainedConfig, text: PreTrainedConfig, ids: dict[str, int]
) -> LlavaPoseConfig:
    try:
        layers = [int(word) for word in str(config.vision_layers).split(",")]
    except ValueError as error:
        raise InputError(f"--vision-layers {config.vision_layers}: expected whole numbers with commas") from error
    return LlavaPoseConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE_TOKEN],
        pose_token_id=ids[POSE_TOKEN],
        vision_feature_layer=layers[0] if len(layers) == 1 else layers,
        vision_feature_select_strategy="default",
        vision_merge=config.vision_merge,
        projector_norm=True,
        rotation=config.rotation,
        pose_head_hidden_size=config.pose_head_hidden_size,
        pose_head_attention_heads=config.pose_head_attention_heads,
        pose_head_pooled_features=config.pose_head_pooled_features,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def _measure_tower(model_config: LlavaPoseConfig, tower: PreTrainedModel, image_processor: Any) -> None:
    """Set the channels of a patch and the tokens of a picture by running the tower once."""
    height, width = input_size(image_processor)
    probe = _TowerProbe(model_config, tower)
    try:
        _, rows, columns, channels = LlavaPoseModel.extract_patches(probe, torch.zeros(1, 3, height, width)).shape
    except (IndexError, ValueError) as error:
        raise InputError(
            f"--vision-layers {model_config.vision_feature_layer}: does not suit the tower: {error}"
        ) from error
    merge = model_config.vision_merge
    if rows % merge or columns % merge:
        raise InputError(
            f"--vision-merge {merge}: the tower gives {rows}x{columns} patches; choose another --image-size"
        )
    model_config.vision_feature_size = channels
    model_config.image_seq_length = rows * columns // merge**2


class _TowerProbe(LlavaPoseModel):
    """Only what ``extract_patches`` needs, so that no language model is built to measure a tower."""

    def __init__(self, config: LlavaPoseConfig, tower: PreTrainedModel):
        torch.nn.Module.__init__(self)
        self.config = config
        self.vision_tower = tower.eval().float()
        self.requires_grad_(False)


def _make_processor(
    config: AssembleConfig, model: LlavaPoseModel, image_processor: Any, tokenizer: PreTrainedTokenizerBase
) -> LlavaPoseProcessor:
    name = config.chat_template or ("chatml" if "<|im_start|>" in tokenizer.get_vocab() else "vicuna")
    tokenizer.chat_template = None  # the processor's is the one there is
    tokenizer.padding_side = "left"
    return LlavaPoseProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=_total_stride(model, image_processor),
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        chat_template=CHAT_TEMPLATES[name],
        vision_merge=model.config.vision_merge,
    )


def _total_stride(model: LlavaPoseModel, image_processor: Any) -> int:
    """Pixels of the tower's input for each patch along a side."""
    height, width = input_size(image_processor)
    merge = model.config.vision_merge
    tokens = model.config.image_seq_length
    stride = round((height * width / (tokens * merge**2)) ** 0.5)
    if (height // (stride * merge)) * (width // (stride * merge)) != tokens:
        raise InputError(
            f"the tower's {tokens} tokens do not tile its {height}x{width} input; choose another --image-size"
        )
    return stride
