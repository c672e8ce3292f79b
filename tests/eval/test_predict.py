"""`llava-pose predict` on a real checkpoint of random weights."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.instruct.command import InstructConfig, instruct
from eval.predict import PredictConfig, main, predict, predict_batch, run_settings
from eval.score import main as score_main
from llava_pose.data.conversation import to_messages
from llava_pose.data.records import ObjectRecord, Pose, Prediction, read_predictions, read_records, write_records
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.loading import load_full
from llava_pose.model.processors import load_processor
from llava_pose.pose import categories
from llava_pose.pose.metrics import pose_error
from llava_pose.utils.output_folder import settings_file
from llava_pose.utils.yaml_files import read_yaml

SIDE = 32
CATEGORIES = ["car", "cup", "chair"]


def write_prepared(folder: Path, *, azimuth: float = 0.5) -> Path:
    """A prepared folder with three objects in the splits val and test."""
    for split in ("val", "test"):
        records = []
        for index, category in enumerate(CATEGORIES):
            record = ObjectRecord(
                file_name=f"{category}/{index:02d}_00.png",
                id=f"{category}/{index:02d}/0",
                category=category,
                pose=Pose(azimuth, 0.1, 0.0, 4.0, SIDE / 2, SIDE / 2),
                viewport=200.0,
                width=SIDE,
                height=SIDE,
                bbox=(4.0, 4.0, 28.0, 28.0),
            )
            path = folder / split / record.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE)).save(path)
            records.append(record)
        write_records(folder, split, records)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared"))


# --- the settings beside the predictions ---


@pytest.fixture(scope="module")
def begun(tiny_base: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> PredictConfig:
    """A run that was stopped after its first object."""
    out = tmp_path_factory.mktemp("begun") / "predictions.jsonl"
    config = PredictConfig(
        checkpoint=str(tiny_base), data=str(prepared), out=str(out), task="joint", device="cpu", batch_size=1, limit=1
    )
    predict(config)
    return config


@pytest.fixture
def stopped(begun: PredictConfig, tmp_path: Path) -> PredictConfig:
    """A copy of that run's files for one test, and the settings to go on with it to its end."""
    out = tmp_path / "predictions.jsonl"
    shutil.copy(begun.out, out)
    shutil.copy(settings_file(begun.out, "predict"), settings_file(out, "predict"))
    return replace(begun, out=str(out), limit=None)


def test_the_settings_stand_beside_the_predictions(begun: PredictConfig) -> None:
    settings = read_yaml(Path(begun.out).with_name("predictions.jsonl.settings.yaml"))
    assert settings["checkpoint"] == begun.checkpoint
    assert settings["data"] == begun.data
    assert (settings["split"], settings["task"], settings["system"]) == ("val", "joint", Path(begun.checkpoint).name)
    assert settings["candidates"] == sorted(CATEGORIES)


def test_the_same_settings_go_on_whatever_the_batch(stopped: PredictConfig) -> None:
    (first,) = read_predictions(stopped.out)
    predict(replace(stopped, batch_size=2))
    predictions = read_predictions(stopped.out)
    assert predictions[0] == first
    assert [p.id for p in predictions] == ["car/00/0", "cup/01/0", "chair/02/0"]
    whole = Path(stopped.out).read_bytes()
    predict(stopped)
    assert Path(stopped.out).read_bytes() == whole


