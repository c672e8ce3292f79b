"""Measure how fast pose errors are computed, beside the published way (scipy's matrix logarithm, a sample at a time).

All ways run in one process on the same random poses, each on as many of them as its speed allows. The arithmetic is
single-threaded: errors a second are those of one core.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy.linalg import logm
from scipy.spatial.transform import Rotation

from llava_pose.errors import InputError
from llava_pose.pose.geometry import rotation_matrix
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.command import command
from llava_pose.utils.files import write_json

HALF_TURNS = 200


@dataclass
class BenchmarkConfig:
    """The options of the benchmark."""

    errors: int = field(default=1_000_000, metadata={"help": "pose errors a repetition"})
    logm_errors: int = field(default=1_000, metadata={"help": "of them, how many go through the matrix logarithm"})
    repeats: int = field(default=5, metadata={"help": "repetitions of the fast ways; the best one counts"})
    seed: int = field(default=0, metadata={"help": "draws the poses"})
    out: str | None = field(default=None, metadata={"help": "a JSON file for the figures"})

    def __post_init__(self) -> None:
        for name in ("errors", "logm_errors", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Row:
    """One way to compute the errors.

    max_difference: from llava_pose, radians, on the same poses.
    half_turns_wrong: the share of errors of exactly 180 degrees that come out wrong by more than a degree.
    """

    way: str
    errors: int
    seconds: float
    errors_per_second: float
    slower_than_ours: float
    max_difference: float
    half_turns_wrong: float


def matrix_logarithm_error(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """sqrt(sum log(R_pred^T R_true)^2) / sqrt(2), a sample at a time: (n, 3) x (n, 3) -> (n,) radians.

    The published formula. It squares without the absolute value, so that where the logarithm is imaginary, as at half
    turns, the root is imaginary too and its real part nothing.
    """
    errors = np.empty(len(pred))
    for i, (a, b) in enumerate(zip(pred, true, strict=True)):
        logarithm = logm(rotation_matrix(*a).T @ rotation_matrix(*b))
        errors[i] = np.real(np.sqrt((logarithm**2).sum()) / math.sqrt(2))
    return errors


def scipy_rotation_error(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The same by scipy's quaternions, vectorised: (n, 3) x (n, 3) -> (n,) radians."""
    first, second = (
        Rotation.from_euler("ZXZ", np.stack([x[:, 2], x[:, 1] - math.pi / 2, -x[:, 0]], -1)) for x in (pred, true)
    )
    return (first * second.inv()).magnitude()


def benchmark(config: BenchmarkConfig) -> list[Row]:
    """Measure the three ways, print a table and write the JSON file if asked for."""
    rng = np.random.default_rng(config.seed)
    pred, true = rng.uniform(0, 2 * math.pi, (2, config.errors, 3))
    few = min(config.errors, config.logm_errors)

    ours = _measure("llava_pose.pose.metrics.pose_error", pose_error, pred, true, repeats=config.repeats)
    rows = [
        ours,
        _measure("scipy Rotation, vectorised", scipy_rotation_error, pred, true, repeats=config.repeats, ours=ours),
        _measure("scipy logm, a sample at a time", matrix_logarithm_error, pred[:few], true[:few], ours=ours),
    ]
    sys.stdout.write(_table(rows))
    if config.out is not None:
        write_json(
            config.out, {"numpy": np.__version__, "config": asdict(config), "rows": [asdict(row) for row in rows]}
        )
    return rows


def _measure(
    way: str,
    error: Callable[[np.ndarray, np.ndarray], np.ndarray],
    pred: np.ndarray,
    true: np.ndarray,
    *,
    repeats: int = 1,
    ours: Row | None = None,
) -> Row:
    error(pred[:2], true[:2])  # what the first call loads is not measured
    seconds = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        errors = error(pred, true)
        seconds = min(seconds, time.perf_counter() - start)
    rate = len(pred) / seconds
    half_turn = error(true[:HALF_TURNS] + np.array([math.pi, 0.0, 0.0]), true[:HALF_TURNS])
    return Row(
        way=way,
        errors=len(pred),
        seconds=seconds,
        errors_per_second=rate,
        slower_than_ours=1.0 if ours is None else ours.errors_per_second / rate,
        max_difference=float(np.abs(errors - pose_error(pred, true)).max()),
        half_turns_wrong=float((np.abs(half_turn - math.pi) > math.radians(1)).mean()),
    )


def _table(rows: list[Row]) -> str:
    lines = [f"{'':32}{'errors/s':>12}{'µs/error':>11}{'times slower':>14}{'max diff rad':>14}{'half turns wrong':>18}"]
    for row in rows:
        lines.append(
            f"{row.way:32}{row.errors_per_second:12,.0f}{1e6 / row.errors_per_second:11.2f}"
            f"{row.slower_than_ours:14,.1f}{row.max_difference:14.1e}{row.half_turns_wrong:18.1%}"
        )
    return "\n".join(lines) + "\n"


main = command(
    BenchmarkConfig,
    benchmark,
    prog="python scripts/benchmarks/pose_error.py",
    description="Pose errors a second, beside scipy's matrix logarithm.",
    example="python scripts/benchmarks/pose_error.py --out pose_error.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
