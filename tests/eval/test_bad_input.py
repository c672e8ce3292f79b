"""What users of the comparison get wrong, by the commands that they give: one sentence each, and exit code 2."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_pose.cli import main
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import Pose, Prediction, read_records
from tests.eval.benchmark.test_task import CLASSIFIER, QUICK, SIDE, classifier, make_prepared, recipe_file, words

MESH = {**QUICK, "backbone": "tiny", "image_size": SIDE, "vertices": 12, "refine_steps": 0, "max_steps": 1}
Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """A function that gives a command, which must refuse, and returns its sentence."""

    def give(*command: object) -> str:
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        sentence = error.rstrip("\n").splitlines()[-1]
        assert sentence.startswith("error: ")
        return sentence

    return give


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a joint task of two systems: a classifier, and an NMM-Sphere."""
    folder = tmp_path_factory.mktemp("runs")
    mesh = {"name": "sphere", "kind": "neural-mesh", "options": {**MESH, "save_steps": 1}}
    recipe = recipe_file(folder, [classifier(), mesh])
    assert main(["joint", *words(recipe, prepared, folder)]) == 0
    return folder


@pytest.fixture
def cad(tmp_path: Path) -> Path:
    """Of every category but the chair."""
    for category in ("car", "bus", "agitator_truck"):
        folder = tmp_path / "cad" / category
        folder.mkdir(parents=True)
        (folder / "01.off").write_text("OFF\n3 1 0\n-0.2 -0.4 -0.2\n0.2 0.4 0.2\n0 0 0\n3 0 1 2\n")
    return tmp_path / "cad"


def options(values: dict[str, Any]) -> list[str]:
    """As words of a command line."""
    given: list[str] = []
    for name, value in values.items():
        given += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return given


# --- a checkpoint of another system ---


def test_predict_is_given_the_checkpoint_of_a_baseline(runs: Path, prepared: Path, tmp_path: Path, said: Said) -> None:
    for name, kind in (("general", "pose_classifier"), ("sphere", "neural_mesh")):
        out = tmp_path / f"{name}.jsonl"
        sentence = said("predict", "--checkpoint", runs / name, "--data", prepared, "--out", out)
        assert str(runs / name) in sentence
        assert f"a {kind} model without pose parts, for pose_config.json is not in it" in sentence
        assert "give a checkpoint of llava-pose train" in sentence
        assert not out.exists()


def test_a_task_names_a_classifier_as_the_checkpoint_of_llava_pose(runs: Path, prepared: Path, said: Said) -> None:
    ours = {"name": "ours", "kind": "llava-pose", "options": {"checkpoint": "general"}}
    recipe = recipe_file(runs, [classifier(), ours])
    sentence = said("joint", *words(recipe, prepared, runs))
    assert "1 of 2 systems did not run; the first, ours: " in sentence
    assert "general: a pose_classifier model without pose parts" in sentence
    assert not (runs / "ours" / "predictions.jsonl").exists()


@pytest.mark.parametrize("ended", [True, False])
def test_a_baseline_is_sent_into_the_folder_of_another(
    ended: bool, runs: Path, prepared: Path, tmp_path: Path, said: Said
) -> None:
    """Whether that has ended or was stopped on its way: nothing is resumed from its checkpoint, nothing written over."""
    folder = shutil.copytree(runs / "sphere", tmp_path / "sphere")
    if not ended:
        (folder / "training_done.json").unlink()
    before = sorted(path.name for path in folder.iterdir())
    common = ["--data", prepared, "--output-dir", folder]
    sentence = said("classifier", *common, *options(CLASSIFIER))
    assert f"{folder}: holds a run of another kind, for classifier.yaml is not there" in sentence
    assert "choose another --output-dir" in sentence
    assert sorted(path.name for path in folder.iterdir()) == before
    sentence = said("neural-mesh", "--data", prepared, "--output-dir", runs / "general", *options(MESH))
    assert f"{runs / 'general'}: holds a run of another kind, for neural_mesh.yaml is not there" in sentence


# --- a category without a CAD model ---


def test_a_category_is_missing_from_the_cads(prepared: Path, cad: Path, tmp_path: Path, said: Said) -> None:
    sentence = said(
        *("neural-mesh", "--data", prepared, "--output-dir", tmp_path / "novum", "--mesh", "cuboid", "--cad", cad),
        *options(MESH),
    )
    assert f"--cad {cad}: there is no CAD model of 'chair'; add chair/01.off" in sentence
    assert not (tmp_path / "novum").exists()


