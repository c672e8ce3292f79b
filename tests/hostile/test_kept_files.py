"""No command replaces a file that it has not written itself: what it reads, its recipe, a photograph, another's result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hostile.every_command import OUTPUTS, Workspace, files_of, run, shown

PHOTOGRAPH = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256))


def refused(words: list[str], capsys: pytest.CaptureFixture[str], place: Path) -> str:
    """The one sentence of a command that changes nothing."""
    before = files_of(place)
    code, error = run(words, capsys)
    assert code == 2, error
    assert "Traceback" not in error
    (line,) = shown(error)
    assert files_of(place) == before
    return line


@pytest.mark.parametrize("name", [name for name in OUTPUTS if Path(OUTPUTS[name]).suffix])
def test_a_photograph_named_as_an_output_is_kept(name: str, workspace: Workspace, tmp_path: Path, capsys):
    out = tmp_path / "photo.jpg"
    out.write_bytes(PHOTOGRAPH)
    assert str(out) in refused(workspace.words(name, out), capsys, tmp_path)


@pytest.mark.parametrize("name", ["instruct", "score", "tables", "report", "sheet", "orient-anything", "inspect"])
def test_a_command_replaces_its_own_output(name: str, workspace: Workspace, tmp_path: Path, capsys):
    out = tmp_path / OUTPUTS[name]
    for _ in range(2):
        code, error = run(workspace.words(name, out), capsys)
        assert code == 0, error


@pytest.mark.parametrize(("name", "recipe"), [("instruct", "out.yaml"), ("score", "out.json"), ("tables", "out.md")])
def test_a_recipe_is_no_output(name: str, recipe: str, workspace: Workspace, tmp_path: Path, capsys):
    file = tmp_path / recipe
    options = {"data": str(workspace.prepared)} if name == "instruct" else {}
    options |= {"predictions": [str(workspace.root / "predictions.jsonl")]} if name != "instruct" else {}
    options |= {"table": 1} if name == "tables" else {}
    file.write_text(yaml.safe_dump(options))
    assert str(file) in refused([name, "--config", str(file), "--out", str(file)], capsys, tmp_path)


@pytest.fixture
def prepared(workspace: Workspace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workspace.prepared, tmp_path / "prepared"))


def test_what_was_prepared_is_kept(workspace: Workspace, prepared: Path, tmp_path: Path, capsys):
    predictions = tmp_path / "predictions.jsonl"
    shutil.copy(workspace.root / "predictions.jsonl", predictions)
    metadata = prepared / "val" / "metadata.jsonl"
    for words in (
        ["instruct", "--data", str(prepared), "--split", "val", "--out", str(metadata)],
        ["caption", "--data", str(prepared), "--split", "val", "--out", str(metadata)],
        ["inspect", "page", str(predictions), "--prepared", str(prepared), "--out", str(metadata)],
        ["inspect", "page", str(prepared), "--out", str(predictions)],
        ["orient-anything", "--data", str(prepared), "--answers", str(predictions), "--out", str(predictions)],
    ):
        assert "--out" in refused(words, capsys, tmp_path)


def _link(photo: Path, out: Path) -> None:
    out.symlink_to(photo)


OVERLAYS: dict[str, Callable[[Path, Path], None]] = {
    "a link to the picture": _link,
    "a FIFO": lambda photo, out: os.mkfifo(out),
    "a folder": lambda photo, out: out.mkdir(),
}


@pytest.mark.parametrize("kind", OVERLAYS)
def test_an_overlay_replaces_nothing_else(kind: str, workspace: Workspace, tmp_path: Path, capsys):
    photo = next((workspace.prepared / "val").rglob("*.png"))
    out = tmp_path / "out.jpg"
    OVERLAYS[kind](photo, out)
    words = ["chat", str(photo), "--checkpoint", "/nowhere", "--question", "What?", "--save-overlay", str(out)]
    assert str(out) in refused(words, capsys, tmp_path)
    assert os.path.lexists(out)


def test_an_overlay_is_not_drawn_over_the_picture_itself(workspace: Workspace, tmp_path: Path, capsys):
    photo = tmp_path / "p.jpg"
    shutil.copy(next((workspace.prepared / "val").rglob("*.png")), photo)
    words = ["chat", str(photo), "--checkpoint", "/nowhere", "--question", "What?", "--save-overlay", str(photo)]
    assert "is one of the files that are read; name another" in refused(words, capsys, tmp_path)


@pytest.mark.parametrize(
    "suffix", ["bufr", "hdf", "h5", "grib", "wmf", "palm", "msp", "xbm", "blp", "pdf", "eps", "im"]
)
def test_an_overlay_is_of_a_format_that_holds_any_picture(suffix: str, workspace: Workspace, tmp_path: Path, capsys):
    photo = next((workspace.prepared / "val").rglob("*.png"))
    out = str(tmp_path / f"out.{suffix}")
    words = ["chat", str(photo), "--checkpoint", "/nowhere", "--question", "What?", "--save-overlay", out]
    assert "give a name that ends in .png or .jpg or .jpeg or .webp" in refused(words, capsys, tmp_path)


@pytest.mark.parametrize("name", ["assemble", "train", "classifier", "neural-mesh"])
def test_a_model_that_is_there_is_kept(name: str, workspace: Workspace, tmp_path: Path, capsys):
    out = tmp_path / "out"
    shutil.copytree(workspace.base, out, ignore=shutil.ignore_patterns("*.yaml"))
    assert str(out) in refused(workspace.words(name, out), capsys, tmp_path)


def test_a_base_is_not_assembled_over_its_parts(workspace: Workspace, tmp_path: Path, capsys):
    base = tmp_path / "base"
    shutil.copytree(workspace.base, base)
    assert "is there already" in refused(["assemble", "--llava", str(base), "--out", str(base)], capsys, tmp_path)
