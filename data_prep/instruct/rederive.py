"""A sample of train.json held against the records: every answer is worked out again from what the question says.

Nothing is taken from the sample's making but its text: the question is read by the phrasings of its kind, the objects it
points at are looked up among the records, and the answer, the poses and ``flippable`` follow from these. A sample that may
be mirrored is mirrored as training does it, and held against the mirrored records as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data_prep.questions.base import Checked, Kind, Mismatch, expect
from data_prep.scene.scenes import Scene, category_of, mirrored_pose
from llava_pose.data.conversation import IMAGE_TOKEN, POSE_TOKEN, mirror_sides, validate_sample
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.errors import InputError

_START = f"{IMAGE_TOKEN}\n"


def rederive(
    sample: Mapping[str, Any], record: ObjectRecord, scene: Scene, split: str, kinds: Mapping[str, Kind]
) -> None:
    """Check one sample whole.

    Args:
        record: the one that the sample names.
        scene: of the record's picture.
        split: of the record.
        kinds: of ``data_prep.questions.kinds.make_kinds``, with the captions that the sample was made with.

    Raises:
        Mismatch: what is not so; the message begins with the sample's id.
    """
    name = f"sample {sample.get('id')!r}" if isinstance(sample, Mapping) else "sample"
    try:
        validate_sample(sample, where=name)
        _check_frame(sample, record, split)
        turns = _turns(sample)
        poses = [Pose.from_dict(pose, where=name) for pose in sample["poses"]]
        found = _check_turns(turns, poses, sample["kinds"], record, scene, kinds)
        mirrors = all(
            checked.flippable and all(category_of(about).mirror_axis == "x" for about in checked.about)
            for checked in found
        )
        expect(sample["flippable"] is mirrors, f"'flippable' is {sample['flippable']}, not {mirrors}")
        if mirrors:
            _check_mirrored(turns, poses, sample, record, scene, kinds)
    except (Mismatch, InputError) as error:
        reason = str(error)
        raise Mismatch(reason if reason.startswith(name) else f"{name}: {reason}") from error


def _check_frame(sample: Mapping[str, Any], record: ObjectRecord, split: str) -> None:
    true = {
        "record": record.id,
        "category": record.category,
        "image": f"{split}/{record.file_name}",
        "width": record.width,
        "height": record.height,
    }
    for name, value in true.items():
        expect(sample.get(name) == value, f"'{name}' is {sample.get(name)!r}, not {value!r}")
    viewport = sample.get("viewport")
    expect(
        isinstance(viewport, int | float) and math.isclose(viewport, record.viewport * record.focal, rel_tol=1e-9),
        f"'viewport' is {viewport!r}, not {record.viewport * record.focal}",
    )
    expect(isinstance(sample.get("flippable"), bool), "'flippable' must be true or false")
    kinds: Any = sample.get("kinds")
    expect(isinstance(kinds, list) and kinds, "'kinds' must be a list that is not empty")
    expect(sample.get("kind") == kinds[0], f"'kind' is {sample.get('kind')!r}, not {kinds[0]!r}")
    for pose in sample["poses"]:
        Pose.from_dict(pose, where="'poses'")


def _turns(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of question and answer, without the mark of the image."""
    conversation = sample["conversations"]
    speakers = [turn["from"] for turn in conversation]
    expect(
        speakers == ["human", "gpt"] * len(sample["kinds"]),
        f"{len(sample['kinds'])} kinds of questions, but the speakers are {speakers}",
    )
    texts = [turn["value"] for turn in conversation]
    expect(texts[0].startswith(_START), f"the first question does not begin with {_START!r}")
    texts[0] = texts[0].removeprefix(_START)
    return list(zip(texts[::2], texts[1::2], strict=True))


def _check_turns(
    turns: list[tuple[str, str]],
    poses: list[Pose],
    names: list[str],
    record: ObjectRecord,
    scene: Scene,
    kinds: Mapping[str, Kind],
) -> list[Checked]:
    checked, rest = [], list(poses)
    for index, ((question, answer), name) in enumerate(zip(turns, names, strict=True)):
        expect(name in kinds, f"there is no kind {name!r}")
        count = question.count(POSE_TOKEN) + answer.count(POSE_TOKEN)
        of_turn, rest = rest[:count], rest[count:]
        try:
            checked.append(kinds[name].check(scene, record, question, answer, of_turn))
        except Mismatch as error:
            raise Mismatch(f"question {index} ({name}): {error}") from error
    return checked


def _check_mirrored(
    turns: list[tuple[str, str]],
    poses: list[Pose],
    sample: Mapping[str, Any],
    record: ObjectRecord,
    scene: Scene,
    kinds: Mapping[str, Kind],
) -> None:
    mirrored = scene.mirrored()
    texts = [(mirror_sides(question), mirror_sides(answer)) for question, answer in turns]
    flipped = [mirrored_pose(pose, sample["width"]) for pose in poses]
    try:
        _check_turns(texts, flipped, sample["kinds"], mirrored.by_id[record.id], mirrored, kinds)
    except Mismatch as error:
        raise Mismatch(f"'flippable' is true, but the mirrored sample is wrong: {error}") from error
