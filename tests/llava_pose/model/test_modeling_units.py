"""The model: where a pose is read, what a pose as input does, what the loss is made of, and what must change nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llava_pose.compact.modeling import space_to_depth
from llava_pose.model import LlavaPoseForConditionalGeneration
from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig
from llava_pose.model.losses import POSE_TERMS, pose_loss
from llava_pose.model.rotation import ROTATION_NAMES
from tests.llava_pose.small_models import (
    CLIP_PATCH,
    CONVNEXT_CHANNELS,
    IMAGE_ID,
    IMAGE_SIDE,
    PAD_ID,
    POSE_ID,
    clip_config,
    small_model,
)

IGNORED = -100
TOKENS = (IMAGE_SIDE // 32) ** 2


@pytest.fixture(scope="module")
def model() -> LlavaPoseForConditionalGeneration:
    """With an encoder and token rows that say something, as after training. Read only."""
    return trained(small_model())


def trained(model: LlavaPoseForConditionalGeneration) -> LlavaPoseForConditionalGeneration:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        nn.init.normal_(model.pose_encoder.linear_1.weight, std=0.5)
        nn.init.normal_(model.pose_encoder.linear_2.weight, std=0.5)
        nn.init.normal_(model.pose_token_embedding.change, std=0.5)
        nn.init.normal_(model.pose_token_output.change, std=0.5)
    return model


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(seed))


def poses(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[list[int]], value: int, *, left: bool) -> Tensor:
    length = max(map(len, rows))
    fill = [[value] * (length - len(row)) for row in rows]
    return torch.tensor([f + row if left else row + f for row, f in zip(rows, fill, strict=True)])


QUESTIONS = [[1, *[IMAGE_ID] * TOKENS, 7, POSE_ID], [1, 8, 9], [1, *[IMAGE_ID] * TOKENS, 10, 11, 12, 13]]
ANSWERS = [[14, POSE_ID, 15, POSE_ID, 2], [16, 2], [17, 18, POSE_ID, 2]]


def training_batch(rows: tuple[int, ...] = (0, 1, 2), *, left: bool = False) -> dict[str, Any]:
    """Rows of a batch of three: with a picture, two poses and one given; text alone; with a picture and a pose."""
    ids = padded([QUESTIONS[row] + ANSWERS[row] for row in rows], PAD_ID, left=left)
    labels = padded([[IGNORED] * len(QUESTIONS[row]) + ANSWERS[row] for row in rows], IGNORED, left=left)
    attended = padded([[1] * len(QUESTIONS[row] + ANSWERS[row]) for row in rows], 0, left=left)
    batch = {"input_ids": ids, "labels": labels, "attention_mask": attended}
    pictures = [{0: 0, 2: 1}[row] for row in rows if row != 1]
    if pictures:
        batch["pixel_values"] = pixels(2)[pictures]
    batch["pose_targets"] = poses(3)[[place for row in rows for place in {0: (0, 1), 1: (), 2: (2,)}[row]]]
    if 0 in rows:
        batch["input_poses"] = poses(1, seed=5)
        batch["input_pose_mask"] = (ids == POSE_ID) & (labels == IGNORED)
    return batch


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("labels", "pose_targets")}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Where a pose is read


@torch.no_grad()
def test_a_pose_is_read_from_the_state_that_predicts_its_token(model):
    batch = training_batch()
    output, read = model(**batch), model(**without_labels(batch))
    learned = (batch["labels"] == POSE_ID).nonzero()
    assert learned.shape[0] == 3
    for shift, same in ((1, True), (0, False)):
        states = read.states[learned[:, 0], learned[:, 1] - shift]
        _, terms = pose_loss(
            model.read_poses(states, read.image_tokens, learned[:, 0]),
            batch["pose_targets"],
            model.pose_config,
            model.pose_head.representation,
            None,
        )
        for name in POSE_TERMS[:2]:
            assert math.isclose(terms[name], output.loss_terms[name], rel_tol=1e-5) == same


@torch.no_grad()
def test_what_comes_after_the_token_and_the_token_itself_do_not_change_its_pose(model):
    batch = training_batch((2,))
    terms = model(**batch).loss_terms
    at = int((batch["labels"] == POSE_ID).nonzero()[0, 1])
    batch["input_ids"][0, at:] = 33  # the label stays
    changed = model(**batch).loss_terms
    assert changed["rotation"] == pytest.approx(terms["rotation"].item(), rel=1e-5)
    batch["input_ids"][0, at - 1] = 33
    assert model(**batch).loss_terms["rotation"] != pytest.approx(terms["rotation"].item(), rel=1e-3)


@torch.no_grad()
def test_targets_go_with_their_tokens_row_by_row(model):
    batch = training_batch()
    together = model(**batch).loss_terms["rotation"] * 3
    single = sum(model(**training_batch((row,))).loss_terms["rotation"] * n for row, n in ((0, 2), (2, 1)))
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-4)
    batch["pose_targets"] = batch["pose_targets"][[2, 0, 1]]
    assert abs(model(**batch).loss_terms["rotation"] * 3 - together) > 1e-2


# A pose as input


@torch.no_grad()
def test_a_fresh_encoder_changes_nothing_and_a_trained_one_the_answer(model):
    for encoder, differs in ((small_model(), False), (model, True)):
        batch = without_labels(training_batch((0,)))
        answers = []
        for seed in (5, 6):
            answers.append(encoder(**{**batch, "input_poses": poses(1, seed)}).logits)
        at = int(batch["input_pose_mask"][0].nonzero())
        assert torch.equal(answers[0][:, :at], answers[1][:, :at])
        assert ((answers[0] - answers[1])[:, at:].abs().amax(-1) > 1e-3).all() == differs
        assert torch.equal(*answers) == (not differs)


def embeddings(model: LlavaPoseForConditionalGeneration, ids: Tensor, **given: Tensor) -> Tensor:
    """What the backbone's token embedding gives, with all that is added to it."""
    seen: list[Tensor] = []
    watch = model.vlm.get_input_embeddings().register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        model(input_ids=ids, **given)
    finally:
        watch.remove()
    return seen[0]


