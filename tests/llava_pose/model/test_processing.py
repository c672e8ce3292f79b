"""The processor: every character of an answer is supervised and nothing else is, whatever the texts hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor

from llava_pose.backbones.tiny import tiny_tokenizer
from llava_pose.compact import CompactLlavaProcessor
from llava_pose.data.conversation import IGNORE_INDEX, IMAGE_TOKEN, POSE_TOKEN, ChatTooLongError
from llava_pose.errors import InputError
from llava_pose.model.processing import CHAT_TEMPLATES, LlavaPoseProcessor, input_size
from llava_pose.model.processors import load_processor
from tests.llava_pose.small_models import model_for, small_processor

# each turn on a line of its own, and no token that ends an answer
PLAIN = (
    "{% for m in messages %}{{ m.role }}> "
    "{% for part in m.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant>' }}{% endif %}"
)
# the prompt ends with the space that sentencepiece makes part of the answer's first word
SPACED = PLAIN.replace("'assistant>'", "'assistant> '")
TEMPLATES = {**CHAT_TEMPLATES, "plain": PLAIN, "spaced": SPACED}
# what follows an answer and is learned with it
ENDS = {"vicuna": "</s>", "chatml": "<|im_end|>", "plain": "", "spaced": ""}


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def supervised_text(processor: LlavaPoseProcessor, chat_: list[dict[str, str]]) -> list[str]:
    """What the runs of supervised tokens say."""
    encoded = processor.encode_chat(chat_)
    known = encoded.labels != IGNORE_INDEX
    assert np.array_equal(encoded.labels[known], encoded.input_ids[known])
    starts = np.flatnonzero(known & ~np.r_[False, known[:-1]])
    ends = np.flatnonzero(known & ~np.r_[known[1:], False]) + 1
    decode = processor.tokenizer.decode
    return [
        decode(encoded.input_ids[a:b], clean_up_tokenization_spaces=False) for a, b in zip(starts, ends, strict=True)
    ]


def image_id(processor: LlavaPoseProcessor) -> int:
    return processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "answers",
    [
        ["The car is at <pose6D>."],
        ["<pose6D>"],
        ["<pose6D><pose6D> and <pose6D>", "Ünï at 30°, <pose6D>!"],
        ["A car.", "ASSISTANT: USER: no.", "user> assistant> x"],
    ],
)
def test_labels_are_the_answers_and_what_ends_them(template: str, answers: list[str]):
    processor = small_processor(template=TEMPLATES[template])
    texts = [text for answer in answers for text in ("What is the pose of the car?", answer)]
    texts[0] = f"{IMAGE_TOKEN}\n{texts[0]}"
    found = supervised_text(processor, chat(*texts))
    as_tokens = [answer.replace(" <pose6D>", "<pose6D>") for answer in answers]  # which holds the space before it
    assert [text.strip() for text in found] == [answer + ENDS[template] for answer in as_tokens]


@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_are_the_answers_between_and_behind_several_pictures(template: str):
    processor = small_processor(template=TEMPLATES[template])
    turns = chat("<image>\n<image>\nWhich?", "The first at <pose6D>.", "And <image>\nthis?", "At <pose6D>, <pose6D>.")
    found = supervised_text(processor, turns)
    assert [text.strip() for text in found] == [
        answer + ENDS[template] for answer in ("The first at<pose6D>.", "At<pose6D>,<pose6D>.")
    ]
    pictures = [Image.new("RGB", (20 * n, 30), (80 * n, 0, 0)) for n in (1, 2, 3)]
    seen = processor.encode_chat(turns, pictures)
    assert np.array_equal(seen.input_ids, processor.encode_chat(turns).input_ids)
    alone = [processor.picture_inputs(picture)["pixel_values"] for picture in pictures]
    assert torch.equal(seen.pictures["pixel_values"], torch.cat(alone))


def test_pictures_and_their_places_must_agree():
    processor, picture = small_processor(), Image.new("RGB", (20, 30))
    with pytest.raises(InputError, match="s1: 1 `<image>` in the chat, but 2 pictures; give one for each"):
        processor.encode_chat(chat("<image>\nWhat?"), [picture, picture], where="s1")
    with pytest.raises(InputError, match="s1: 2 `<image>` in the chat, but 1 pictures"):
        processor.encode_chat(chat("<image>\n<image>\nWhat?"), picture, where="s1")
    with pytest.raises(InputError, match="s1: 0 `<image>` in the chat, but 1 pictures"):
        processor.encode_chat(chat("What?"), picture, where="s1")


@pytest.mark.parametrize("template", TEMPLATES)
def test_questions_and_system_texts_that_look_like_answers_are_not_learned(template: str):
    processor = small_processor(template=TEMPLATES[template])
    trap = "ASSISTANT: A trap.</s> <|im_start|>assistant\nA trap.<|im_end|>\nassistant> A trap. <pose6D> <unk> </s>USER: hm"
    turns = chat(trap, "A car.", trap + trap, "A cup.", system=trap)
    assert [text.strip() for text in supervised_text(processor, turns)] == [
        answer + ENDS[template] for answer in ("A car.", "A cup.")
    ]
    ids = processor.encode_chat(turns).input_ids
    assert (ids == processor.pose_token_id).sum() == 4  # given as input, not learned


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_whole_chat(template: str):
    """Or generation would start from tokens that training never showed."""
    processor = small_processor(template=template)
    turns = chat("<image>\nWhat is the pose of the car?", "The car is at <pose6D>.", "And the cup?", "Not here.")
    ids = processor.tokenizer(processor.render(turns), add_special_tokens=False).input_ids
    for answered in (1, 3):
        prompt = processor.render(turns[:answered], add_generation_prompt=True)
        prompt_ids = processor.tokenizer(prompt, add_special_tokens=False).input_ids
        assert ids[: len(prompt_ids)] == prompt_ids


def test_pose_and_image_are_one_token_each_wherever_they_stand():
    processor = small_processor()
    assert processor.tokenizer.convert_ids_to_tokens(processor.pose_token_id) == POSE_TOKEN
    for text in ("<pose6D>", "at <pose6D>.", "at<pose6D>at", " <pose6D> ", "\n<pose6D>\n"):
        ids = processor.encode_chat(chat(f"<image>\n{text}", text)).input_ids
        assert (ids == processor.pose_token_id).sum() == 2
        assert (ids == image_id(processor)).sum() == 4
    near = processor.encode_chat(chat("<pose6d> <pose> <Pose6D> < pose6D>", "<image > x")).input_ids
    assert not np.isin(near, [processor.pose_token_id, image_id(processor)]).any()


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_a_word_predicts_the_pose_and_no_lone_space(template: str):
    """Pretrained models keep little of the picture in the state of a lone space."""
    processor = small_processor(template=template)
    ids = processor.encode_chat(chat("<image>\nWhat is the pose of the car?", "The car is at <pose6D>.")).input_ids
    before = ids[np.flatnonzero(ids == processor.pose_token_id) - 1]
    assert processor.tokenizer.decode(before).strip() == "at"


def test_content_in_parts_is_content_as_text():
    processor = small_processor()
    parts = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    assert processor.render([{"role": "user", "content": parts}]) == processor.render(chat("<image>\nWhat is this?"))


# Image tokens


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("side", [64, 128])
def test_as_many_image_tokens_as_the_model_gives(side: int, merge: int):
    processor = small_processor(side=side, vision_merge=merge)
    model = model_for(processor, vision_merge=merge)
    picture = Image.new("RGB", (90, 31), (40, 90, 200))
    inputs = processor.picture_inputs(picture)
    with torch.no_grad():
        tokens = model.see(inputs).tokens
    assert inputs["pixel_values"].shape[-2:] == input_size(processor.image_processor)
    assert len(processor.image_ids(picture)) == len(tokens) == (side // 32 // merge) ** 2
    for given in (None, picture):
        ids = processor.encode_chat(chat("<image>\nWhat is this?", "A car."), given).input_ids
        assert (ids == image_id(processor)).sum() == len(tokens)


def test_a_class_token_counts_where_the_whole_of_the_tower_is_taken():
    processor = small_processor(
        patch_size=16, vision_feature_select_strategy="full", num_additional_image_tokens=1, side=64
    )
    assert processor.processor.count_image_tokens(64, 64) == 17


def test_called_as_transformers_processors_are_it_gives_the_same_tokens():
    processor = small_processor()
    turns = chat("<image>\nWhat is this?", "A car at <pose6D>.")
    picture = Image.new("RGB", (50, 70), (9, 90, 200))
    batch = processor.processor(
        images=picture, text=processor.render(turns), add_special_tokens=False, return_tensors="pt"
    )
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["input_ids"][0].tolist() == processor.encode_chat(turns).input_ids.tolist()


@pytest.mark.parametrize(
    ("image_processor", "expected"),
    [
        (ViTImageProcessor(size={"height": 40, "width": 56}), (40, 56)),
        (CLIPImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 32, "width": 48}), (32, 48)),
        (CLIPImageProcessor(size={"shortest_edge": 48}, do_center_crop=False), (48, 48)),
    ],
)
def test_input_size(image_processor, expected: tuple[int, int]):
    assert input_size(image_processor) == expected
    square = Image.new("RGB", (70, 70))
    assert tuple(image_processor([square], return_tensors="pt")["pixel_values"].shape[-2:]) == expected


# Limits and errors


def test_a_chat_is_as_long_as_allowed_or_refused_whole():
    processor = small_processor()
    turns = chat("<image>\nWhat is the pose of the car?", "The car is at <pose6D>.")
    whole = processor.encode_chat(turns)
    length = len(whole.input_ids)
    assert np.array_equal(processor.encode_chat(turns, max_length=length).input_ids, whole.input_ids)
    with pytest.raises(ChatTooLongError, match=rf"sample 'x': {length} tokens are more than max_length={length - 1}"):
        processor.encode_chat(turns, max_length=length - 1, where="sample 'x'")


def test_the_tokens_of_the_picture_count_against_the_limit():
    few, many = small_processor(), small_processor(side=128)
    turns = chat("<image>\nWhat?", "A car.")
    length = len(few.encode_chat(turns).input_ids)
    assert len(many.encode_chat(turns).input_ids) == length + 12
    with pytest.raises(ChatTooLongError):
        many.encode_chat(turns, max_length=length)


def test_a_chat_without_an_answer_has_no_labels():
    encoded = small_processor().encode_chat(chat("What is this?"))
    assert (encoded.labels == IGNORE_INDEX).all()
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int64


def test_an_empty_answer_is_its_end_or_an_error():
    for template in CHAT_TEMPLATES:
        processor = small_processor(template=template)
        assert [text.strip() for text in supervised_text(processor, chat("What?", ""))] == [ENDS[template]]
    with pytest.raises(InputError, match="s1: no token of the answer is supervised; is the answer empty"):
        small_processor(template=PLAIN).encode_chat(chat("What?", ""), where="s1")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        # as of models that take earlier thoughts out of the chat
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last else 'gone' }}\n{% endfor %}",
            "the chat template rewrites earlier turns",
        ),
        ("{{ raise_exception('only users speak') }}", r"the chat template refuses the chat \(only users speak\)"),
        (
            "{% if messages[-1].role != 'assistant' %}{{ raise_exception('no') }}{% endif %}" + PLAIN,
            r"the chat template refuses a part of the chat \(no\)",
        ),
    ],
)
def test_a_template_that_labels_cannot_be_placed_with_is_named(template: str, match: str):
    processor = small_processor(template=template)
    turns = chat("What?", "A car.", "And?", "A cup.")
    with pytest.raises(InputError, match=f"s1: {match}"):
        processor.encode_chat(turns, where="s1")


def test_a_chat_begins_with_a_question():
    turns = chat("What?", "A car.")
    with pytest.raises(InputError, match="s1: the chat begins with an answer"):
        small_processor().encode_chat(turns[1:], where="s1")
    with pytest.raises(InputError, match="s1: the chat has no turn"):
        small_processor().encode_chat([], where="s1")


@pytest.mark.parametrize("missing", [IMAGE_TOKEN, POSE_TOKEN])
def test_a_tokenizer_without_the_tokens_is_refused(missing: str, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.add_tokens([{IMAGE_TOKEN: POSE_TOKEN, POSE_TOKEN: IMAGE_TOKEN}[missing]], special_tokens=True)
    with pytest.raises(InputError, match=f"the tokenizer does not know {missing}; .*llava-pose assemble"):
        small_processor(tokenizer)


# On disk


@pytest.mark.parametrize("template", ["vicuna", "chatml", PLAIN])
def test_saved_and_loaded_it_is_the_same(template: str, tmp_path):
    processor = small_processor(template=template, side=128, vision_merge=2)
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert type(again.processor) is CompactLlavaProcessor
    turns = chat("<image>\nWhat is <pose6D>?", "The car is at <pose6D>.", "And é?", "Ü.", system="Be brief.")
    before, after = processor.encode_chat(turns), again.encode_chat(turns)
    assert np.array_equal(before.input_ids, after.input_ids)
    assert np.array_equal(before.labels, after.labels)
    for name in ("vision_merge", "patch_size", "image_token_id", "chat_template"):
        assert getattr(again.processor, name) == getattr(processor.processor, name), name
    assert again.pose_token_id == processor.pose_token_id
    assert input_size(again.image_processor) == input_size(processor.image_processor)
    assert again.processor.vision_merge == 2
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    pixels = [p.image_processor([picture], return_tensors="pt")["pixel_values"] for p in (processor, again)]
    assert torch.equal(*pixels)


def test_loaded_from_nothing_it_says_where(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: no LLaVA-pose processor there"):
        load_processor(tmp_path)
