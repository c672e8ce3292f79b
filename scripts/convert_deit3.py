#!/usr/bin/env python
"""DeiT III, as its authors or timm publish it, to a transformers folder.

    python scripts/convert_deit3.py --weights deit_3_base_224_1k.pth --out weights/deit3-base

transformers has no DeiT III, but its Dinov2Model is the same network: a ViT with a scale on each residual branch. DeiT III adds
positions to the patches alone, before the CLS token joins them: the CLS token's position is zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava_pose.errors import InputError
from llava_pose.utils.command import command
from llava_pose.utils.config import require

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # Pillow's number, as preprocessor_config.json stores it
HEAD_WIDTH = 64  # channels of an attention head, in all sizes of DeiT III
RENAMED = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.(?:gamma_|ls)([12])(?:\.gamma)?$", r".layer_scale\1.lambda1"),
)


@dataclass
class ConvertConfig:
    """Options of this script."""

    weights: str = field(default="", metadata={"help": "a .pth file of the authors or a .safetensors file of timm"})
    out: str = field(default="", metadata={"help": "folder to write"})


def read_state_dict(path: Path) -> StateDict:
    """The tensors of a file.

    Raises:
        InputError: it cannot be read, or holds anything else.
    """
    import torch
    from safetensors.torch import load_file

    from llava_pose.model.checkpoint_files import blaming

    with blaming(f"--weights {path}: cannot be read; give a DeiT III checkpoint"):
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state.get("model", state)


def dinov2_state_dict(published: StateDict) -> StateDict:
    """DeiT III's parameters by the names of Dinov2Model; the classifier is left behind.

    Raises:
        KeyError: a parameter that DeiT III has is missing.
    """
    import torch

    positions = published["pos_embed"]
    state = {
        "embeddings.position_embeddings": torch.cat([torch.zeros_like(positions[:, :1]), positions], 1),
        "embeddings.mask_token": torch.zeros(1, positions.shape[-1]),  # used in masked pre-training only
    }
    for name, value in published.items():
        if name == "pos_embed" or name.startswith("head."):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                state[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = rows.contiguous()
        else:
            state[name] = value
    return state


def convert(config: ConvertConfig) -> Path:
    """Write the folder.

    Raises:
        InputError: the file is no DeiT III checkpoint.
    """
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

    require(config.weights, "--weights")
    require(config.out, "--out")
    published = read_state_dict(Path(config.weights))
    try:
        state = dinov2_state_dict(published)
        width, patch = state["embeddings.patch_embeddings.projection.weight"].shape[0::3]
        side = patch * round(published["pos_embed"].shape[1] ** 0.5)
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_hidden_layers=1 + max(int(name.split(".")[1]) for name in published if name.startswith("blocks.")),
                num_attention_heads=width // HEAD_WIDTH,
                mlp_ratio=published["blocks.0.mlp.fc1.weight"].shape[0] // width,
                patch_size=patch,
                image_size=side,
            )
        )
        model.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--weights {config.weights}: not a DeiT III checkpoint ({reason}); give another file"
        ) from error
    out = Path(config.out)
    model.save_pretrained(out)
    size = {"height": side, "width": side}
    ViTImageProcessorPil(
        image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD), size=size, resample=BICUBIC
    ).save_pretrained(out)
    return out


main = command(
    ConvertConfig,
    convert,
    prog="python scripts/convert_deit3.py",
    description="DeiT III, as its authors or timm publish it, to a transformers folder.",
    example="python scripts/convert_deit3.py --weights deit_3_base_224_1k.pth --out weights/deit3-base",
)

if __name__ == "__main__":
    raise SystemExit(main())
