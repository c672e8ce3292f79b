"""The benchmark of the probe grid runs, and the two ways that it times give the same probes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "probe_grid.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_both_ways_agree(tmp_path):
    out = tmp_path / "figures.json"
    words = ["--samples", "100", "--held-out", "40", "--width", "24", "--epochs", "6", "--repeats", "1"]
    done = run(*words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert (figures["cells"], figures["steps"]) == (78, 6)
    assert figures["weight_difference"]["greatest"] < 1e-4
    assert figures["accuracy_difference"] <= 1 / 40  # one object between two bins, at most
    assert figures["best_accuracy"] > 0.1, "chance is under 1%: labels can be learnt from the features"
    assert "times faster" in done.stdout


def test_a_count_that_makes_no_sense_is_named():
    done = run("--held-out", "0")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "error: --held-out: must be at least 1, not 0")
