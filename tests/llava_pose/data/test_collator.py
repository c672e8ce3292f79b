"""A batch: text padded behind, and poses and pictures in the order in which the model meets their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator, joined_pictures
from llava_pose.data.conversation import IGNORE_INDEX
from llava_pose.data.dataset import EncodedSample
from llava_pose.model.processing import input_size
from tests.llava_pose.small_models import CONVNEXT_CHANNELS, model_for, small_processor

IMAGE_TOKEN_ID = small_processor().tokenizer.convert_tokens_to_ids("<image>")


def pose_rows(*values: float) -> np.ndarray:
    return np.repeat(np.asarray(values, dtype=np.float32)[:, None], 6, 1)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def sample(name: str, *texts: str, learned=(), given=(), image: Image.Image | None = None) -> EncodedSample:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    chat = small_processor().encode_chat(turns, image)
    return EncodedSample(name, chat.input_ids, chat.labels, pose_rows(*learned), pose_rows(*given), chat.pictures)


def three(images: bool = True) -> list[EncodedSample]:
    """With three, no and one pose to learn, the last with two given in its questions."""
    start = "<image>\n" if images else ""
    seen = [picture(seed) if images else None for seed in range(3)]
    return [
        sample(
            *("a", f"{start}Which?", "At <pose6D> and <pose6D>.", "More?", "<pose6D>"),
            learned=(1, 2, 3),
            image=seen[0],
        ),
        sample("b", f"{start}What is this?", "A car.", image=seen[1]),
        sample(
            "c",
            f"{start}What is at <pose6D>, what at <pose6D>?",
            "At <pose6D>.",
            learned=(6,),
            given=(4, 5),
            image=seen[2],
        ),
    ]


def test_text_is_padded_behind_and_not_attended_there():
    samples = three()
    batch = PoseCollator(small_processor())(samples)
    length = max(len(s.input_ids) for s in samples)
    assert len({len(s.input_ids) for s in samples}) == 3
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, length)
    for row, one in enumerate(samples):
        n = len(one.input_ids)
        assert batch["input_ids"][row, :n].tolist() == one.input_ids.tolist()
        assert batch["labels"][row, :n].tolist() == one.labels.tolist()
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (length - n)
        assert (batch["input_ids"][row, n:] == small_processor().tokenizer.pad_token_id).all()
        assert (batch["labels"][row, n:] == IGNORE_INDEX).all()
    assert batch[SAMPLE_NAMES] == ["a", "b", "c"]


def test_poses_come_in_the_order_of_their_tokens():
    batch = PoseCollator(small_processor())(three())
    assert batch["pose_targets"].shape == (4, 6)
    assert batch["pose_targets"][:, 0].tolist() == [1, 2, 3, 6]
    assert batch["input_poses"][:, 0].tolist() == [4, 5]
    at_pose = batch["input_ids"] == small_processor().pose_token_id
    learned = batch["labels"] == small_processor().pose_token_id
    assert learned.sum(1).tolist() == [3, 0, 1]
    assert torch.equal(batch["input_pose_mask"], at_pose & ~learned)
    assert batch["input_pose_mask"].sum(1).tolist() == [0, 0, 2]


def test_no_input_poses_where_no_question_holds_one():
    batch = PoseCollator(small_processor())(three()[:2])
    assert "input_poses" not in batch
    assert "input_pose_mask" not in batch


def test_no_pose_at_all_is_no_row():
    batch = PoseCollator(small_processor())(three()[1:2])
    assert batch["pose_targets"].shape == (0, 6)


def test_a_padding_token_that_ends_answers_is_still_learned():
    """Some tokenizers pad with their end token: labels come from the samples, never from the ids."""
    processor = small_processor(template="chatml")
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    samples = three()
    for one in samples:
        one.input_ids[-1] = one.labels[-1] = processor.tokenizer.pad_token_id
    batch = PoseCollator(processor)(samples)
    assert end != processor.tokenizer.pad_token_id
    assert (batch["labels"] == processor.tokenizer.pad_token_id).sum() == 3
    assert batch["attention_mask"].sum(1).tolist() == [len(one.input_ids) for one in samples]


def test_pictures_are_what_the_image_processor_makes_of_each():
    processor, samples = small_processor(), three()
    batch = PoseCollator(processor)(samples)
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert "image_patches" not in batch
    for row in range(3):
        alone = processor.image_processor([picture(row)], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(batch["pixel_values"][row], alone)


def test_pictures_of_those_that_have_one():
    samples = three()
    samples[1] = sample("b", "Hello?", "Hello.")
    batch = PoseCollator(small_processor())(samples)
    assert batch["pixel_values"].shape[0] == 2
    assert (batch["input_ids"] == IMAGE_TOKEN_ID).sum(1).tolist() == [4, 0, 4]


def test_cached_patches_are_passed_on():
    samples = three()
    patches = torch.randn(3, 2, 2, 12)
    for row, one in enumerate(samples):
        one.pictures = {"image_patches": patches[row : row + 1]}
    batch = PoseCollator(small_processor())(samples)
    assert "pixel_values" not in batch
    assert torch.equal(batch["image_patches"], patches)


def test_a_batch_without_pictures_gets_the_blank_and_no_other_does():
    processor = small_processor()
    collator = PoseCollator(processor, blank=processor.blank())
    batch = collator(three(images=False))
    assert batch["pixel_values"].shape == (1, 3, *input_size(processor.image_processor))
    assert not batch["pixel_values"].any()
    assert collator(three())["pixel_values"].shape[0] == 3
    assert "pixel_values" not in PoseCollator(processor)(three(images=False))


def test_pictures_of_unlike_numbers_are_filled_up_with_zeros():
    """Tiles and sides differ between pictures of some backbones; grids, sizes or masks beside them say which are real."""
    one = {"pixel_values": torch.ones(1, 2, 3, 4, 4), "image_sizes": torch.tensor([[4, 4]])}
    other = {"pixel_values": torch.ones(1, 1, 3, 4, 6), "image_sizes": torch.tensor([[4, 6]])}
    joined = joined_pictures([one, other])
    assert joined["pixel_values"].shape == (2, 2, 3, 4, 6)
    assert torch.equal(joined["pixel_values"][0, :, :, :, :4], one["pixel_values"][0])
    assert torch.equal(joined["pixel_values"][1, 0], other["pixel_values"][0, 0])
    assert joined["pixel_values"].sum() == 2 * 3 * 16 + 3 * 24
    assert joined["image_sizes"].tolist() == [[4, 4], [4, 6]]
    rows = [{"pixel_values": torch.ones(count, 5)} for count in (3, 2)]  # patches of several pictures in one row
    assert joined_pictures(rows)["pixel_values"].shape == (5, 5)


@pytest.mark.parametrize("images", [True, False])
def test_pictures_and_their_patches_give_the_same_loss(images: bool):
    processor = small_processor()
    model = model_for(processor)
    samples = three(images)
    with torch.no_grad():
        seen = PoseCollator(processor)(samples)
        del seen[SAMPLE_NAMES]
        loss = model(**seen).loss
        if images:
            patches = model.patches(seen)
            assert patches.shape[-1] == CONVNEXT_CHANNELS[-1]
            for row, one in enumerate(samples):
                one.pictures = {"image_patches": patches[row : row + 1]}
        known = PoseCollator(processor)(samples)
        del known[SAMPLE_NAMES]
        torch.testing.assert_close(model(**known).loss, loss)
