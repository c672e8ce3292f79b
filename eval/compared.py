"""Prediction files joined, and systems put over the same samples: where every score and table begins."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from llava_pose.data.jsonl import parse_json
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_predictions
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.metrics import DEFAULT_THRESHOLDS, pose_error
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import read_text

logger = logging.getLogger(__name__)

SampleRule = Literal["same", "common", "all"]
Degrees = Annotated[float, Field(gt=0, le=180, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_NO_NAME = "unnamed"  # what read_predictions calls a system that its file does not name
SAME_TRUTH = 1e-3  # radians: two files may round the same annotation differently
_NAMED_IDS = 3  # how many ids a message names


@dataclass(kw_only=True)
class ComparisonConfig:
    """The options of every command over prediction files: the files, the systems' names, the samples, thresholds and tests."""

    predictions: Annotated[list[str], Field(min_length=1)] = field(
        metadata={"help": "The prediction files, of one system each or of several mixed, over the same samples."}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "The systems' names, one a file, instead of the names in the files."}
    )
    samples: SampleRule = field(
        default="same",
        metadata={
            "help": "What is scored where systems answered different samples: 'same' refuses, 'common' scores what all "
            "answered, 'all' counts a missing answer as a failure."
        },
    )
    thresholds: Annotated[list[Degrees], Field(min_length=1)] = field(
        default_factory=lambda: [round(math.degrees(threshold), 9) for threshold in DEFAULT_THRESHOLDS],
        metadata={"help": "The error thresholds in degrees; a hit is strictly under."},
    )
    reference: str | None = field(
        default=None, metadata={"help": "The system that the others are tested against; by default the first."}
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "The prepared folder that was predicted, for scores of where objects are, by systems that predict it."
        },
    )
    split: str = field(default="val", metadata={"help": "The split of --data that was predicted."})
    cad: str | None = field(
        default=None,
        metadata={
            "help": "The folder of CAD models, <category>/NN.off, for scores of where objects are; by default that of the raw "
            "data set that --data was prepared of."
        },
    )
    meta_classes: str | None = field(
        default=None,
        metadata={
            "help": "A JSON file of your own partition, meta class -> list of categories; by default the taxonomy's own. "
            "Categories that it does not name are scored as Other."
        },
    )
    seed: Seed = field(default=0, metadata={"help": "The seed of the bootstrap intervals."})

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def radians(self) -> list[float]:
        """The thresholds, each once."""
        return [math.radians(degrees) for degrees in dict.fromkeys(self.thresholds)]


@dataclass(frozen=True)
class Sample:
    """One annotated object, as the prediction files describe it."""

    id: str
    category: str
    true: Pose
    object_status: str
    source: str
    instance: str = ""
    dense: str = ""

    @property
    def occluded(self) -> bool:
        return self.object_status != "status_good"


@dataclass(frozen=True)
class Comparison:
    """Systems over the same samples.

    Attributes:
        samples: in the order of the first system's file.
        answers: for each system its predictions in the order of ``samples``; None where it gave none for a sample.
    """

    samples: list[Sample]
    answers: dict[str, list[Prediction | None]]


@functools.lru_cache(maxsize=10_000)
def canonical_category(name: str) -> str:
    """Return the taxonomy's name of a category, or the name as it stands but for case, spaces and hyphens."""
    category = categories.find(name)
    return re.sub(r"[\s_\-]+", "_", name.strip()).lower() if category is None else category.name


def instance_of(sample: Sample | Prediction) -> tuple[str, ...]:
    """Return what tells instances apart; a sample that names none is one by itself."""
    return (sample.source, canonical_category(sample.category), sample.instance) if sample.instance else (sample.id,)


