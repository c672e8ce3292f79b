"""`llava-pose predict` on a real checkpoint of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.predict import PredictConfig, main, predict, settings_file
from llava_pose.config import read_yaml
from llava_pose.errors import InputError
from llava_pose.records import ObjectRecord, Pose, read_predictions, write_records

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
    shutil.copy(settings_file(Path(begun.out)), settings_file(out))
    return replace(begun, out=str(out), limit=None)


def test_the_settings_stand_beside_the_predictions(begun: PredictConfig) -> None:
    settings = read_yaml(Path(begun.out).with_name("predictions_settings.yaml"))
    assert settings["checkpoint"] == begun.checkpoint
    assert settings["data"] == begun.data
    assert (settings["split"], settings["task"], settings["system"]) == ("val", "joint", Path(begun.checkpoint).name)
    assert settings["categories"] == sorted(CATEGORIES)


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
    settings = settings_file(Path(config.out))
    settings.write_text(settings.read_text().replace(config.checkpoint, str(checkpoint)))
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors[next(name for name in tensors if "pose_head" in name)].flatten()[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    return replace(config, checkpoint=str(checkpoint))


def other_records(config: PredictConfig, folder: Path) -> PredictConfig:
    """The same with the prepared folder, made anew with other poses."""
    data = write_prepared(folder / "prepared", azimuth=0.6)
    settings = settings_file(Path(config.out))
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
        (lambda config, _: replace(config, categories=["car", "bus"]), r"begun with categories \[.*'chair'.*'bus'"),
        (lambda config, _: replace(config, base="other"), "begun with base None, not 'other'"),
        (lambda config, folder: replace(config, data=str(write_prepared(folder / "copy"))), "begun with data '"),
        (other_checkpoint, "begun with checkpoint '"),
        (other_weights, "the weights in .* have changed"),
        (other_records, "the records in .* have changed"),
    ],
)
def test_other_settings_are_refused(
    stopped: PredictConfig,
    tmp_path: Path,
    change: Callable[[PredictConfig, Path], PredictConfig],
    sentence: str,
) -> None:
    changed = change(stopped, tmp_path)
    files = [Path(stopped.out), settings_file(Path(stopped.out))]
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match=sentence) as error:
        predict(changed)
    assert str(error.value).startswith(f"{stopped.out}: ")
    assert "choose another --out" in str(error.value)
    assert [file.read_bytes() for file in files] == before


def test_a_file_without_its_settings_is_left_alone(stopped: PredictConfig) -> None:
    settings_file(Path(stopped.out)).unlink()
    before = Path(stopped.out).read_bytes()
    with pytest.raises(InputError, match=r"predictions_settings\.yaml does not stand beside it"):
        predict(stopped)
    assert Path(stopped.out).read_bytes() == before


def test_settings_without_predictions_bind_nobody(stopped: PredictConfig) -> None:
    Path(stopped.out).unlink()
    predict(replace(stopped, split="test", limit=1))
    assert read_yaml(settings_file(Path(stopped.out)))["split"] == "test"
    assert len(read_predictions(stopped.out)) == 1


def test_the_refusal_is_exit_code_2(stopped: PredictConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", stopped.checkpoint, "--data", stopped.data, "--out", stopped.out, "--split", "test"]
    assert main([*words, "--task", "joint"]) == 2
    assert "begun with split" in capsys.readouterr().err
