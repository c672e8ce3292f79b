"""PosePredictor on real checkpoints: one answer whatever the batch, the trie, the cache or the folder it was loaded from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from llava_pose.data.conversation import JOINT_ANSWER, JOINT_QUESTIONS, POSE_TOKEN, describe_pose
from llava_pose.data.images import PADDING_COLOUR, square_picture
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.answers import ChatAnswer
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.loading import load_full
from llava_pose.model.processors import load_processor
from llava_pose.pose.metrics import pose_error
from llava_pose.train.trainable import add_lora

OBJECTS = ["car", "dining table", "pair of scissors", "cup"]  # questions of different lengths
CANDIDATES = {
    "car": "a car",
    "cup": "a cup",
    "airplane": "an airplane",
    "diningtable": "a dining table",
    "scissors": "a pair of scissors",
    "cart": "a cart",
}
BASES = ["base", "other_base"]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(64, 64, 1), picture(120, 80, 2), picture(50, 90, 3), picture(33, 32, 4)]


@pytest.fixture(scope="module")
def predictor_of(request: pytest.FixtureRequest) -> Callable[[str], PosePredictor]:
    """The predictor over a base that a fixture names, loaded once."""
    loaded: dict[str, PosePredictor] = {}

    def get(name: str) -> PosePredictor:
        if name not in loaded:
            loaded[name] = PosePredictor.from_checkpoint(request.getfixturevalue(name), device="cpu")
        return loaded[name]

    return get


@pytest.fixture(scope="module")
def knowing(taught) -> PosePredictor:
    return PosePredictor.from_checkpoint(taught.folder, device="cpu")


@pytest.fixture
def taught_picture(taught) -> Image.Image:
    return Image.open(taught.picture)


def assert_same_pose(ours: Pose, theirs: Pose, tolerance: float = 1e-4) -> None:
    """Rotations by their angle, in radians; distances by their ratio; places in pixels of a picture of some 100."""
    assert float(pose_error(np.array(ours.angles), np.array(theirs.angles))) < tolerance
    assert ours.distance == pytest.approx(theirs.distance, rel=tolerance)
    assert (ours.px, ours.py) == pytest.approx((theirs.px, theirs.py), abs=100 * tolerance)


def ask(text: str, **more) -> list[dict]:
    return [{"role": "user", "content": text, **more}]


# Batches


@pytest.mark.parametrize("name", BASES)
def test_a_batch_answers_as_its_members_alone(predictor_of, pictures, name):
    predictor = predictor_of(name)
    viewports = [300.0, 400.0, 500.0, 600.0]
    together = predictor.predict(pictures, OBJECTS, viewports=viewports)
    for index, answer in enumerate(together):
        [alone] = predictor.predict([pictures[index]], [OBJECTS[index]], viewports=[viewports[index]])
        assert_same_pose(answer.pose, alone.pose)
        assert answer.confidence == pytest.approx(alone.confidence, abs=1e-4)
        assert answer.category == OBJECTS[index]
    angles = [answer.pose.angles for answer in together]
    assert len(set(angles)) == len(angles)  # the model tells these pictures apart, so that the test can fail


def test_pictures_are_scored_a_few_at_a_time_with_the_same_answers(predictor_of, pictures, monkeypatch):
    predictor = predictor_of("base")
    together = predictor.classify(pictures, CANDIDATES, flip=["car"])
    for most in ("_MOST_LOGITS", "_MOST_KEPT"):
        monkeypatch.setattr(f"llava_pose.inference.predictor.{most}", 1)
    scored = predictor.classify(pictures, CANDIDATES, flip=["car"])
    searched = predictor.classify(pictures, CANDIDATES, flip=["car"], probabilities=False)
    for one, another, other in zip(scored, searched, together, strict=True):
        assert one.category == another.category == other.category
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert_same_pose(one.pose, other.pose)
        assert_same_pose(another.pose, other.pose)


@pytest.mark.parametrize("flip", [None, ["car", "cup", "cart"]])
@pytest.mark.parametrize("name", BASES)
def test_the_winner_that_is_searched_for_is_the_one_that_all_scores_give(predictor_of, pictures, name, flip):
    predictor = predictor_of(name)
    assert predictor._can_search
    more = {**CANDIDATES, **{f"kind {n}": f"a {word} {n}" for n in range(30) for word in ("car", "cup")}}
    for candidates in (CANDIDATES, more, {"car": "a car"}):
        searched = predictor.classify(pictures, candidates, flip=flip, probabilities=False)
        for one, other in zip(searched, predictor.classify(pictures, candidates, flip=flip), strict=True):
            assert one.category == other.category
            assert one.probabilities is None
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
            assert_same_pose(one.pose, other.pose)


@pytest.mark.parametrize("name", BASES)
def test_a_batch_is_classified_as_its_members_alone(predictor_of, pictures, name):
    predictor = predictor_of(name)
    together = predictor.classify(pictures, CANDIDATES)
    for answer, one in zip(together, pictures, strict=True):
        [alone] = predictor.classify([one], CANDIDATES)
        assert answer.category == alone.category
        assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-4)
        assert_same_pose(answer.pose, alone.pose)


# Mirror images


def mirrored_pose(pose: Pose, width: int) -> Pose:
    azimuth, elevation, theta = pose.angles
    return Pose(-azimuth, elevation, -theta, pose.distance, width - pose.px, pose.py)


@pytest.mark.parametrize("name", BASES)
def test_with_the_mirror_image_the_answer_turns_as_the_picture_does(predictor_of, pictures, name):
    """The mean of a picture's answer and its mirror image's is the mirrored mean of the mirror image's and the picture's."""
    predictor = predictor_of(name)
    mirrored = [ImageOps.mirror(picture) for picture in pictures]
    flip = [True, True, False, True]
    answers, others = (predictor.predict(images, OBJECTS, flip=flip) for images in (pictures, mirrored))
    plain = predictor.predict(pictures, OBJECTS)
    for index, (answer, other, picture) in enumerate(zip(answers, others, pictures, strict=True)):
        if flip[index]:
            assert_same_pose(answer.pose, mirrored_pose(other.pose, picture.width))
            assert answer.confidence == pytest.approx(other.confidence, abs=1e-4)
            assert answer.pose.angles != plain[index].pose.angles
        else:
            assert_same_pose(answer.pose, plain[index].pose)

    found, others = (predictor.classify(images, CANDIDATES, flip=CANDIDATES) for images in (pictures, mirrored))
    for answer, other, picture in zip(found, others, pictures, strict=True):
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert_same_pose(answer.pose, mirrored_pose(other.pose, picture.width))
    # of what has no plane of symmetry the category is found by both pictures, and the pose by its own alone
    for answer, other, picture in zip(found, predictor.classify(pictures, CANDIDATES, flip=[]), pictures, strict=True):
        assert other.probabilities == pytest.approx(answer.probabilities, abs=1e-4)
        [alone] = predictor.classify([picture], {other.category: CANDIDATES[other.category]})
        assert_same_pose(other.pose, alone.pose)


# The trie


def score_alone(folder: Path, image: Image.Image, names: Sequence[str]) -> tuple[torch.Tensor, list]:
    """Log probability of each whole answer up to `<pose6D>`, and what the head reads there, by one plain forward each."""
    model, processor = load_full(folder, dtype=torch.float32).eval(), load_processor(folder)
    square, _, _, _ = square_picture(image)
    scores, outputs = [], []
    for name in names:
        chat = processor.encode_chat(
            [
                {"role": "user", "content": f"<image>\n{JOINT_QUESTIONS[0]}"},
                {"role": "assistant", "content": JOINT_ANSWER.format(an_object=name, pose=POSE_TOKEN)},
            ],
            square,
        )
        end = int(np.flatnonzero(chat.labels == processor.pose_token_id)[0])
        start = int(np.flatnonzero(chat.labels != -100)[0])
        ids = torch.from_numpy(chat.input_ids)[None]
        with torch.inference_mode():
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures)
            outputs.append(model.read_poses(output.states[:, end - 1], output.image_tokens))
        log_probabilities = output.logits[0].log_softmax(-1)
        scores.append(sum(log_probabilities[place - 1, ids[0, place]] for place in range(start, end + 1)))
    return torch.stack(scores), outputs


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("candidates", [CANDIDATES, {"car": "a car"}], ids=["several", "one"])
def test_the_trie_scores_as_a_forward_for_each_answer(request, predictor_of, name, candidates):
    image = picture(80, 60, 7)
    [answer] = predictor_of(name).classify([image], candidates, viewports=[250.0])
    scores, outputs = score_alone(request.getfixturevalue(name), image, list(candidates.values()))
    expected = dict(zip(candidates, scores.softmax(-1).tolist(), strict=True))
    assert answer.probabilities == pytest.approx(expected, abs=1e-4)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    winner = max(expected, key=expected.__getitem__)
    assert answer.category == winner
    output = outputs[list(candidates).index(winner)]
    [pose] = output.to_poses(width=torch.tensor([80.0]), height=torch.tensor([80.0]), viewport=torch.tensor([250.0]))
    assert_same_pose(answer.pose, dataclasses.replace(pose, py=pose.py - 10))
    assert answer.confidence == pytest.approx(float(output.confidence), abs=1e-4)


def test_the_right_category_is_found(knowing, taught_picture):
    [answer] = knowing.classify([taught_picture], CANDIDATES)
    assert answer.category == "car"
    assert answer.probabilities["car"] > 0.9


def test_candidates_must_be_some_and_different(predictor_of, pictures):
    with pytest.raises(InputError, match="no category"):
        predictor_of("base").classify(pictures, {})
    with pytest.raises(InputError, match="both called 'a car'"):
        predictor_of("base").classify(pictures, {"car": "a car", "auto": "a car", "cup": "a cup"})


# Folders


def test_a_saved_and_reloaded_checkpoint_predicts_the_same(taught, knowing, tmp_path, pictures):
    load_full(taught.folder, dtype=torch.float32).save_pretrained(tmp_path / "again")
    load_processor(taught.folder).save_pretrained(tmp_path / "again")
    again = PosePredictor.from_checkpoint(tmp_path / "again", device="cpu")
    assert again.predict(pictures, OBJECTS) == knowing.predict(pictures, OBJECTS)
    assert again.classify(pictures, CANDIDATES) == knowing.classify(pictures, CANDIDATES)
    question = ask("Describe the picture.")
    assert again.chat(Image.open(taught.picture), question) == knowing.chat(Image.open(taught.picture), question)


def test_an_adapter_predicts_as_its_merged_model(base, tmp_path, pictures):
    wrapped = add_lora(load_full(base, dtype=torch.float32), r=4, alpha=8, dropout=0.1, tune_vision=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name or "modules_to_save" in name or name.startswith("pose_")
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    load_processor(base).save_pretrained(tmp_path / "adapter")
    wrapped.merged().save_pretrained(tmp_path / "merged")
    load_processor(base).save_pretrained(tmp_path / "merged")

    adapter = PosePredictor.from_checkpoint(tmp_path / "adapter", base=str(base), device="cpu")
    merged = PosePredictor.from_checkpoint(tmp_path / "merged", device="cpu")
    untrained = PosePredictor.from_checkpoint(base, device="cpu")
    answers = [p.predict(pictures, OBJECTS) for p in (adapter, merged, untrained)]
    for ours, theirs, before in zip(*answers, strict=True):
        assert_same_pose(ours.pose, theirs.pose)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
        assert ours.confidence != pytest.approx(before.confidence, abs=1e-2)
    question = ask("What is the pose of the car?")
    said = [p.chat(pictures[0], question, max_new_tokens=12).text for p in (adapter, merged)]
    assert said[0] == said[1]


# Pictures of any shape


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (101, 64)])
def test_a_pose_is_in_pixels_of_the_picture_that_was_given(predictor_of, size):
    predictor, image = predictor_of("base"), picture(*size, seed=5)
    side = max(size)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = Image.new("RGB", (side, side), PADDING_COLOUR)
    square.paste(image, (left, top))
    [given] = predictor.predict([image], ["car"])
    [padded] = predictor.predict([square], ["car"])
    assert_same_pose(given.pose, dataclasses.replace(padded.pose, px=padded.pose.px - left, py=padded.pose.py - top))


def test_place_and_distance_grow_with_the_picture(knowing, taught, taught_picture):
    """The taught pose itself, whatever the picture's resolution; the viewport grows with it, the distance stays."""
    for scale in (1, 2, 3):
        side = 160 * scale
        larger = taught_picture.resize((side, side), Image.Resampling.BICUBIC)
        [answer] = knowing.predict([larger], ["car"], viewports=[taught.viewport * scale])
        assert float(pose_error(np.array(answer.pose.angles), np.array(taught.car.angles))) < math.radians(4)
        assert answer.pose.distance == pytest.approx(taught.car.distance, rel=0.1)
        assert answer.pose.px / scale == pytest.approx(taught.car.px, abs=12)
        assert answer.pose.py / scale == pytest.approx(taught.car.py, abs=12)