@torch.no_grad()
def test_each_input_pose_goes_to_its_own_token(model):
    ids = torch.tensor([[1, POSE_ID, 5, POSE_ID], [1, 6, POSE_ID, 7]])
    given = poses(3)
    mask = ids == POSE_ID
    embedded = embeddings(model, ids, input_poses=given, input_pose_mask=mask)
    plain = embeddings(model, ids)
    torch.testing.assert_close((embedded - plain)[mask], model.pose_encoder(given), rtol=1e-4, atol=1e-5)
    assert torch.equal(embedded[~mask], plain[~mask])


# The loss


@torch.no_grad()
@pytest.mark.parametrize("rotation", ROTATION_NAMES)
def test_the_loss_is_the_weighted_sum_of_its_terms(rotation: str):
    weights = {"text": 0.5, "rotation": 2.0, "location": 0.3, "confidence": 0.7}
    model = small_model(rotation=rotation, **{f"{name}_loss_weight": weight for name, weight in weights.items()})
    output = model(**training_batch())
    assert set(output.loss_terms) == {"text", *POSE_TERMS}
    assert all(term > 0 for name, term in output.loss_terms.items() if name != "rotation")
    expected = sum(weight * output.loss_terms[name] for name, weight in weights.items())
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_the_text_term_is_the_cross_entropy_of_the_supervised_tokens(model):
    batch = training_batch()
    logits = model(**without_labels(batch)).logits[:, :-1]
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(model(**batch).loss_terms["text"], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_parts_of_a_step_add_up_to_it(model):
    whole = model(**training_batch()).loss
    counts = {"num_items_in_batch": 11, "num_poses_in_batch": torch.tensor(3.0)}
    assert int((training_batch()["labels"] != IGNORED).sum()) == 11
    for split in ([(0,), (1,), (2,)], [(0, 1), (2,)], [(2, 0, 1)]):
        parts = sum(model(**training_batch(rows), **counts).loss for rows in split)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_labels_no_logits_and_no_cache_are_kept_and_without_them_no_loss(model):
    assert model.config.get_text_config().use_cache
    taught = model(**training_batch())
    assert taught.logits is None
    assert taught.past_key_values is None
    asked = model(**without_labels(training_batch()))
    assert asked.loss is None
    assert asked.logits.shape == (*training_batch()["input_ids"].shape, model.config.text_config.vocab_size)
    assert asked.states.shape[:2] == asked.logits.shape[:2]
    last = model(**without_labels(training_batch()), logits_to_keep=1).logits
    torch.testing.assert_close(last, asked.logits[:, -1:])
    some = model(**without_labels(training_batch()), logits_to_keep=torch.tensor([2, 4])).logits
    torch.testing.assert_close(some, asked.logits[:, [2, 4]])


# A batch without pictures or poses


@pytest.mark.parametrize("rows", [(1,), (2,), (0,), (0, 1, 2)])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rotation", ROTATION_NAMES)
def test_every_module_has_a_gradient_whatever_the_batch_holds(rotation: str, left: bool, rows: tuple[int, ...]):
    """Processes that train together wait for the gradients of each other's modules."""
    model = trained(small_model(rotation=rotation, tied=True))
    batch = training_batch(rows, left=left)
    batch.setdefault("pixel_values", torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE))  # as the collator gives a running tower
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    without = [name for name, p in model.named_parameters() if p.grad is None]
    # the tower's last norm is behind the layers that are used
    assert all(name.startswith("backbone.model.vision_tower.") and "layernorm" in name for name in without)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_what_a_batch_does_not_hold_has_no_effect(model):
    batch = {
        **training_batch((1,)),
        "pixel_values": torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE),
    }  # as the collator has it
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(output.loss_terms["text"].item())
    assert all(output.loss_terms[name] == 0 for name in POSE_TERMS)
    for module in (model.pose_head, model.pose_encoder, model.connector):
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    model.zero_grad()


