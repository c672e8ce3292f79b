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
    words = ["--samples", "300", "--held-out", "100", "--width", "48", "--epochs", "8", "--repeats", "1"]
    done = run(*words, "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert (figures["cells"], figures["steps"]) == (78, 24)
    assert figures["weight_difference"]["greatest"] < 1e-4
    assert figures["accuracy_difference"] <= 1 / 100  # one object between two bins, at most
    assert figures["best_accuracy"] > 0.1, "chance is under 1%: labels can be learnt from the features"
    assert "times faster" in done.stdout
