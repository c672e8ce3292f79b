"""Training samples: what is learned of a sample and of its mirror image, and what is wrong with a train.json, in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
from llava_pose.data.conversation import IGNORE_INDEX, ChatTooLongError, space_poses
from llava_pose.data.dataset import PoseDataset, read_samples
from llava_pose.data.records import Pose, pose_targets_of
from llava_pose.errors import InputError
from llava_pose.pose.geometry import rotation_matrix
from tests.llava_pose.small_models import small_processor

POSE = {"azimuth": 0.7, "elevation": 0.2, "theta": -0.1, "distance": 5.0, "px": 30.0, "py": 10.0}
OTHER = {"azimuth": 4.0, "elevation": -0.3, "theta": 0.4, "distance": 2.0, "px": 8.0, "py": 20.0}
SIZE = {"width": 40, "height": 24, "viewport": 300.0}
PICTURE = "train/car/0.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with three pictures, red on their left and green on their right."""
    folder = tmp_path_factory.mktemp("data")
    for index in range(3):
        picture = Image.new("RGB", (40, 24), (200, 10 * index, 0))
        picture.paste((0, 200, 10 * index), (20, 0, 40, 24))
        path = folder / f"train/car/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def sample(*texts: str, poses: list[dict] | None = None, **changes: Any) -> dict[str, Any]:
    texts = texts or ("<image>\nWhat is the pose of the car?", "The car faces left, at <pose6D>.")
    values = {
        "id": "car/0/0",
        "image": PICTURE,
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)],
        "poses": [POSE] if poses is None else poses,
        **SIZE,
        "flippable": True,
        **changes,
    }
    return {name: value for name, value in values.items() if value is not ...}


def dataset(data: Path, *samples: dict[str, Any], **options: Any) -> PoseDataset:
    return PoseDataset(samples or [sample()], data, small_processor(), **options)


def numbers(pose: dict[str, float]) -> list[float]:
    return pytest.approx(pose_targets_of(Pose(**pose), **SIZE), abs=1e-6)


def text_of(item: Any) -> str:
    return small_processor().tokenizer.decode(item.input_ids)


def pixels_of(item: Any) -> torch.Tensor:
    return item.pictures["pixel_values"]


def pixels_in(data: Path, *, mirrored: bool = False) -> torch.Tensor:
    picture = Image.open(data / PICTURE)
    return small_processor().picture_inputs(ImageOps.mirror(picture) if mirrored else picture)["pixel_values"]


# Samples


def test_a_sample_encoded(data: Path):
    (item,) = dataset(data)
    assert item.name == "sample 'car/0/0'"
    assert "USER: <image><image><image><image>\nWhat is the pose of the car?" in text_of(item)
    assert len(item.input_ids) == len(item.labels)
    assert item.input_poses.shape == (0, 6)
    assert item.pose_targets.dtype == np.float32
    assert item.pose_targets[0].tolist() == numbers(POSE)
    assert torch.equal(pixels_of(item), pixels_in(data))


def test_poses_of_questions_are_input_and_those_of_answers_are_learned(data: Path):
    texts = ("<image>\nWhat is at <pose6D>?", "A car.", "And behind?", "A cup at <pose6D>, not at <pose6D>.")
    third = {**OTHER, "azimuth": 1.5}
    (item,) = dataset(data, sample(*texts, poses=[OTHER, POSE, third]))
    assert [row.tolist() for row in item.input_poses] == [numbers(OTHER)]
    assert [row.tolist() for row in item.pose_targets] == [numbers(POSE), numbers(third)]
    at_pose = item.input_ids == small_processor().pose_token_id
    assert (item.labels[at_pose] == IGNORE_INDEX).tolist() == [True, False, False]


def test_a_sample_without_a_picture(data: Path):
    (item,) = dataset(data, sample("Hello?", "Hello.", poses=[], image=None))
    assert item.pictures == {}
    assert item.pose_targets.shape == item.input_poses.shape == (0, 6)


def test_an_unknown_location_is_nan_in_both_orientations_and_needs_no_size(data: Path):
    angles = {name: POSE[name] for name in ("azimuth", "elevation", "theta")}
    without_size = dict.fromkeys(SIZE, ...)
    for pose in (angles, {**POSE, "distance": None}, {**POSE, "px": None}):
        plain, mirrored = dataset(data, sample(poses=[pose], **without_size), flip=True)
        assert plain.pose_targets[0, :3].tolist() == pytest.approx(list(angles.values()))
        assert mirrored.pose_targets[0, :3].tolist() == pytest.approx([-0.7, 0.2, 0.1])
        assert np.isnan(plain.pose_targets[0, 3:]).all()
        assert np.isnan(mirrored.pose_targets[0, 3:]).all()


