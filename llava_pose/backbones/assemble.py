"""`llava-pose assemble`: give any vision-language model its pose parts, or join one from a tower and a language model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from llava_pose.data.chat_templates import CHAT_TEMPLATES
from llava_pose.errors import InputError
from llava_pose.pose.rotation_names import DEFAULT_ROTATION, ROTATION_NAMES
from llava_pose.utils.command import command, say_next
from llava_pose.utils.config import require, require_seed
from llava_pose.utils.output_folder import own_new_folder
from llava_pose.utils.yaml_files import save_config

logger = logging.getLogger(__name__)


@dataclass
class AssembleConfig:
    """Give --vlm, or --vision and --language, or --preset tiny (with or without --vision)."""

    out: str = field(metadata={"help": "folder of the new base"})
    vlm: str | None = field(
        default=None,
        metadata={
            "help": "a vision-language model that AutoModelForImageTextToText can load, hub id or folder, "
            "e.g. llava-hf/llava-1.5-7b-hf or Qwen/Qwen2.5-VL-3B-Instruct"
        },
    )
    vision: str | None = field(
        default=None, metadata={"help": "vision tower: hub id or folder that AutoModel can load"}
    )
    language: str | None = field(default=None, metadata={"help": "causal language model: hub id or folder"})
    llava: str | None = field(default=None, metadata={"help": "another name of --vlm"})
    preset: str | None = field(
        default=None,
        metadata={"help": "tiny: a small random base that needs no download; with --vision on that tower's weights"},
    )
    language_layers: int | None = field(default=None, metadata={"help": "keep only the first N layers of --language"})
    vision_layers: str = field(
        default="-1", metadata={"help": "hidden states of the tower, joined along the channels, e.g. -1 or 6,12"}
    )
    vision_merge: int = field(default=1, metadata={"help": "M x M patches become one image token"})
    image_size: int | None = field(
        default=None, metadata={"help": "side of the tower's input, pixels; default: its own"}
    )
    rotation: str = field(
        default=DEFAULT_ROTATION, metadata={"help": f"rotation representation: {', '.join(ROTATION_NAMES)}"}
    )
    pose_head_hidden_size: int = field(default=512, metadata={"help": "width of the pose head's hidden layer"})
    pose_head_attention_heads: int = field(
        default=4,
        metadata={"help": "of the pose head's own attention to the image tokens; 0: it does not look at them"},
    )
    pose_head_pooled_features: bool = field(
        default=True, metadata={"help": "the pose head reads the mean of the tower's features, too"}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": f"{', '.join(CHAT_TEMPLATES)}; default: by the tokenizer's tokens"}
    )
    seed: int = field(default=0, metadata={"help": "of the new weights"})


def assemble(config: AssembleConfig) -> Path:
    """Write a base (model, processor, resolved config) to ``config.out`` and return its path.

    Raises:
        InputError: the choice of parts makes no sense, or a part cannot be loaded whole.
    """
    from llava_pose.model.configuration import fits_attention_heads  # seconds, which --help does without

    require(config.out, "--out")
    if config.rotation not in ROTATION_NAMES:
        raise InputError(f"--rotation {config.rotation}: not known; choose one of {', '.join(ROTATION_NAMES)}")
    if config.chat_template is not None and config.chat_template not in CHAT_TEMPLATES:
        raise InputError(
            f"--chat-template {config.chat_template}: not known; choose one of {', '.join(CHAT_TEMPLATES)}"
        )
    ways = [
        config.vlm is not None,
        config.llava is not None,
        config.preset is not None,
        config.language is not None or (config.vision is not None and config.preset is None),
    ]
    if sum(ways) != 1:
        raise InputError("give either --vlm, or --vision and --language, or --preset tiny")
    _refuse_without_effect(config)
    for option in ("vision_merge", "image_size", "pose_head_hidden_size"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    heads = config.pose_head_attention_heads
    if not fits_attention_heads(heads, config.pose_head_hidden_size):
        raise InputError(
            f"--pose-head-attention-heads {heads}: must be 0 or divide --pose-head-hidden-size {config.pose_head_hidden_size}"
        )
    require_seed(config.seed)
    with own_new_folder(config.out, "--out", "assemble") as written:
        _assemble(config, written)
    say_next(f"python train.py --model {config.out} --data PREPARED --train-json train.json --output-dir runs/first")
    return Path(config.out)


def _assemble(config: AssembleConfig, written: Path) -> None:
    from transformers import set_seed

    from llava_pose.backbones.parts import from_parts, tiny, whole
    from llava_pose.backbones.probe import require_same_as_plain, sizes_of
    from llava_pose.backbones.vocabulary import place_pose_token
    from llava_pose.model.card import bases_of, write_card
    from llava_pose.model.configuration import LlavaPoseConfig
    from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
    from llava_pose.model.processing import LlavaPoseProcessor

    set_seed(config.seed)
    make = whole if config.vlm or config.llava else tiny if config.preset is not None else from_parts
    backbone, own_processor = make(config)
    place_pose_token(own_processor, backbone)
    processor = LlavaPoseProcessor(own_processor)
    backbone.eval()
    pose_config = LlavaPoseConfig(
        **sizes_of(backbone, processor),
        rotation=config.rotation,
        pose_head_hidden_size=config.pose_head_hidden_size,
        pose_head_attention_heads=config.pose_head_attention_heads,
        pose_head_pooled_features=config.pose_head_pooled_features,
    )
    model = LlavaPoseForConditionalGeneration(backbone, pose_config).eval()
    model.draw_weights()
    model.cast_pose_parts(backbone.dtype)
    require_same_as_plain(model, processor)

    model.save_pretrained(written)
    processor.save_pretrained(written)
    parts = (config.vlm, config.llava, config.vision, config.language)
    write_card(written, [base for part in parts if part is not None for base in bases_of(part)])
    save_config(config, written / "assemble.yaml")
    parameters = sum(p.numel() for p in model.parameters())
    tokens = pose_config.image_places if processor.expanded_image else "as many as its size asks for"
    logger.info(
        f"{config.out}: a LLaVA-pose base of {parameters / 1e6:.1f} M parameters; image tokens of a picture: {tokens}"
    )


def _refuse_without_effect(config: AssembleConfig) -> None:
    """Options that belong to another way of assembling must not be passed over in silence."""
    of_parts = ("vision_layers", "vision_merge", "image_size", "language_layers")
    fixed = {"--vlm": of_parts, "--llava": of_parts, "--preset": ("language_layers",)}
    way = next((f"--{name}" for name in ("vlm", "llava", "preset") if getattr(config, name) is not None), None)
    for option in fixed.get(way, ()):
        if getattr(config, option) != getattr(AssembleConfig, option):
            raise InputError(f"--{option.replace('_', '-')}: has no effect with {way}; leave it out")


main = command(
    AssembleConfig,
    assemble,
    prog="llava-pose assemble",
    description="Give a vision-language model its pose head, or join one from a vision tower and a causal language model.",
    example="llava-pose assemble --vlm llava-hf/llava-1.5-7b-hf --out base",
)

if __name__ == "__main__":
    raise SystemExit(main())
