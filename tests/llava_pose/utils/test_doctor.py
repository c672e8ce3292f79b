"""llava-pose doctor: what it says of this machine, of packages that are missing or too old, and of machines with GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llava_pose.utils.doctor import BASICS, Machine, Package, answers, main
from tests.conftest import REPOSITORY

GIB = 1 << 30
GOOD = Package("torch", "2.13.0", "==2.13.0", True)


def machine(*gpus: tuple[str, int], **changes) -> Machine:
    values = {"bf16": bool(gpus), "torch_fault": "", "cores": 2, "memory": (8 * GIB, GIB), "disk": GIB}
    return Machine(list(gpus), **{**values, "shared": GIB, "locks": True, **changes})


def said(found, of: Machine) -> dict[str, tuple[bool, str]]:
    return {answer.what: (answer.will_run, answer.why) for answer in answers(found, of)}


def run_with(requirements: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The doctor where the installed project says that it needs these packages."""
    info = folder / "llava_pose-9.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: llava-pose", "Version: 9", "Provides-Extra: demo"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requirements), ""]))
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    words = [sys.executable, "-m", "llava_pose.cli", "doctor", "--folder", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)


def test_one_screen_says_what_is_here(capsys, tmp_path):
    assert main(["--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {version('torch')}" in "\n".join(lines)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("disk ") and " free at" in line for line in lines)
    assert str(tmp_path) in "".join("".join(lines).split()), "a long path goes on in the next line"
    assert "runs         prepare, instruct, predict, score, chat" in "\n".join(lines)


def test_an_extra_that_is_missing_is_named_with_its_remedy_and_the_basics_run(tmp_path):
    ended = run_with([f"numpy=={version('numpy')}", 'no-such-package>=6; extra == "demo"'], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "demo         no-such-package – (!)" in ended.stdout
    assert "will not     demo: no-such-package is missing: pip install 'llava-pose[demo]'" in ended.stdout


def test_a_basic_package_that_is_missing_or_too_old_is_exit_1(tmp_path):
    ended = run_with(["no-such-package>=6", "numpy>=99", f"pillow=={version('pillow')}"], tmp_path)
    assert ended.returncode == 1
    assert "no-such-package – (!), numpy" in ended.stdout
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("error: the basics do not run here: no-such-package is missing; numpy must be >=99")


def test_a_project_that_is_not_installed_is_said(tmp_path):
    whole = said({}, machine())
    assert whole["train"] == (False, whole["prepare, instruct, predict, score, chat"][1])
    assert "pip install -e ." in whole["train"][1]


def test_a_torch_that_cannot_be_imported_stops_the_basics():
    will_run, why = said({BASICS: [GOOD]}, machine(torch_fault="libcudart.so: no such file"))["train"]
    assert not will_run
    assert "libcudart.so: no such file" in why


@pytest.mark.parametrize(
    ("gpus", "bf16", "train", "half"),
    [
        ([], False, "on the CPU", (False, "no GPU")),
        ([("H200", 141 * GIB)], True, "one GPU", (True, "")),
        ([("T4", 16 * GIB)], False, "one GPU", (False, "the GPU has no bfloat16; use --fp16")),
        ([("A100", 40 * GIB)] * 8, True, "8 GPUs, by deepspeed or torchrun", (True, "")),
    ],
)
def test_what_trains_follows_from_the_gpus(gpus, bf16, train, half):
    whole = said({BASICS: [GOOD]}, machine(*gpus, bf16=bf16))
    assert whole["train"][0]
    assert whole["train"][1].startswith(train)
    assert whole["train --bf16"] == half
