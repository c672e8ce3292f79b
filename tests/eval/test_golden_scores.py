"""The scores of given predictions stay what they were, to the last digit that is printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.compared import align, read_systems
from eval.report.table_kinds import make_table
from eval.scoring import score_comparison

GOLDEN = Path(__file__).with_name("golden_scores.json")
CATEGORIES = ("car", "bus", "chair", "diningtable", "cup", "bottle", "airship", "flux capacitor")


def predictions(system: str, seed: int, spread: float) -> list[dict[str, Any]]:
    """240 lines with failures, wrong categories, sources, occlusion and instances that are shown in several pictures."""
    draws = np.random.default_rng(seed)
    lines = []
    for number in range(240):
        of_object = np.random.default_rng(number)
        category = CATEGORIES[int(of_object.integers(len(CATEGORIES)))]
        true = {name: float(of_object.uniform(-1, 1)) for name in ("azimuth", "elevation", "theta")}
        pose: dict[str, float] | None = {k: v + float(draws.normal()) * spread for k, v in true.items()}
        if number % 40 == seed:
            pose = None
        elif pose and number % 40 == seed + 10:
            pose["theta"] = math.nan
        line = {"id": f"{number}", "system": system, "category": category, "true": true, "pose": pose}
        line |= {"pred_category": category if draws.uniform() < 0.8 else "car", "source": ("a", "b", "")[number % 3]}
        line |= {"object_status": "status_good" if number % 4 else "status_barely"}
        lines.append(line | {"instance": f"{category} {int(of_object.integers(8))}"})
    return lines


def measured(folder: Path) -> dict[str, Any]:
    paths = []
    for number, spread in enumerate((0.2, 0.4, 0.3)):
        path = folder / f"{number}.jsonl"
        lines = predictions(f"system {number}", number, spread)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        paths.append(str(path))
    scores = score_comparison(align(read_systems(paths)), seed=3)
    table = make_table(3, scores)
    systems = {name: {k: v for k, v in system.items() if k != "curve"} for name, system in scores["systems"].items()}
    middle = {name: system["curve"]["share"][30] for name, system in scores["systems"].items()}
    kept = {"systems": systems, "paired_tests": scores["paired_tests"], "chance": scores["chance"], "curve": middle}
    return {**kept, "table": {name: table[name] for name in ("columns", "paired_tests")}}


def assert_same(found: Any, golden: Any, place: str = "") -> None:
    if isinstance(golden, dict):
        assert list(found) == list(golden), place
        for name, value in golden.items():
            assert_same(found[name], value, f"{place}/{name}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), place
        for number, value in enumerate(golden):
            assert_same(found[number], value, f"{place}/{number}")
    else:
        assert found == (pytest.approx(golden, abs=1e-7) if isinstance(golden, float) else golden), place


def test_scores_are_what_they_were(tmp_path: Path) -> None:
    assert_same(measured(tmp_path), json.loads(GOLDEN.read_text()))
