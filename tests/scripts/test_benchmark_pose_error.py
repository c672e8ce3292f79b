"""The benchmark of pose errors runs, and what it claims beside the published way holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "pose_error.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("benchmark_pose_error", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_ours_is_right_and_faster_by_orders(main, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["--errors", "50000", "--logm-errors", "50", "--repeats", "3", "--out", str(out)]) == 0
    ours, quaternions, logarithm = json.loads(out.read_text())["rows"]
    assert logarithm["slower_than_ours"] > 100
    assert max(quaternions["max_difference"], logarithm["max_difference"]) < 1e-12
    assert (ours["half_turns_wrong"], quaternions["half_turns_wrong"]) == (0, 0)
    assert logarithm["half_turns_wrong"] > 0.5
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == [ours["way"], quaternions["way"], logarithm["way"]]


def test_a_count_that_makes_no_sense_is_named(main, capsys):
    assert main(["--errors", "0"]) == 2
    assert "--errors: must be at least 1, not 0" in capsys.readouterr().err