def test_the_task_names_the_system_and_runs_the_others(prepared: Path, cad: Path, tmp_path: Path, said: Said) -> None:
    novum = {"name": "novum", "kind": "neural-mesh", "options": {**MESH, "mesh": "cuboid", "cad": str(cad)}}
    recipe = recipe_file(tmp_path, [novum, classifier()])
    sentence = said("joint", *words(recipe, prepared, tmp_path / "out"))
    assert "1 of 2 systems did not run; the first, novum: " in sentence
    assert "there is no CAD model of 'chair'" in sentence
    assert (tmp_path / "out" / "general" / "system_done.json").is_file()


# --- predictions of strangers ---


def answers(prepared: Path, **changes: Any) -> list[dict[str, Any]]:
    """A right line for each object of val, with changes to the first."""
    lines = [
        Prediction.of(r, system="mine", pose=r.pose, pred_category=r.category, confidence=None).to_dict()
        for r in read_records(prepared, "val")
    ]
    lines[0] = {name: value for name, value in (lines[0] | changes).items() if value is not ...}
    return lines


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    """With NaN as many programs write it, which is no JSON."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def task_of(file: Path, data: Path) -> list[str]:
    system = {"name": "mine", "kind": "predictions", "options": {"file": str(file)}}
    return ["joint", *words(recipe_file(file.parent, [system]), data, file.parent / "out")]


def test_predictions_with_nan_are_counted_and_named(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pose of four: in the scores, in a table, and in the table of a task."""
    pose = {"azimuth": math.nan, "elevation": 0.0, "theta": 0.0}
    file = written(tmp_path / "nan.jsonl", answers(prepared, pose=pose))
    table = ["tables", str(file), "--table", "3", "--out", str(tmp_path / "t.md")]
    for command in (["score", str(file), "--out", str(tmp_path / "s.json")], table, task_of(file, prepared)):
        assert main(command) == 0
        assert "1 not finite), each counted as an error of 180 degrees." in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())["systems"]["mine"]["overall"]["acc@30"]["value"] == 0.75


def test_a_line_without_an_id_is_named(prepared: Path, tmp_path: Path, said: Said) -> None:
    for missing in (..., None):
        file = written(tmp_path / "no_id.jsonl", answers(prepared, id=missing))
        for command in (["score", file], ["tables", file], task_of(file, prepared)):
            assert f"{file}:1: the prediction has no 'id'" in said(*command)


def test_an_object_without_a_line_is_named(prepared: Path, tmp_path: Path, said: Said) -> None:
    lines = answers(prepared)
    file = written(tmp_path / "short.jsonl", lines[1:])
    assert f"1 of 4 objects have no line, the first '{lines[0]['id']}'" in said(*task_of(file, prepared))


def test_the_joint_task_is_given_predictions_without_categories(prepared: Path, tmp_path: Path, said: Said) -> None:
    lines = [{**line, "pred_category": None} for line in answers(prepared)]
    sentence = said(*task_of(written(tmp_path / "poses.jsonl", lines), prepared))
    assert "poses.jsonl: names no category ('pred_category' is null in all of its lines)" in sentence


def test_two_files_over_different_objects_are_refused(prepared: Path, tmp_path: Path, said: Said) -> None:
    lines = answers(prepared)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_jsonl(one, lines[1:])
    write_jsonl(two, [{**line, "system": "yours"} for line in lines[:-1]])
    for command in ("score", "tables"):
        sentence = said(command, one, two)
        assert f"'mine' has no answer for 1 sample ('{lines[0]['id']}')" in sentence
        assert f"'yours' has no answer for 1 sample ('{lines[-1]['id']}')" in sentence
        assert "--samples common (only what all answered)" in sentence


def test_files_over_other_annotations_are_refused(prepared: Path, tmp_path: Path, said: Said) -> None:
    one = written(tmp_path / "one.jsonl", answers(prepared))
    turned = answers(prepared, true=Pose(0.0, 1.0, 3.0).to_dict())
    two = written(tmp_path / "two.jsonl", [{**line, "system": "yours"} for line in turned])
    for command in ("score", "tables"):
        assert f"the systems disagree about the true pose of '{turned[0]['id']}'" in said(command, one, two)
