"""The benchmark of the probe grid runs, and the two ways that it times give the same probes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.forked import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "probe_grid.py"


def test_both_ways_agree(tmp_path):
    out = tmp_path / "figures.json"
    words = ["--samples", "300", "--held-out", "100", "--width", "48", "--epochs", "8", "--repeats", "1"]
    done = run([str(SCRIPT), *words, "--out", str(out)], tmp_path / "log")
    assert done.returncode == 0, done.said
    figures = json.loads(out.read_text())
    assert (figures["cells"], figures["steps"]) == (78, 24)
    assert figures["weight_difference"]["greatest"] < 1e-4
    assert figures["accuracy_difference"] <= 1 / 100  # one object between two bins, at most
    assert figures["best_accuracy"] > 0.1, "chance is under 1%: labels can be learnt from the features"
    assert "times faster" in done.said
