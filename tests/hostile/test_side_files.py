"""What a command keeps beside its output, damaged by somebody: it is made anew, or named in a sentence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.data_commands import time_limit
from tests.hostile.every_command import Workspace, run, shown

DAMAGE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": Path.touch,
    "no text": lambda path: path.write_bytes(bytes(range(256))),
    "nested without end": lambda path: path.write_text("[" * 100_000),
    "of other types": lambda path: path.write_text('{"splits": 1, "records": "x", "rejects": {}}'),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["summary.json", ".prepare/train/cup/n0.json", "rejects.jsonl", "prepare.yaml"])
def test_what_prepare_keeps(name: str, kind: str, workspace: Workspace, tmp_path: Path, capsys) -> None:
    out = tmp_path / "crops"
    shutil.copytree(workspace.root / "crops", out)
    expected = (out / "train" / "metadata.jsonl").read_bytes()
    (out / name).unlink()
    DAMAGE[kind](out / name)
    with time_limit(60):
        code, error = run(workspace.words("prepare", out), capsys)
    if code == 0:
        assert (out / "train" / "metadata.jsonl").read_bytes() == expected
    else:
        assert code == 2, error
        (line,) = shown(error)
        assert str(out) in line


@pytest.mark.parametrize("text", ["model: null\n", "{}\n", "model: [1]\ndata: 7\nlora_r: x\n", "train_json: {a: 1}\n"])
def test_what_a_run_was_begun_with(text: str, workspace: Workspace, tmp_path: Path, capsys) -> None:
    words = workspace.words("train", workspace.adapter)
    (tmp_path / "adapter").mkdir()
    for path in workspace.adapter.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "adapter")
    words[words.index("--output-dir") + 1] = str(tmp_path / "adapter")
    (tmp_path / "adapter" / "train.yaml").write_text(text)
    code, error = run(words, capsys)
    assert code == 2, error
    (line,) = shown(error)
    assert "its run was begun with" in line
    assert "MISSING" not in line
