"""The EfficientNet-Lite tower: its arithmetic against a plain functional one, and its life among the Auto classes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTImageProcessorPil

from llava_pose.model.efficientnet_lite import (
    LITE0_STAGES,
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    register_efficientnet_lite,
)

SMALL_STAGES = ((1, 3, 1, 1, 8), (2, 5, 2, 3, 12))


@pytest.fixture
def small_model() -> EfficientNetLiteModel:
    torch.manual_seed(0)
    config = EfficientNetLiteConfig(stem_channels=8, stages=SMALL_STAGES, hidden_size=16, image_size=32)
    model = EfficientNetLiteModel(config).eval()
    randomize_norms(model)
    return model


def randomize_norms(model: EfficientNetLiteModel) -> None:
    """Statistics as after training; the initial ones (0 and 1) would hide a wrong epsilon or a swapped norm."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(1e-3, 0.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)


def tensorflow_same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Padding of TensorFlow's "same" for a square image whose side is a multiple of the stride."""
    total = max(kernel - stride, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2)


def reference_forward(model: EfficientNetLiteModel, x: torch.Tensor) -> torch.Tensor:
    """The network by the table of the paper, from the parameters alone."""
    parameters = model.state_dict()

    def unit(x: torch.Tensor, name: str, kernel: int, stride: int, groups: int, active: bool) -> torch.Tensor:
        weight = parameters[f"{name}.convolution.weight"]
        x = F.conv2d(tensorflow_same(x, kernel, stride), weight, stride=stride, groups=groups)
        mean, var, scale, shift = (
            parameters[f"{name}.normalization.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean[:, None, None]) / torch.sqrt(var[:, None, None] + 1e-3) * scale[:, None, None]
        x = x + shift[:, None, None]
        return x.clamp(0, 6) if active else x

    x = unit(x, "stem", 3, 2, 1, True)
    for s, (blocks, kernel, stage_stride, expansion, channels) in enumerate(model.config.stages):
        for b in range(blocks):
            name, stride, before = f"stages.{s}.{b}", stage_stride if b == 0 else 1, x
            if expansion > 1:
                x = unit(x, f"{name}.expand", 1, 1, 1, True)
            x = unit(x, f"{name}.depthwise", kernel, stride, x.shape[1], True)
            x = unit(x, f"{name}.project", 1, 1, 1, False)
            if stride == 1 and before.shape[1] == channels:
                x = before + x
    return unit(x, "head", 1, 1, 1, True)


def test_forward_equals_the_paper_s_table_in_functional_form(small_model):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = small_model(images).last_hidden_state
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, reference_forward(small_model, images), atol=1e-5, rtol=1e-5)


def test_lite0_has_the_published_size():
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig())
    # 4.65 M in the Lite family's table, which counts the classifier (1280 x 1000 + 1000)
    assert sum(p.numel() for p in model.parameters()) + 1_281_000 == 4_652_008


def test_hidden_states_halve_the_image_where_a_stage_strides(small_model):
    output = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()(
        torch.zeros(1, 3, 96, 64), output_hidden_states=True
    )
    shapes = [tuple(state.shape[1:]) for state in output.hidden_states]
    channels = [32, *(stage[-1] for stage in LITE0_STAGES), 1280]
    strides = [2, 2, 4, 8, 16, 16, 32, 32, 32]
    assert shapes == [(c, 96 // s, 64 // s) for c, s in zip(channels, strides, strict=True)]
    assert output.hidden_states[-1] is output.last_hidden_state
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean((2, 3)))
    assert small_model(torch.zeros(1, 3, 32, 32)).hidden_states is None


@pytest.mark.parametrize("tf_padding", [True, False])
def test_odd_sizes_round_up(tf_padding):
    config = EfficientNetLiteConfig(stem_channels=8, stages=SMALL_STAGES, hidden_size=16, tf_padding=tf_padding)
    output = EfficientNetLiteModel(config).eval()(torch.zeros(1, 3, 33, 30))
    assert output.last_hidden_state.shape == (1, 16, 9, 8)


def test_channels_last_changes_nothing(small_model):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = small_model(images).last_hidden_state
        small_model.to(memory_format=torch.channels_last)
        fast = small_model(images.contiguous(memory_format=torch.channels_last)).last_hidden_state
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_auto_classes_load_a_saved_folder(small_model, tmp_path):
    register_efficientnet_lite()
    register_efficientnet_lite()  # a second time must be harmless
    small_model.save_pretrained(tmp_path)
    mean, std, size = [0.5, 0.4, 0.3], [0.25, 0.5, 1.0], {"height": 32, "width": 32}
    ViTImageProcessorPil(image_mean=mean, image_std=std, size=size).save_pretrained(tmp_path)

    assert isinstance(AutoConfig.from_pretrained(tmp_path), EfficientNetLiteConfig)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    image = Image.new("RGB", (40, 20), (255, 0, 51))
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt").pixel_values
    expected = (np.array([1.0, 0.0, 0.2]) - mean) / std
    np.testing.assert_allclose(pixels[0, :, 10, 10].numpy(), expected, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels)[0], small_model(pixels)[0], atol=0, rtol=0)
    assert len(loaded(pixels, return_dict=False)) == 2


def test_a_malformed_stage_is_named():
    with pytest.raises(ValueError, match=r"stages: \[1, 3, 1, 1\]"):
        EfficientNetLiteConfig(stages=[[1, 3, 1, 1]])