def test_distance_is_proportional_to_the_viewport(predictor_of, pictures):
    near, far = (predictor_of("base").predict(pictures[:1], ["car"], viewports=[v])[0].pose for v in (100.0, 300.0))
    assert far.distance == pytest.approx(3 * near.distance)
    assert far.angles == near.angles


# Chat


def plain_forward(taught, messages: list[dict], answer: ChatAnswer, image: Image.Image) -> tuple[list[Pose], list[int]]:
    """The poses that a full forward without a cache reads in an answer, and the tokens it would have given greedily."""
    model, processor = load_full(taught.folder, dtype=torch.float32).eval(), load_processor(taught.folder)
    turns = [{"role": m["role"], "content": m["content"]} for m in messages]
    turns[0]["content"] = f"<image>\n{turns[0]['content']}"
    chat = processor.encode_chat([*turns, {"role": "assistant", "content": answer.text}], image)
    prompt = processor.encode_chat(turns).input_ids if len(turns) > 1 else None
    first = int(np.flatnonzero(chat.labels != -100)[0]) if prompt is None else len(prompt) + _opening(processor)
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures)
        at_pose = [place for place in range(first, ids.shape[1]) if ids[0, place] == processor.pose_token_id]
        states = output.states[0, [place - 1 for place in at_pose]]
        read = model.read_poses(states, output.image_tokens, torch.zeros(len(at_pose), dtype=torch.long))
    sizes = {name: torch.full((len(at_pose),), 160.0) for name in ("width", "height", "viewport")}
    greedy = output.logits[0, first - 1 : -1].argmax(-1).tolist()
    assert greedy == chat.input_ids[first:].tolist()
    return read.to_poses(**sizes), at_pose


