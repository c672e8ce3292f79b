"""What probes see of each family of backbones: the right layers, normed once, every patch, and the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DPTConfig,
    DPTForDepthEstimation,
    LlamaConfig,
    LlamaForCausalLM,
    MobileNetV2Config,
    MobileNetV2Model,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from eval.systems.linear_probe.backbone import ProbeBackbone, load_probe_backbone
from llava_pose.errors import InputError
from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

SIDE = 32
SHAPE = {
    "hidden_size": 8,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": SIDE,
    "patch_size": 8,
}
# family -> (its class, its config, name of its final norm, tokens before the patches)
WITH_CLS = {
    "vit (DINO)": (ViTModel, ViTConfig(**SHAPE), "layernorm", 1),
    "deit": (DeiTModel, DeiTConfig(**SHAPE), "layernorm", 2),
    "mae": (ViTMAEModel, ViTMAEConfig(**SHAPE, mask_ratio=0.0), "layernorm", 1),
    "dinov2": (Dinov2Model, Dinov2Config(**SHAPE), "layernorm", 1),
    "registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=3), "layernorm", 4),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SHAPE), "post_layernorm", 1),
}
BY_STAGES = {
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SHAPE)),
    "swin": (SwinModel, SwinConfig(image_size=SIDE, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)),
    "resnet": (ResNetForImageClassification, ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16], depths=[1, 1, 1])),
    "mobilenet": (MobileNetV2Model, MobileNetV2Config(image_size=SIDE, depth_multiplier=0.25)),
    "efficientnet-lite": (EfficientNetLiteModel, EfficientNetLiteConfig(image_size=SIDE, hidden_size=24)),
}


def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """At the small weights of an initialisation every norm would look like every other."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def saved(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def pictures(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(count)]


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    return processor()(images, return_tensors="pt")["pixel_values"]


def blocks_of(backbone: ProbeBackbone, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    return backbone.split(torch.from_numpy(backbone.features(images)))


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("family", WITH_CLS)
def test_a_layer_is_its_cls_token_normed_once_or_raw(family, final_norm, tmp_path):
    """The states are taken by hooks on the layers themselves, not from the output that the code under test reads."""
    kind, config, norm_name, prefix = WITH_CLS[family]
    model = lively(kind(config))
    backbone = load_probe_backbone(str(saved(tmp_path / "b", model)), final_norm=final_norm)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 8)
    states: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    images = pictures()
    options = {"noise": torch.arange(16.0).expand(3, 16)} if family == "mae" else {}
    with torch.no_grad():
        model(pixels_of(images), **options)
        norm = getattr(model, norm_name)
        normed = [norm(state) if final_norm else state for state in states]
    for handle in handles:
        handle.remove()
    blocks = blocks_of(backbone, images)
    assert list(blocks) == ["cls2", "cls4", "cls5", "cls6", "cls7", "cls8", "patches8"]
    for name in list(blocks)[:-1]:
        torch.testing.assert_close(blocks[name], normed[int(name[3:]) - 1][:, 0], rtol=1e-4, atol=1e-4)
    assert normed[-1].shape[1] == prefix + 16
    torch.testing.assert_close(blocks["patches8"], normed[-1][:, prefix:].mean(1), rtol=1e-4, atol=1e-4)


def test_the_six_feature_sets_are_those_of_the_report(tmp_path):
    backbone = load_probe_backbone(
        str(saved(tmp_path / "b", ViTModel(ViTConfig(**{**SHAPE, "num_hidden_layers": 12}))))
    )
    last, last_four, uniform = ["cls12"], ["cls9", "cls10", "cls11", "cls12"], ["cls3", "cls6", "cls9", "cls12"]
    found = {(s.layers, s.pooling): list(s.blocks) for s in backbone.feature_sets}
    assert found == {
        ("last", "cls"): last,
        ("last", "cls+patches"): [*last, "patches12"],
        ("last-4", "cls"): last_four,
        ("last-4", "cls+patches"): [*last_four, "patches12"],
        ("uniform-4", "cls"): uniform,
        ("uniform-4", "cls+patches"): [*uniform, "patches12"],
    }
    assert set(backbone.widths.values()) == {8}
    assert set(backbone.widths) == {block for blocks in found.values() for block in blocks}


