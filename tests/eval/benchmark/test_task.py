"""`llava-pose open-vocabulary` and `llava-pose joint`: systems of every kind from one YAML, restartable, checked early."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from eval.benchmark.command import JointConfig, OpenVocabularyConfig
from eval.benchmark.command import joint as joint_main
from eval.benchmark.command import main as benchmark_main
from eval.benchmark.command import open_vocabulary as open_vocabulary_main
from eval.benchmark.entries import build_entries
from eval.benchmark.scope import known_and_novel, scope_of
from eval.systems.classifier.system import load_classifier
from eval.systems.system import KINDS, load_kind
from llava_pose import cli
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_predictions, read_records, write_records
from llava_pose.errors import InputError
from llava_pose.model.loading import load_full
from llava_pose.utils.config import parse_config
from llava_pose.utils.yaml_files import read_yaml
from tests.forked import run

REPOSITORY = Path(__file__).resolve().parents[3]
CATEGORIES = ("car", "bus", "agitator_truck", "chair")  # two known ones of the taxonomy, two novel ones
NOVEL = ["agitator_truck", "chair"]
SIDE = 32
QUICK = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4}
BACKBONE = {"model_type": "bit", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4}
CLASSIFIER = {"backbone_config": BACKBONE, "image_size": SIDE, **QUICK}


def make_prepared(folder: Path, *, train: int = 2, val: int = 1) -> Path:
    """So many objects of each category in either split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        records = []
        for category in CATEGORIES:
            for index in range(count):
                angles = (rng.uniform(0, 6), rng.uniform(-0.5, 1), rng.uniform(-0.3, 0.3))
                record = ObjectRecord(
                    file_name=f"{category}/{split}{index}.png",
                    id=f"{category}/{split}{index}/0",
                    category=category,
                    pose=Pose(*angles, 4.0, SIDE / 2, SIDE / 2),
                    viewport=200.0,
                    width=SIDE,
                    height=SIDE,
                    bbox=(4.0, 4.0, 28.0, 28.0),
                )
                path = folder / split / record.file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
                records.append(record)
        write_records(folder, split, records)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("prepared"))


def classifier(name: str = "general", **changes: Any) -> dict[str, Any]:
    return {"name": name, "kind": "classifier", "options": {**CLASSIFIER, **changes}}


def recipe_file(folder: Path, systems: list[Any], **others: Any) -> Path:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({"systems": systems, **others}), encoding="utf-8")
    return path


def words(recipe: Path, data: Path, output: Path) -> list[str]:
    return ["--config", str(recipe), "--data", str(data), "--output-dir", str(output)]


