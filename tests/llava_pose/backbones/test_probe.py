"""What a backbone is and can is found out once, and again only where transformers is another one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import transformers
from PIL import Image

from llava_pose.backbones.probe import look_again
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.loading import load_model
from llava_pose.model.processors import load_processor
from tests.llava_pose.conftest import run_training


def with_facts(base: Path, folder: Path, **facts: object) -> Path:
    """A copy of a base whose pose_config.json says something else."""
    shutil.copytree(base, folder)
    file = folder / "pose_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))
    return folder


def answer_of(path: Path) -> tuple[float, ...]:
    [answer] = PosePredictor.from_checkpoint(path, device="cpu").predict(
        [Image.linear_gradient("L").convert("RGB")], ["car"]
    )
    return answer.pose.angles


def test_the_version_stands_in_the_base_and_nothing_is_looked_at_again_with_it(base: Path, caplog):
    assert LlavaPoseConfig.load(base).transformers_version == transformers.__version__
    with caplog.at_level("INFO"):
        answer_of(base)
    assert "tried again with" not in caplog.text


def test_what_another_version_found_is_found_anew(base: Path, tmp_path: Path, caplog):
    true = LlavaPoseConfig.load(base)
    facts = {"listed_tokens": not true.listed_tokens, "base_states": not true.base_states}
    old = with_facts(base, tmp_path / "old", transformers_version="5.20.0", **facts)
    with caplog.at_level("INFO"):
        assert answer_of(old) == answer_of(base)
    assert f"{old}: made with transformers 5.20.0, and tried again with {transformers.__version__}: " in caplog.text
    assert f"base_states is {true.base_states} and no longer {not true.base_states}" in caplog.text


def test_a_run_writes_down_what_it_found(recipe, base: Path, tmp_path: Path, caplog):
    old = with_facts(base, tmp_path / "old", transformers_version="")
    with caplog.at_level("INFO"):
        folder = run_training({**recipe, "model": str(old), "max_steps": 1})
    assert "made with transformers of unknown version" in caplog.text
    assert "it does what it did" in caplog.text
    assert LlavaPoseConfig.load(folder).transformers_version == transformers.__version__
    caplog.clear()
    again = with_facts(folder, tmp_path / "again", transformers_version="5.20.0")
    with caplog.at_level("INFO"):
        assert answer_of(again) == answer_of(folder)
    assert f"{again}: made with transformers 5.20.0" in caplog.text
    assert "it does what it did" in caplog.text


@pytest.mark.parametrize(
    ("then", "facts", "sentence"),
    [
        (
            "5.20.0",
            {"pooled_size": 7},
            r"; install 5.20.0, with which its base was made \(pooled_size is \d+, and 7 in pose_config.json\)",
        ),
        ("", {"connector": None}, r" \(connector is multi_modal_projector, and None in pose_config.json\)"),
    ],
)
def test_a_backbone_that_has_become_another_is_refused(base: Path, then: str, facts: dict, sentence: str):
    model, processor = load_model(base), load_processor(base)
    model.pose_config = dataclasses.replace(model.pose_config, transformers_version=then, **facts)
    with pytest.raises(InputError, match=rf"its backbone cannot be used with transformers [\d.]+{sentence}"):
        look_again(model, processor, base)
