"""The benchmark of growth runs every stage as a process of its own and tells how it grows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "growth.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_every_stage_runs_and_its_slope_is_that_of_its_seconds(tmp_path):
    out = tmp_path / "figures.json"
    done = run("--sizes", "100", "300", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    stages = ("prepare", "instruct", "dataset", "restart", "score")
    assert [(row["stage"], row["objects"]) for row in rows] == [
        (stage, size) for stage in stages for size in ((1, 3) if stage == "prepare" else (100, 300))
    ]
    for before, row in zip(rows[::2], rows[1::2], strict=True):
        assert before["slope"] is None
        assert row["slope"] == pytest.approx(math.log(row["cpu_seconds"] / before["cpu_seconds"]) / math.log(3))
    assert "100 of 100 are answered already" in done.stderr


def test_a_stage_that_there_is_not_is_named():
    done = run("--stages", "guess")
    assert done.returncode == 2
    assert "--stages" in done.stderr
    assert "Traceback" not in done.stderr