@pytest.fixture(scope="module")
def ran(tiny_base: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an open-vocabulary run with a system of every kind that needs no mesh; its recipe is task.yaml."""
    output = tmp_path_factory.mktemp("open")
    mine = output / "mine.jsonl"
    answers = {"system": "x", "pose": Pose(0.1, 0.2, 0.3), "pred_category": None, "confidence": None}
    write_jsonl(mine, (Prediction.of(record, **answers).to_dict() for record in read_records(prepared, "val")))
    train = {**QUICK, "language": "full", "learning_rate": 1e-3}
    systems = [
        classifier(),
        {"name": "oracle", "kind": "classifier", "oracle": True},
        {
            "name": "llava-pose",
            "kind": "llava-pose",
            "options": {
                "model": str(tiny_base),
                "instruct": {"kinds": ["pose", "described"], "questions_per_object": 2},
                "train": train,
            },
        },
        {"name": "described", "kind": "llava-pose", "options": {"checkpoint": "llava-pose", "describe": True}},
        {"name": "mine", "kind": "predictions", "options": {"file": str(mine)}},
    ]
    recipe = recipe_file(output, systems, defaults={"classifier": CLASSIFIER})
    assert open_vocabulary_main(words(recipe, prepared, output)) == 0
    return output


def test_every_system_predicts_the_novel_objects_under_its_name(ran: Path) -> None:
    for name in ("general", "oracle", "llava-pose", "described", "mine"):
        predictions = read_predictions(ran / name / "predictions.jsonl")
        assert [p.category for p in predictions] == NOVEL
        assert {p.system for p in predictions} == {name}
        assert json.loads((ran / name / "system_done.json").read_text())["seconds"] >= 0


def test_the_table_has_every_system(ran: Path) -> None:
    table = (ran / "table2.md").read_text()
    assert all(name in table for name in ("general", "oracle (oracle)", "llava-pose", "described", "mine"))


def test_only_the_oracle_has_seen_what_is_novel(ran: Path) -> None:
    assert load_classifier(ran / "general")[0].config.categories == ["bus", "car"]
    assert load_classifier(ran / "oracle")[0].config.categories == sorted(CATEGORIES)
    samples = json.loads((ran / "llava-pose" / "train.json").read_text())
    assert {sample["category"] for sample in samples} == {"car", "bus"}
    assert {sample["kind"] for sample in samples} == {"pose", "described"}


def test_the_description_is_asked_with_the_checkpoint_of_the_system_above(ran: Path) -> None:
    settings = [read_yaml(ran / name / "predictions.jsonl.settings.yaml") for name in ("llava-pose", "described")]
    assert {s["checkpoint"] for s in settings} == {str(ran / "llava-pose")}
    assert [s["describe"] for s in settings] == [False, True]
    answers = [read_predictions(ran / name / "predictions.jsonl") for name in ("llava-pose", "described")]
    assert all(a.pose != b.pose for a, b in zip(*answers, strict=True)), "another question has another answer"


@pytest.fixture
def copied(ran: Path, tmp_path: Path) -> Path:
    return shutil.copytree(ran, tmp_path / "copy")


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".jsonl", ".yaml")
    }


def test_what_is_done_is_not_done_again(copied: Path, prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = stamps(copied)
    caplog.set_level("INFO")
    assert open_vocabulary_main(words(copied / "task.yaml", prepared, copied)) == 0
    assert stamps(copied) == before
    assert sum("is done" in message for message in caplog.messages) == 5


def test_a_system_that_was_stopped_goes_on_alone(copied: Path, prepared: Path) -> None:
    whole = (copied / "oracle" / "predictions.jsonl").read_bytes()
    (copied / "oracle" / "predictions.jsonl").unlink()
    before = stamps(copied)
    assert open_vocabulary_main([*words(copied / "task.yaml", prepared, copied), "--only", "oracle"]) == 0
    assert (copied / "oracle" / "predictions.jsonl").read_bytes() == whole
    changed = {path for path, stamp in stamps(copied).items() if before.get(path) != stamp}
    assert changed == {"oracle/predictions.jsonl", "oracle/system.yaml", "oracle/classifier.yaml"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_steps": 3}, "was begun with options.max_steps 2, not 3"),
        ({"learning_rate": 0.5}, "was begun with options.learning_rate None, not 0.5"),
    ],
)
def test_changed_options_are_refused(copied: Path, prepared: Path, tmp_path: Path, capsys, changes, sentence) -> None:
    recipe = recipe_file(tmp_path, [classifier(**changes)])
    assert open_vocabulary_main(words(recipe, prepared, copied)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert "delete the folder" in error


def test_what_the_system_above_is_trained_on_counts(copied: Path, prepared: Path, capsys) -> None:
    """A checkpoint that is to be trained anew, otherwise, does not leave the predictions of the old one standing."""
    recipe = copied / "task.yaml"
    values = read_yaml(recipe)
    values["systems"][2]["options"]["train"]["max_steps"] = 3
    recipe.write_text(yaml.safe_dump(values))
    shutil.rmtree(copied / "llava-pose")
    assert open_vocabulary_main(words(recipe, prepared, copied)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "described: was begun before the system above changed" in error
    assert not (copied / "llava-pose").exists()


def test_what_was_made_with_other_options_is_not_in_the_table(
    copied: Path, prepared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another system alone is asked for; the old predictions of a changed one would stand under its name."""
    recipe = copied / "task.yaml"
    values = read_yaml(recipe)
    values["systems"][0]["options"]["max_steps"] = 3
    recipe.write_text(yaml.safe_dump(values))
    assert open_vocabulary_main([*words(recipe, prepared, copied), "--only", "oracle"]) == 0
    assert (
        "general: was made with options.max_steps 2, not 3, and is left out of the table; run the system anew"
        in caplog.text
    )
    table = json.loads((copied / "table2.json").read_text())
    assert set(table["systems"]) == {"oracle", "llava-pose", "described", "mine"}


def test_somebodys_predictions_that_have_changed_are_not_taken_for_done(copied: Path, prepared: Path, capsys) -> None:
    recipe = copied / "task.yaml"
    values = read_yaml(recipe)
    file = Path(values["systems"][4]["options"]["file"])
    lines = file.read_text()
    try:
        file.write_text(lines.replace('"system": "x"', '"system": "y"'))
        assert open_vocabulary_main(words(recipe, prepared, copied)) == 2
    finally:
        file.write_text(lines)
    assert "mine: was begun before the file changed" in capsys.readouterr().err


def test_other_records_are_refused(copied: Path, tmp_path: Path, capsys) -> None:
    data = make_prepared(tmp_path / "other", train=3)
    assert open_vocabulary_main(words(recipe_file(tmp_path, [classifier()]), data, copied)) == 2
    assert "was begun before the train records and the val records changed" in capsys.readouterr().err


def test_a_bad_system_does_not_keep_the_others_from_running(prepared: Path, tmp_path: Path, capsys) -> None:
    one = tmp_path / "one.jsonl"
    write_jsonl(one, [Prediction("agitator_truck/val0/0", "x", "agitator_truck", None, None, Pose(0, 0, 0)).to_dict()])
    recipe = recipe_file(
        tmp_path, [{"name": "mine", "kind": "predictions", "options": {"file": str(one)}}, classifier()]
    )
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 systems did not run; the first, mine: file" in error
    assert "1 of 2 objects have no line, the first 'chair/val0/0'" in error
    assert (tmp_path / "out" / "general" / "system_done.json").is_file()
    assert "general" in (tmp_path / "out" / "table2.md").read_text(), "the others have their table"
    two = [Prediction(f"{c}/val0/0", "x", c, None, None, Pose(0, 0, 0)).to_dict() for c in NOVEL]
    write_jsonl(one, [{**line, "true": r.pose.to_dict()} for line, r in zip(two, novel_records(prepared), strict=True)])
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "out")) == 0, (
        "the file is mended, nothing is deleted"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"category": "chair"}, r"'agitator_truck/val0/0' is of the category 'chair', and the data's object is"),
        ({"true": Pose(1.0, 0.5, 0.2).to_dict()}, r"says that its true pose is [\d.]+ degrees from the data's"),
    ],
)
def test_ready_predictions_over_other_annotations_are_refused(prepared: Path, tmp_path: Path, capsys, change, match):
    file = tmp_path / "mine.jsonl"
    lines = [Prediction(r.id, "x", r.category, None, r.pose, r.pose).to_dict() for r in novel_records(prepared)]
    write_jsonl(file, [{**line, **change} if line["id"] == "agitator_truck/val0/0" else line for line in lines])
    recipe = recipe_file(tmp_path, [{"name": "mine", "kind": "predictions", "options": {"file": str(file)}}])
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "out")) == 2
    assert re.search(match, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out" / "mine" / "predictions.jsonl").exists()


def test_a_system_that_begins_with_another_wants_it_as_the_list_has_it(copied: Path, prepared: Path, capsys) -> None:
    vlm = {"assemble": {"preset": "tiny", "vision": "general"}, "train": {**QUICK, "language": "full"}}
    ours = {"name": "ours", "kind": "llava-pose", "options": vlm}
    changed = recipe_file(copied.parent, [classifier(max_steps=3), ours])
    assert open_vocabulary_main([*words(changed, prepared, copied), "--only", "ours"]) == 2
    assert "it begins with 'general', which was made with options.max_steps" in capsys.readouterr().err.splitlines()[-1]
    assert open_vocabulary_main([*words(changed, prepared, copied.parent / "new"), "--only", "ours"]) == 2
    assert "it begins with 'general', which has not run; run that one, too" in capsys.readouterr().err.splitlines()[-1]
    assert not (copied / "ours").exists()


def novel_records(prepared: Path) -> list[ObjectRecord]:
    return [record for record in read_records(prepared, "val") if record.category in NOVEL]


@pytest.mark.parametrize(
    "options", [{"checkpoint": "all"}, {"assemble": {"preset": "tiny", "vision": "all"}, "train": QUICK}]
)
def test_what_an_oracle_has_learnt_is_for_oracles_alone(prepared: Path, tmp_path: Path, capsys, options) -> None:
    systems = [{**classifier("all"), "oracle": True}, {"name": "ours", "kind": "llava-pose", "options": options}]
    assert open_vocabulary_main(words(recipe_file(tmp_path, systems), prepared, tmp_path / "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "system 'ours': begins with 'all', an oracle, which is trained on what is to be predicted" in error
    assert not (tmp_path / "out").exists()


def test_ready_samples_of_novel_categories_are_refused(tiny_base: Path, prepared: Path, tmp_path: Path, capsys) -> None:
    samples = tmp_path / "train.json"
    assert cli.main(["instruct", "--data", str(prepared), "--out", str(samples), "--kinds", "pose"]) == 0
    options = {"model": str(tiny_base), "train_json": str(samples), "train": {**QUICK, "language": "full"}}
    recipe = recipe_file(tmp_path, [{"name": "ours", "kind": "llava-pose", "options": options}])
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"ours: train_json {samples}: the sample 'agitator_truck/train0/0/0' is of the category" in error
    assert "which the task keeps from training" in error
    assert not (tmp_path / "out" / "ours" / "metrics.jsonl").exists()


def test_joint_systems_name_the_class_and_the_pose(prepared: Path, tmp_path: Path) -> None:
    """LLaVA-pose on the tower that the classifier above it has trained."""
    vlm = {
        "assemble": {"preset": "tiny", "vision": "general"},
        "train": {**QUICK, "language": "full"},
        "instruct": {"kinds": ["joint"]},
    }
    systems = [classifier(), {"name": "llava-pose", "kind": "llava-pose", "options": vlm}]
    output = tmp_path / "out"
    data = shutil.copytree(prepared, tmp_path / "data")
    write_records(data, "spare", [replace(read_records(data, "val")[0], id="cup/0/0", category="cup")])
    assert joint_main(words(recipe_file(tmp_path, systems), data, output)) == 0
    for name in ("general", "llava-pose"):
        predictions = read_predictions(output / name / "predictions.jsonl")
        assert sorted(p.category for p in predictions) == sorted(CATEGORIES)
        assert all(p.pred_category in CATEGORIES and p.pose is not None for p in predictions)
    asked = read_yaml(output / "llava-pose" / "predictions.jsonl.settings.yaml")
    assert asked["task"] == "joint"
    assert asked["candidates"] == load_classifier(output / "general")[0].config.categories == sorted(CATEGORIES)
    taught = load_classifier(output / "general")[0].backbone.state_dict()
    tower = load_full(output / "llava-pose" / "base").tower.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in taught.items())
    assert {sample["category"] for sample in json.loads((output / "llava-pose" / "train.json").read_text())} == set(
        CATEGORIES
    )


def test_known_are_those_of_the_taxonomy_or_of_a_list_or_of_a_file(prepared: Path, tmp_path: Path) -> None:
    def split(**options: Any) -> tuple[list[str], list[str]]:
        return known_and_novel(
            OpenVocabularyConfig(data=str(prepared), output_dir=str(tmp_path), systems=[classifier()], **options)
        )

    assert split() == (["bus", "car"], NOVEL)
    assert split(known=["car", "airplane", "concrete mixer truck"]) == (["agitator_truck", "car"], ["bus", "chair"])
    file = tmp_path / "known.txt"
    file.write_text("chair\nsofa\n")
    assert split(known_file=str(file)) == (["chair"], ["agitator_truck", "bus", "car"])
    with pytest.raises(InputError, match="every category of it is known"):
        split(known=list(CATEGORIES))
    with pytest.raises(InputError, match="no category of it is known"):
        split(known=["sofa"])
    with pytest.raises(InputError, match="give one of them"):
        split(known=["sofa"], known_file=str(file))
    file.write_text("concrete mixer truck \n\nchair\n")
    assert split(known_file=str(file)) == (["agitator_truck", "chair"], ["bus", "car"])
    with pytest.raises(InputError, match=r"--known carr: neither the taxonomy nor .* has such a category"):
        split(known=["carr", "bus"])
    file.write_text("\n")
    with pytest.raises(InputError, match="there is no category in it"):
        split(known_file=str(file))


@pytest.mark.parametrize(
    ("systems", "sentence"),
    [
        ([], "field 'systems' must be a list"),
        (["general"], "field 'systems' must be a list, each of it a mapping"),
        ([{"kind": "classifier"}], "systems, number 1: expected a mapping with a name"),
        ([classifier("a/b")], "the name 'a/b' must do for a folder"),
        ([classifier(), classifier()], "systems, number 2: the name 'general' is taken"),
        ([{**classifier(), "kind": "cnn"}], "system 'general': there is no kind 'cnn'; choose one of classifier"),
        ([{**classifier(), "kind": ["classifier"]}], "system 'general': there is no kind ['classifier']"),
        ([{**classifier(), "option": {}}], "system 'general': there is no field 'option'; did you mean 'options'"),
        ([{**classifier(), "max_steps": 3}], "no field 'max_steps'; the system's own fields stand under options"),
        ([{**classifier(), "oracle": "yes"}], "oracle must be true or false"),
        ([{**classifier(), "options": [1]}], "options must be 'field: value' lines"),
        ([classifier(max_step=3)], "system 'general': options: there is no field 'max_step'; did you mean 'max_steps'"),
        ([classifier(max_steps="many")], "system 'general': options: the field 'max_steps' must be a whole number"),
        ([classifier(rotation="euler")], "system 'general': options: the field 'rotation' must be one of"),
        ([classifier(data="elsewhere")], "system 'general': the option 'data' is set by the benchmark"),
        ([{"name": "v", "kind": "llava-pose"}], "system 'v': v: give one of model"),
        (
            [{"name": "v", "kind": "llava-pose", "options": {"model": "b", "train": {"max_step": 1}}}],
            "system 'v': v: train: there is no field 'max_step'",
        ),
        (
            [{"name": "v", "kind": "llava-pose", "options": {"checkpoint": "c", "train": {"max_steps": 1}}}],
            "train has no effect on a checkpoint",
        ),
        (
            [{"name": "p", "kind": "predictions", "options": {"file": "none.jsonl"}}],
            "file none.jsonl: there is no such",
        ),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], systems: list[Any], sentence: str
) -> None:
    recipe = recipe_file(tmp_path, systems)
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "out")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
    assert not (tmp_path / "out").exists()


def test_joint_needs_every_category_in_training(prepared: Path, tmp_path: Path, capsys) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    lines = (data / "train" / "metadata.jsonl").read_text().splitlines()
    (data / "train" / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines if "chair" not in line))
    recipe = recipe_file(tmp_path, [classifier()])
    assert joint_main(words(recipe, data, tmp_path / "out")) == 2
    assert "nothing of the category 'chair' is in the train split" in capsys.readouterr().err
    restricted = [*words(recipe, data, tmp_path / "out"), "--categories", "car", "bus"]
    assert joint_main(restricted) == 0
    answered = read_predictions(tmp_path / "out" / "general" / "predictions.jsonl")
    assert sorted(p.category for p in answered) == ["bus", "car"]
    assert joint_main([*words(recipe, data, tmp_path / "other"), "--categories", "horse"]) == 2
    assert "--categories" in capsys.readouterr().err
    recipe = recipe_file(tmp_path, [{**classifier(), "oracle": True}])
    assert joint_main(words(recipe, prepared, tmp_path / "out")) == 2
    assert "oracle has no meaning here" in capsys.readouterr().err


