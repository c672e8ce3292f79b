"""A pose classifier: a backbone, a head for the rotation and a head for the category, for all categories together.

"ResNet50-General" and "SwinTrans-T-General" of ImageNet3D (Ma et al., 2024) are such networks, with ``rotation="bins"``
(40 bins an angle, floor binning), mean pooling and linear heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from llava_pose.model.checkpoint_files import NO_CODE
from llava_pose.model.rotation import rotation_representation

POOLINGS = ("mean", "flatten")


class PoseClassifierConfig(PreTrainedConfig):
    """The configuration of :class:`PoseClassifier`.

    Args:
        backbone_config: the config of an AutoModel backbone, or its dict.
        categories: names, in the order of the category head's outputs.
        rotation: a name of ``llava_pose.model.rotation``.
        pooling: "mean" of the last feature map, or "flatten": all its positions side by side, so that a head knows what
            is where; the picture's size is then fixed.
        head_hidden_size: units of a hidden layer before the heads; 0: linear heads.
        pose_weight, class_weight: of the two losses in their sum.
    """

    model_type = "pose_classifier"

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        categories: Sequence[str] = (),
        rotation: str = "bins",
        pooling: str = "mean",
        head_hidden_size: int = 0,
        pose_weight: float = 1.0,
        class_weight: float = 1.0,
        **kwargs: Any,
    ):
        if isinstance(backbone_config, dict):
            values = dict(backbone_config)
            backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")
        self.backbone_config = backbone_config
        self.categories = list(categories)
        self.rotation = rotation
        self.pooling = pooling
        self.head_hidden_size = head_hidden_size
        self.pose_weight = pose_weight
        self.class_weight = class_weight
        super().__init__(**kwargs)


@dataclass
class PoseClassifierOutput(ModelOutput):
    """
    Attributes:
        loss: scalar, with targets.
        raw_rotation: (batch, representation size).
        category_logits: (batch, categories).
    """

    loss: Tensor | None = None
    raw_rotation: Tensor | None = None
    category_logits: Tensor | None = None


class PoseClassifier(PreTrainedModel):
    """Backbone and heads; the losses of rotation and category are added by their weights."""

    config_class = PoseClassifierConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PoseClassifierConfig, image_size: tuple[int, int] | None = None):
        """
        Args:
            image_size: (height, width) in pixels, for a new model with pooling "flatten"; a saved one knows it.
        """
        super().__init__(config)
        self.representation = rotation_representation(config.rotation)
        self.backbone = AutoModel.from_config(config.backbone_config, **NO_CODE)
        if getattr(config, "feature_size", None) is None:
            config.feature_size = self._measure(image_size or (224, 224))
        size = config.feature_size
        self.norm = nn.LayerNorm(size) if config.head_hidden_size else nn.Identity()
        self.hidden = nn.Linear(size, config.head_hidden_size) if config.head_hidden_size else nn.Identity()
        self.act = nn.GELU() if config.head_hidden_size else nn.Identity()
        width = config.head_hidden_size or size
        self.rotation_head = nn.Linear(width, self.representation.size)
        self.category_head = nn.Linear(width, max(1, len(config.categories)))
        self.post_init()

    @torch.no_grad()
    def _measure(self, image_size: tuple[int, int]) -> int:
        weight = next(self.backbone.parameters())
        if weight.is_meta:
            raise ValueError("the config of a saved pose classifier must hold feature_size")
        return self.features(weight.new_zeros(1, 3, *image_size)).shape[-1]

    def features(self, pixel_values: Tensor) -> Tensor:
        """Turn pictures (batch, 3, height, width) into vectors (batch, feature size)."""
        last = self.backbone(pixel_values).last_hidden_state
        if last.dim() == 3:  # (batch, tokens, channels), as transformers' Swin and ViT give it
            last = last.transpose(1, 2)
        return last.flatten(1) if self.config.pooling == "flatten" else last.flatten(2).mean(-1)

    def forward(
        self, pixel_values: Tensor, angles: Tensor | None = None, category: Tensor | None = None
    ) -> PoseClassifierOutput:
        """Predict, and with angles and categories compute the loss.

        Args:
            pixel_values: (batch, 3, height, width).
            angles: (batch, 3) true azimuth, elevation, theta in radians.
            category: (batch,) indices of ``config.categories``.
        """
        hidden = self.act(self.hidden(self.norm(self.features(pixel_values))))
        raw, logits = self.rotation_head(hidden).float(), self.category_head(hidden).float()
        loss = None
        if angles is not None:
            of_class = F.cross_entropy(logits, cast(Tensor, category))
            of_pose = self.representation.loss(raw, angles).mean()
            loss = self.config.pose_weight * of_pose + self.config.class_weight * of_class
        return PoseClassifierOutput(loss=loss, raw_rotation=raw, category_logits=logits)

    def rotations(self, raw_rotation: Tensor) -> Tensor:
        """Decode (batch, representation size) to rotations (batch, 3, 3), world to camera."""
        return self.representation.decode(raw_rotation)
