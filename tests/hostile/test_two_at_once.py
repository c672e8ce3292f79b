"""One owner for every output: a second command that would write there is refused before it does anything."""

from __future__ import annotations

import errno
import fcntl
import time
from pathlib import Path

import pytest

from llava_pose.utils.output_folder import own_file, own_folder, own_new_folder
from tests.forked import start
from tests.hostile.every_command import OUTPUTS, Workspace, files_of, run, shown

NEW_FOLDERS = ("merge", "assemble")  # that are moved to their place whole


def owned(name: str, out: Path):
    """What the first of two commands holds."""
    if name in NEW_FOLDERS:
        return own_new_folder(out, "--out", name)
    if Path(OUTPUTS[name]).suffix:
        return own_file(out, "--out", name)
    if name == "vlm-api":
        return own_file(out / "predictions.jsonl", "--output-dir", name)
    return own_folder(out, "--out", name)


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_second_is_refused_at_once_and_writes_nothing(name: str, workspace: Workspace, tmp_path: Path, capsys):
    """Its model is not there, so that it would say so if it had come to load one."""
    out = tmp_path / OUTPUTS[name]
    words = workspace.words(name, out, model="/nowhere/model" if name != "linear-probing" else None)
    if name == "merge":
        words = workspace.words(name, out)
    with owned(name, out):
        before = files_of(tmp_path)
        began = time.monotonic()
        code, error = run(words, capsys)
        assert time.monotonic() - began < 20  # on a busy machine
        assert code == 2, error
        (line,) = shown(error)
        assert str(out) in line
        assert "is writing there; wait for it to end, or choose another path" in line
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_second_name_for_the_same_place_is_no_other_place(name: str, workspace: Workspace, tmp_path: Path, capsys):
    out, link = tmp_path / "place" / OUTPUTS[name], tmp_path / "link" / OUTPUTS[name]
    out.parent.mkdir()
    link.parent.mkdir()
    if not out.suffix:
        out.mkdir()
    link.symlink_to(out)
    if name in NEW_FOLDERS:
        pytest.skip("a link is no new folder")
    with owned(name, out):
        code, error = run(workspace.words(name, link), capsys)
    assert code == 2, error
    assert "is writing there; wait for it to end, or choose another path" in error


@pytest.mark.parametrize("name", ["instruct", "predict", "export", "caption", "prepare"])
def test_a_lock_that_nobody_holds_is_none(name: str, workspace: Workspace, tmp_path: Path, capsys):
    """As a killed run leaves it; a finished one leaves none."""
    out = tmp_path / OUTPUTS[name]
    lock = out.with_name(f".{out.name}.lock") if out.suffix else out / ".lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    code, error = run(workspace.words(name, out), capsys)
    assert code == 0, error
    assert not lock.exists()


@pytest.mark.parametrize("name", ["instruct", "export", "prepare"])
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    name: str, workspace: Workspace, tmp_path: Path, capsys, caplog, monkeypatch
):
    def without(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    out = tmp_path / OUTPUTS[name]
    code, error = run(workspace.words(name, out), capsys)
    assert code == 0, error
    assert any(f"--out {out}: this file system has no locks" in message for message in caplog.messages)


@pytest.mark.parametrize("name", ["predict", "instruct", "export", "train"])
def test_of_two_that_start_together_one_does_the_work(name: str, workspace: Workspace, tmp_path: Path):
    """Or both, one after the other, where the first has ended before the second began."""
    alone = tmp_path / "alone" / OUTPUTS[name]
    assert _ended(start(workspace.words(name, alone), tmp_path / "alone.log")) == 0, (
        tmp_path / "alone.log"
    ).read_text()
    out = tmp_path / "both" / OUTPUTS[name]
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    both = [start(workspace.words(name, out), log) for log in logs]
    codes = sorted(_ended(process) for process in both)
    said = [log.read_text() for log in logs]
    assert codes in ([0, 2], [0, 0]), said
    if codes == [0, 2]:
        assert any("is writing there" in text for text in said)
    weights = "adapter_model.safetensors" if name == "train" else None
    for file, content in files_of(alone).items():
        if (weights is None and not file.endswith((".yaml", ".lock"))) or file == weights:
            assert files_of(out)[file] == content, file


def _ended(process) -> int:
    process.join(120)
    return process.exitcode
