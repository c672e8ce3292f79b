"""A system answers records with predictions, whatever it is; benchmark and tables know no more of it.

It is made of its options, and refuses there what can be told at once. What trains does so when it is asked, or goes on.
Nothing heavy is imported here, so that ``--help`` is there at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from eval.systems.options import SystemOptions
from eval.systems.record_choice import select_records
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Prediction, read_predictions
from llava_pose.errors import InputError
from llava_pose.utils.command import say_next
from llava_pose.utils.config import require_folder
from llava_pose.utils.distributed import is_first_process

logger = logging.getLogger(__name__)
PREDICTIONS = "predictions.jsonl"
# kind -> its module, the class of its options there, and the class of its systems, which are made of them
KINDS: Mapping[str, tuple[str, str, str]] = {
    "classifier": ("eval.systems.classifier.system", "ClassifierConfig", "Classifier"),
    "trained-classifier": ("eval.systems.classifier.system", "TrainedClassifierOptions", "TrainedClassifier"),
    "neural-mesh": ("eval.systems.neural_mesh.system", "NeuralMeshRunConfig", "NeuralMeshSystem"),
    "linear-probe": ("eval.systems.linear_probe.system", "LinearProbeOptions", "LinearProbe"),
    "llava-pose": ("eval.systems.llava_pose", "LlavaPoseOptions", "LlavaPose"),
    "vlm-api": ("eval.systems.vlm_api", "VlmApiConfig", "VlmApi"),
    "orient-anything": ("eval.systems.orient_anything", "OrientAnythingOptions", "OrientAnything"),
    "objectron": ("eval.systems.objectron", "ObjectronOptions", "Objectron"),
    "predictions": ("eval.systems.predictions_file", "PredictionsFileOptions", "PredictionsFile"),
}


class System(Protocol):
    """Whatever answers objects with poses: a network, a server, a file."""

    def answer(self, records: Sequence[ObjectRecord]) -> Iterable[Prediction]:
        """Return a prediction for each record, in their order.

        Every process of a run asks, so that they can share the work; the first gets all the answers.

        Raises:
            InputError: the options or what they name make no sense, or records cannot be answered.
        """


def load_kind(kind: str) -> tuple[type, Callable[[Any], System]]:
    """Import a kind; return the class of its options, and the class of its systems."""
    module, options, system = KINDS[kind]
    return getattr(import_module(module), options), getattr(import_module(module), system)


def asked_records(options: SystemOptions) -> list[ObjectRecord]:
    """Return the records that a system is asked about.

    Raises:
        InputError: the data, the split or a category of it is not there.
    """
    require_folder(options.data, "--data", "make it with llava-pose prepare")
    return select_records(options.data, options.split, options.categories, "--categories")


def write_answers(system: System, records: Sequence[ObjectRecord], folder: str | Path) -> Path:
    """Have a system answer, and write predictions.jsonl, whole or not at all; return its path.

    A file that a system has kept itself while it answered stays as it is.
    """
    out, predictions = Path(folder) / PREDICTIONS, list(system.answer(records))
    if is_first_process() and not _holds(out, predictions):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(out, (prediction.to_dict() for prediction in predictions))
    return out


def _holds(out: Path, predictions: list[Prediction]) -> bool:
    try:
        return out.is_file() and read_predictions(out) == predictions
    except InputError:  # whatever it was, it is written anew
        return False


def run_system(options: SystemOptions, system: System) -> Path:
    """Have a system answer the records that its options ask for; return the path of predictions.jsonl."""
    out = write_answers(system, asked_records(options), options.output_dir)
    if is_first_process():
        logger.info(f"the answers are in {out}")
        say_next(f"llava-pose score {out} --out {out.with_name('scores.json')}")
    return out
