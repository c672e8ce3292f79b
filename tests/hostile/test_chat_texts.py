"""Odd texts and names in the terminal of `llava-pose chat`: nothing in them moves the cursor, hides a line or sets a title."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from llava_pose.data.records import Pose
from llava_pose.inference.answers import ChatAnswer
from llava_pose.serve.chat import main, told
from llava_pose.serve.session import named_objects

ODD = {
    "a title": "\x1b]0;owned\x07",
    "a cleared screen": "\x1b[2J\x1b[H",
    "C1": "\x9b31mred",
    "backspaces": "no\b\byes",
    "a return": "hidden\rshown",
    "DEL": "a\x7fb",
    "reversed": "\u202egnp.exe",
    "isolated": "\u2066a\u2069",
}
ids = pytest.mark.parametrize("text", list(ODD.values()), ids=list(ODD))


def assert_harmless(shown: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in shown), ascii(shown)


@ids
def test_an_answer_is_shown_without_control_characters(text):
    answer = ChatAnswer(f"A car{text} at <pose6D>.", [Pose(0, 0, 0, 2, 8, 8)], [0.5])
    out = told(answer.readable, answer, answer.objects(named_objects(answer.text)), details=True)
    assert_harmless(out)
    assert out.startswith("A car")
    assert "azimuth" in out


@ids
@pytest.mark.parametrize("kind", ["missing", "no picture", "a fifo"])
def test_a_file_name_is_shown_without_control_characters(capsys, tmp_path, text, kind):
    path = tmp_path / f"{text}.png"
    if kind == "no picture":
        path.write_text("this is no picture")
    elif kind == "a fifo":
        os.mkfifo(path)
    assert main(["--checkpoint", "nowhere", "--image", str(path), "--question", "What is this?"]) == 2
    errors = capsys.readouterr().err
    assert_harmless(errors)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@ids
def test_a_good_picture_of_an_odd_name_and_an_odd_question_are_answered(taught, capsys, tmp_path, text):
    path = tmp_path / f"{text}.png"
    shutil.copy(taught.picture, path)
    overlay = Path(tmp_path / f"{text}.axes.png")
    options = ["--checkpoint", str(taught.folder), "--device", "cpu", "--question", f"What is this? {text} \ud800"]
    assert main([str(path), *options, "--save-overlay", str(overlay)]) == 0
    out, errors = capsys.readouterr()
    assert_harmless(out + re.sub(r"\rLoading weights.*", "", errors))


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "\0", "x" * 300])
def test_what_is_no_file_is_one_sentence(capsys, name):
    assert main(["--checkpoint", "nowhere", "--image", name, "--question", "What is this?"]) == 2
    errors = capsys.readouterr().err
    assert_harmless(errors)
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