def _opening(processor) -> int:
    """Tokens that open an answer."""
    question = {"role": "user", "content": "x"}
    closed, opened = (processor.render([question], add_generation_prompt=flag) for flag in (False, True))
    count = [len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (closed, opened)]
    return count[1] - count[0]


@pytest.mark.parametrize("lesson", range(4))
def test_chat_reads_the_state_that_a_full_forward_has(knowing, taught, taught_picture, lesson):
    texts, poses = taught.lessons[lesson]
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts[:-1], strict=False)]
    answer = knowing.chat(taught_picture, messages, viewport=taught.viewport)
    assert answer.text == texts[-1]
    assert answer.complete
    expected, _ = plain_forward(taught, messages, answer, taught_picture)
    assert len(answer.poses) == len(answer.confidences) == len(expected) == texts[-1].count(POSE_TOKEN)
    for ours, theirs in zip(answer.poses, expected, strict=True):
        assert_same_pose(ours, theirs)
    for ours, truth in zip(answer.poses, poses[-len(expected) :], strict=True):
        assert float(pose_error(np.array(ours.angles), np.array(truth.angles))) < math.radians(4)


def test_chat_and_the_fixed_answer_read_the_same_pose(knowing, taught, taught_picture):
    answer = knowing.chat(taught_picture, ask("What is the pose of the car?"))
    [predicted] = knowing.predict([taught_picture], ["car"])
    assert_same_pose(answer.poses[0], predicted.pose)
    assert answer.confidences[0] == pytest.approx(predicted.confidence, abs=1e-4)


