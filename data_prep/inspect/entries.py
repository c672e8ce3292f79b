"""One object, conversation, caption or prediction, whichever stage wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from llava_pose.data.records import Pose

Kind = Literal["raw", "prepared", "records", "instructions", "captions", "predictions"]
KINDS: Mapping[Kind, str] = {
    "raw": "a dataset in the raw layout",
    "prepared": "a prepared folder",
    "records": "a file of records (metadata.jsonl)",
    "instructions": "a file of conversations (train.json)",
    "captions": "a file of captions (captions.jsonl)",
    "predictions": "a file of predictions (predictions.jsonl)",
}


@dataclass(frozen=True)
class Entry:
    """One annotated object, line or array item, as far as statistics and pictures need it; "" or None is unknown.

    Attributes:
        id: the name that is unique in a sound dataset.
        status: the object_status of an object, or whether a caption is ok.
        poses: one for an object, that of each `<pose6D>` for a text; empty where none can be used.
        predicted: the pose that a system gave; None where it gave none.
        viewport: pixels of the picture per unit focal length, times the focal length.
        size: (width, height) of the picture, pixels.
        bbox: (x1, y1, x2, y2), pixels of the picture.
        cad_index: the number of the CAD model, from 1; 0 if it is not known.
        source: the subset of the data, or who wrote a caption.
        texts: a caption, or the turns of a conversation.
        kinds: the kinds of the questions in a conversation.
        missing: the fields that it should have and has not.
        record: the id of the record that a conversation is about.
        raw_image: the image that a prepared picture was cut from.
    """

    id: str
    category: str = ""
    split: str = ""
    status: str = ""
    poses: tuple[Pose, ...] = ()
    predicted: Pose | None = None
    system: str = ""
    pred_category: str | None = None
    viewport: float | None = None
    size: tuple[int, int] | None = None
    bbox: tuple[float, float, float, float] | None = None
    picture: Path | None = None
    cad_index: int = 0
    source: str = ""
    texts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    record: str = ""
    raw_image: str = ""


class Problem(NamedTuple):
    """Something that could not be read or used: the short name it is counted by, and a sentence."""

    reason: str
    sentence: str


@dataclass(frozen=True)
class Dataset:
    """The output of one stage.

    Attributes:
        path: the folder or file, as the user named it.
        entries: what is in it, in the order of the files.
        problems: what is no entry, or an entry that no later stage will take.
        cad: a folder of <category>/NN.off that the poses are of; None if none is known.
    """

    path: Path
    kind: Kind
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    cad: Path | None = None

    @property
    def is_text(self) -> bool:
        """Say whether its entries are texts with poses in them, not objects."""
        return self.kind in ("instructions", "captions")