@torch.no_grad()
def test_a_blank_picture_changes_nothing(model):
    batch = training_batch((1,))
    blank = torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE)
    assert torch.equal(model(**batch, pixel_values=blank).loss, model(**batch).loss)


@torch.no_grad()
@pytest.mark.parametrize("pooled", [True, False])
def test_an_image_token_that_was_drawn_is_no_picture(pooled: bool):
    model = small_model(pose_head_pooled_features=pooled)
    ids = torch.tensor([[5, model.pose_config.image_token_id, 6]])
    assert model(input_ids=ids).logits.isfinite().all()


def test_a_blank_picture_moves_no_batch_norm():
    """In training: of several processes one may have no picture in its share."""
    vision = EfficientNetLiteConfig(image_size=IMAGE_SIDE, stem_channels=4, stages=[[1, 3, 2, 2, 4]], hidden_size=6)
    vision.patch_size = 4
    model = small_model(vision=vision, vision_feature_size=4, vision_feature_layer=1).train()
    before = {name: buffer.clone() for name, buffer in model.tower.named_buffers()}
    model(**training_batch((1,)), pixel_values=torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE)).loss.backward()
    assert model.tower.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.tower.named_buffers())
    assert all(p.grad is not None for p in model.tower.stem.parameters()), "it runs all the same"


# What must change nothing