def test_angles_stand_in_the_place_of_the_tokens(knowing, taught_picture):
    answer = knowing.chat(taught_picture, ask("Describe the picture."))
    car, cup = map(describe_pose, answer.poses)
    assert answer.readable == f"A car at {car} and a cup at {cup}."
    assert POSE_TOKEN not in answer.readable


def test_the_answer_depends_on_a_pose_in_the_question(knowing, taught, taught_picture):
    said = [
        knowing.chat(taught_picture, ask(f"What is at {POSE_TOKEN}?", poses=[pose]), viewport=taught.viewport).text
        for pose in (taught.car, taught.cup)
    ]
    assert said == ["A car.", "A cup."]


def test_poses_of_earlier_questions_stay_with_them(knowing, taught, taught_picture):
    """Poses belong to the questions in their order; the `<pose6D>` of answers between them take none."""
    first = ask("What is the pose of the car?")
    first += [{"role": "assistant", "content": f"The car is at {POSE_TOKEN}."}]
    said = [
        knowing.chat(
            taught_picture, [*first, *ask(f"What is at {POSE_TOKEN}?", poses=[pose])], viewport=taught.viewport
        )
        for pose in (taught.car, taught.cup)
    ]
    assert said[0].text != said[1].text


def test_input_poses_are_in_pixels_of_the_picture_too(predictor_of):
    """The same picture padded to a square by hand, its input pose moved along, is the same chat."""
    predictor, image = predictor_of("other_base"), picture(96, 64, seed=8)
    square, _, left, top = square_picture(image)
    assert (left, top) == (0, 16)
    pose = Pose(0.3, 0.1, 0.0, 4.0, 40.0, 20.0)
    moved = dataclasses.replace(pose, py=pose.py + top)
    encode = predictor._model.pose_encoder.forward
    seen = []
    with torch.no_grad():
        for layer in (predictor._model.pose_encoder.linear_2,):
            handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        for picture_, pose_ in ((image, pose), (square, moved), (image, moved)):
            predictor.chat(picture_, ask(f"What is at {POSE_TOKEN}?", poses=[pose_]), max_new_tokens=1)
    finally:
        handle.remove()
    assert encode == predictor._model.pose_encoder.forward
    torch.testing.assert_close(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2])