def other_weights(config: PredictConfig, folder: Path) -> PredictConfig:
    """The checkpoint's folder copied, the run's settings moved over to it, and one of its weights changed."""
    from safetensors.torch import load_file, save_file

    checkpoint = folder / Path(config.checkpoint).name
    shutil.copytree(config.checkpoint, checkpoint)
    settings = settings_file(config.out, "predict")
    settings.write_text(settings.read_text().replace(config.checkpoint, str(checkpoint)))
    weights = checkpoint / "pose_head.safetensors"
    tensors = load_file(weights)
    tensors[next(name for name in tensors if "pose_head" in name)].flatten()[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    return replace(config, checkpoint=str(checkpoint))


def other_records(config: PredictConfig, folder: Path) -> PredictConfig:
    """The same with the prepared folder, made anew with other poses."""
    data = write_prepared(folder / "prepared", azimuth=0.6)
    settings = settings_file(config.out, "predict")
    settings.write_text(settings.read_text().replace(config.data, str(data)))
    return replace(config, data=str(data))


def other_checkpoint(config: PredictConfig, folder: Path) -> PredictConfig:
    shutil.copytree(config.checkpoint, folder / "elsewhere" / Path(config.checkpoint).name)
    return replace(config, checkpoint=str(folder / "elsewhere" / Path(config.checkpoint).name))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda config, _: replace(config, task="pose"), "begun with task 'joint', not 'pose'"),
        (lambda config, _: replace(config, split="test"), "begun with split 'val', not 'test'"),
        (lambda config, _: replace(config, system="mine"), "begun with system '.*', not 'mine'"),
        (lambda config, _: replace(config, candidates=["car", "bus"]), r"begun with candidates \[.*'chair'.*'bus'"),
        (lambda config, _: replace(config, base="other"), "begun with base None, not 'other'"),
        (lambda config, folder: replace(config, data=str(write_prepared(folder / "copy"))), "begun with data '"),
        (other_checkpoint, "begun with checkpoint '"),
        (other_weights, "begun before the weights changed"),
        (other_records, "begun before the records changed"),
    ],
)
def test_other_settings_are_refused(
    stopped: PredictConfig,
    tmp_path: Path,
    change: Callable[[PredictConfig, Path], PredictConfig],
    sentence: str,
) -> None:
    changed = change(stopped, tmp_path)
    files = [Path(stopped.out), settings_file(stopped.out, "predict")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match=sentence) as error:
        predict(changed)
    assert str(error.value).startswith(f"--out {stopped.out}: ")
    assert "choose another --out" in str(error.value)
    assert [file.read_bytes() for file in files] == before


def test_the_base_of_an_adapter_decides_too(tmp_path: Path) -> None:
    checkpoint, base = tmp_path / "adapter", tmp_path / "base"
    for folder in (checkpoint, base):
        folder.mkdir()
    (base / "model.safetensors").write_bytes(b"one")
    config = PredictConfig(checkpoint=str(checkpoint), data=str(write_prepared(tmp_path / "prepared")), out="p.jsonl")

    def digest() -> str | None:
        return run_settings(config, [])["base_digest"]

    assert digest() is None, "no adapter"
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    first = digest()
    (base / "model.safetensors").write_bytes(b"two")
    assert None not in (first, digest())
    assert digest() != first
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "of/a hub"}))
    assert digest() is None


def test_a_file_without_its_settings_is_left_alone(stopped: PredictConfig) -> None:
    settings_file(stopped.out, "predict").unlink()
    before = Path(stopped.out).read_bytes()
    with pytest.raises(InputError, match=r"did not write, for predictions\.jsonl\.settings\.yaml is not there"):
        predict(stopped)
    assert Path(stopped.out).read_bytes() == before


def test_settings_without_predictions_bind_nobody(stopped: PredictConfig) -> None:
    Path(stopped.out).unlink()
    predict(replace(stopped, split="test", limit=1))
    assert read_yaml(settings_file(stopped.out, "predict"))["split"] == "test"
    assert len(read_predictions(stopped.out)) == 1


