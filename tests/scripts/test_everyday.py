"""scripts/everyday itself, every step of it, with recipes cut down to seconds and weights that know nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scripts import cut_recipes

SMALL = {"size": 48, "views": 2}
STEPS = {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2}
CUT = {
    "everyday_render_aeroplanes": SMALL,
    "everyday_render_vehicles": {**SMALL, "categories": ["bus", "train"]},
    "everyday_render_handhelds": {**SMALL, "categories": ["camera", "shoe"]},
    "everyday_render_furniture": {**SMALL, "categories": ["car", "chair"]},
    "everyday_render_household": {**SMALL, "categories": ["bed", "toilet"]},
    "everyday_render_parametric_aeroplanes": {**SMALL, "train_instances": 2},
    "everyday_render_parametric": {**SMALL, "categories": ["car", "cup"], "train_instances": 2},
    "everyday_tower": {**STEPS, "image_size": 64},
    "everyday_tower_large": {**STEPS, "image_size": 64},
    "everyday": STEPS,
}
MESHES = ["aeroplane", "bus", "train", "camera", "shoe", "car", "chair", "bed", "toilet"]


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return cut_recipes.start(folder, "everyday", *words, SWEETHOME3D=str(folder / "none"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return cut_recipes.copy_scripts(tmp_path, CUT)


def write_weights(folder: Path) -> None:
    """What scripts/fetch_small_weights.py would fetch, with random weights; it leaves folders alone that are there."""
    from transformers import LlamaConfig, LlamaForCausalLM, ViTImageProcessorPil

    from llava_pose.backbones.tiny import tiny_tokenizer
    from llava_pose.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel

    torch.manual_seed(0)
    tower, language = folder / "efficientnet-lite0", folder / "smollm2-135m"
    EfficientNetLiteModel(EfficientNetLiteConfig()).save_pretrained(tower)
    ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(tower)
    tokenizer = tiny_tokenizer(folder.parent / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**small, vocab_size=len(tokenizer) + 8)).save_pretrained(language)
    tokenizer.save_pretrained(language)


def write_meshes(folder: Path) -> Path:
    import trimesh

    for number, category in enumerate(MESHES):
        (folder / category).mkdir(parents=True)
        for mesh in (1, 2):
            box = trimesh.creation.box((0.3 + 0.02 * number, 0.5, 0.2 + 0.05 * mesh))
            box.export(folder / category / f"{mesh:02d}.off")
    return folder


@pytest.mark.slow
def test_everyday_runs_through_and_again_to_the_same_scores(copied: Path, raw_dataset) -> None:
    pytest.importorskip("embreex", reason="rendering needs the extra: pip install 'llava-pose[render]'")
    box = np.array([120.0, 90.0, 520.0, 380.0])
    for name, split in (("a", "train"), ("b", "train"), *((f"c{number}", "val") for number in range(10))):
        raw_dataset.add(name, split=split, objects=[raw_dataset.object(bbox=box, source="web")])
    write_weights(copied / "run" / "weights")
    words = ["--photos", str(raw_dataset.root), "--cad", str(write_meshes(copied / "meshes")), str(copied / "run")]
    first = start(copied, *words)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-4000:]
    assert [f"{n}/9" in first.stdout for n in range(1, 10)] == [True] * 9
    assert (copied / "run" / "checkpoint" / "calibration.json").is_file()
    scores = (copied / "run" / "scores.json").read_bytes()
    assert set(json.loads(scores)["systems"]) == {"llava-pose-everyday", "tower-alone"}
    sources = {
        json.loads(line)["source"]["source"]
        for line in (copied / "run/prepared/mixture/train/metadata.jsonl").read_text().splitlines()
    }
    assert sources == {"meshes", "parametric", "web"}
    assert len(list((copied / "run" / "backgrounds").glob("*.jpg"))) > 0
    assert (copied / "run" / "sheet.png").stat().st_size > 1000
    weights = (copied / "run" / "checkpoint" / "model.safetensors").read_bytes()
    again = start(copied, *words)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    assert (copied / "run" / "scores.json").read_bytes() == scores
    assert (copied / "run" / "checkpoint" / "model.safetensors").read_bytes() == weights


def test_a_folder_that_is_not_there_and_an_unknown_option_are_named_before_anything_is_made(copied: Path) -> None:
    for words, sentence in (
        (["--photos", "/no/such/folder"], "--photos /no/such/folder: there is no such folder"),
        (["--cad"], "--cad"),
        (["--phtos", "x"], "there is no option --phtos"),
    ):
        done = start(copied, *words, str(copied / "run"))
        assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr
    assert not (copied / "run").exists()