@pytest.fixture(scope="module")
def emphatic(base, tmp_path_factory) -> PosePredictor:
    """One that begins any answer with a pose."""
    folder = tmp_path_factory.mktemp("emphatic")
    model, processor = load_full(base, dtype=torch.float32).eval(), load_processor(base)
    chat = processor.encode_chat(ask("<image>\nWhat?"), picture(64, 64), add_generation_prompt=True)
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.no_grad():
        last = model(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures).states[0, -1]
        model.pose_token_output.change[0] = 100 * last / last.norm()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return PosePredictor.from_checkpoint(folder, device="cpu")


def test_a_pose_of_several_pictures_is_in_the_pixels_of_the_one_that_is_named(emphatic, pictures):
    shown = [pictures[1], pictures[0]]
    answers = {
        name: emphatic.chat(shown, ask(f"How is the car in {name} turned?"), viewport=[400.0, 300.0], max_new_tokens=1)
        for name in ("picture 1", "picture 2", "one of them")
    }
    assert [answer.text for answer in answers.values()] == [POSE_TOKEN] * 3
    assert [answer.pictures for answer in answers.values()] == [[0], [1], [None]]
    [unknown] = answers["one of them"].poses
    assert (unknown.distance, unknown.px, unknown.py) == (None, None, None)
    assert answers["one of them"].objects()[0].matrix()[2, 3] == 1.0
    # the same state read in the pixels of either picture: the same share of its square
    question = ask("How is the car in picture 2 turned?")
    widened = emphatic.chat(shown, question, viewport=[400.0, 600.0], max_new_tokens=1)
    assert widened.poses[0].distance == pytest.approx(2 * answers["picture 2"].poses[0].distance)
    of_first = emphatic.chat(shown, question, viewport=[800.0, 300.0], max_new_tokens=1)
    assert of_first.poses == answers["picture 2"].poses


def test_several_pictures_stand_before_the_first_question_or_where_their_tokens_do(emphatic, pictures):
    shown = [pictures[1], pictures[0]]
    before = emphatic.chat(shown, ask("In picture 2?"), max_new_tokens=1)
    placed = emphatic.chat(shown, ask("<image>\n<image>\nIn picture 2?"), max_new_tokens=1)
    assert placed == before
    behind = emphatic.chat(shown, ask("<image>\nIn picture 2?<image>"), max_new_tokens=1)
    swapped = emphatic.chat(shown[::-1], ask("In picture 2?"), max_new_tokens=1)
    for other in (behind, swapped):
        assert other.poses[0].angles != before.poses[0].angles
    assert emphatic.chat([shown[0]], ask("In picture 2?"), max_new_tokens=1) == emphatic.chat(
        shown[0], ask("In picture 2?"), max_new_tokens=1
    )
    with pytest.raises(InputError, match="1 `<image>` in the chat, but 2 pictures"):
        emphatic.chat(shown, ask("<image>\nIn picture 2?"))
    with pytest.raises(InputError, match="there are 2 pictures and 1 viewports"):
        emphatic.chat(shown, ask("In picture 2?"), viewport=[300.0])


