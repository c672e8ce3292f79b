"""An output that cannot be written is one sentence, before any long work; a reader that has enough ends a command quietly."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.hostile.every_command import OUTPUTS, Workspace, remount, run, shown, small_disk


@pytest.fixture(scope="module")
def read_only() -> Iterator[Path]:
    """A disk that may not be written to, as root too; a folder for each command is on it."""
    with small_disk("1m") as disk:
        for name in OUTPUTS:
            (disk / "there" / name / OUTPUTS[name]).parent.mkdir(parents=True, exist_ok=True)
            if not Path(OUTPUTS[name]).suffix:
                (disk / "there" / name / OUTPUTS[name]).mkdir()
        remount(disk, "ro")
        yield disk


@pytest.mark.parametrize("place", ["there", "to be made"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_read_only_output_is_said_at_once(name: str, place: str, read_only: Path, workspace: Workspace, capsys):
    """The model is not there either, which would be said if it had been looked for."""
    out = read_only / place.replace(" ", "_") / name / OUTPUTS[name]
    model = None if name in ("linear-probing", "merge") else "/nowhere/model"
    began = time.monotonic()
    code, error = run(workspace.words(name, out, model=model), capsys)
    assert time.monotonic() - began < 20  # on a busy machine
    assert code == 2, error
    (line,) = shown(error)
    assert str(out) in line
    assert "cannot write there (Read-only file system); choose another path" in line


@pytest.mark.parametrize("place", ["a name of 300 letters", "below a file"])
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_no_file_can_be(name: str, place: str, workspace: Workspace, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / ("n" * 300 if place == "a name of 300 letters" else "file")
    code, error = run(workspace.words(name, folder / OUTPUTS[name]), capsys)
    assert code == 2, error
    (line,) = shown(error)
    assert str(folder) in line


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_where_a_folder_belongs_and_a_folder_where_a_file_does(
    name: str, workspace: Workspace, tmp_path: Path, capsys
):
    out = tmp_path / OUTPUTS[name]
    if out.suffix:
        out.mkdir()
    else:
        out.touch()
    if name == "vlm-api":
        (tmp_path / "folder").mkdir()
    code, error = run(workspace.words(name, out), capsys)
    assert code == 2, error
    (line,) = shown(error)
    assert str(out) in line


@pytest.mark.parametrize(
    "text",
    [
        "score {predictions} --out {out}/scores.json",
        "tables {predictions} --out {out}/table.md",
        "inspect stats {prepared}",
        "caption --data {prepared} --dry-run",
        "vlm-api --data {prepared} --dry-run",
        "predict --help",
    ],
    ids=["score", "tables", "inspect", "caption", "vlm-api", "help"],
)
def test_a_reader_that_has_enough_ends_a_command_quietly(text: str, workspace: Workspace, tmp_path: Path):
    words = text.format(
        predictions=workspace.root / "predictions.jsonl", prepared=workspace.prepared, out=tmp_path
    ).split()
    command = [sys.executable, "-m", "llava_pose.cli", *words]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()  # as `| head -0` does
        error = process.stderr.read()
    assert process.returncode in (0, 1)
    assert "Traceback" not in error
    assert "Broken" not in error
    assert "Exception ignored" not in error
