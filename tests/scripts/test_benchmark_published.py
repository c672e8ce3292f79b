"""scripts/benchmarks/published.py: figures that are known beforehand."""

import json

import numpy as np
import pytest

from llava_pose.pose.geometry import project_points
from scripts.benchmarks.published import CUBE, DifferencesConfig, differences


def test_each_step_of_the_published_code_is_measured(raw_dataset, tmp_path):
    make = raw_dataset.object
    # in the middle of its image nothing is padded on one side alone; near the lower edge, y2 is shifted by what is below
    raw_dataset.add("n1", objects=[make(distance=4.0, px=320.0, py=240.0), make(object_status="status_bad")])
    raw_dataset.add("n2", objects=[make(distance=4.0, px=320.0, py=400.0, **{"class": "bus"})])
    raw_dataset.add("n3", category="cup", objects=[make(distance=2.0, **{"class": "cup"})])
    raw_dataset.add("n4", category="guitar", objects=[make(object_status=..., ignore=False, **{"class": "guitar"})])
    out = tmp_path / "differences.json"
    found = differences(DifferencesConfig(data_root=str(raw_dataset.root), out=str(out)))
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert found["objects"] == 5
    assert found["filter"] == {"kept_by_ours": 4, "kept_by_the_published_code": 3}
    assert found["labels"] == {"class_is_not_the_folder": 1}
    assert found["box_y2"]["most_px"] == 256 + 400 - 480
    assert found["flip_of_everything"]["objects"] == {"chiral": 1, "label_half_a_turn_wrong": 1}
    assert 0 < found["whole_pixels"]["most_px"] < 2
    assert found["bins"]["floor"]["most_deg"] < 9.6


def test_a_divided_distance_moves_the_corners_of_near_objects(raw_dataset):
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=2.0)])
    found = differences(DifferencesConfig(data_root=str(raw_dataset.root)))["distance_divided"]
    pose = {"azimuth": 0.7, "elevation": 0.2, "theta": 6.2, "px": 256.0, "py": 256.0}
    true = project_points(CUBE, **pose, distance=2.0, viewport=1000.0)
    theirs = project_points(CUBE, **pose, distance=4.0, viewport=2000.0)
    assert found["most_px"] == pytest.approx(np.hypot(*(true - theirs).T).max())
    assert found["most_px"] > 10
