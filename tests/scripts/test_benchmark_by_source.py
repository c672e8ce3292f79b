"""scripts/benchmarks/by_source.py: groups by source, and what a confidence is worth."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction
from llava_pose.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "by_source.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("by_source", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["by_source"] = module
    spec.loader.exec_module(module)
    return module


def prediction(number: int, source: str, *, right: bool, confidence: float | None, category: str = "car") -> Prediction:
    true = Pose(1.0, 0.1, 0.0)
    pose = true if right else Pose(1.0 + np.pi, 0.1, 0.0)
    return Prediction(f"{category}/{source}{number}/0", "s", category, category, pose, true, confidence, source=source)


def test_a_confidence_that_is_kept_to_has_no_error_and_one_that_is_not_has_its_distance(script: ModuleType) -> None:
    hits = np.arange(100) < 70
    assert script.calibration_error(np.full(100, 0.7), hits) == pytest.approx(0)
    assert script.calibration_error(np.full(100, 0.95), hits) == pytest.approx(0.25)


def test_figures_are_by_source_and_the_calibration_of_one_mends_another(script: ModuleType, tmp_path: Path) -> None:
    lines = []
    for source in ("here", "there"):
        for number in range(100):
            sure = number % 2 == 0
            right = number % 10 < 8 if sure else number % 10 < 4  # even: 4 of 5 are right; odd: 2 of 5
            lines.append(prediction(number, source, right=right, confidence=0.99 if sure else 0.9))
    write_jsonl(tmp_path / "p.jsonl", (line.to_dict() for line in lines))
    config = script.BySourceConfig(
        predictions=str(tmp_path / "p.jsonl"), out=str(tmp_path / "out.json"), fit_on=["here"]
    )
    figures = script.by_source(config)
    assert list(figures) == ["here", "there"]
    there = figures["there"]
    assert (there["n"], there["pi6"], there["surest_half_pi6"]) == (100, 60.0, 80.0)
    assert there["ece"] == pytest.approx(34.5, abs=0.1)
    assert there["ece_calibrated"] < 1


def test_an_answer_that_is_always_the_front_stands_beside_the_others(script: ModuleType) -> None:
    line = prediction(0, "here", right=True, confidence=None)
    lines = [replace(line, true=Pose(azimuth, 0.1, 0.0)) for azimuth in (0.1, 6.1, 1.0, 3.0)]
    assert script.figures_of(lines)["pi6_of_front"] == 50.0


def test_a_symmetric_object_turned_about_its_axis_is_right_where_symmetry_counts(script: ModuleType) -> None:
    figures = script.figures_of([prediction(0, "x", right=False, confidence=None, category="bottle")])
    assert (figures["pi6"], figures["pi6_symmetric"]) == (0.0, 100.0)
    assert "ece" not in figures


def test_sources_without_confidence_cannot_be_fitted_on(script: ModuleType, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [prediction(0, "x", right=True, confidence=None).to_dict()])
    config = script.BySourceConfig(predictions=str(tmp_path / "p.jsonl"), out=str(tmp_path / "o.json"), fit_on=["x"])
    with pytest.raises(InputError, match="--fit-on x"):
        script.by_source(config)
