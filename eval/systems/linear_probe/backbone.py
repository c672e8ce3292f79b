"""Frozen backbones for linear probes: a few vectors a picture from the layers of any AutoModel vision model.

Which layers: the last one, the last four, and four spread evenly (of twelve: 3, 6, 9, 12). What of a layer:

- A model with a CLS token: the CLS token; the second pooling adds the mean of the last layer's patches. The model's final
  LayerNorm is applied to the hidden state of every layer, once, or to none where raw states are asked for.
- A model without one (SigLIP, Swin, ConvNeXt, ResNet, MobileNetV2, EfficientNet-Lite): the mean over all positions; the second
  pooling adds the last layer's maximum over positions. Layers are stages, or the blocks that the model gives as hidden states.
  A final norm that is made for the last stage's channels is applied to that stage alone.

MAE runs without masking and with its patches in order, or with a mask that the picture itself decides.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, CLIPVisionModel, PreTrainedConfig, SiglipVisionModel

from eval.systems.network import require_backbone
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
from llava_pose.model.efficientnet_lite import register_efficientnet_lite
from llava_pose.model.processing import input_size, keep_borders, set_input_size
from llava_pose.model.processors import load_image_processor
from llava_pose.model.trial import on_meta, try_apart

LAST, LAST_FOUR, UNIFORM_FOUR = "last", "last-4", "uniform-4"
# models of pictures and text whose vision model is a class of its own
_VISION_PART = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
_CLS_TOKEN = {
    "clip_vision_model",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "dpt",
    "vit",
    "vit_mae",
    "vit_msn",
}
_FINAL_NORMS = ("layernorm", "post_layernorm", "norm")
_LAST_STATE_WITHOUT_NORM = {
    "clip_vision_model"
}  # they apply the final norm to the CLS token alone, for `pooler_output`
_NO_EMBEDDING_AMONG_STATES = {"mobilenet_v1", "mobilenet_v2"}


@dataclass(frozen=True)
class FeatureSet:
    """The features that one probe sees: blocks side by side.

    Attributes:
        layers: the name of the layers.
        pooling: the name of what is taken of them.
        blocks: the names of the blocks.
    """

    layers: str
    pooling: str
    blocks: tuple[str, ...]


class ProbeBackbone:
    """A frozen vision model and its image processor.

    Attributes:
        widths: name of each block of features -> its width, in the order of :meth:`features`.
        feature_sets: what the probes see.
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor: Any,
        *,
        name: str,
        device: torch.device | str = "cpu",
        final_norm: bool = True,
    ):
        """
        Args:
            name: for messages.
            final_norm: whether the hidden states are normed as the model norms the last one.

        Raises:
            InputError: it is not known where the model has its final norm.
        """
        self.model: Any = model.eval().to(  # type: ignore[call-overload]  # torch takes both
            device=device, memory_format=torch.channels_last
        )
        self.image_processor = image_processor
        self._device = device
        self._name = name
        self._final_norm = final_norm
        self._type = self.model.config.model_type
        self._side = input_size(image_processor)
        states = self._layer_states(self._pixels([_noise_picture(self._side)]), check=True)
        count = len(states)
        of_layer, of_last = ("cls", "patches") if self._type in _CLS_TOKEN else ("mean", "max")
        layer_sets = {
            LAST: [count],
            LAST_FOUR: list(range(max(1, count - 3), count + 1)),
            UNIFORM_FOUR: sorted({max(1, count * quarter // 4) for quarter in (1, 2, 3, 4)}),
        }
        self.feature_sets: list[FeatureSet] = []
        for name_of_set, layers in layer_sets.items():
            if layers in [layer_sets[feature_set.layers] for feature_set in self.feature_sets]:
                continue  # a model of few stages: the same layers by another name
            blocks = tuple(f"{of_layer}{layer}" for layer in layers)
            self.feature_sets.append(FeatureSet(name_of_set, of_layer, blocks))
            self.feature_sets.append(FeatureSet(name_of_set, f"{of_layer}+{of_last}", (*blocks, f"{of_last}{count}")))
        self._layers = sorted({layer for layers in layer_sets.values() for layer in layers})
        self._of_layer, self._of_last = of_layer, of_last
        self.widths = {name: block.shape[1] for name, block in self._blocks(states).items()}

    def keep(self, names: Sequence[str]) -> None:
        """Leave the feature sets of these names, ``LAYERS:POOLING``, alone to be probed. What is computed stays the same.

        Raises:
            InputError: there is none of a name.
        """
        known = {f"{feature_set.layers}:{feature_set.pooling}": feature_set for feature_set in self.feature_sets}
        for name in names:
            if name not in known:
                raise InputError(f"--features {name}: {self._name} has no such features; choose of {', '.join(known)}")
        self.feature_sets = [feature_set for name, feature_set in known.items() if name in names]

    def settings(self) -> dict[str, Any]:
        """Return what decides the features, beside the weights."""
        config = self.model.config.to_dict()
        kept = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
        raw = {} if self._final_norm else {"final_norm": False}
        return {"backbone": kept, "image_processor": self.image_processor.to_dict(), "blocks": self.widths, **raw}

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Return the features of n pictures, (n, sum of widths) float32."""
        blocks = self._blocks(self._layer_states(self._pixels(pictures)))
        return torch.cat(list(blocks.values()), 1).float().cpu().numpy()

    def split(self, features: Tensor) -> dict[str, Tensor]:
        """Split features (n, sum of widths) into blocks by name, each (n, width)."""
        return dict(zip(self.widths, features.split(list(self.widths.values()), 1), strict=True))

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return pixels.to(self._device).contiguous(memory_format=torch.channels_last)

    def _blocks(self, states: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return blocks of features by name.

        Args:
            states: the states of all layers, (n, positions, channels) each, the CLS token first where there is one.
        """
        last = states[-1]
        if self._of_layer == "cls":
            blocks = {f"cls{layer}": states[layer - 1][:, 0] for layer in self._layers}
            return {**blocks, f"patches{len(states)}": last[:, self._prefix_tokens() :].mean(1)}
        blocks = {f"mean{layer}": states[layer - 1].mean(1) for layer in self._layers}
        return {**blocks, f"max{len(states)}": last.amax(1)}

    def _prefix_tokens(self) -> int:
        """Count the tokens before the patches: CLS, DeiT's distillation token, registers."""
        return 2 if self._type == "deit" else 1 + getattr(self.model.config, "num_register_tokens", 0)

    @torch.inference_mode()
    def _layer_states(self, pixels: Tensor, *, check: bool = False) -> list[Tensor]:
        """Return the state of every layer, normed or raw, embedding left out, each (n, positions, channels).

        Raises:
            InputError: with ``check``, if the norm is not where this module takes it to be.
        """
        output = self.model(pixels, output_hidden_states=True, **self._options(pixels))
        states, last = list(output.hidden_states), output.last_hidden_state
        if self._type not in _NO_EMBEDDING_AMONG_STATES:
            states = states[1:]
        if any(state.shape != last.shape for state in states) or last.dim() == 4:
            # stages: the model's own last state is the last stage's, normed as the model does it, or one layer more
            if states[-1].shape != last.shape:
                states.append(last)
            elif self._final_norm:
                states[-1] = last
            return [state.flatten(2).transpose(1, 2) if state.dim() == 4 else state for state in states]
        norm = next((getattr(self.model, name) for name in _FINAL_NORMS if hasattr(self.model, name)), None)
        if check:
            known = norm is not None and (
                torch.equal(states[-1], last)
                if self._type in _LAST_STATE_WITHOUT_NORM
                else torch.allclose(norm(states[-1]), last, rtol=1e-3, atol=1e-3)
            )
            if not known:
                raise InputError(
                    f"{self._name}: it is not known where a {self._type} model has its final norm; "
                    "add the family to eval/systems/linear_probe/backbone.py"
                )
        return [cast(nn.Module, norm)(state) for state in states] if self._final_norm else states

    def _options(self, pixels: Tensor) -> dict[str, Any]:
        """Return the options of a forward call."""
        options: dict[str, Any] = {}
        size = getattr(self.model.config, "image_size", None)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        takes = inspect.signature(self.model.forward).parameters
        if size is not None and sides != tuple(pixels.shape[-2:]) and "interpolate_pos_encoding" in takes:
            options["interpolate_pos_encoding"] = True
        if self._type == "vit_mae":  # patches are sorted by this noise: rising, it leaves them where they are
            patch = self.model.config.patch_size
            count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
            if self.model.config.mask_ratio:
                noise = torch.stack([_lots(picture, count) for picture in pixels.cpu()])
            else:
                noise = torch.arange(count, dtype=torch.float32).expand(len(pixels), count)
            options["noise"] = noise.to(pixels.device)
        return options


def _lots(picture: Tensor, count: int) -> Tensor:
    """Draw so many numbers in [0, 1), the same for a picture whichever others it is seen with."""
    seed = zlib.crc32(picture.contiguous().numpy().tobytes())
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def _noise_picture(size: tuple[int, int]) -> Image.Image:
    """Make a picture on which a norm that is applied or not makes a difference."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def read_backbone_config(path: str) -> PreTrainedConfig:
    """Read the config of a vision model.

    Args:
        path: hub id or folder.

    Raises:
        InputError: there is none, or it is of a model that sees no pictures.
    """
    register_efficientnet_lite()
    with blaming(f"the backbone {path} cannot be loaded"):
        try_apart(path, CONFIG_FILE, lambda: on_meta(path, AutoModel))
        read_config(path)
        config = AutoConfig.from_pretrained(path, **NO_CODE)
    if config.model_type in _VISION_PART:
        return config
    kind: Any = MODEL_MAPPING.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind is None or kind.main_input_name != "pixel_values":
        raise InputError(
            f"the backbone {path} is a {config.model_type} model, not a vision model; give one that AutoModel loads as such"
        )
    return config


def load_probe_backbone(
    path: str,
    *,
    image_size: int | None = None,
    center_crop: bool = False,
    final_norm: bool = True,
    mae_mask: float = 0.0,
    device: torch.device | str = "cpu",
) -> ProbeBackbone:
    """Load a vision model with pretrained weights, and its image processor.

    Args:
        path: hub id or folder.
        image_size: side of the input, pixels; by default what the image processor says.
        center_crop: whether the image processor may cut the borders off, where it does so by itself.
        final_norm: whether the hidden states are normed.
        mae_mask: the share of its patches that MAE is not shown.

    Raises:
        InputError: it cannot be loaded whole, or is no vision model that probes can read.
    """
    config = read_backbone_config(path)
    loader: Any = _VISION_PART.get(config.model_type, AutoModel)
    if config.model_type in _VISION_PART:
        config = config.vision_config
    if config.model_type == "vit_mae":
        config.mask_ratio = mae_mask
    with blaming(f"the backbone {path} cannot be loaded"), bounded_by_weights(path):
        model, info = loader.from_pretrained(path, config=config, output_loading_info=True, dtype=torch.float32, **SAFE)
        image_processor = load_image_processor(path)
    require_backbone(info, path)
    require_finite(model, path)
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        model.pooler = None  # random weights, and nothing reads what it gives
    if not center_crop:
        keep_borders(image_processor)
    if image_size is not None:
        set_input_size(image_processor, image_size)
    return ProbeBackbone(model, image_processor, name=str(path), device=device, final_norm=final_norm)
