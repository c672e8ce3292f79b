"""EfficientNet-Lite as a transformers vision tower, which transformers itself does not have.

The architecture is EfficientNet's (Tan and Le 2019, arXiv:1905.11946, table 1) with the changes of the Lite family
(tensorflow/tpu, models/official/efficientnet/lite): no squeeze-and-excitation, ReLU6 instead of swish, and a stem and
a head that keep their width when the network is scaled. Published weights were trained with TensorFlow's "same"
padding, which is asymmetric at stride 2, and a batch-norm epsilon of 1e-3.

``register_efficientnet_lite()`` makes AutoConfig, AutoModel and AutoImageProcessor know the family.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Shape of an EfficientNet-Lite trunk; the defaults are Lite0's.

    Args:
        num_channels: channels of the image.
        image_size: pixels along each side that the weights were trained at. The network takes any size.
        stem_channels: channels of the first convolution.
        stages: one (blocks, kernel, stride of the first block, expansion, channels) a stage.
        hidden_size: channels of the last 1x1 convolution, that is of ``last_hidden_state``.
        batch_norm_eps: epsilon of every batch norm.
        tf_padding: pad as TensorFlow's "same" does (published weights); otherwise symmetrically.
        initializer_range: standard deviation of new linear weights; new convolutions follow He et al.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        num_channels: int = 3,
        image_size: int = 224,
        stem_channels: int = 32,
        stages: tuple[tuple[int, int, int, int, int], ...] | list[list[int]] = LITE0_STAGES,
        hidden_size: int = 1280,
        batch_norm_eps: float = 1e-3,
        tf_padding: bool = True,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        stages = [list(stage) for stage in stages]
        for stage in stages:
            if len(stage) != 5 or min(stage) < 1:
                raise ValueError(
                    f"EfficientNetLiteConfig.stages: {stage} is not (blocks, kernel, stride, expansion, channels),"
                    " five positive integers."
                )
        self.num_channels = num_channels
        self.image_size = image_size
        self.stem_channels = stem_channels
        self.stages = stages
        self.hidden_size = hidden_size
        self.batch_norm_eps = batch_norm_eps
        self.tf_padding = tf_padding
        self.initializer_range = initializer_range
        super().__init__(**kwargs)


class SamePadConv2d(nn.Conv2d):
    """Convolution whose output has ceil(input / stride) pixels, padded as TensorFlow's "same" or symmetrically."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int, tf_padding: bool
    ):
        self.tf_padding = tf_padding
        padding = 0 if tf_padding else kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.tf_padding and self.kernel_size[0] > 1:
            input = nn.functional.pad(input, (*self._same_pad(input.shape[-1]), *self._same_pad(input.shape[-2])))
        return super().forward(input)

    def _same_pad(self, length: int) -> tuple[int, int]:
        """Pixels before and after one axis; the odd one goes after, as in TensorFlow."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        return total // 2, total - total // 2


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless it is a linear projection, ReLU6."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ):
        super().__init__()
        self.convolution = SamePadConv2d(in_channels, out_channels, kernel_size, stride, groups, config.tf_padding)
        self.normalization = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps, momentum=0.01)
        self.activation = nn.ReLU6() if activation else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        return self.activation(self.normalization(self.convolution(features)))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; the input is added where the shapes agree."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expansion: int,
    ):
        super().__init__()
        width = in_channels * expansion
        self.expand = ConvNorm(config, in_channels, width) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(config, width, width, kernel_size, stride, groups=width)
        self.project = ConvNorm(config, width, out_channels, activation=False)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        projected = self.project(self.depthwise(self.expand(features)))
        return features + projected if self.is_residual else projected


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation that every EfficientNet-Lite model shares."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in transformers' own models
    _no_split_modules: ClassVar[list[str]] = ["InvertedResidual"]  # type: ignore[misc]  # read from the class


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The trunk: a feature map for an image, without the classifier."""

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = ConvNorm(config, config.num_channels, config.stem_channels, kernel_size=3, stride=2)
        self.stages = nn.ModuleList()
        channels = config.stem_channels
        for blocks, kernel, stride, expansion, out_channels in config.stages:
            stage = nn.Sequential()
            for index in range(blocks):
                block_stride = stride if index == 0 else 1
                stage.append(InvertedResidual(config, channels, out_channels, kernel, block_stride, expansion))
                channels = out_channels
            self.stages.append(stage)
        self.head = ConvNorm(config, channels, config.hidden_size)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple:
        """Feature maps of normalised images.

        Args:
            pixel_values: (B, num_channels, H, W), normalised as preprocessor_config.json says.
            output_hidden_states: also return the map after the stem, after every stage and after the head.
            return_dict: False returns a tuple instead of the named output.

        Returns:
            ``last_hidden_state`` (B, hidden_size, H/32, W/32), sizes rounded up; ``pooler_output`` (B, hidden_size),
            its mean; ``hidden_states``, stem, stages and head in this order (so that the last one is
            ``last_hidden_state``).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        features = self.stem(pixel_values)
        hidden_states = [features]
        for layer in (*self.stages, self.head):
            features = layer(features)
            hidden_states.append(features)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features,
            pooler_output=features.mean(dim=(2, 3)),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()


def register_efficientnet_lite() -> None:
    """Make AutoConfig, AutoModel and AutoImageProcessor know EfficientNet-Lite; calling it again changes nothing."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoImageProcessor.register(EfficientNetLiteConfig, slow_image_processor_class=ViTImageProcessorPil, exist_ok=True)