def test_a_given_pose_is_in_the_pixels_of_its_picture(predictor_of):
    predictor, square = predictor_of("other_base"), picture(64, 64, seed=7)
    wide, pose = picture(96, 64, seed=8), Pose(0.3, 0.1, 0.0, 4.0, 40.0, 20.0)
    seen = []
    handle = predictor._model.pose_encoder.linear_2.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].clone())
    )
    given = {"poses": [pose]}
    try:
        for shown, places in (([wide], None), ([square, wide], [1]), ([square, wide], [0]), ([square, wide], None)):
            more = given if places is None else {**given, "pictures": places}
            predictor.chat(shown, ask(f"What is at {POSE_TOKEN}?", **more), max_new_tokens=1)
    finally:
        handle.remove()
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[2], seen[3])
    assert not torch.allclose(seen[1], seen[2])
    for places in ([2], [0, 1], ["0"]):
        with pytest.raises(InputError, match="'pictures' of a question must be the place of a picture, from 0 to 1"):
            predictor.chat([square, wide], ask(f"What is at {POSE_TOKEN}?", poses=[pose], pictures=places))


def test_a_cut_off_answer_says_so(knowing, taught_picture):
    whole = knowing.chat(taught_picture, ask("What is the pose of the car?"))
    cut = knowing.chat(taught_picture, ask("What is the pose of the car?"), max_new_tokens=3)
    assert whole.complete
    assert not cut.complete
    assert whole.text.startswith(cut.text)
    assert cut.readable == cut.text
    assert cut.poses == []


def test_chat_without_a_picture(knowing):
    answer = knowing.chat(None, ask("Hello?"), max_new_tokens=16)
    assert answer.text.count(POSE_TOKEN) == len(answer.poses)


def test_an_answer_never_holds_an_image_token(tiny_base):
    """A model that wants to say `<image>` says the next best: in the following turn it would stand for a picture."""
    model, processor = load_full(tiny_base, dtype=torch.float32).eval(), load_processor(tiny_base)
    image, question = picture(64, 64), ask("What is this?")
    chat = processor.encode_chat([{"role": "user", "content": f"<image>\n{question[0]['content']}"}], image)
    ids, image_id = torch.from_numpy(chat.input_ids)[None], model.pose_config.image_token_id
    with torch.inference_mode():
        state = model(input_ids=ids, **chat.pictures).states[0, -1].clone()
    with torch.no_grad():
        model.vlm.get_input_embeddings().weight[image_id] = 100 * state
        logits = model(input_ids=ids, **chat.pictures).logits[0, -1]
    assert int(logits.argmax()) == image_id
    predictor = PosePredictor(model, processor)
    answer = predictor.chat(image, question, max_new_tokens=6)
    assert "<image>" not in answer.text
    follow_up = [*question, {"role": "assistant", "content": answer.text}, *ask("And now?")]
    predictor.chat(image, follow_up, max_new_tokens=2)


# What cannot be asked


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "must be a question"),
        ([{"role": "assistant", "content": "Hello."}], "must be a question"),
        (ask(f"What is at {POSE_TOKEN}?"), "1 <pose6D> in the questions, but 0 poses"),
        (ask("What is it?", poses=[Pose(0, 0, 0)]), "0 <pose6D> in the questions, but 1 poses"),
        (ask("What is it? " * 400), "start a new chat"),
    ],
)
def test_bad_chats_are_refused(predictor_of, pictures, messages, match):
    with pytest.raises(InputError, match=match):
        predictor_of("base").chat(pictures[0], messages)


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_there_is_named(tmp_path, device):
    with pytest.raises(InputError, match=f"^--device {device}: cannot be used here .*give cpu") as caught:
        PosePredictor.from_checkpoint(tmp_path, device=device)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        PosePredictor.from_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no-such-folder"):
        PosePredictor.from_checkpoint(tmp_path / "no-such-folder")
