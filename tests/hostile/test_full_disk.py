"""A full disk is one sentence that names the output; with room again, the same command ends in the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_pose.errors import InputError
from llava_pose.utils.files import append_whole, atomic_file, reserve
from tests.forked import start
from tests.hostile.every_command import (
    OUTPUTS,
    POSE,
    Workspace,
    different_files,
    files_of,
    remount,
    run,
    shown,
    small_disk,
)
from tests.misbehaving import Script, serving

PAGE = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(Script(lambda body: json.dumps(POSE))) as script:
        yield script.url


def used(disk: Path) -> int:
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


QUICK = ("prepare", "export", "caption", "instruct", "vlm-api", "predict", "train")
COMMANDS = [name for name in OUTPUTS if name not in ("open-vocabulary", "joint", "orient-anything")]
# Pieces and a list of them, a journal of lines, checkpoints: the disk is full in each part of these. What the others write
# goes through the same functions, and their disk is full where some of it is written.
EVERYWHERE = ("prepare", "predict", "train")


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(name, share, id=f"{name}-at {share:.0%}", marks=[] if quick else pytest.mark.slow)
        for name in COMMANDS
        for share in ((0.05, 0.4, 0.7, 0.95) if name in EVERYWHERE else (0.4,))
        for quick in [name in QUICK and share == 0.4]
    ],
)
def test_going_on_ends_in_the_same_bytes(
    name: str, share: float, workspace: Workspace, server: str, tmp_path: Path, capsys, undisturbed
):
    expected, need = undisturbed(name)
    with small_disk("256m") as disk:
        out = disk / "o" / OUTPUTS[name]
        words = workspace.words(name, out, steps=4, server=server)
        remount(disk, f"size={min(max(2 * PAGE, int(share * need) // PAGE * PAGE), need - PAGE)}")
        code, error = run(words, capsys)
        assert code in (1, 2), error
        assert "Traceback" not in error
        line = shown(error)[-1]
        assert str(disk) in line, line
        assert "the disk is full" in line
        assert "make room and run the same command again" in line
        remount(disk, "size=256m")
        code, error = run(words, capsys)
        assert code == 0, error
        assert different_files(files_of(out), expected) == []


@pytest.fixture(scope="module")
def undisturbed(workspace: Workspace, server: str, request: pytest.FixtureRequest):
    """The files of a command that had room, made once, and how much it takes while it runs."""
    known: dict[str, tuple[dict[str, bytes], int]] = {}

    def of(name: str) -> tuple[dict[str, bytes], int]:
        if name not in known:
            with small_disk("256m") as disk:
                out = disk / "o" / OUTPUTS[name]
                log = workspace.root / f"{name}.log"
                process = start(workspace.words(name, out, steps=4, server=server), log)
                most = 0
                while process.is_alive():
                    most = max(most, used(disk))
                    process.join(0.002)
                assert process.exitcode == 0, log.read_text()
                known[name] = files_of(out), max(most, used(disk))
        return known[name]

    return of


# The parts that all of them stand on


def test_an_append_that_fails_leaves_the_file_as_it_was():
    """Also where what did not fit would fit once the file is cut again, as the rest of a buffer did."""
    with small_disk(str(4 * PAGE)) as disk:
        file = disk / "lines.jsonl"
        append_whole(file, b"first\n")
        with pytest.raises(InputError, match=rf"{file}: the disk is full, .* are left for the .* of it; make room"):
            append_whole(file, b"x" * (4 * PAGE + 100))
        assert file.read_bytes() == b"first\n"
        append_whole(file, b"second\n")
        assert file.read_bytes() == b"first\nsecond\n"


def test_a_file_that_does_not_fit_leaves_the_one_before():
    with small_disk(str(4 * PAGE)) as disk:
        file = disk / "table.md"
        with atomic_file(file) as opened:
            opened.write("first")
        with pytest.raises(InputError, match=f"{file}: the disk is full"), atomic_file(file, "wb") as opened:
            opened.write(b"x" * 6 * PAGE)
        assert os.listdir(disk) == ["table.md"]
        assert file.read_text() == "first"


def test_room_is_had_or_refused_before_a_map_is_written_to():
    with small_disk(str(8 * PAGE)) as disk:
        reserve(disk / "features", 4 * PAGE)
        assert (disk / "features").stat().st_blocks * 512 >= 4 * PAGE
        with pytest.raises(InputError, match=r"more: the disk is full, .* KiB are left for the 64 KiB of it"):
            reserve(disk / "more", 16 * PAGE)