def read_meta_classes(path: str | None) -> dict[str, list[str]] | None:
    """Return meta class -> canonical names of its categories, from a JSON file; None where there is no file to read.

    Raises:
        InputError: it cannot be read, is no such object, or names a category twice.
    """
    if path is None:
        return None
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); mend the meta classes") from error
    example = '{"Vehicles": ["car", "bus"], …}'
    if not isinstance(value, dict) or not value or not all(map(_is_list_of_text, value.values())):
        raise InputError(f"{path}: must be an object, meta class -> list of categories, such as {example}")
    found: dict[str, str] = {}
    for meta, names in value.items():
        if not meta.strip() or meta == categories.CUSTOM_META_CLASS:
            raise InputError(f"{path}: {meta!r} cannot name a meta class; it stands for what the file does not name")
        for name in names:
            first = found.setdefault(canonical_category(name), meta)
            if first != meta:
                raise InputError(f"{path}: {name!r} stands in '{first}' and in '{meta}'; take it out of one")
    return {meta: [name for name, of in found.items() if of == meta] for meta in value}


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)


def read_systems(paths: Sequence[str], names: Sequence[str] | None = None) -> dict[str, list[Prediction]]:
    """Return the predictions of each system, from files that hold one system each or several mixed.

    A file that names no system gives its own name (without the suffix) to the system.

    Args:
        paths: predictions.jsonl files.
        names: one a file, for files that hold one system: what that system is called, whatever the file says.

    Raises:
        InputError: a file is bad (see :func:`llava_pose.data.records.read_predictions`), the names do not fit the files, or
            two files answer the same sample under the same system name.
    """
    if names and len(names) != len(paths):
        raise InputError(f"--names gives {len(names)} names for {len(paths)} prediction files; give one name a file")
    answers: dict[str, dict[str, dict[str, Prediction]]] = {}  # system -> file -> id
    for number, path in enumerate(paths):
        predictions = read_predictions(path)
        in_file = sorted({prediction.system for prediction in predictions})
        if names and len(in_file) > 1:
            raise InputError(f"{path}: holds {len(in_file)} systems ({', '.join(in_file)}); leave out --names")
        for prediction in predictions:
            own = Path(path).stem if prediction.system == _NO_NAME else prediction.system
            system = names[number] if names else own
            by_file = answers.setdefault(system, {})
            first = next((file for file, there in by_file.items() if prediction.id in there), None)
            if first is not None:
                raise InputError(
                    f"{path}: system '{system}' answers the id '{prediction.id}' that {first} answers already; "
                    "tell the systems apart with --names, one name a file"
                )
            by_file.setdefault(str(path), {})[prediction.id] = prediction
    systems = {system: [p for there in files.values() for p in there.values()] for system, files in answers.items()}
    for system, predictions in systems.items():
        _warn_of_degrees(system, predictions)
    return systems


def _warn_of_degrees(system: str, predictions: Iterable[Prediction]) -> None:
    """Ask about files full of large angles: any is right in radians, but these were hardly meant so."""
    for kind in ("pose", "true"):
        poses = [pose for p in predictions if (pose := getattr(p, kind)) is not None]
        angles = np.array([pose.angles for pose in poses], dtype=np.float64).reshape(-1, 3)
        large = np.where(np.isfinite(angles), np.abs(angles), 0.0).max(axis=1) > 2.5 * math.pi
        if len(angles) and large.mean() > 0.5:
            logger.warning(
                "%s: %d of %d poses in '%s' have an angle over 450 degrees if taken as radians; "
                "prediction files hold radians: were these written in degrees?",
                system,
                int(large.sum()),
                len(angles),
                kind,
            )


