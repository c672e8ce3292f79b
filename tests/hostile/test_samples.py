"""Bad samples of a train.json: all of them are named before the first step, whatever is wrong with each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_pose.data.dataset import PoseDataset, read_samples
from llava_pose.errors import InputError
from tests.hostile.data_commands import POSE, picture, time_limit
from tests.llava_pose.small_models import small_processor

QUESTION, ANSWER = "<image>\nWhere is the car?", "The car is at <pose6D>."
PICTURE = "val/car/n0_00.JPEG"


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in pairs]


GOOD = turns(("human", QUESTION), ("gpt", ANSWER))


def sample(name: str, **changes: Any) -> dict[str, Any]:
    values = {
        "id": name,
        "image": PICTURE,
        "conversations": GOOD,
        "poses": [POSE],
        "width": 64,
        "height": 64,
        "viewport": 200.0,
        "flippable": True,
        "kinds": ["pose"],
        **changes,
    }
    return {key: value for key, value in values.items() if value is not ...}


def posed(**changes: Any) -> dict[str, Any]:
    return {"poses": [{**POSE, **changes}]}


BAD: dict[str, dict[str, Any]] = {
    "answer_missing": {"conversations": turns(("human", QUESTION)), "poses": []},
    "last_answer_missing": {"conversations": [*GOOD, *turns(("human", "And?"))]},
    "answer_first": {"conversations": turns(("gpt", ANSWER), ("human", QUESTION))},
    "answer_alone": {"conversations": turns(("gpt", "A car.")), "poses": [], "image": None},
    "two_answers": {"conversations": [*GOOD, *turns(("gpt", "Yes."))]},
    "two_questions": {"conversations": turns(("human", QUESTION), ("human", "And?"), ("gpt", ANSWER))},
    "system_alone": {"conversations": turns(("system", "Be brief.")), "poses": [], "image": None},
    "system_in_the_middle": {"conversations": [*GOOD, *turns(("system", "x"), ("human", "?"), ("gpt", "!"))]},
    "no_turn": {"conversations": [], "poses": [], "image": None},
    "turns_of_text": {"conversations": "hello"},
    "speaker_a_list": {"conversations": [{"from": ["gpt"], "value": "x"}]},
    "answer_null": {"conversations": turns(("human", QUESTION), ("gpt", None))},
    "azimuth_1e300": posed(azimuth=1e300),
    "azimuth_in_degrees": posed(azimuth=270.0),
    "azimuth_null": posed(azimuth=None),
    "azimuth_nan": posed(azimuth=float("nan")),
    "azimuth_text": posed(azimuth="1.5"),
    "azimuth_true": posed(azimuth=True),
    "azimuth_a_list": posed(azimuth=[1.5]),
    "azimuth_huge_integer": posed(azimuth=10**400),
    "elevation_missing": {"poses": [{"azimuth": 1.0, "theta": 0.0}]},
    "distance_0": posed(distance=0),
    "distance_-3": posed(distance=-3),
    "distance_1e308": posed(distance=1e308),
    "distance_1e-320": posed(distance=1e-320),
    "distance_infinite": posed(distance=float("inf")),
    "distance_text": posed(distance="near"),
    "px_1e308": posed(px=1e308),
    "px_infinite": posed(px=float("-inf")),
    "px_text": posed(px="30"),
    "pose_null": {"poses": [None]},
    "poses_missing": {"poses": ...},
    "poses_a_mapping": {"poses": {"0": POSE}},
    "poses_too_few": {"poses": []},
    "poses_too_many": {"poses": [POSE, POSE]},
    "viewport_1e-320": {"viewport": 1e-320},
    "viewport_1e308": {"viewport": 1e308},
    "viewport_0": {"viewport": 0},
    "viewport_text": {"viewport": "200"},
    "viewport_missing": {"viewport": ...},
    "width_null": {"width": None},
    "width_-64": {"width": -64},
    "width_infinite": {"width": float("inf")},
    "height_true": {"height": True},
    "kinds_of_lists": {"kinds": [["pose"]]},
    "kinds_of_numbers": {"kinds": [1]},
    "kinds_text": {"kinds": "pose"},
    "kinds_a_mapping": {"kinds": {"pose": 1}},
    "flippable_text": {"flippable": "yes"},
    "image_a_mapping": {"image": {"0": PICTURE}},
    "images_of_lists": {"image": [[PICTURE]]},
    "images_null": {"image": [None]},
    "images_without_a_name": {"image": [""]},
    "images_outside": {"image": ["../../etc/passwd"]},
    "images_more_than_tokens": {"image": [PICTURE, PICTURE]},
    "images_fewer_than_tokens": {"image": []},
    "picture_of_a_pose_1": posed(picture=1),
    "picture_of_a_pose_-1": posed(picture=-1),
    "picture_of_a_pose_text": posed(picture="0"),
    "picture_of_a_pose_a_list": posed(picture=[0]),
    "picture_of_a_pose_0.0": posed(picture=0.0),
    "widths_too_many": {"width": [64, 64]},
    "widths_of_lists": {"width": [[64]], "image": [PICTURE]},
    "image_missing_in_the_text": {"conversations": turns(("human", "What?"), ("gpt", ANSWER))},
    "image_in_the_answer": {"conversations": turns(("human", "What?"), ("gpt", "<image> at <pose6D>"))},
    "id_missing": {"id": ...},
}
LONG = {"conversations": turns(("human", QUESTION), ("gpt", "The car is at <pose6D>. " + "It is a car. " * 2000))}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    picture(tmp_path / "prepared" / PICTURE)
    return tmp_path / "prepared"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_sample_is_named(prepared: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([sample("good"), sample(kind, **BAD[kind])]), encoding="utf-8")
    with pytest.raises(InputError, match="sample 1") if kind != "azimuth_huge_integer" else pytest.raises(InputError):
        read_samples(path)
    with pytest.raises(InputError, match=f"sample {kind!r}" if kind != "id_missing" else "sample None"):
        PoseDataset([sample("good"), sample(kind, **BAD[kind])], prepared, small_processor(), flip=True, augment=2)


def test_all_of_them_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    bad = [sample(kind, **change) for kind, change in BAD.items() if kind != "azimuth_huge_integer"]
    path.write_text(json.dumps([sample("good"), *bad]), encoding="utf-8")
    with pytest.raises(InputError, match=f"{len(bad)} of {len(bad) + 1} samples cannot be learned from") as caught:
        read_samples(path)
    for number in range(1, 11):
        assert f"\n  {path}, sample {number}" in str(caught.value)
    assert str(caught.value).endswith(f"and {len(bad) - 10} more")


def test_pictures_and_lengths_are_named_with_the_rest(prepared: Path) -> None:
    samples = [sample("good"), sample("gone", image="val/car/none.JPEG"), sample("long", **LONG), sample("x", width=0)]
    with pytest.raises(InputError, match="3 of 4 samples cannot be learned from") as caught:
        PoseDataset(samples, prepared, small_processor(), positions=256)

    for name in ("gone", "long", "x"):
        assert f"\n  sample {name!r}: " in str(caught.value)
    assert "more than the 256 positions of the language model" in str(caught.value)
    assert len(PoseDataset(samples[:1], prepared, small_processor(), positions=256)) == 1
    left = PoseDataset([samples[0], samples[2]], prepared, small_processor(), positions=256, drop_long=True)
    assert len(left) == 1


def test_all_that_are_longer_than_asked_are_named(prepared: Path) -> None:
    samples = [sample("good"), sample("long", **LONG), sample("longer", **LONG)]
    with pytest.raises(InputError, match="'long'") as caught:
        PoseDataset(samples, prepared, small_processor(), max_length=200)
    assert "sample 'longer'" in str(caught.value)


def test_many_samples_are_looked_at_quickly(prepared: Path) -> None:
    with time_limit(20):
        assert len(PoseDataset([sample(str(n)) for n in range(20_000)], prepared, small_processor(), positions=900))


def test_the_command_ends_before_the_first_step(tiny_base: Path, prepared: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "train.json", tmp_path / "run"
    samples = [sample("good"), sample("gone", image="val/car/none.JPEG"), sample("long", **LONG)]
    path.write_text(json.dumps(samples), encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "llava_pose.train.command",
        "--model",
        tiny_base,
        "--data",
        prepared,
        "--train_json",
        path,
    ]
    words += ["--output_dir", out, "--use_cpu", "--max_steps", "1"]
    run = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    for name in ("gone", "long"):
        assert f"  sample '{name}': " in run.stderr
    assert "1024 positions" in run.stderr
    assert not list(out.glob("checkpoint-*"))
