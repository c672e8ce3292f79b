"""What trains in each mode, and that nothing else moves."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from llava_pose.model import LlavaPoseForConditionalGeneration
from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig
from llava_pose.model.modeling import POSE_PARTS
from llava_pose.train.trainable import (
    add_lora,
    connector_modules,
    count_parameters,
    freeze_for,
    lora_targets,
    parts_of,
    train_in_float32,
)
from tests.llava_pose.small_models import CLIP_PATCH, IMAGE_ID, IMAGE_SIDE, POSE_ID, clip_config, small_model

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
ALWAYS_TUNED = ("multi_modal_projector", *POSE_PARTS)


def model(**changes) -> LlavaPoseForConditionalGeneration:
    """With CLIP, whose layers have names of the language model's own: q_proj, k_proj, v_proj."""
    return small_model(vision=clip_config(), vision_feature_layer=-2, **changes)


def room(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    parts = [*ALWAYS_TUNED, "vision_tower", "embed_tokens", "lm_head", "causal_lm"]
    return next(part for part in parts if f"{part}." in name)


def trained_rooms(tuned: nn.Module) -> set[str]:
    """Parts all of whose parameters train; a part that trains by halves is an error."""
    states: dict[str, set[bool]] = {}
    for name, parameter in tuned.named_parameters():
        states.setdefault(room(name), set()).add(parameter.requires_grad)
    assert all(len(trained) == 1 for trained in states.values()), states
    return {part for part, trained in states.items() if trained == {True}}


def batch() -> dict[str, Tensor]:
    count = (IMAGE_SIDE // CLIP_PATCH) ** 2
    ids = torch.tensor([[1, *[IMAGE_ID] * count, 7, POSE_ID, 8, 9, POSE_ID, 10]])
    labels = ids.clone()
    labels[:, : count + 4] = -100
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator),
        "pose_targets": torch.rand(1, 6, generator=generator),
        "input_poses": torch.rand(1, 6, generator=generator),
        "input_pose_mask": (ids == POSE_ID) & (labels == -100),
    }


def moved(tuned: nn.Module) -> set[str]:
    """Names of the parameters that two steps of an optimiser change: what starts at zero moves others in the second."""
    before = {name: parameter.detach().clone() for name, parameter in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    tuned.train()
    for _ in range(2):
        optimizer.zero_grad()
        tuned(**batch()).loss.backward()
        optimizer.step()
    return {name for name, parameter in tuned.named_parameters() if not torch.equal(parameter, before[name])}


# Without LoRA


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tune_vision", [False, True])
@pytest.mark.parametrize("tune_embeddings", [False, True])
@pytest.mark.parametrize("language", ["full", "frozen"])
def test_what_trains(language: str, tune_embeddings: bool, tune_vision: bool, tied: bool):
    tuned = model(tied=tied)
    freeze_for(tuned, language=language, tune_embeddings=tune_embeddings, tune_vision=tune_vision)
    expected = set(ALWAYS_TUNED)
    if language == "full":
        expected.add("causal_lm")
        if tune_embeddings:
            expected.add("embed_tokens")
        if not tied:  # a tied output layer is the embedding
            expected.add("lm_head")
    if tune_vision:
        expected.add("vision_tower")
    assert trained_rooms(tuned) == expected


def test_a_mode_replaces_the_one_before():
    tuned = model()
    freeze_for(tuned, language="full", tune_embeddings=True, tune_vision=True)
    freeze_for(tuned, language="frozen", tune_embeddings=True, tune_vision=False)
    assert trained_rooms(tuned) == set(ALWAYS_TUNED)


def test_a_step_moves_what_trains_and_nothing_else():
    tuned = model(tied=True)
    freeze_for(tuned, language="frozen", tune_embeddings=True, tune_vision=False)
    changed = moved(tuned)
    assert {room(name) for name in changed} == set(ALWAYS_TUNED)
    assert changed == {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}


# LoRA


def test_lora_is_on_every_linear_layer_of_the_language_model_and_nowhere_else():
    tuned = model()
    wanted = {
        name
        for name, module in tuned.vlm.named_modules()
        if isinstance(module, nn.Linear) and ".causal_lm.model.layers." in f".{name}"
    }
    assert len(wanted) == 14  # seven in each of two blocks
    assert any("q_proj" in name for name, _ in tuned.tower.named_modules())
    matched = {name for name, _ in tuned.vlm.named_modules() if re.fullmatch(lora_targets(tuned.vlm), name)}
    assert matched == wanted
    wrapped = add_lora(tuned, **LORA, tune_vision=False)
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in wrapped.backbone.named_modules()
        if name.endswith(".lora_A")
    }
    assert adapted == wanted