@torch.no_grad()
def test_padding_on_either_side_gives_the_same(model):
    right, left = training_batch(), training_batch(left=True)
    torch.testing.assert_close(model(**left).loss, model(**right).loss, rtol=1e-4, atol=1e-4)
    states = [model(**without_labels(batch)).states[batch["attention_mask"] == 1] for batch in (right, left)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("left", [False, True])
def test_a_sample_gives_the_same_alone_and_in_a_batch(model, left: bool):
    batch = training_batch(left=left)
    together = model(**without_labels(batch))
    for row in range(3):
        alone = model(**without_labels(training_batch((row,))))
        kept = batch["attention_mask"][row] == 1
        torch.testing.assert_close(together.states[row, kept], alone.states[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.logits[row, kept], alone.logits[0], rtol=0, atol=1e-4)
        rotations = [
            model.read_poses(states, output.image_tokens, torch.full((len(states),), index)).rotation
            for states, output, index in (
                (together.states[row, kept], together, row),
                (alone.states[0], alone, 0),
            )
        ]
        torch.testing.assert_close(*rotations, rtol=0, atol=1e-3)


@torch.no_grad()
def test_patches_computed_before_give_the_same(model):
    batch = training_batch()
    patches = model.patches({"pixel_values": batch.pop("pixel_values")})
    torch.testing.assert_close(model(**batch, image_patches=patches).loss, model(**training_batch()).loss)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(frozen: bool, reentrant: bool):
    model = trained(small_model()).train()
    if frozen:  # as under LoRA: nothing of the language model learns, gradients pass through it
        model.backbone.requires_grad_(False)
        model.connector.requires_grad_(True)
    model(**training_batch()).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.decoder.modules())
    model(**training_batch()).loss.backward()
    found = gradients(model)
    assert set(found) == set(expected)
    assert any("multi_modal_projector" in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


# Generation


def prompt(rows: tuple[int, ...]) -> dict[str, Any]:
    ids = padded([QUESTIONS[row] for row in rows], PAD_ID, left=True)
    batch = {"input_ids": ids, "attention_mask": padded([[1] * len(QUESTIONS[row]) for row in rows], 0, left=True)}
    pictures = [{0: 0, 2: 1}[row] for row in rows if row != 1]
    if pictures:
        batch["pixel_values"] = pixels(2)[pictures]
    if 0 in rows:
        batch |= {"input_poses": poses(1, seed=5), "input_pose_mask": ids == POSE_ID}
    return batch


def generate(model: LlavaPoseForConditionalGeneration, batch: dict[str, Any], **options: Any) -> Tensor:
    """The new tokens of a greedy answer."""
    values = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD_ID, "suppress_tokens": [IMAGE_ID], **options}
    inputs = {name: batch[name] for name in ("pixel_values", "image_patches") if name in batch}
    rest = {name: value for name, value in batch.items() if name not in inputs}
    return model.answer(**rest, inputs=inputs, **values).tokens


def test_an_answer_stops_at_its_end_token_and_at_the_limit(model):
    answer = generate(model, prompt((2,)), eos_token_id=None)[0].tolist()
    assert len(answer) == 8
    end = next(index for index, token in enumerate(answer) if index > 1 and token not in answer[:index])
    assert generate(model, prompt((2,)), eos_token_id=answer[end])[0].tolist() == answer[: end + 1]


@torch.no_grad()
def test_an_answer_is_the_likeliest_token_after_each(model):
    batch = prompt((0,))
    answer = generate(model, batch, eos_token_id=None)[0]
    batch["input_ids"] = torch.cat([batch["input_ids"], answer[None]], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    mask = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    mask[:, : batch["input_pose_mask"].shape[1]] = batch["input_pose_mask"]
    logits = model(**{**batch, "input_pose_mask": mask}).logits[0, -len(answer) - 1 : -1]
    logits[:, IMAGE_ID] = -math.inf
    assert logits.argmax(-1).tolist() == answer.tolist()


def test_answers_in_a_batch_are_those_alone(model):
    together = generate(model, prompt((0, 1, 2)), eos_token_id=None)
    for row in range(3):
        assert generate(model, prompt((row,)), eos_token_id=None)[0].tolist() == together[row].tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1


def test_generation_takes_patches_for_pictures(model):
    batch = prompt((0, 1, 2))
    expected = generate(model, batch, eos_token_id=None)
    with torch.no_grad():
        patches = model.patches({"pixel_values": batch.pop("pixel_values")})
    assert torch.equal(generate(model, {**batch, "image_patches": patches}, eos_token_id=None), expected)


@torch.no_grad()
def test_the_state_at_the_step_that_emits_the_token_is_the_one_that_training_reads():
    model = small_model()
    question = prompt((2,))
    answer = model.answer(
        question["input_ids"],
        inputs={"pixel_values": question["pixel_values"]},
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=PAD_ID,
        eos_token_id=None,
        suppress_tokens=[token for token in range(40) if token not in (POSE_ID, 20)],
    )
    start = len(QUESTIONS[2])
    ids = torch.cat([question["input_ids"], answer.tokens], 1)
    whole = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels(2)[[1]]).states[0]
    for step in range(6):
        torch.testing.assert_close(answer.states[0, step], whole[start + step - 1], rtol=0, atol=1e-4)


# The rows of the token


@torch.no_grad()
def test_the_row_of_the_token_is_added_to_its_logit_and_its_embedding_alone(model):
    states = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    output = model.vlm.get_output_embeddings()
    difference = output(states) - nn.functional.linear(states, output.weight)
    torch.testing.assert_close(
        difference[..., POSE_ID], states @ model.pose_token_output.change[0], rtol=1e-4, atol=1e-4
    )
    difference[..., POSE_ID] = 0
    assert not difference.any()
    ids = torch.arange(40)[None]
    embedding = model.vlm.get_input_embeddings()
    difference = embedding(ids) - nn.functional.embedding(ids, embedding.weight)
    torch.testing.assert_close(difference[0, POSE_ID], model.pose_token_embedding.change[0], rtol=1e-4, atol=1e-5)
    difference[:, POSE_ID] = 0
    assert not difference.any()


# The tower's patches


def test_merging_patches_keeps_neighbours_together():
    maps = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    merged = space_to_depth(maps, 2)
    assert merged.shape == (2, 2, 3, 12)
    assert merged[1, 1, 2].tolist() == maps[1, 2:4, 4:6].reshape(-1).tolist()
    assert space_to_depth(maps, 1) is maps
    with pytest.raises(ValueError, match="a map of 4x6 patches cannot be merged 4x4"):
        space_to_depth(maps, 4)


@torch.no_grad()
def test_patches_of_a_transformer_are_its_tokens_without_the_class_token():
    model = small_model(vision=clip_config(), vision_feature_layer=[-2, -1])
    states = model.tower(pixels(2), output_hidden_states=True).hidden_states
    side = IMAGE_SIDE // CLIP_PATCH
    patches = model.patches({"pixel_values": pixels(2)})
    assert patches.shape == (2, side, side, 16)
    for index, layer in enumerate((-2, -1)):
        assert torch.equal(patches[..., index * 8 : index * 8 + 8].flatten(1, 2), states[layer][:, 1:])
    whole = small_model(vision=clip_config(), vision_feature_layer=-2, vision_feature_select_strategy="full")
    assert whole.patches({"pixel_values": pixels(2)}).shape == (2, 1, side**2 + 1, 8)


@torch.no_grad()
def test_finer_maps_of_a_convolutional_tower_are_folded_onto_the_coarsest():
    fine, coarse = CONVNEXT_CHANNELS[-2:]
    model = small_model(vision_feature_layer=[-2, -1], vision_feature_size=4 * fine + coarse)
    states = model.tower(pixels(1), output_hidden_states=True).hidden_states
    patches = model.patches({"pixel_values": pixels(1)})
    assert patches.shape == (1, 2, 2, 4 * fine + coarse)
    assert torch.equal(patches[0, 1, 0, -coarse:], states[-1][0, :, 1, 0])
    assert patches[0, 1, 0, : 4 * fine].tolist() == states[-2][0, :, 2:4, 0:2].permute(1, 2, 0).flatten().tolist()
    assert model(**training_batch()).loss.isfinite()


# What does not fit


def changed(**changes: Any) -> dict[str, Any]:
    batch = {**training_batch(), **changes}
    return {name: value for name, value in batch.items() if value is not None}


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (changed(pose_targets=poses(2)), "3 supervised <pose6D> tokens, but 2 pose targets"),
        (changed(pose_targets=None), "3 supervised <pose6D> tokens, but 0 pose targets"),
        (changed(pixel_values=pixels(1)), "8 image tokens in the text, but 1 images of 4 tokens together"),
        (changed(pixel_values=None), "8 image tokens in the text, but no image"),
        (changed(input_poses=poses(2)), "1 input pose tokens, but 2 poses"),
        (changed(input_poses=None), "1 input pose tokens, but 0 poses"),
        (changed(input_pose_mask=None), "0 input pose tokens, but 1 poses"),
    ],
)
def test_tokens_and_what_belongs_to_them_must_agree(model, batch: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        model(**batch)