# Several pictures

PICTURES = [PICTURE, "train/tall/1.png"]
SIZES = {"width": [40, 30], "height": [24, 50], "viewport": [300.0, 500.0]}


@pytest.fixture(scope="module")
def two(data: Path) -> Path:
    """The prepared folder with a picture of another size."""
    (data / "train/tall").mkdir(exist_ok=True)
    tall = Image.new("RGB", (30, 50), (0, 0, 200))
    tall.paste((200, 200, 0), (0, 0, 10, 50))
    tall.save(data / PICTURES[1])
    return data


def several(*texts: str, poses: list[dict] | None = None, **changes: Any) -> dict[str, Any]:
    """A sample of two pictures, one a turn, with a pose of the second before one of the first."""
    texts = texts or ("<image>\nA car.", "Yes.", "<image>\nAnd here?", "Here it is at <pose6D>, there at <pose6D>.")
    poses = [{**OTHER, "picture": 1}, POSE] if poses is None else poses
    return sample(*texts, poses=poses, **{"image": PICTURES, **SIZES, **changes})


def numbers_in(picture: int, pose: dict[str, float]) -> list[float]:
    size = {name: values[picture] for name, values in SIZES.items()}
    return pytest.approx(pose_targets_of(Pose(**pose), **size), abs=1e-6)


def test_each_picture_stands_where_its_token_does_and_each_pose_is_measured_in_its_own(two: Path):
    plain, mirrored = dataset(two, several(), flip=True)
    assert text_of(plain).count("<image><image><image><image>\n") == 2
    assert [row.tolist() for row in plain.pose_targets] == [numbers_in(1, OTHER), numbers_in(0, POSE)]
    flipped = [
        {**pose, "azimuth": -pose["azimuth"], "theta": -pose["theta"], "px": width - pose["px"]}
        for pose, width in ((OTHER, 30), (POSE, 40))
    ]
    assert [row.tolist() for row in mirrored.pose_targets] == [
        numbers_in(1, flipped[0]),
        numbers_in(0, flipped[1]),
    ]
    for item, view in ((plain, lambda picture: picture), (mirrored, ImageOps.mirror)):
        opened = [view(Image.open(two / name)) for name in PICTURES]
        alone = [small_processor().picture_inputs(picture)["pixel_values"] for picture in opened]
        assert torch.equal(pixels_of(item), torch.cat(alone))


def test_one_size_may_be_that_of_all_pictures(two: Path):
    (item,) = dataset(two, several(**SIZE))
    assert item.pose_targets[0].tolist() == numbers(OTHER)


def test_the_pictures_of_a_sample_change_together(two: Path):
    changed = dataset(two, several(kinds=["pose", "pose"]), augment=2)
    turns = [
        row[2] - pose["theta"] for item in changed for row, pose in zip(item.pose_targets, (OTHER, POSE), strict=True)
    ]
    assert turns[0] == pytest.approx(turns[1], abs=1e-6)
    assert turns[2] == pytest.approx(turns[3], abs=1e-6)
    assert abs(turns[0] - turns[2]) > 1e-3
    assert not torch.equal(pixels_of(changed[0])[1], pixels_of(changed[1])[1])


def test_a_list_of_one_picture_is_that_picture(data: Path):
    texts = ("<image>\nWhat is at <pose6D>?", "A car.", "And behind?", "A cup at <pose6D>, not at <pose6D>.")
    poses = [OTHER, POSE, OTHER]
    listed = sample(*texts, image=[PICTURE], poses=[{**pose, "picture": 0} for pose in poses])
    given = {}
    for name, one in {"path": sample(*texts, poses=poses), "list": listed}.items():
        given[name] = PoseCollator(small_processor())(list(dataset(data, one, sample(id="b"), flip=True, augment=2)))
    assert given["path"].keys() == given["list"].keys()
    for name in given["path"].keys() - {SAMPLE_NAMES}:
        assert torch.equal(given["path"][name], given["list"][name])


def test_samples_with_unlike_numbers_of_pictures_are_one_batch(two: Path):
    items = list(dataset(two, sample(), several(), sample("Hello?", "Hello.", poses=[], image=None)))
    batch = PoseCollator(small_processor())(items)
    assert torch.equal(batch["pixel_values"], torch.cat([pixels_of(item) for item in items[:2]]))
    assert batch["pose_targets"].shape == (3, 6)


# Mirror images