@pytest.mark.parametrize("tune_vision", [False, True])
def test_lora_trains_with_projector_and_head_beside_it(tune_vision: bool):
    wrapped = add_lora(model(), **LORA, tune_vision=tune_vision)
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    beside = [*ALWAYS_TUNED, *(["vision_tower"] if tune_vision else [])]
    for name in trained:
        assert (".causal_lm.model.layers." in name and ".lora_" in name) or room(name) in beside, name
    assert {room(name) for name in trained} == {*beside, "causal_lm"}
    original = {name for name, _ in model().named_parameters() if room(name) in beside}
    assert connector_modules(model().vlm) == ["model.multi_modal_projector"]
    saved = {name.replace("modules_to_save.default.", "").replace("base_model.model.", "") for name in trained}
    assert original <= saved  # all of each, not a part


def test_lora_does_nothing_until_it_has_learned():
    plain = model()
    inputs = batch()
    with torch.no_grad():
        before = plain(**inputs).loss
        after = add_lora(plain, **LORA, tune_vision=False).eval()(**inputs).loss
    torch.testing.assert_close(after, before)


def test_a_step_of_lora_moves_no_weight_of_the_base():
    wrapped = add_lora(model(), **LORA, tune_vision=False)
    changed = moved(wrapped)
    assert changed == {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert not any(room(name) in ("vision_tower", "embed_tokens", "lm_head") for name in changed)
    assert all("lora_" in name for name in changed if room(name) == "causal_lm")


@pytest.mark.parametrize("tied", [False, True])
def test_of_the_embedding_one_row_learns(tied: bool):
    wrapped = add_lora(model(tied=tied), **LORA, tune_vision=False)
    ids = torch.arange(40)[None]
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def rows() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return wrapped.vlm.get_input_embeddings()(ids)[0], wrapped.vlm.get_output_embeddings()(states)

    before = rows()
    moved(wrapped)
    for axis, one, other in zip((0, 1), before, rows(), strict=True):
        changed = (one != other).any(1 - axis)
        assert changed.nonzero().flatten().tolist() == [POSE_ID]


def test_a_frozen_tower_stays_in_evaluation_while_the_rest_trains():
    """Dropout and batch norms of a tower that does not learn would show the model what it never sees in use."""
    frozen = model()
    freeze_for(frozen, language="full", tune_embeddings=True, tune_vision=False)
    for tuned in (frozen, add_lora(model(), **LORA, tune_vision=False)):
        tuned.train()
        assert not any(module.training for module in tuned.tower.modules())
        assert tuned.training
        assert all(module.training for module in tuned.decoder.modules())
        tuned.eval()
        assert not any(module.training for module in tuned.modules())
    for tuned in (model(), add_lora(model(), **LORA, tune_vision=True)):
        tuned.train()
        assert tuned.tower.training


# Small parts


def test_what_trains_is_raised_to_float32_and_what_does_not_is_left():
    tuned = model().bfloat16()
    freeze_for(tuned, language="frozen", tune_embeddings=True, tune_vision=False)
    train_in_float32(tuned)
    for name, parameter in tuned.named_parameters():
        assert parameter.dtype == (torch.float32 if room(name) in ALWAYS_TUNED else torch.bfloat16), name
    tuned(**{**batch(), "pixel_values": batch()["pixel_values"].bfloat16()}).loss.backward()
    for name, parameter in tuned.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("lora", [False, True])
def test_parts_are_known_by_their_names(lora: bool):
    tuned = add_lora(model(), **LORA, tune_vision=True) if lora else model()
    parts = parts_of(tuned)
    for name, _ in tuned.named_parameters():
        expected = "new" if room(name) in ALWAYS_TUNED else "vision" if room(name) == "vision_tower" else "language"
        assert parts[name] == expected, name


@pytest.mark.parametrize("tune_vision", [True, False])
def test_batch_norms_follow_the_pictures_of_a_tower_that_trains_and_of_no_other(tune_vision: bool):
    """Kept at what the tower came with, they let a convolutional tower learn nothing at a classifier's learning rate."""
    vision = EfficientNetLiteConfig(image_size=IMAGE_SIDE, stem_channels=4, stages=[[1, 3, 2, 2, 4]], hidden_size=6)
    vision.patch_size = 4
    tuned = small_model(vision=vision, vision_feature_size=4, vision_feature_layer=1)
    freeze_for(tuned, language="frozen", tune_embeddings=True, tune_vision=tune_vision)
    tuned.train()
    tower = tuned.tower
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    pictures = 3 + torch.randn(4, 3, IMAGE_SIDE, IMAGE_SIDE)
    tuned.see({"pixel_values": pictures})
    assert before
    changed = {name for name, buffer in tower.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == (set(before) if tune_vision else set())
    tuned.eval()
    together = tuned.patches({"pixel_values": pictures})
    torch.testing.assert_close(together[:1], tuned.patches({"pixel_values": pictures[:1]}))


def test_parameters_are_counted():
    tuned = model(tied=True)
    size = sum(parameter.numel() for parameter in tuned.parameters())
    assert count_parameters(tuned) == {"trainable": size, "all": size}
    freeze_for(tuned, language="frozen", tune_embeddings=True, tune_vision=False)
    expected = sum(parameter.numel() for name, parameter in tuned.named_parameters() if room(name) in ALWAYS_TUNED)
    assert count_parameters(tuned) == {"trainable": expected, "all": size}
