"""A checkpoint in three lines of Python: what it answers, and what it says to arguments that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import llava_pose
from llava_pose.errors import InputError
from llava_pose.inference.pipeline import PosePipeline
from llava_pose.pose.conventions import CONVENTIONS
from llava_pose.pose.geometry import rotation_matrix
from llava_pose.pose.quaternions import quaternion_to_matrix


@pytest.fixture(scope="module")
def checkpoint(taught, tmp_path_factory) -> Path:
    """One that says that it knows cars and cups."""
    folder = shutil.copytree(taught.folder, tmp_path_factory.mktemp("knowing") / "checkpoint")
    config = json.loads((folder / "pose_config.json").read_text())
    (folder / "pose_config.json").write_text(json.dumps({**config, "categories": ["car", "cup"]}))
    return Path(folder)


@pytest.fixture(scope="module")
def pipe(checkpoint) -> PosePipeline:
    return llava_pose.pipeline(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def photo(taught, tmp_path_factory) -> Path:
    """The taught picture in a corner of a larger photograph."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    photo = Image.new("RGB", (400, 300), (90, 120, 60))
    photo.paste(Image.open(taught.picture), (200, 100))
    photo.save(path)
    return path


def test_one_picture_has_an_answer_and_a_list_has_a_list(pipe, taught):
    one = pipe(taught.picture, category="car")
    [again, of_picture] = pipe([str(taught.picture), Image.open(taught.picture)], category="car")
    assert one.category == again.category == "car"
    assert again.pose.angles == pytest.approx(one.pose.angles, abs=1e-4)
    assert of_picture.pose.angles == pytest.approx(one.pose.angles, abs=1e-4)


def test_an_answer_in_degrees_matrix_and_quaternion(pipe, taught):
    answer = pipe(taught.picture, category="car")
    azimuth, elevation, theta = answer.degrees()
    assert 0 <= azimuth < 360
    turned = rotation_matrix(*np.radians([azimuth, elevation, theta]))
    assert answer.matrix("llava-pose")[:3, :3] == pytest.approx(turned, abs=1e-6)
    for convention in ("opencv", "unity", "ros"):
        matrix = answer.matrix(convention)
        assert np.linalg.norm(matrix[:3, 3]) == pytest.approx(answer.pose.distance)
        order = CONVENTIONS[convention].quaternion
        assert quaternion_to_matrix(answer.quaternion(convention), order) == pytest.approx(matrix[:3, :3], abs=1e-6)
    assert answer.matrix("opencv")[2, 3] > 0  # it is in front of the camera
    json.dumps(answer.to_dict())
    drawn = answer.draw(Image.open(taught.picture))
    assert np.abs(np.asarray(drawn, int) - np.asarray(Image.open(taught.picture).convert("RGB"), int)).max() > 50


def test_a_box_is_the_picture_that_was_cut_out(taught, checkpoint, photo):
    pipe = llava_pose.pipeline(checkpoint, device="cpu", margin=0.0)
    whole, boxed = pipe(taught.picture, category="car"), pipe(photo, category="car", box=(200, 100, 360, 260))
    assert boxed.pose.angles == pytest.approx(whole.pose.angles, abs=1e-4)
    assert boxed.pose.px - 200 == pytest.approx(whole.pose.px, abs=0.01)
    assert boxed.pose.py - 100 == pytest.approx(whole.pose.py, abs=0.01)


def test_auto_chooses_among_what_the_checkpoint_was_taught(pipe, taught):
    answer = pipe(taught.picture)
    assert set(answer.probabilities) == {"car", "cup"}
    assert answer.category == max(answer.probabilities, key=answer.probabilities.get)
    assert pipe(taught.picture, category=["car", "aeroplane"]).probabilities.keys() == {"car", "aeroplane"}


def test_a_category_of_ones_own_that_the_checkpoint_was_taught_needs_no_leave(taught, tmp_path):
    shutil.copytree(taught.folder, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "pose_config.json").read_text())
    (tmp_path / "own" / "pose_config.json").write_text(json.dumps({**config, "categories": ["my_gadget"]}))
    pipe = llava_pose.pipeline(str(tmp_path / "own"), device="cpu")
    assert pipe(taught.picture).category == "my_gadget"
    assert pipe(taught.picture, category="my_gadget").category == "my_gadget"
    with pytest.raises(InputError, match=r"unknown category 'your_gadget': .*--allow-custom-categories"):
        pipe(taught.picture, category="your_gadget")


def test_objects_of_several_choices_come_back_in_their_order(pipe, taught, photo):
    picture = Image.open(taught.picture).convert("RGB")
    answers = pipe.ask([pipe.asked(picture, names) for names in (("car",), ("car", "cup"), ("cup",))])
    assert [answer.probabilities is None for answer in answers] == [True, False, True]
    assert [answers[0].category, answers[2].category] == ["car", "cup"]


def test_a_question_has_text_and_poses(pipe, taught):
    said = pipe(taught.picture, text="What is the pose of the car?")
    assert said.text
    assert len(said.poses) == said.text.count("<pose6D>")


def test_a_question_about_a_list_is_one_about_all_its_pictures(pipe, taught, photo):
    said = pipe([taught.picture, photo], text="What is the pose of the car in picture 1?")
    shown = [Image.open(path).convert("RGB") for path in (taught.picture, photo)]
    question = [{"role": "user", "content": "What is the pose of the car in picture 1?"}]
    assert said == pipe.predictor.chat(shown, question)
    assert said.text
    alone = pipe([taught.picture], text="What is the pose of the car?")
    assert alone == pipe(taught.picture, text="What is the pose of the car?")


WRONG = {
    "a mapping": (({"a": 1},), {}, "not dict"),
    "a number": ((3,), {}, "not int"),
    "an empty list": (([],), {}, "the list of pictures is empty"),
    "a folder": (("/tmp",), {}, "is a folder"),
    "no such file": (("/nowhere/p.jpg",), {}, "No such file"),
    "an unknown category": (("PICTURE",), {"category": "caar"}, "caar"),
    "no category": (("PICTURE",), {"category": []}, "a category is a name"),
    "three numbers": (("PICTURE",), {"box": (1, 2, 3)}, "a box is four numbers"),
    "a box outside": (("PICTURE",), {"box": (900, 900, 950, 950)}, "has no pixel of its picture"),
    "a box of NaN": (("PICTURE",), {"box": (0, 0, float("nan"), 5)}, "finite"),
    "fewer boxes": ((["PICTURE", "PICTURE"],), {"box": [(0, 0, 9, 9)]}, "there are 2 pictures and 1 boxes"),
    "an empty question": (("PICTURE",), {"text": " "}, "the question is empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arguments_are_answered_in_a_sentence(kind, pipe, taught):
    (given,), named, message = WRONG[kind]
    given = str(taught.picture) if given == "PICTURE" else given
    given = [str(taught.picture) for _ in given] if isinstance(given, list) else given
    with pytest.raises(InputError, match=message):
        pipe(given, **{"category": "car", **named} if "text" not in named else named)


def test_a_checkpoint_that_does_not_say_what_it_knows(taught):
    with pytest.raises(InputError, match="does not say which categories it knows"):
        llava_pose.pipeline(taught.folder, device="cpu")(taught.picture)


def test_an_unknown_convention(pipe, taught):
    with pytest.raises(InputError, match="there is no convention 'openvc'"):
        pipe(taught.picture, category="car").matrix("openvc")
