"""The benchmark of the pose search runs, and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "neural_mesh.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_costs_are_measured_by_classes_with_and_without_pruning(tmp_path):
    out = tmp_path / "figures.json"
    small = ("--vertices", "50", "--dims", "8", "--map-side", "6", "--repeats", "1", "--batch", "2", "--threads", "1")
    done = run("--classes", "2", "5", "--most-unpruned", "3", *small, "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["classes"], row["what"].removeprefix("votes, and poses of ")) for row in rows] == [
        (1, "grid of 144 poses"),
        (1, "grid of 144 poses and refinement"),
        (2, "votes"),
        (2, "the 1 most voted"),
        (2, "all"),
        (5, "votes"),
        (5, "the 1 most voted"),
        (5, "the 3 most voted"),
    ]
    assert all(row["seconds_an_image"] > 0 for row in rows)
    assert len(done.stdout.splitlines()) == len(rows)


def test_a_number_that_makes_no_sense_is_named():
    done = run("--classes", "0")
    assert done.returncode == 2
    assert done.stderr.endswith("error: --classes: give numbers of at least 1, such as --classes 1 6 40\n")