def test_mae_sees_every_patch_in_order_though_its_checkpoint_masks_most(tmp_path):
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            **SHAPE,
            mask_ratio=0.75,
            decoder_hidden_size=8,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=8,
        )
    )
    lively(model)
    backbone = load_probe_backbone(str(saved(tmp_path / "b", model)))
    first, second = (backbone.features(pictures()) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    seen: dict[str, torch.Tensor] = {}
    backbone.model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    backbone.features(pictures())
    embeddings = backbone.model.embeddings
    with torch.no_grad():
        patches = embeddings.patch_embeddings(pixels_of(pictures())) + embeddings.position_embeddings[:, 1:]
    assert seen["tokens"].shape[1] == 17
    torch.testing.assert_close(seen["tokens"][:, 1:], patches, rtol=1e-4, atol=1e-4)


def test_a_masked_mae_sees_a_quarter_of_the_patches_the_same_whichever_pictures_are_beside_it(tmp_path):
    folder = saved(tmp_path / "b", lively(ViTMAEModel(ViTMAEConfig(**SHAPE, mask_ratio=0.0))))
    masked = load_probe_backbone(str(folder), mae_mask=0.75)
    tokens: list[torch.Tensor] = []
    masked.model.layers[0].register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    together, alone = masked.features(pictures()), masked.features(pictures()[1:2])
    assert [seen.shape[1] for seen in tokens] == [5, 5], "CLS and four of sixteen patches"
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-4)
    embeddings = masked.model.embeddings
    with torch.no_grad():
        patches = embeddings.patch_embeddings(pixels_of(pictures())) + embeddings.position_embeddings[:, 1:]
    apart = torch.cdist(tokens[0][:, 1:], patches)
    assert apart.min(-1).values.max() < 1e-3, "each is one of the picture's own patches at its place"
    chosen = [sorted(row) for row in apart.argmin(-1).tolist()]
    assert len({tuple(row) for row in chosen}) > 1, "each picture has its own lot"
    assert not np.allclose(together, load_probe_backbone(str(folder)).features(pictures()))


def test_dpt_gives_its_vision_transformer(tmp_path):
    """Of a depth model (MiDaS) the neck and the head are not needed."""
    config = DPTConfig(**SHAPE, backbone_out_indices=[1, 3, 5, 7], neck_hidden_sizes=[4, 4, 4, 4], fusion_hidden_size=4)
    model = lively(DPTForDepthEstimation(config))
    blocks = blocks_of(load_probe_backbone(str(saved(tmp_path / "b", model))), pictures())
    with torch.no_grad():
        last = model.dpt(pixels_of(pictures())).last_hidden_state
    torch.testing.assert_close(blocks["cls8"], last[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blocks["patches8"], last[:, 1:].mean(1), rtol=1e-4, atol=1e-4)


def test_a_whole_clip_gives_its_vision_model(tmp_path):
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    config = CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(**SHAPE).to_dict(), projection_dim=4)
    model = lively(CLIPModel(config))
    blocks = blocks_of(load_probe_backbone(str(saved(tmp_path / "b", model))), pictures())
    with torch.no_grad():
        output = model.vision_model(pixels_of(pictures()))
    torch.testing.assert_close(blocks["cls8"], output.pooler_output, rtol=1e-4, atol=1e-4)  # CLS, normed by CLIP itself