def test_one_command_makes_the_table_that_the_recipe_says(prepared: Path, tmp_path: Path, capsys) -> None:
    """Ready predictions, and answers of Orient Anything to the same objects; a command of another table refuses the recipe."""
    records = read_records(prepared, "val")
    lines = [Prediction.of(r, system="x", pose=r.pose, pred_category=r.category, confidence=None) for r in records]
    write_jsonl(tmp_path / "mine.jsonl", (line.to_dict() for line in lines))
    angles = [{"id": r.id, "azimuth": 10, "polar": 5, "rotation": 0} for r in records]
    write_jsonl(tmp_path / "angles.jsonl", angles)
    mine = {"name": "mine", "title": "My own", "kind": "predictions", "options": {"file": str(tmp_path / "mine.jsonl")}}
    theirs = {"name": "oa", "kind": "orient-anything", "options": {"answers": str(tmp_path / "angles.jsonl")}}
    recipe = recipe_file(tmp_path, [mine], table=3)
    assert benchmark_main(words(recipe, prepared, tmp_path / "three")) == 0
    assert list(json.loads((tmp_path / "three" / "table3.json").read_text())["systems"]) == ["My own"]
    assert open_vocabulary_main(words(recipe, prepared, tmp_path / "two")) == 2
    assert "the field 'table' must be at most 2, not 3" in capsys.readouterr().err
    recipe = recipe_file(tmp_path, [mine, theirs], table=2)
    assert benchmark_main(words(recipe, prepared, tmp_path / "two")) == 0
    systems = json.loads((tmp_path / "two" / "table2.json").read_text())["systems"]
    assert {name: system["overall"]["acc@30"]["value"] for name, system in systems.items()}["My own"] == 1
    assert systems["oa"]["overall"]["n"] == len(NOVEL)
    pages = [(tmp_path / "two" / f"table2{suffix}").is_file() for suffix in (".md", ".html", ".png")]
    assert all(pages)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_is_what_the_benchmark_takes_it_for(kind: str) -> None:
    options, system = load_kind(kind)
    names = {f.name for f in fields(options)}
    trains = kind in ("classifier", "neural-mesh", "linear-probe", "llava-pose")
    assert {"data", "output_dir", "system", "split", "categories"} | (
        {"train_categories"} if trains else set()
    ) <= names
    assert callable(system.answer)


