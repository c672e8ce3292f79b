"""scripts/quickstart itself, every step of it, with recipes cut down to seconds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.scripts import cut_recipes

CUT = {
    "quickstart_render": {"categories": ["car", "chair", "sofa"], "train_instances": 4, "val_instances": 4, "views": 2},
    "quickstart_tower": {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2},
    "quickstart": {"max_steps": 4, "per_device_train_batch_size": 4, "save_steps": 2},
}


def start(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return cut_recipes.start(folder, "quickstart", "run", **environment)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return cut_recipes.copy_scripts(tmp_path, CUT)


@pytest.mark.parametrize("name", ["quickstart", "everyday", "test", "environment.sh"])
def test_no_pipe_ends_before_what_writes_to_it(name: str) -> None:
    """With pipefail the script would end there with 141, whenever the writer is still at it."""
    text = (REPOSITORY / "scripts" / name).read_text(encoding="utf-8")
    assert re.findall(r"\|\s*(?:head|grep -q|sed [^|\n]*\dq)\b.*", text) == []


@pytest.mark.slow
def test_the_quickstart_runs_through_and_again_to_the_same_scores(copied: Path) -> None:
    pytest.importorskip("embreex", reason="rendering needs the extra: pip install 'llava-pose[render]'")
    first = start(copied)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-4000:]
    assert [f"{n}/9" in first.stdout for n in range(1, 10)] == [True] * 9
    assert "next:" not in first.stdout + first.stderr, "the script itself says what comes next"
    assert (copied / "run" / "checkpoint" / "calibration.json").is_file()
    scores = (copied / "run" / "scores.json").read_bytes()
    assert set(json.loads(scores)["systems"]) == {"llava-pose-tiny", "tower-alone"}
    for name in ("scores_curve.png", "scores_categories.png", "sheet.png"):
        assert (copied / "run" / name).stat().st_size > 1000
    weights = (copied / "run" / "checkpoint" / "model.safetensors").read_bytes()
    again = start(copied)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-4000:]
    assert (copied / "run" / "scores.json").read_bytes() == scores
    assert (copied / "run" / "checkpoint" / "model.safetensors").read_bytes() == weights


def test_without_a_venv_and_without_the_project_it_says_what_to_install(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    done = start(tmp_path, PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "pip install -c constraints.txt -e '.[render,demo]'" in done.stderr
    assert not (tmp_path / ".venv").exists()
