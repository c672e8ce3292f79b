"""The question for a caption: of the offline grammar, or from captions.jsonl."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from data_prep.caption.check import check_words
from data_prep.caption.grammar import CAPTION_ASPECTS, check_caption, scene_caption
from data_prep.caption.lines import GRAMMAR, OK, CaptionLine
from data_prep.questions.base import (
    CATEGORY,
    Asking,
    Checked,
    Mismatch,
    Turn,
    expect,
    expect_answer,
    expect_poses,
    phrasings,
    readings,
    told,
)
from data_prep.scene.scenes import Scene, category_of
from data_prep.scene.viewpoint_words import caption_templates, caption_words, offline_caption
from llava_pose.data.conversation import CAPTION_QUESTIONS, mirror_sides
from llava_pose.data.records import ObjectRecord, Pose

# what swapping left and right does not mirror
_HANDED = re.compile(
    r"clockwise|starboard|\bport side|driver's side|passenger side|\b(?:east|west)\w*\b|\bo'clock", re.I
)


class CaptionKind:
    """A caption with the pose of each object that it names; of a picture with several objects once only.

    Args:
        captions: picture (relative to its split) -> line; without it, the grammar writes.
    """

    name, balanced, rank = "caption", False, 3
    questions = phrasings(*CAPTION_QUESTIONS)

    def __init__(self, captions: Mapping[str, CaptionLine] | None = None) -> None:
        self._captions = captions

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return record.id == min(scene.owners) and (self._captions is None or self._line(record) is not None)

    def _line(self, record: ObjectRecord) -> CaptionLine | None:
        line = (self._captions or {}).get(record.file_name)
        return line if line is not None and line.status == OK else None

    def ask(self, asking: Asking) -> Turn:
        scene, record = asking.scene, asking.record
        question = asking.choose(self.questions).write()
        line = self._line(record)
        if line is not None:
            answer, objects = line.caption, [self._object(scene, name) for name in line.objects]
        elif len(scene.owners) == 1:
            answer, objects = offline_caption(record.pose, category_of(record), asking.rng), [record]
        else:
            answer, objects = scene_caption(scene, asking.rng)
        return Turn(
            self.name,
            question,
            answer,
            tuple(other.pose for other in objects),
            tuple(objects),
            tells=told(objects, CATEGORY, *CAPTION_ASPECTS),
            flippable=not _HANDED.search(answer),
        )

    @staticmethod
    def _object(scene: Scene, name: str) -> ObjectRecord:
        if name not in scene.by_id:
            raise Mismatch(f"the caption names {name!r}, which is not in the picture")
        return scene.by_id[name]

    def check(self, scene: Scene, record: ObjectRecord, question: str, answer: str, poses: Sequence[Pose]) -> Checked:
        expect(any(readings(self.questions, question)), f"the question {question!r} is none of the kind")
        flippable = not _HANDED.search(answer)
        line = self._line(record)
        if line is not None:
            expect_answer(answer, [mirror_sides(line.caption) if scene.is_mirrored else line.caption])
            objects = tuple(self._object(scene, name) for name in line.objects)
            expect_poses(poses, objects)
            if line.writer == GRAMMAR:  # its sentences are known; "a picture of a picture" breaks rules for others only
                check_caption(answer, objects)
            else:
                check_words(answer, objects)
            return Checked(objects, flippable)
        expect(self._captions is None, f"captions.jsonl has no caption for {record.file_name}")
        if len(scene.owners) == 1:
            expect_answer(answer, _offline_captions(record))
            expect_poses(poses, [record])
            return Checked((record,), flippable)
        return Checked(_named(scene, answer, poses), flippable)


def _named(scene: Scene, caption: str, poses: Sequence[Pose]) -> tuple[ObjectRecord, ...]:
    """The objects that a caption of the grammar names; two of one pose are told apart by what is said of them.

    Raises:
        Mismatch: a pose is no object's of the picture, or a sentence is not among the true ones.
    """
    choices = [[record for record in scene.distinct if _has_pose(record, pose)] for pose in poses]
    reason = Mismatch("a pose of the caption is that of no object of the picture")
    for objects in product(*choices):
        try:
            check_caption(caption, objects)
        except Mismatch as error:
            reason = error
        else:
            return objects
    raise reason


def _has_pose(record: ObjectRecord, pose: Pose) -> bool:
    try:
        expect_poses([pose], [record])
    except Mismatch:
        return False
    return True


def _offline_captions(record: ObjectRecord) -> Iterator[str]:
    category = category_of(record)
    words = caption_words(record.pose, category)
    for template in caption_templates(category):
        yield template.format(**words)
