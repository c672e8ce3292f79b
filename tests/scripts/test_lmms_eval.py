"""The task of lmms-eval: its files as lmms-eval reads them, its words, what is read from answers, and its figures."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from eval.compared import align, read_systems
from eval.scoring import score_comparison
from eval.systems.vlm_prompt import CONVENTION
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose
from llava_pose.pose.metrics import pose_error
from tests.conftest import REPOSITORY
from tests.eval.benchmark.test_task import make_prepared

FOLDER = REPOSITORY / "scripts" / "lmms_eval" / "imagenet3d_pose"
TASKS = ("imagenet3d_pose", "imagenet3d_pose_blind")


@pytest.fixture(scope="module")
def utils() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imagenet3d_pose_utils", FOLDER / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What lmms-eval reads: the split val of a prepared folder."""
    prepared = make_prepared(tmp_path_factory.mktemp("data") / "prepared", train=1, val=2)
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_dataset("imagefolder", data_dir=str(prepared), cache_dir=cache)["validation"]


def read_task(name: str, utils: ModuleType) -> dict[str, Any]:
    """A task's YAML with what it includes, functions in the place of their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: getattr(utils, node.value.removeprefix("utils.")))
    own = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader)
    return {**yaml.load((FOLDER / own.pop("include")).read_text(encoding="utf-8"), Loader), **own}


def degrees(pose: Pose | None) -> list[float] | None:
    return None if pose is None else [round(math.degrees(angle), 6) for angle in pose.angles]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_functions_that_are_there_and_figures_that_are_made(name, utils, docs):
    task = read_task(name, utils)
    assert task["task"] == name
    asked = task.get("process_docs", lambda docs: docs)(docs)
    lines = [task["process_results"](doc, ["no idea"]) for doc in asked]
    for figure in task["metric_list"]:
        made = [line[figure["metric"]] for line in lines if figure["metric"] in line]
        assert 0 <= figure["aggregation"](made) <= 180
    assert json.loads(json.dumps(lines)) == lines  # --log_samples writes them


def test_a_question_holds_the_convention_and_the_category_and_no_angle_of_the_object(utils, docs):
    text = utils.doc_to_text(docs[0], {"pre_prompt": "Hello. ", "post_prompt": ""})
    assert text.startswith("Hello. " + CONVENTION[:80])
    assert docs[0]["category"].replace("_", " ") in text
    assert f"{math.degrees(docs[0]['pose']['azimuth']):.0f}" not in text.rsplit("Examples", 1)[1].rsplit("\n", 1)[1]


def test_a_mirror_image_follows_its_picture_and_has_the_mirrored_box_and_pose(utils, docs):
    asked = utils.with_mirror_images(docs)
    assert asked["mirrored"] == [False, True] * len(docs)
    plain, mirrored = asked[0], asked[1]
    assert np.array_equal(np.asarray(utils.picture(plain)[0])[:, ::-1], np.asarray(utils.picture(mirrored)[0]))
    one, other = utils.record_of(plain), utils.record_of(mirrored)
    assert other.bbox[0] == one.width - one.bbox[2]
    assert (
        pose_error(np.array(other.pose.angles), np.array([-one.pose.azimuth, one.pose.elevation, -one.pose.theta]))
        < 1e-6
    )


def test_the_blind_picture_shows_nothing(utils, docs):
    (grey,) = utils.grey_picture(docs[0])
    assert grey.size == docs[0]["image"].size
    assert len(set(grey.getdata())) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"azimuth": 90, "elevation": 10, "rotation": -5}', [90, 10, -5]),
        ('It faces left.\n```json\n{"azimuth": 90, "elevation": 10, "rotation": 0}\n```\nI am sure.', [90, 10, 0]),
        (
            '<think>{"azimuth": 1, "elevation": 1, "rotation": 1}</think>{"azimuth": 2, "elevation": 3, "rotation": 4}',
            [2, 3, 4],
        ),
        (
            "At first azimuth 10, elevation 5. No: the azimuth is about 135.5°, elevation: 20 degrees, roll = 3",
            [135.5, 20, 3],
        ),
        ("**Azimuth:** 270\n**Elevation:** -15\n", [270, -15, 0]),
        ("This is a car at (azimuth 16°, elevation 18°, in-plane -2°).", [16, 18, -2]),
        ("A car at <pose6D> (azimuth 16°, elevation 18°, in-plane 2°).", [16, 18, 2]),
        ('{"poses": [{"category": "car", "degrees": {"azimuth": 30, "elevation": 5, "theta": 1}}]}', [30, 5, 1]),
        ('{"answer": {"azimuth": 30, "elevation": 5, "rotation": 1}}', [30, 5, 1]),
        ("azimuth 30, elevation \u22125", [30, -5, 0]),
        ("This is a car at <pose6D>.", None),
        ("I cannot tell.", None),
        ("", None),
        ('{"azimuth": "front", "elevation": 10, "rotation": 0}', None),
        ('{"azimuth": NaN, "elevation": 10, "rotation": 0}', None),
        ('{"bbox_3d": [1, 2]}', None),
        ("[" * 5000, None),
    ],
)
def test_whatever_way_an_answer_says_it_the_pose_is_read(utils, docs, text, expected):
    assert degrees(utils.read_pose(text, utils.record_of(docs[0]))) == (
        None if expected is None else pytest.approx(expected)
    )


def test_a_box_of_qwen_is_the_pose_that_convert_makes_of_it(utils, docs, tmp_path):
    from llava_pose.data.poses.formats import read_poses

    record = utils.record_of(docs[0])
    box = {"label": "car", "bbox_3d": [0.3, 0.1, 4.0, 1.0, 0.8, 0.6, 0.02, 0.35, -0.01]}
    (tmp_path / "box.json").write_text(json.dumps([box]), encoding="utf-8")
    camera = [record.viewport * record.focal] * 2 + [record.width / 2, record.height / 2]
    ((item,), _) = read_poses(tmp_path / "box.json", "qwen3-vl", intrinsics=camera)
    found = utils.read_pose(f"```json\n{json.dumps([box])}\n```", record)
    assert pose_error(np.array(found.angles), np.array(item.pose.angles)) < 1e-9


def says(pose: Pose, turned: float = 0.0) -> str:
    azimuth, elevation, theta = (math.degrees(angle) for angle in pose.angles)
    return json.dumps({"azimuth": azimuth + turned, "elevation": elevation, "rotation": theta})


def test_the_figures_are_those_of_score_and_a_consistent_model_is_told_from_a_right_one(utils, docs, tmp_path):
    task = read_task("imagenet3d_pose", utils)
    asked = utils.with_mirror_images(docs)
    lines = []
    for index, doc in enumerate(asked):
        record = utils.record_of(doc)
        wrong = 90.0 if index < 4 else 0.0  # the first two objects: in picture and mirror image the same way round ...
        text = says(record.pose, -wrong if doc["mirrored"] and index < 2 else wrong)  # ... and of one, the mirrored way
        lines.append(task["process_results"](doc, ["?" if index in (6, 7) else text]))
    made = {name: [line[name] for line in lines if name in line] for name in utils.FIGURES}
    figures = {figure["metric"]: figure["aggregation"](made[figure["metric"]]) for figure in task["metric_list"]}
    objects = len(docs)
    assert figures["failed"] == 1 / objects
    assert figures["acc_30"] == figures["acc_10"] == (objects - 3) / objects
    assert figures["flip_consistency_30"] == (objects - 2) / objects
    write_jsonl(tmp_path / "vlm.jsonl", (line["prediction"] for line in made["acc_30"]))
    overall = score_comparison(align(read_systems([str(tmp_path / "vlm.jsonl")]), "same"))["systems"]["lmms-eval"][
        "overall"
    ]
    assert overall["acc@30"]["value"] == pytest.approx(figures["acc_30"])
    assert overall["median_deg"]["value"] == pytest.approx(figures["median_deg"], abs=1e-4)


def test_the_grey_picture_is_of_a_picture_in_any_mode(utils):
    assert utils.grey_picture({"image": Image.new("L", (5, 4))})[0].mode == "RGB"
    assert utils.picture({"image": Image.new("P", (5, 4))})[0].mode == "RGB"


def test_the_page_says_where_the_folder_is():
    page = (Path(REPOSITORY) / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    assert "scripts/lmms_eval" in page
    assert all(task in page for task in TASKS)
