"""The benchmark of prepare runs, and its three ways do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "prepare.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_it_runs_and_the_crops_are_those_of_the_published_order(tmp_path):
    out = tmp_path / "figures.json"
    done = run("--images", "6", "--side", "400", "--size", "64", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert [row["way"] for row in figures["rows"]] == ["published order", "prepare", "bare JPEG"]
    published, prepare, _ = figures["rows"]
    assert published["times_published"] == 1.0
    assert prepare["times_published"] == prepare["images_per_second"] / published["images_per_second"]
    assert figures["mean_difference"] < 12
    assert "times the published order (goal 5)" in done.stdout
    assert f"{figures['bare_share']:.0%} of its time is bare JPEG decoding and encoding" in done.stdout


def test_a_count_that_makes_no_sense_is_named():
    done = run("--images", "0")
    assert (done.returncode, done.stderr) == (2, "error: --images: must be at least 1, not 0\n")
