"""The question for a caption: of the offline grammar, or from captions.jsonl."""

from __future__ import annotations

import re
from collections.abc import Mapping

from data_prep.caption.check import check_words, expect
from data_prep.caption.grammar import CAPTION_ASPECTS, check_caption, scene_caption
from data_prep.caption.lines import GRAMMAR, OK, CaptionLine
from data_prep.questions.base import CATEGORY, Asking, Turn, told
from data_prep.scene.scenes import Scene
from data_prep.scene.viewpoint_captions import offline_caption
from llava_pose.data.conversation import CAPTION_QUESTIONS
from llava_pose.data.records import ObjectRecord, category_of

# what swapping left and right does not mirror
HANDED = re.compile(
    r"clockwise|starboard|\bport side|driver's side|passenger side|\b(?:east|west)\w*\b|\bo'clock", re.I
)


class CaptionKind:
    """Asks for a caption with the pose of each object that it names; of a picture with several objects once only.

    Args:
        captions: picture (relative to its split) -> line; without it, the grammar writes.
    """

    name, balanced, rank = "caption", False, 3
    questions = CAPTION_QUESTIONS

    def __init__(self, captions: Mapping[str, CaptionLine] | None = None) -> None:
        self._captions = captions

    def applies(self, scene: Scene, record: ObjectRecord) -> bool:
        return record.id == min(scene.owners) and (self._captions is None or self._line(record) is not None)

    def _line(self, record: ObjectRecord) -> CaptionLine | None:
        line = (self._captions or {}).get(record.file_name)
        return line if line is not None and line.status == OK else None

    def ask(self, asking: Asking) -> Turn:
        """Ask for the caption.

        Raises:
            Mismatch: the caption of the file does not fit the records.
        """
        scene, record = asking.scene, asking.record
        question = asking.choose(self.questions)
        line = self._line(record)
        if line is not None:
            answer, objects = line.caption, _objects_of(line, scene)
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
            flippable=not HANDED.search(answer),
        )


def _objects_of(line: CaptionLine, scene: Scene) -> list[ObjectRecord]:
    """Return the objects that a caption of a file names, whose records may have changed since it was written."""
    strange = next((name for name in line.objects if name not in scene.by_id), None)
    expect(strange is None, f"the caption names {strange!r}, which is not in the picture")
    objects = [scene.by_id[name] for name in line.objects]
    if line.writer == GRAMMAR:  # its sentences are known; "a picture of a picture" breaks rules for others only
        check_caption(line.caption, objects)
    else:
        check_words(line.caption, objects, names=not line.any_nouns)
    return objects