@pytest.mark.parametrize("family", BY_STAGES)
def test_without_a_cls_token_a_layer_is_its_mean(family, tmp_path):
    kind, config = BY_STAGES[family]
    torch.manual_seed(2)
    model = kind(config).eval()
    if family in ("siglip", "swin"):  # they have a final norm to tell apart; convolutions would only amplify rounding
        lively(model)
    backbone = load_probe_backbone(str(saved(tmp_path / "b", model)))
    blocks = blocks_of(backbone, pictures())
    base = getattr(model, "resnet", model)
    with torch.no_grad():
        last = base(pixels_of(pictures())).last_hidden_state
    last = last.flatten(2).transpose(1, 2) if last.dim() == 4 else last
    count = {"siglip": 8, "swin": 2, "resnet": 3, "mobilenet": 17, "efficientnet-lite": 8}[family]
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * float(last.abs().max())}
    torch.testing.assert_close(blocks[f"mean{count}"], last.mean(1), **tolerance)
    torch.testing.assert_close(blocks[f"max{count}"], last.amax(1), **tolerance)
    assert all(torch.isfinite(block).all() for block in blocks.values())
    if count < 4:  # last four and four uniform are the same, all there are
        assert [s.layers for s in backbone.feature_sets] == ["last", "last", "last-4", "last-4"]
        assert backbone.feature_sets[2].blocks == tuple(f"mean{layer}" for layer in range(1, count + 1))


def test_stages_are_taken_as_the_model_gives_them(tmp_path):
    kind, config = BY_STAGES["resnet"]
    torch.manual_seed(2)
    model = kind(config).eval()
    blocks = blocks_of(load_probe_backbone(str(saved(tmp_path / "b", model))), pictures())
    with torch.no_grad():
        states = model.resnet(pixels_of(pictures()), output_hidden_states=True).hidden_states
    for stage in (1, 2, 3):
        torch.testing.assert_close(blocks[f"mean{stage}"], states[stage].mean((2, 3)), rtol=1e-3, atol=1e-4)


def test_another_image_size_is_interpolated(tmp_path):
    folder = saved(tmp_path / "b", ViTModel(ViTConfig(**SHAPE)))
    assert load_probe_backbone(str(folder), image_size=48).features(pictures()).shape == (3, 7 * 8)


def test_what_is_no_vision_model_is_one_sentence(tmp_path):
    text = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(text).save_pretrained(tmp_path / "llama")
    with pytest.raises(InputError, match="is a llama model, not a vision model; give one that AutoModel loads"):
        load_probe_backbone(str(tmp_path / "llama"))
    with pytest.raises(InputError, match=r"the backbone .*nowhere cannot be loaded") as caught:
        load_probe_backbone(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model = ViTModel(ViTConfig(**{**SHAPE, "num_hidden_layers": 4}))
    folder = saved(tmp_path / "b", model)
    config = ViTConfig(**{**SHAPE, "num_hidden_layers": 5})
    config.save_pretrained(folder)
    with pytest.raises(InputError, match=r"weights are missing: layers\.4"):
        load_probe_backbone(str(folder))


def test_the_borders_of_a_picture_are_seen(tmp_path: Path) -> None:
    """DINOv2's processor resizes to 256 and keeps the inner 224: of a dark frame nothing would be left."""
    Dinov2Model(Dinov2Config(**SHAPE)).save_pretrained(tmp_path)
    crop = {"height": SIDE, "width": SIDE}
    BitImageProcessor(size={"shortest_edge": SIDE * 256 // 224}, crop_size=crop).save_pretrained(tmp_path)
    framed = np.full((64, 64, 3), 255, dtype=np.uint8)
    framed[:2] = framed[-2:] = framed[:, :2] = framed[:, -2:] = 0
    pixels = load_probe_backbone(str(tmp_path))._pixels([Image.fromarray(framed)])[0]
    assert pixels.shape == (3, SIDE, SIDE)
    published = load_probe_backbone(str(tmp_path), center_crop=True)._pixels([Image.fromarray(framed)])[0]
    assert published.shape == (3, SIDE, SIDE)
    assert published.std((1, 2)).max() < 0.1, "the middle alone has no frame"
    assert (
        torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]]).max() < pixels[:, 9, 9].min() - 0.5
    )
