"""``llava-pose prepare --engine ray``: the work on each image as a Ray Data stage, on this machine or on a cluster.

The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else one that is started for the run. Its
machines need the project installed and see the data root and the output folder under the same paths.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from data_prep.prepare.image import ImageJob, ImageOptions, bring_up_to_date
from llava_pose.errors import InputError

_IMAGES_A_TASK = 16


def require_ray() -> Any:
    """Return the module ``ray`` with ``ray.data``.

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


def map_on_ray(jobs: Sequence[ImageJob], options: ImageOptions, *, workers: int) -> Iterator[bool]:
    """Yield what :func:`bring_up_to_date` says of each image, in the order in which they are done.

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
        ray.data.DataContext.get_current().enable_progress_bars = False  # prepare has its own
        # absolute: a worker's current folder is another one
        absolute = replace(options, data_root=options.data_root.resolve(), out=options.out.resolve())
        blocks = max(1, len(jobs) // _IMAGES_A_TASK)
        done = ray.data.from_items([asdict(job) for job in jobs], override_num_blocks=blocks).map(
            _prepare_row,
            fn_kwargs={"options": absolute},
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers or None),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield row["made"]
    finally:
        if own_connection:
            ray.shutdown()


def _prepare_row(row: dict[str, Any], options: ImageOptions) -> dict[str, Any]:
    """Run in a worker. An InputError travels as its sentence, not as a traceback of the cluster."""
    try:
        return {"made": bring_up_to_date(ImageJob(**row), options), "error": ""}
    except InputError as error:
        return {"made": False, "error": str(error)}