def test_the_refusal_is_exit_code_2(stopped: PredictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", stopped.checkpoint, "--data", stopped.data, "--out", stopped.out, "--split", "test"]
    assert main([*words, "--task", "joint"]) == 2
    assert "begun with split" in capsys.readouterr().err


# --- the lines ---

FIELDS = {"id", "system", "category", "pred_category", "pose", "true", "confidence"}
POSE_FIELDS = {"azimuth", "elevation", "theta", "distance", "px", "py"}


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with five objects of all shapes in one split; an id is not ASCII, a camera has a focal length."""
    folder = tmp_path_factory.mktemp("five")
    records = []
    for index, (category, size) in enumerate(
        [("car", (40, 40)), ("cup", (48, 30)), ("car", (30, 48)), ("chair", (32, 32)), ("diningtable", (64, 50))]
    ):
        record = ObjectRecord(
            file_name=f"{category}/{index}.png",
            id=f"{category}/été_{index}/0",
            category=category,
            pose=Pose(0.5 + index, 0.1 * index, -0.1 * index, 4.0 + index, size[0] / 2, size[1] / 2),
            viewport=100.0 + 20 * index,
            focal=2.0 if index == 3 else 1.0,
            width=size[0],
            height=size[1],
            bbox=(4.0, 4.0, 28.0, 28.0),
            object_status="status_partially" if index == 1 else "status_good",
            source={"source": "here"} if index == 0 else {},
        )
        path = folder / "val" / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(10 + index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(path)
        records.append(record)
    write_records(folder, "val", records)
    return folder


@pytest.fixture(scope="module")
def whole(tiny_base: Path, five: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PredictConfig]:
    """The settings of an undisturbed run of each task, one object a batch."""
    runs = {}
    for task in ("pose", "joint"):
        out = tmp_path_factory.mktemp(f"whole_{task}") / "predictions.jsonl"
        runs[task] = PredictConfig(
            checkpoint=str(tiny_base), data=str(five), out=str(out), task=task, device="cpu", batch_size=1
        )
        predict(runs[task])
    return runs


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def assert_same_answers(ours: list[Prediction], theirs: list[Prediction], tolerance: float) -> None:
    """Rotations by their angle, in radians; distances by their ratio; places in pixels of pictures of some 50."""
    assert [p.id for p in ours] == [p.id for p in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.category, a.pred_category, a.true) == (b.category, b.pred_category, b.true)
        assert float(pose_error(np.array(a.pose.angles), np.array(b.pose.angles))) <= tolerance
        assert a.pose.distance == pytest.approx(b.pose.distance, rel=tolerance)
        assert (a.pose.px, a.pose.py) == pytest.approx((b.pose.px, b.pose.py), abs=50 * tolerance)
        assert a.confidence == pytest.approx(b.confidence, abs=tolerance)


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_every_object_has_one_line_with_all_its_fields(whole: dict[str, PredictConfig], five: Path, task: str) -> None:
    records = read_records(five, "val")
    lines = lines_of(whole[task].out)
    assert [line["id"] for line in lines] == [record.id for record in records]
    for line, record in zip(lines, records, strict=True):
        assert line.keys() >= FIELDS
        assert line["pose"].keys() == line["true"].keys() == POSE_FIELDS
        assert all(isinstance(value, float) and math.isfinite(value) for value in line["pose"].values())
        assert line["pose"]["distance"] > 0
        assert line["true"] == record.pose.to_dict()
        assert line["category"] == record.category
        assert line["system"] == Path(whole[task].checkpoint).name
        assert 0 <= line["confidence"] <= 1
        assert line["object_status"] == record.object_status
        assert line["source"] == (record.source.get("source") or "")
        if task == "pose":
            assert line["pred_category"] is None
        else:
            assert line["pred_category"] in {"car", "cup", "chair", "diningtable"}


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_a_line_is_what_the_predictor_answers(whole: dict[str, PredictConfig], five: Path, task: str) -> None:
    """Asked with the name that people use, and with the camera of the record: viewport times focal length."""
    predictor = PosePredictor.from_checkpoint(whole[task].checkpoint, device="cpu")
    names = {"car": "a car", "chair": "a chair", "cup": "a cup", "diningtable": "a dining table"}
    for prediction, record in zip(read_predictions(whole[task].out), read_records(five, "val"), strict=True):
        image = Image.open(five / "val" / record.file_name)
        viewports = [record.viewport * record.focal]
        if task == "pose":
            [answer] = predictor.predict([image], [names[record.category].split(" ", 1)[1]], viewports=viewports)
        else:
            [answer] = predictor.classify([image], names, viewports=viewports)
            assert prediction.pred_category == answer.category
        assert prediction.pose.to_dict() == pytest.approx(answer.pose.to_dict(), rel=1e-4, abs=1e-3)
        assert prediction.confidence == pytest.approx(answer.confidence, abs=1e-4)


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_the_mirror_image_has_its_say_where_the_taxonomy_allows_it(
    whole: dict[str, PredictConfig], five: Path, tmp_path: Path, task: str
) -> None:
    predictor = PosePredictor.from_checkpoint(whole[task].checkpoint, device="cpu")
    names = {"car": "a car", "chair": "a chair", "cup": "a cup", "diningtable": "a dining table"}
    symmetric = {"car", "chair", "diningtable"}  # a cup's handle is at its side
    config = replace(whole[task], out=str(tmp_path / "predictions.jsonl"), flip=True)
    predict(config)
    answers = read_predictions(config.out)
    for prediction, record in zip(answers, read_records(five, "val"), strict=True):
        image = Image.open(five / "val" / record.file_name)
        viewports = [record.viewport * record.focal]
        if task == "pose":
            flip, name = [record.category in symmetric], names[record.category].split(" ", 1)[1]
            [answer] = predictor.predict([image], [name], viewports=viewports, flip=flip)
        else:
            [answer] = predictor.classify([image], names, viewports=viewports, flip=symmetric)
            assert prediction.pred_category == answer.category
        assert prediction.pose.to_dict() == pytest.approx(answer.pose.to_dict(), rel=1e-4, abs=1e-3)
    assert [p.pose for p in answers] != [p.pose for p in read_predictions(whole[task].out)]
    assert read_yaml(settings_file(config.out, "predict"))["flip"] is True


@pytest.mark.parametrize("task", ["pose", "joint"])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_the_batch_size_changes_nothing(
    whole: dict[str, PredictConfig], tmp_path: Path, task: str, batch_size: int
) -> None:
    config = replace(whole[task], out=str(tmp_path / "predictions.jsonl"), batch_size=batch_size)
    predict(config)
    assert_same_answers(read_predictions(config.out), read_predictions(whole[task].out), 1e-4)


def test_a_saved_and_reloaded_checkpoint_predicts_the_same(whole: dict[str, PredictConfig], tmp_path: Path) -> None:
    again = tmp_path / Path(whole["joint"].checkpoint).name
    load_full(whole["joint"].checkpoint, dtype=torch.float32).save_pretrained(again)
    load_processor(whole["joint"].checkpoint).save_pretrained(again)
    for task, config in whole.items():
        out = tmp_path / f"{task}.jsonl"
        predict(replace(config, checkpoint=str(again), out=str(out)))
        assert out.read_bytes() == Path(config.out).read_bytes()


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_what_was_taught_is_predicted_and_scored(taught: Any, tmp_path: Path, task: str) -> None:
    record = ObjectRecord(
        file_name="car/0.png",
        id="car/0/0",
        category="car",
        pose=taught.car,
        viewport=taught.viewport,
        width=160,
        height=160,
        bbox=(20.0, 40.0, 120.0, 140.0),
    )
    other = replace(record, file_name="car/1.png", id="car/1/0")
    (tmp_path / "val" / "car").mkdir(parents=True)
    for one in (record, other):
        shutil.copy(taught.picture, tmp_path / "val" / one.file_name)
    write_records(tmp_path, "val", [record, other])
    out, scores = tmp_path / "predictions.jsonl", tmp_path / "scores.json"
    words = ["--checkpoint", str(taught.folder), "--data", str(tmp_path), "--task", task, "--device", "cpu"]
    candidates = ["--candidates", "car", "cup", "chair"] if task == "joint" else []
    assert main([*words, "--out", str(out), *candidates, "--system", "taught"]) == 0
    for prediction in read_predictions(out):
        assert prediction.system == "taught"
        assert prediction.pred_category == (None if task == "pose" else "car")
        assert float(pose_error(np.array(prediction.pose.angles), np.array(taught.car.angles))) < math.radians(4)
        assert (prediction.pose.px, prediction.pose.py) == pytest.approx((taught.car.px, taught.car.py), abs=12)
    assert score_main([str(out), "--out", str(scores)]) == 0
    overall = json.loads(scores.read_text())["systems"]["taught"]["overall"]
    assert (overall["n"], overall["acc@10"]["value"]) == (2, 1)
    if task == "joint":
        assert overall["class_accuracy"]["value"] == 1


# --- asked by description, and only some ---


def test_a_description_is_asked_as_instruct_writes_it(
    whole: dict[str, PredictConfig], five: Path, tmp_path: Path
) -> None:
    """The words before `<pose6D>` are those of a sample of the kind described, to the token."""
    sample_file = tmp_path / "train.json"
    instruct(
        InstructConfig(data=str(five), out=str(sample_file), split="val", kinds=["described"], phrasings=1),
    )
    sample = next(s for s in json.loads(sample_file.read_text()) if s["category"] == "diningtable")
    chat = load_processor(whole["pose"].checkpoint).encode_chat(to_messages(sample["conversations"]))
    seen = []

    class Watched(PosePredictor):
        def _prefix(self, *args: Any, **kwargs: Any) -> np.ndarray:
            seen.append(super()._prefix(*args, **kwargs))
            return seen[-1]

    predictor = Watched.from_checkpoint(whole["pose"].checkpoint, device="cpu")
    seen.clear()  # of the question that a checkpoint is tried with
    image = Image.open(five / "val" / "diningtable" / "4.png")
    description = categories.get("diningtable").description
    [answer] = predictor.predict([image], ["dining table"], descriptions=[description], viewports=[180.0])
    pose_token = int(np.flatnonzero(chat.input_ids == load_processor(whole["pose"].checkpoint).pose_token_id)[0])
    np.testing.assert_array_equal(seen[0], chat.input_ids[:pose_token])
    config = replace(whole["pose"], out=str(tmp_path / "p.jsonl"), describe=True)
    predict(config)
    described = read_predictions(config.out)
    assert described[4].pose.to_dict() == pytest.approx(answer.pose.to_dict())
    assert all(p.pred_category is None for p in described)
    named = read_predictions(whole["pose"].out)
    assert all(a.pose != b.pose for a, b in zip(described, named, strict=True))
    assert read_yaml(settings_file(config.out, "predict"))["describe"] is True
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"dining table": description}))
    same = replace(config, out=str(tmp_path / "own.jsonl"), descriptions=str(own))
    assert [p.pose for p in read_predictions(predict(same))] == [p.pose for p in described], (
        "the same text, the same answer"
    )
    own.write_text(json.dumps({"dining table": "A long flat thing. People use it."}))
    others = read_predictions(predict(replace(same, out=str(tmp_path / "others.jsonl"))))
    assert [a.pose == b.pose for a, b in zip(others, described, strict=True)] == [
        p.category != "diningtable" for p in described
    ]
    with pytest.raises(InputError, match="begun before the descriptions changed"):
        predict(same)
    with pytest.raises(InputError, match="--descriptions: are asked with under --describe alone"):
        replace(same, describe=False)
    with pytest.raises(InputError, match="begun with describe True, not False"):
        predict(replace(config, describe=False))


def test_only_some_categories_are_predicted(whole: dict[str, PredictConfig], tmp_path: Path) -> None:
    config = replace(whole["joint"], out=str(tmp_path / "p.jsonl"), categories=["dining table", "cup"])
    predict(config)
    undisturbed = [p for p in read_predictions(whole["joint"].out) if p.category in ("cup", "diningtable")]
    assert_same_answers(read_predictions(config.out), undisturbed, 1e-4)
    with pytest.raises(InputError, match=r"begun with categories .*, not None"):
        predict(replace(config, categories=None))


def test_a_question_that_is_too_long_is_refused(tiny_base: Path, five: Path) -> None:
    predictor = PosePredictor.from_checkpoint(tiny_base, device="cpu")
    with pytest.raises(InputError, match=r"have \d+ tokens, more than the model's 1024: ask without descriptions"):
        predictor.predict([Image.new("RGB", (32, 32))], ["car"], descriptions=["A car. " * 400])


# --- runs that were cut off ---


def _cuts(content: bytes) -> dict[str, int]:
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    return {
        "in the first line": ends[0] // 2,
        "in a middle line": (ends[1] + ends[2]) // 2,
        "within a letter of two bytes": content.index("é".encode(), ends[1]) + 1,
        "before a line end": ends[2] - 1,
        "after a line": ends[2],
        "at the very end": len(content) - 1,
    }


@pytest.mark.parametrize(
    "place",
    [
        "in the first line",
        "in a middle line",
        "within a letter of two bytes",
        "before a line end",
        "after a line",
        "at the very end",
    ],
)
def test_a_run_that_was_cut_off_goes_on(whole: dict[str, PredictConfig], tmp_path: Path, place: str) -> None:
    """Nothing is lost, nothing doubled: the file is that of the undisturbed run, byte for byte."""
    content = Path(whole["joint"].out).read_bytes()
    config = replace(whole["joint"], out=str(tmp_path / "predictions.jsonl"))
    shutil.copy(settings_file(whole["joint"].out, "predict"), settings_file(config.out, "predict"))
    Path(config.out).write_bytes(content[: _cuts(content)[place]])
    predict(config)
    assert Path(config.out).read_bytes() == content


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_pieces_of_any_size_end_in_the_same_bytes(whole: dict[str, PredictConfig], tmp_path: Path, task: str) -> None:
    """The last digits of an answer depend on what else is in its batch, which is therefore always the same."""
    undisturbed = predict(replace(whole[task], batch_size=5, out=str(tmp_path / "undisturbed.jsonl")))
    config = replace(whole[task], batch_size=5, out=str(tmp_path / "predictions.jsonl"))
    for limit in (1, 3, 4, None):
        predict(replace(config, limit=limit))
    assert Path(config.out).read_bytes() == undisturbed.read_bytes()


# --- pictures that cannot be read ---


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_a_damaged_picture_is_named_and_the_rest_is_predicted(
    whole: dict[str, PredictConfig], five: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    data, out = tmp_path / "data", tmp_path / "predictions.jsonl"
    shutil.copytree(five, data)
    records = read_records(data, "val")
    cut, gone = (data / "val" / records[index].file_name for index in (1, 3))
    good = {path: path.read_bytes() for path in (cut, gone)}
    cut.write_bytes(good[cut][: len(good[cut]) // 2])
    gone.unlink()
    words = ["--checkpoint", whole[task].checkpoint, "--data", str(data), "--out", str(out), "--task", task]
    words += ["--device", "cpu", "--batch-size", "2"]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: 2 of 5 objects have no prediction")
    assert str(cut) in error
    for path in (cut, gone):
        assert sum(str(path) in message for message in caplog.messages) == 1
    undisturbed = read_predictions(whole[task].out)
    assert_same_answers(read_predictions(out), [undisturbed[index] for index in (0, 2, 4)], 1e-4)

    for path, content in good.items():  # mended, the same command does what is left
        path.write_bytes(content)
    assert main(words) == 0
    in_order = sorted(read_predictions(out), key=lambda p: [record.id for record in records].index(p.id))
    assert_same_answers(in_order, undisturbed, 1e-4)


def test_a_split_without_one_good_picture_is_refused(tiny_base: Path, five: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "predictions.jsonl"
    shutil.copytree(five, data)
    for path in data.glob("val/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="5 of 5 objects have no prediction"):
        predict(PredictConfig(checkpoint=str(tiny_base), data=str(data), out=str(out), device="cpu"))


def test_a_limit_counts_what_was_asked(
    whole: dict[str, PredictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "predictions.jsonl"
    for limit, count in ((2, 2), (None, 5), (3, 3)):
        caplog.clear()
        with caplog.at_level("INFO"):
            predict(replace(whole["pose"], out=str(out), limit=limit))
        assert f"{count} predictions of " in caplog.records[-1].getMessage()
    assert len(read_predictions(out)) == 5


@pytest.mark.parametrize("task", ["pose", "joint"])
def test_no_logits_are_kept(tiny_base: Path, five: Path, task: str) -> None:
    """Of a pose none are computed; of the joint task those of the few nodes that the search looks at, and gone with it."""
    predictor = PosePredictor.from_checkpoint(tiny_base, device="cpu")
    model = predictor._model
    vocabulary = model.config.text_config.vocab_size
    computed: list[int] = []
    assert predictor._can_search  # which is found out by searching about a small picture
    output = model.vlm.get_output_embeddings()
    hook = output.register_forward_hook(lambda _, __, logits: computed.append(logits.numel() // vocabulary))
    records = read_records(five, "val")
    images = [Image.open(five / "val" / record.file_name).convert("RGB") for record in records]
    candidates = {"car": "a car", "cup": "a cup"} if task == "joint" else {}
    config = PredictConfig(checkpoint=str(tiny_base), data=str(five), out="p.jsonl", task=task)
    predictions = predict_batch(predictor, records, images, config, candidates)
    hook.remove()
    # four nodes of an object's trie at a time; a picture alone is some dozens of tokens
    assert (len(computed) > 0) == bool(candidates)
    assert all(0 < positions <= 4 * len(records) for positions in computed)
    assert len(predictions) == len(records)
    own = {id(weight) for weight in model.parameters()}
    tensors = (thing for thing in gc.get_objects() if type(thing) is torch.Tensor and id(thing) not in own)
    assert [tuple(tensor.shape) for tensor in tensors if tensor.dim() > 1 and tensor.shape[-1] == vocabulary] == []


# --- what cannot be predicted ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"checkpoint": ""}, "--checkpoint: must be text"),
        ({"data": ""}, "--data: must be text"),
        ({"out": ""}, "--out: must be text"),
        ({"data": "no-such-folder"}, "--data no-such-folder: there is no such folder"),
        ({"split": "train"}, "there is no split train in it, but val"),
        ({"task": "dance"}, "--task: must be one of pose, joint, not 'dance'"),
        ({"batch_size": 0}, "--batch-size: must be over 0"),
        ({"limit": 0}, "--limit: must be over 0"),
        ({"task": "pose", "candidates": ["car"]}, "--candidates: .* have no effect with --task pose"),
        ({"out": "."}, r"--out \.: this is a folder"),
        ({"task": "joint", "candidates": ["car", "unicorn"]}, r"--candidates: unknown category 'unicorn'"),
        ({"task": "joint", "describe": True}, "--describe: a description tells the category"),
        ({"categories": ["bus"]}, "--categories bus: no object of it in .*val"),
        ({"checkpoint": "no-such-checkpoint"}, "no-such-checkpoint"),
    ],
)
def test_bad_settings_are_one_sentence(
    whole: dict[str, PredictConfig], tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    out = tmp_path / "predictions.jsonl"
    with pytest.raises(InputError, match=sentence):
        predict(replace(whole["pose"], **{"out": str(out), **changes}))
    assert not out.exists()


def test_a_category_outside_the_taxonomy_is_named_or_allowed(
    whole: dict[str, PredictConfig], five: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "predictions.jsonl"
    shutil.copytree(five, data)
    write_records(data, "val", [replace(record, category="unicorn") for record in read_records(five, "val")])
    config = replace(whole["pose"], data=str(data), out=str(out))
    for task in ("pose", "joint"):
        with pytest.raises(InputError, match=r"data/val/metadata\.jsonl: unknown category 'unicorn'"):
            predict(replace(config, task=task))
    with pytest.raises(InputError, match="--describe: the taxonomy has no description of 'unicorn'"):
        predict(replace(config, describe=True, allow_custom_categories=True))
    predict(replace(config, allow_custom_categories=True))
    assert {p.category for p in read_predictions(out)} == {"unicorn"}


def test_a_split_without_objects_is_refused(whole: dict[str, PredictConfig], tmp_path: Path) -> None:
    write_records(tmp_path, "val", [])
    with pytest.raises(InputError, match="there is no object in it"):
        predict(replace(whole["pose"], data=str(tmp_path), out=str(tmp_path / "predictions.jsonl")))
