"""What `llava-pose inspect` knows of one object, conversation or prediction, whichever stage wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """One line, array item or annotated object, as far as statistics, pictures and comparisons need it.

    Attributes:
        id: what it is compared by; unique in a sound dataset.
        category: as written; "" where it has none.
        split: "" where there are none.
        status: the object_status; "" where there is none.
        poses: one for an object, that of each ``<pose6D>`` for a text; empty where there is none that can be used.
        predicted: of a prediction, the system's pose; None if it gave none.
        viewport: pixels per unit focal length times the focal length, of the picture; None if not known.
        size: (width, height) of the picture, pixels; None if not known.
        bbox: (x1, y1, x2, y2), pixels of the picture.
        picture: its file, absolute or relative to where the command runs; None if there is none.
        cad_index: counts from 1; 0 if not known.
        source: the subset of the data, "" if there is none.
        texts: what people read, a caption or the turns of a conversation.
        kinds: of the questions, in a conversation.
        missing: the fields that it should have and has not.
        fields: everything as it was written, in plain types: what a comparison compares.
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
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something that could not be read or used. ``reason`` is the short name it is counted by."""

    reason: str
    sentence: str


@dataclass(frozen=True)
class Dataset:
    """A stage's output.

    Attributes:
        path: as the user named it.
        kind: what it is.
        entries: in the order of the files.
        problems: what is no entry, or an entry that no later stage will take.
        cad: a folder with <category>/NN.off that the poses are of; None if none is known.
    """

    path: Path
    kind: Kind
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...] = ()
    cad: Path | None = None

    @property
    def is_text(self) -> bool:
        """Whether its entries are texts with poses in them, not objects."""
        return self.kind in ("instructions", "captions")
