"""The benchmark of a step of training runs, and each of its ways trains."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "train_step.py"
SMALL = "--batch 2 --steps 1 --rounds 1 --vocabulary 64 --hidden-size 32 --layers 1 --lora-r 2 --side 4 --question 4 --answer 3"
SHAPES = {
    "compact": {"plain", "ours", "cached"},
    "llava": {"plain", "ours", "cached"},
    "llava_long": {"plain", "ours", "cached"},
    "qwen3_vl": {"plain", "ours"},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_measured_in_each_way(tmp_path: Path, shape: str):
    out = tmp_path / "figures.json"
    words = [*SMALL.split(), "--shapes", shape, "--out", str(out)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["figures"].pop(shape)
    assert set(found) == SHAPES[shape]
    assert found["plain"]["times_plain"] == found["plain"]["memory_of_plain"] == 1
    assert all(math.isfinite(one["loss"]) and one["peak_mb"] > 0 for way in found.values() for one in way["rounds"])
    # the tower's features are the same, computed or kept
    if "cached" in found:
        assert math.isclose(found["ours"]["rounds"][0]["loss"], found["cached"]["rounds"][0]["loss"], rel_tol=1e-4)
