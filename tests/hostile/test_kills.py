"""Killed with -9 at random moments, again and again, every command that takes long ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.forked import REPOSITORY, free_port, run_together, start
from tests.hostile.every_command import OUTPUTS, POSE, Workspace, different_files, files_of
from tests.misbehaving import Script, serving

pytestmark = pytest.mark.slow
KILLS = 3
LONG = ("render", "align", "prepare", "export", "caption", "predict", "train", "classifier", "neural-mesh")
LONG += ("linear-probing", "vlm-api")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Script(lambda body: json.dumps(POSE), delay=0.05)) as script:
        yield script.url


@pytest.mark.parametrize("name", LONG)
def test_a_command_that_was_killed_goes_on(name: str, workspace: Workspace, server: str, tmp_path: Path):
    draw = random.Random(name)
    alone, out = tmp_path / "alone" / OUTPUTS[name], tmp_path / "killed" / OUTPUTS[name]
    words = [workspace.words(name, place, steps=6, server=server) for place in (alone, out)]
    if name in ("render", "prepare", "align"):
        words = [[*these, "--workers", "2"] for these in words]
    _run(words[0], tmp_path / "alone.log")
    expected = files_of(alone)
    killed = 0
    for share in sorted(draw.uniform(0, 0.95) for _ in range(KILLS)):
        process = start(words[1], tmp_path / "killed.log")
        while process.is_alive() and _size(out) <= share * _size(alone):
            process.join(0.001)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (-signal.SIGKILL, 0), (tmp_path / "killed.log").read_text()
    assert killed, "it was always done before it could be killed"
    _run(words[1], tmp_path / "killed.log")
    assert different_files(files_of(out), expected) == []


def _size(place: Path) -> int:
    """Bytes of what stands at an output's place."""
    total = 0
    for folder, _, names in os.walk(place if place.is_dir() else place.parent):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _run(words: list[str], log: Path) -> None:
    process = start(words, log)
    process.join(240)
    assert process.exitcode == 0, log.read_text()


@pytest.mark.distributed
def test_two_processes_of_one_run_that_are_killed_go_on(workspace: Workspace, tmp_path: Path):
    """They are one owner of their folder; a launcher that is killed with them leaves nothing that keeps the next one out."""
    alone, out = tmp_path / "alone", tmp_path / "killed"
    began = time.monotonic()
    words = [workspace.words("train", place, steps=8) for place in (alone, out)]
    ended = run_together(words[0], tmp_path / "alone.log")
    assert ended.returncode == 0, ended.said
    seconds = time.monotonic() - began
    process = _launched(words[1], tmp_path / "launched.log")
    while process.poll() is None and not list(out.glob("checkpoint-*/complete.json")):
        assert time.monotonic() - began < 4 * seconds + 300
        time.sleep(0.005)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not (out / "training_done.json").exists()
    ended = run_together(words[1], tmp_path / "killed.log")
    assert ended.returncode == 0, ended.said
    assert "going on from" in ended.said
    assert different_files(files_of(out), files_of(alone)) == []


def _launched(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    with log.open("wb") as file:
        return subprocess.Popen([*command, "train.py", *words[1:]], cwd=REPOSITORY, stdout=file, stderr=file)