@pytest.mark.parametrize(
    "name",
    [
        "benchmark_open_vocabulary",
        "benchmark_joint",
        "benchmark_photos",
        "benchmark_photos_open",
        "table2",
        "table2_ours",
        "table3",
        "table3_ours",
    ],
)
def test_the_recipes_name_options_that_there_are(name: str, prepared: Path, tmp_path: Path) -> None:
    """Every system of them is built, with its options checked, on another data set."""
    config_class = OpenVocabularyConfig if "open" in name or "table2" in name else JointConfig
    given = ["--data", str(prepared), "--output-dir", str(tmp_path / "out")]
    recipe = REPOSITORY / "scripts" / "recipes" / f"{name}.yaml"
    config = parse_config(config_class, ["--config", str(recipe), *given], prog="x", description="", example="")
    config.categories, config.known = None, None
    systems = build_entries(config, scope_of(config))
    assert {"classifier", "neural-mesh", "llava-pose"} <= {system.kind for system in systems}


# --- at length, by the real commands ---


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parametric objects of six categories, through render and prepare."""
    from llava_pose.cli import main

    pytest.importorskip("embreex", reason="rendering needs the extra: pip install 'llava-pose[render]'")
    folder = tmp_path_factory.mktemp("rendered")
    names = ["car", "chair", "sofa", "laptop", "piano", "teapot"]
    options = ["--train-instances", "6", "--val-instances", "2", "--views", "2", "--size", "64", "--seed", "0"]
    assert main(["render", "--out", str(folder / "raw"), "--categories", *names, *options]) == 0
    prepared = ["--data-root", str(folder / "raw"), "--out", str(folder / "prepared"), "--crop", "box", "--size", "64"]
    assert main(["prepare", *prepared]) == 0
    return folder / "prepared"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["open-vocabulary", "joint"])
def test_a_task_killed_again_and_again_ends_as_an_undisturbed_one(
    command: str, rendered: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """At each place where a stage of a system has written something, or is about to; of ``joint`` with a mesh, and a base
    that is made of what the classifier has learnt.
    """
    quick = {**QUICK, "max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 8}
    vlm = {
        "train": {**quick, "language": "full", "learning_rate": 1e-3, "cache_dir": str(tmp_path / "features")},
        "instruct": {"kinds": ["joint", "pose"], "questions_per_object": 1},
        "batch_size": 2,
    }
    if command == "joint":
        mesh = {**quick, "backbone": "tiny", "image_size": SIDE, "vertices": 60, "refine_steps": 2}
        systems = [
            classifier(**quick),
            {"name": "sphere", "kind": "neural-mesh", "options": mesh},
            {
                "name": "vlm",
                "kind": "llava-pose",
                "options": {"assemble": {"preset": "tiny", "vision": "general"}, **vlm},
            },
        ]
        places = [
            "general/training_done.json",
            "sphere/checkpoint-4/trainer_state.json",
            "sphere/training_done.json",
            "sphere/predictions.jsonl",
            "base/assemble.yaml",
        ]
        others: dict[str, Any] = {}
    else:
        systems = [
            classifier(**quick),
            {"name": "vlm", "kind": "llava-pose", "options": {"model": str(tiny_base), **vlm}},
        ]
        places, others = [], {"known": ["car", "chair", "sofa", "laptop"]}
    recipe = recipe_file(tmp_path, systems, **others)
    whole = run([command, *words(recipe, rendered, tmp_path / "whole")], tmp_path / "log")
    assert whole.returncode == 0, whole.said[-4000:]
    again = [command, *words(recipe, rendered, tmp_path / "again")]
    for place in (
        "general/checkpoint-4/trainer_state.json",
        *places[:1],
        "general/predictions.jsonl",
        *places[1:],
        "vlm/train.json",
        "vlm/checkpoint-4/complete.json",
        "vlm/predictions.jsonl",
        "vlm/system_done.json",
        f"table{3 if command == 'joint' else 2}.json",
    ):
        killed = run(again, tmp_path / "log", kill_at=place)
        assert killed.returncode == -signal.SIGKILL, (place, killed.said[-4000:])
    ended = run(again, tmp_path / "log")
    assert ended.returncode == 0, ended.said[-4000:]
    for name in (system["name"] for system in systems):
        ours, theirs = (tmp_path / which / name / "predictions.jsonl" for which in ("again", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