def test_only_what_may_be_flipped_is_and_only_where_asked(data: Path):
    samples = [sample(id="a"), sample(id="b", flippable=False), sample(id="c", flippable=...), sample(id="d")]
    assert [item.name for item in dataset(data, *samples)] == [f"sample {name!r}" for name in "abcd"]
    flipped = [item.name for item in dataset(data, *samples, flip=True)]
    assert flipped == [f"sample {name!r}" for name in "abcd"] + ["sample 'a' (mirrored)", "sample 'd' (mirrored)"]


def test_picture_pose_and_text_are_mirrored_together(data: Path):
    texts = ("<image>\nIs the one on the right, at <pose6D>, upright?", "Right. Its left side shows at <pose6D>.")
    plain, mirrored = dataset(data, sample(*texts, poses=[OTHER, POSE]), flip=True)
    assert torch.equal(pixels_of(plain), pixels_in(data))
    assert torch.equal(pixels_of(mirrored), pixels_in(data, mirrored=True))
    assert not torch.equal(pixels_of(mirrored), pixels_of(plain))
    assert "on the right" in text_of(plain)
    assert "on the left, at <pose6D>, upright?" in space_poses(text_of(mirrored))
    assert "Left. Its right side" in text_of(mirrored)
    for item, original in ((mirrored.input_poses[0], OTHER), (mirrored.pose_targets[0], POSE)):
        flipped = {name: -original[name] for name in ("azimuth", "theta")}
        assert item.tolist() == numbers({**original, **flipped, "px": 40 - original["px"]})
    # as rotations: a mirror on either side of the camera's
    mirror = np.diag([-1.0, 1.0, 1.0])
    rotations = [rotation_matrix(*item.pose_targets[0, :3].astype(np.float64)) for item in (plain, mirrored)]
    np.testing.assert_allclose(rotations[1], mirror @ rotations[0] @ mirror, atol=1e-6)


def test_the_samples_themselves_are_left_as_they_were(data: Path):
    given = sample()
    before = json.dumps(given)
    list(dataset(data, given, flip=True))
    assert json.dumps(given) == before


# Order


def batches(data: Path, seed: int, *, workers: int = 0, epochs: int = 1) -> list[list[dict[str, torch.Tensor]]]:
    samples = [sample(id=str(i), image=f"train/car/{i % 3}.png", poses=[{**POSE, "px": float(i)}]) for i in range(5)]
    loader = DataLoader(
        dataset(data, *samples, flip=True),
        batch_size=3,
        shuffle=True,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=PoseCollator(small_processor()),
        multiprocessing_context="fork" if workers else None,
    )
    return [list(loader) for _ in range(epochs)]


def names(epoch: list[dict[str, Any]]) -> list[str]:
    return [name for batch in epoch for name in batch[SAMPLE_NAMES]]


def test_what_comes_depends_on_the_seed_alone(data: Path):
    first, second = batches(data, 0, epochs=2)
    again = batches(data, 0, epochs=2)
    assert [names(epoch) for epoch in again] == [names(first), names(second)]
    assert names(first) != names(second)
    assert sorted(names(first)) == sorted(names(second))
    assert len(set(names(first))) == 10  # both orientations of each
    assert names(batches(data, 1)[0]) != names(first)


def test_the_number_of_workers_changes_nothing(data: Path):
    alone, helped = batches(data, 0)[0], batches(data, 0, workers=2)[0]
    assert names(alone) == names(helped)
    for one, other in zip(alone, helped, strict=True):
        for name in set(one) - {SAMPLE_NAMES}:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


# Length


def test_long_samples_are_an_error_or_a_logged_drop(data: Path, caplog: pytest.LogCaptureFixture):
    long = sample("<image>\nWhat?", "The car is at <pose6D>. " + "It is a car. " * 30, id="long")
    short = dataset(data)[0]
    limit = len(short.input_ids)
    with pytest.raises(ChatTooLongError, match=rf"sample 'long': \d+ tokens are more than max_length={limit}"):
        dataset(data, sample(), long, max_length=limit)
    left = dataset(data, sample(), long, max_length=limit, drop_long=True, flip=True)
    assert [item.name for item in left] == ["sample 'car/0/0'", "sample 'car/0/0' (mirrored)"]
    assert [message for message in caplog.messages if "dropped" in message] == [
        f"dropped: {name}: {len(dataset(data, long)[0].input_ids)} tokens are more than max_length={limit}; "
        "raise it or shorten the text"
        for name in ("sample 'long'", "sample 'long' (mirrored)")
    ]
    with pytest.raises(InputError, match="no training sample is left"):
        dataset(data, long, max_length=limit, drop_long=True)


