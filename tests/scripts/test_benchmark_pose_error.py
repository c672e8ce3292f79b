"""The benchmark of pose errors runs, and what it claims beside the published way holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "pose_error.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_ours_is_right_and_faster_by_orders(tmp_path):
    out = tmp_path / "figures.json"
    done = run("--errors", "50000", "--logm-errors", "50", "--repeats", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    ours, quaternions, logarithm = json.loads(out.read_text())["rows"]
    assert logarithm["slower_than_ours"] > 100
    assert max(quaternions["max_difference"], logarithm["max_difference"]) < 1e-12
    assert (ours["half_turns_wrong"], quaternions["half_turns_wrong"]) == (0, 0)
    assert logarithm["half_turns_wrong"] > 0.5
    table = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [ours["way"], quaternions["way"], logarithm["way"]]


def test_a_count_that_makes_no_sense_is_named():
    done = run("--errors", "0")
    assert (done.returncode, done.stderr) == (2, "error: --errors: must be at least 1, not 0\n")
