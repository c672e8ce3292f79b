"""`llava-pose prepare --engine ray`: the work on each image as a Ray Data stage, on this machine or on a cluster.

The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else one that is started for the run. Its
machines need the project installed and see the data root and the output folder under the same paths. They write the
pictures; the process that was started with the command keeps the journal, so that a run that was stopped goes on in the same
way as with processes, and with either engine.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.prepare.image import ImageJob, ImageOptions, ImageResult, prepare_image
from llava_pose.errors import InputError

_IMAGES_A_TASK = 16


def require_ray() -> Any:
    """The module ``ray`` with ``ray.data``.

    Raises:
        InputError: it is not installed.
    """
    try:
        importlib.import_module("ray.data")
    except ImportError as error:
        raise InputError(
            "--engine ray needs ray; install it with: pip install 'llava-pose[ray]', or leave --engine out"
        ) from error
    return importlib.import_module("ray")


def prepare_on_ray(
    jobs: Sequence[ImageJob], options: ImageOptions, *, workers: int
) -> Iterator[tuple[ImageJob, ImageResult]]:
    """Each job with what became of it, in the order in which they are done.

    Args:
        workers: tasks at once, of one core each; 0 for as many as the cluster has cores.

    Raises:
        InputError: Ray is not installed, or a picture cannot be written.
    """
    ray = require_ray()
    own_connection = not ray.is_initialized()
    if own_connection:
        ray.init(log_to_driver=False, logging_level="warning")
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # it tells its plans at every run
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # prepare has its own
        # absolute: a worker's current folder is another one
        absolute = {**asdict(options), "data_root": str(options.data_root.resolve()), "out": str(options.out.resolve())}
        rows = [{"number": number, **asdict(job)} for number, job in enumerate(jobs)]
        blocks = max(1, len(rows) // _IMAGES_A_TASK)
        done = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            _prepare_rows,
            batch_size=_IMAGES_A_TASK,
            batch_format="pyarrow",
            fn_kwargs={"options": absolute},
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers or None),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield jobs[row["number"]], ImageResult(**json.loads(row["result"]))
    finally:
        if own_connection:
            ray.shutdown()


def _prepare_rows(table: Any, options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Runs in a worker: rows of jobs to rows of results. An InputError travels as its sentence, not as a traceback."""
    image_options = ImageOptions(**{**options, "data_root": Path(options["data_root"]), "out": Path(options["out"])})
    done: dict[str, list[Any]] = {"number": [], "result": [], "error": []}
    for row in table.to_pylist():
        number = row.pop("number")
        result, error = "", ""
        try:
            result = prepare_image(ImageJob(**row), image_options).to_json()
        except InputError as failure:
            error = str(failure)
        for name, value in (("number", number), ("result", result), ("error", error)):
            done[name].append(value)
    return done