# What is wrong, before training starts


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": "train/car/none.png"}, r"sample 'bad': .*none.png: cannot read the picture .*prepare"),
        ({"poses": [{**POSE, "azimuth": math.nan}]}, "sample 'bad': an angle of its pose is not finite"),
        ({"poses": [{**POSE, "theta": None}]}, "sample 'bad': an angle of its pose is not finite"),
        ({"poses": [{"azimuth": 1.0}]}, "sample 'bad': the pose has no 'elevation'"),
        ({"poses": [3]}, "sample 'bad': a pose must be an object"),
        ({"width": ...}, "sample 'bad': 'width' must be a number of pixels, not None"),
        ({"height": 0}, "sample 'bad': 'height' must be a number of pixels, not 0"),
        ({"viewport": -300.0}, "sample 'bad': 'viewport' must be a number of pixels, not -300.0"),
        ({"viewport": "300"}, "sample 'bad': 'viewport' must be a number of pixels, not '300'"),
        ({"width": math.nan}, "sample 'bad': 'width' must be a number of pixels, not nan"),
        ({"image": [PICTURE, PICTURE]}, "sample 'bad': 1 <image> in the text of sample 'bad', but 2 in 'image'"),
        ({"image": []}, "sample 'bad': 1 <image> in the text of sample 'bad', but 0 in 'image'"),
        ({"image": [PICTURE[:-1]]}, r"sample 'bad': .*0.pn: cannot read the picture"),
        ({"image": ["../0.png"]}, "sample 'bad': 'image' must be a path below the prepared folder"),
        ({"width": [40, 40]}, r"sample 'bad': 'width' must be a number of pixels, not \[40, 40\]"),
        (
            {"poses": [{**POSE, "picture": 1}]},
            "sample 'bad': 'picture' of a pose must be the place .* not 1; there are 1",
        ),
        ({"poses": [{**POSE, "picture": True}]}, "sample 'bad': 'picture' of a pose must be the place"),
        ({"poses": [{**POSE, "picture": None}]}, "sample 'bad': 'picture' of a pose must be the place"),
    ],
)
def test_a_bad_sample_is_named_before_training_starts(data: Path, changes: dict[str, Any], match: str):
    with pytest.raises(InputError, match=match):
        dataset(data, sample(), sample(id="bad", **changes))


def test_a_damaged_picture_is_named(data: Path, tmp_path: Path):
    whole = (data / PICTURE).read_bytes()
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("text.png", b"no picture"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot read the picture .*prepare"):
            dataset(tmp_path, sample(image=name))[0]


def test_a_sample_that_teaches_nothing_is_named(data: Path):
    with pytest.raises(InputError, match="sample 'car/0/0': no token is supervised; a sample needs an answer"):
        dataset(data, sample("<image>\nWhat is at <pose6D>?"))[0]


# train.json


def test_samples_are_read(tmp_path: Path):
    path = tmp_path / "train.json"
    samples = [sample(id="Ü"), sample("Hello?", "Hello.", poses=[], image=None)]
    path.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    assert list(read_samples(path)) == samples


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "cannot be read .*llava-pose instruct"),
        (b"\xff\xfe\x00", "cannot be read, for line 1 is not UTF-8 text"),
        (json.dumps([sample()]).encode()[:-30], r"not valid JSON \(.* at line 1\); the file may be cut off"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, r"not valid JSON \(nested too deeply\)"),
        (json.dumps([sample("\ud800")]).encode(), r"not valid JSON \(it escapes half of a letter"),
        (b"[]", "expected a JSON array of samples that is not empty"),
        (json.dumps(sample()).encode(), "expected a JSON array of samples"),
        (json.dumps([sample(), "x"]).encode(), "sample 1 is no JSON object"),
        (json.dumps([sample(), sample(poses=[])]).encode(), "sample 1: .* has 1 <pose6D> but 0 poses"),
        (json.dumps([sample(poses=[POSE, POSE])]).encode(), "sample 0: .* has 1 <pose6D> but 2 poses"),
        (json.dumps([sample(image=None)]).encode(), "sample 0: 1 <image> in the text"),
        (json.dumps([sample(image=5)]).encode(), "sample 0: 'image' must be the path of a picture, or a list .* not 5"),
        (
            json.dumps([sample(image=[PICTURE, 5])]).encode(),
            "sample 0: 'image' must be the path of a picture, or a list",
        ),
        (
            json.dumps([sample("What?", "<image> at <pose6D>")]).encode(),
            "sample 0: <image> in an answer of sample 'car/0/0'; it belongs in a question",
        ),
    ],
)
def test_a_damaged_train_json_is_named(tmp_path: Path, content: bytes | None, match: str):
    path = tmp_path / "train.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=match) as caught:
        read_samples(path)
    assert str(caught.value).startswith(str(path))