def align(systems: Mapping[str, Sequence[Prediction]], rule: SampleRule = "same") -> Comparison:
    """Put systems over the same samples.

    Args:
        systems: each system's predictions, ids unique within a system.
        rule: what to do where systems answered different samples. "same": refuse. "common": keep the samples that all
            of them answered. "all": keep every sample, and let a missing answer count as a failure.

    Raises:
        InputError: there is no system, the samples differ and the rule is "same", none is common, or two systems
            disagree about a sample's annotation.
    """
    if not systems:
        raise InputError("there are no predictions to score")
    by_id = {system: {p.id: p for p in predictions} for system, predictions in systems.items()}
    order = dict.fromkeys(id_ for answers in by_id.values() for id_ in answers)
    common = [id_ for id_ in order if all(id_ in answers for answers in by_id.values())]
    if len(common) < len(order):
        sentence = _difference(by_id, order)
        if rule == "same":
            raise InputError(
                f"{sentence}; score them with --samples common (only what all answered) or "
                "--samples all (a missing answer counts as a failure)"
            )
        if rule == "common" and not common:
            raise InputError(f"{sentence}, and no sample is common to all; check that the ids are written alike")
        kept = common if rule == "common" else list(order)
        logger.warning("%s; scored over %s (--samples %s)", sentence, _samples(len(kept)), rule)
    kept = list(order) if rule == "all" else common
    samples = [_join({system: answers[id_] for system, answers in by_id.items() if id_ in answers}) for id_ in kept]
    _require_same_truth(by_id, samples)
    return Comparison(samples, {system: [answers.get(id_) for id_ in kept] for system, answers in by_id.items()})


def _difference(by_id: Mapping[str, Mapping[str, Prediction]], order: Iterable[str]) -> str:
    parts = []
    for system, answers in by_id.items():
        missing = [id_ for id_ in order if id_ not in answers]
        if missing:
            named = ", ".join(f"'{id_}'" for id_ in missing[:_NAMED_IDS])
            more = f" and {len(missing) - _NAMED_IDS} more" if len(missing) > _NAMED_IDS else ""
            parts.append(f"'{system}' has no answer for {_samples(len(missing))} ({named}{more})")
    return "the systems answered different samples: " + "; ".join(parts)


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"


def _join(answers: Mapping[str, Prediction]) -> Sample:
    """Make one sample of what the systems' files say of it; a file may leave out what another has."""
    first = next(iter(answers.values()))
    for system, answer in answers.items():
        if canonical_category(answer.category) != canonical_category(first.category):
            raise InputError(
                f"the systems disagree about the true category of '{first.id}': '{first.category}' in "
                f"'{first.system}', '{answer.category}' in '{system}'; score them over the same annotations"
            )
    return Sample(
        first.id,
        first.category,
        first.true,
        object_status=next(
            (a.object_status for a in answers.values() if a.object_status != "status_good"), "status_good"
        ),
        source=next((a.source for a in answers.values() if a.source), ""),
        instance=next((a.instance for a in answers.values() if a.instance), ""),
        dense=next((a.dense for a in answers.values() if a.dense), ""),
    )


def require_annotation(prediction: Prediction, record: ObjectRecord, where: str) -> None:
    """Refuse a line that was made on another annotation than the object's: it would be scored against its own.

    Raises:
        InputError: category or pose are others; the message begins with ``where``.
    """
    if canonical_category(prediction.category) != canonical_category(record.category):
        raise InputError(
            f"{where} is of the category {prediction.category!r}, and the data's object is {record.category!r}; predict anew "
            "on this data"
        )
    off = float(pose_error(prediction.true.angles, record.pose.angles))
    if off > SAME_TRUTH:
        raise InputError(
            f"{where} says that its true pose is {math.degrees(off):.1f} degrees from the data's; predict anew on this data"
        )


def _require_same_truth(by_id: Mapping[str, Mapping[str, Prediction]], samples: Sequence[Sample]) -> None:
    for system, answers in by_id.items():
        answered = [sample for sample in samples if sample.id in answers]
        theirs = np.array([answers[sample.id].true.angles for sample in answered]).reshape(-1, 3)
        ours = np.array([sample.true.angles for sample in answered]).reshape(-1, 3)
        apart = pose_error(theirs, ours)
        if apart.size and apart.max() > SAME_TRUTH:
            worst = int(apart.argmax())
            raise InputError(
                f"the systems disagree about the true pose of '{answered[worst].id}' by "
                f"{math.degrees(apart[worst]):.3g} degrees ('{system}' against the first); "
                "score them over the same annotations, in radians"
            )
