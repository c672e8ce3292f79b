"""llava-pose chat on a real checkpoint: angles that were taught, follow-ups, and every way to ask wrongly."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava_pose.data.conversation import CAPTION_QUESTIONS, JOINT_QUESTIONS, POSE_QUESTIONS
from llava_pose.data.images import MAX_SQUARE, PADDING_COLOUR, cut_to_box, open_picture
from llava_pose.data.poses.formats import read_poses
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference.answers import ChatAnswer, PoseAnswer
from llava_pose.inference.drawing import draw_axes
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.loading import load_full
from llava_pose.pose.geometry import TWO_PI
from llava_pose.pose.metrics import pose_error
from llava_pose.serve.chat import describe_details, main
from llava_pose.serve.page_html import table
from llava_pose.serve.session import ChatSession, Turn, angles_in_degrees, doubt, named_objects, possible_words
from llava_pose.serve.session import taught as known_sentence
from tests.forked import start

ANGLES = re.compile(r"\(azimuth (\d+)°, elevation (-?\d+)°, in-plane (-?\d+)°\)")
TAUGHT_WITHIN = 5.0  # degrees: what the head learnt its lessons to, and whole degrees shown
CAR_QUESTION, CUP_FOLLOW_UP = "What is the pose of the car?", "And the cup?"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}


def assert_shows(text: str, pose: Pose, *, at: int = 0) -> None:
    """The angles at that place of the text, in degrees, are those of the pose."""
    shown = [tuple(map(float, angles)) for angles in ANGLES.findall(text)][at]
    error = pose_error(np.radians(shown), np.array(pose.angles))
    assert math.degrees(float(error)) < TAUGHT_WITHIN, f"{shown} in {text!r}"


def words(taught, *more: str) -> list[str]:
    return [str(taught.picture), "--checkpoint", str(taught.folder), "--device", "cpu", *more]


def command(taught, *more: str) -> list[str]:
    return [sys.executable, "-m", "llava_pose.cli", "chat", *words(taught, *more)]


@pytest.fixture
def chat(capsys, caplog, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: options and the lines of stdin -> (exit code, stdout, the error on stderr)."""

    def run(options: Sequence[str], stdin: str = "") -> tuple[int, str, str]:
        caplog.set_level(logging.INFO)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(list(options))
        out, err = capsys.readouterr()
        return code, out, "\n".join(line for line in err.splitlines() if line.startswith("error: "))

    return run


@pytest.fixture(scope="module")
def predictor(taught) -> PosePredictor:
    return PosePredictor.from_checkpoint(taught.folder, device="cpu")


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    """Exit code 2, nothing on stdout, and one sentence that holds the parts."""
    code, out, error = result
    assert code == 2
    assert out == ""
    assert error.count("\n") == 0
    for part in parts:
        assert part in error


# Questions and answers


def test_questions_and_follow_ups_from_a_pipe(taught, chat):
    stdin = f"{CAR_QUESTION}\n{CUP_FOLLOW_UP}\n\nThis is behind the empty line.\n"
    code, out, _ = chat(words(taught, "--viewport", str(taught.viewport)), stdin)
    assert code == 0
    first, second = out.splitlines()
    assert re.fullmatch(rf"The car is at {ANGLES.pattern}\.", first)
    assert re.fullmatch(rf"The cup is at {ANGLES.pattern}\.", second)
    assert_shows(first, taught.car)
    assert_shows(second, taught.cup)


def test_a_last_line_without_its_end_is_asked(taught, chat):
    code, out, _ = chat(words(taught), CAR_QUESTION)
    assert code == 0
    assert len(out.splitlines()) == 1
    assert_shows(out, taught.car)


@pytest.mark.parametrize("stdin", ["", "\n", "   \n", f"\n{CAR_QUESTION}\n"])
def test_the_end_of_the_input_or_an_empty_line_ends(taught, chat, stdin):
    assert chat(words(taught), stdin) == (0, "", "")


def test_questions_as_options_are_one_chat(taught, chat):
    code, out, _ = chat(words(taught, "--question", CAR_QUESTION, "--question", CUP_FOLLOW_UP), "This is not read.\n")
    assert code == 0
    first, second = out.splitlines()
    assert_shows(first, taught.car)
    assert_shows(second, taught.cup)


def test_each_pose_of_an_answer_stands_in_its_place(taught, chat):
    code, out, _ = chat(words(taught, "--question", "Describe the picture."))
    assert code == 0
    assert re.fullmatch(rf"A car at {ANGLES.pattern} and a cup at {ANGLES.pattern}\.\n", out)
    assert_shows(out, taught.car, at=0)
    assert_shows(out, taught.cup, at=1)


def test_details_of_each_pose(taught, chat):
    options = words(taught, "--details", "--viewport", str(taught.viewport), "--question", "Describe the picture.")
    code, out, _ = chat(options)
    assert code == 0
    number = r"(-?\d+\.\d+)"
    found = re.findall(
        rf"^  pose (\d): azimuth {number}°, elevation {number}°, in-plane {number}°, confidence (\d+)%, "
        rf"distance {number}, at \((\d+), (\d+)\) px$",
        out,
        re.MULTILINE,
    )
    assert [line[0] for line in found] == ["1", "2"]
    for line, pose in zip(found, (taught.car, taught.cup), strict=True):
        azimuth, elevation, theta, confidence, distance, px, py = map(float, line[1:])
        assert pose_error(np.radians([azimuth, elevation, theta]), np.array(pose.angles)) < math.radians(TAUGHT_WITHIN)
        assert 0 <= confidence <= 100
        assert distance == pytest.approx(pose.distance, rel=0.1)
        assert (px, py) == pytest.approx((pose.px, pose.py), abs=12)


def test_an_answer_that_is_cut_off_says_so(taught, chat, caplog):
    code, out, _ = chat(words(taught, "--max-new-tokens", "3", "--question", CAR_QUESTION))
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "cut off at 3 tokens" in caplog.text
    assert "cut off" not in out


class Terminal:
    """A command at a terminal of its own, as a person sees it."""

    def __init__(self, arguments: Sequence[str]):
        self.seen = ""
        self._read = 0
        self._keyboard, self._screen = pty.openpty()
        self.process = start(["chat", *arguments], Path(os.ttyname(self._screen)), environment={"TERM": "dumb"})

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def press_until_it_ends(self, keys: str) -> None:
        """As a person does where nothing happens: Python's line editing sleeps through a Ctrl-C just after its prompt."""
        for _ in range(20):
            self.type(keys)
            self.process.join(30)  # a busy machine takes long to end one
            if not self.process.is_alive():
                return

    def wait_for(self, text: str, seconds: float = 300) -> str:
        """What is new on the screen, up to and with that text."""
        while text not in self.seen[self._read :]:
            ready, _, _ = select.select([self._keyboard], [], [], seconds)
            try:
                shown = os.read(self._keyboard, 4096) if ready else b""
            except OSError:  # the other end is closed
                shown = b""
            assert shown, f"waited in vain for {text!r} after:\n{self.seen}"
            if not self.seen:
                os.close(self._screen)  # the command has it now, and the end of the command will be seen here
            self.seen += shown.decode(errors="replace").replace("\r\n", "\n")
        end = self.seen.index(text, self._read) + len(text)
        new, self._read = self.seen[self._read : end], end
        return new

    def close(self) -> int:
        self.process.join(60)
        self.process.kill()
        self.process.join()
        os.close(self._keyboard)
        return self.process.exitcode


def test_at_a_terminal_a_bad_question_does_not_end_the_chat(taught):
    terminal = Terminal(words(taught))
    opening = terminal.wait_for("\n> ")
    assert "160×160 pixels" in opening
    assert "an empty line or Ctrl-D ends" in opening
    terminal.type("What is at <pose6D>?\n")
    assert "ask in plain words" in terminal.wait_for("\n> ")
    terminal.type(f"{CAR_QUESTION}\n")
    assert_shows(terminal.wait_for("\n> "), taught.car)
    terminal.type(f"{CUP_FOLLOW_UP}\n")
    assert_shows(terminal.wait_for("\n> "), taught.cup)
    terminal.press_until_it_ends("\x03")  # Ctrl-C at the prompt
    assert terminal.close() == 0
    assert "Traceback" not in terminal.seen


def endless_copy(taught, folder: Path) -> Path:
    """A checkpoint whose answers have no end of their own."""
    shutil.copytree(taught.folder, folder)
    for name, value in (
        ("generation_config.json", {"eos_token_id": None}),
        ("tokenizer_config.json", {"eos_token": "<s>"}),
    ):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **value}))
    return folder


def test_an_answer_has_no_pose_that_no_word_stands_before(taught, tmp_path):
    predictor = PosePredictor.from_checkpoint(endless_copy(taught, tmp_path / "endless"), device="cpu")
    said: list[str] = []
    picture = Image.open(taught.picture)
    answer = predictor.chat(
        picture, [{"role": "user", "content": CAR_QUESTION}], max_new_tokens=60, on_text=said.append
    )
    assert len(answer.poses) == answer.text.count("<pose6D>") == 1
    assert answer.complete
    assert said == sorted(said, key=len)
    assert said[-1] == answer.text


def test_ctrl_c_during_an_answer_ends_the_answer_and_not_the_chat(taught, tmp_path):
    """A model that talks on and on, which a person stops twice."""
    endless = endless_copy(taught, tmp_path / "endless")
    # nor does it come to a pose, at the second of which an answer would end
    weights = load_file(endless / "pose_head.safetensors")
    model = load_full(taught.folder, dtype=torch.float32)
    row = model.vlm.get_output_embeddings().weight[model.pose_config.pose_token_id]
    save_file({**weights, "pose_token_output.change": -row[None].detach().clone()}, endless / "pose_head.safetensors")
    options = [str(taught.picture), "--checkpoint", str(endless), "--device", "cpu", "--max-new-tokens", "400"]
    terminal = Terminal(options)
    terminal.wait_for("\n> ")
    for question in (CAR_QUESTION, CUP_FOLLOW_UP):
        terminal.type(f"{question}\n")
        terminal.wait_for("\n")  # the question, as the terminal shows it
        time.sleep(0.3)
        terminal.type("\x03")
        assert "azimuth" not in terminal.wait_for("(stopped; ask something else")
        terminal.wait_for("\n> ")
    terminal.press_until_it_ends("\x04")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.seen


def test_without_a_person_ctrl_c_ends_the_command(taught, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PosePredictor, "chat", interrupted)
    assert main(words(taught, "--question", CAR_QUESTION)) == 1
    assert "stopped" in capsys.readouterr().err


# Commands: in a pipe as at a terminal


def test_a_person_sees_the_answer_grow_and_each_pose_in_words(taught):
    terminal = Terminal(words(taught))
    terminal.wait_for("\n> ")
    terminal.type("Describe the picture.\n")
    shown = terminal.wait_for("\n> ")
    assert "A car at [1] and a cup at [2].\n  [1] car (azimuth" in shown
    assert re.search(r"\[1\] car .*, seen from its [a-z-]+, (slightly|from|at).*, \d+% sure\n", shown)
    assert re.search(r"\[2\] cup .*, seen (slightly|from|at).*, \d+% sure\n", shown)
    assert "side" not in shown.split("[2] cup")[1]
    terminal.type("/help\n")
    assert "/box X Y W H" in terminal.wait_for("\n> ")
    terminal.type("/nonsense\n")
    assert "there is no command /nonsense" in terminal.wait_for("\n> ")
    terminal.type("/quit\n")
    assert terminal.close() == 0


def test_a_pipe_gets_one_line_an_answer_and_no_prompt(taught):
    result = subprocess.run(
        command(taught, "--json"),
        input=f"/help\n{CAR_QUESTION}\n/quit\nThis is behind the end.\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f]|> ", result.stdout) is None
    [line] = result.stdout.splitlines()
    told = json.loads(line)
    assert (told["picture"], told["box"], told["question"]) == (str(taught.picture), None, CAR_QUESTION)
    assert told["answer"].startswith("The car is at (azimuth")
    [pose] = told["poses"]
    assert pose["category"] == "car"
    assert pose["words"].startswith("seen from its ")
    assert_shows(told["answer"], taught.car)


def test_several_pictures_are_asked_and_a_bad_one_stops_nothing(taught, chat, tmp_path, caplog):
    bad, other = tmp_path / "bad.png", tmp_path / "other.png"
    bad.write_text("this is no picture")
    shutil.copy(taught.picture, other)
    code, out, error = chat([str(taught.picture), str(bad), str(other), *words(taught, "--question", CAR_QUESTION)[1:]])
    assert code == 2
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(taught.picture), str(other)]
    assert_shows(out, taught.car, at=1)
    assert f"1 of 3 pictures could not be used; the first: {bad}: cannot read the picture" in error


def test_another_picture_begins_another_chat(taught, chat, tmp_path):
    other = tmp_path / "the other.png"
    Image.open(taught.picture).convert("RGB").rotate(90).save(other)
    code, out, _ = chat(words(taught, "--json"), f"{CAR_QUESTION}\n/image {other}\n{CAR_QUESTION}\n")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert (first["picture"], second["picture"]) == (str(taught.picture), str(other))
    assert first["poses"] != second["poses"]


def test_a_box_is_asked_about_and_its_pose_is_in_the_pixels_of_the_picture(taught, chat, tmp_path):
    """The taught picture, with room round it that the box takes off again."""
    wide = tmp_path / "wide.png"
    room = Image.new("RGB", (400, 300), "black")
    picture = Image.open(taught.picture).convert("RGB")
    room.paste(picture, (200, 100))
    room.save(wide)
    side = round(160 / 1.1, 3)  # a box is cut out with 5% at each side
    corner = 80 - side / 2
    lines = f"/box {200 + corner} {100 + corner}, {side} {side}\n{CAR_QUESTION}\n/box\n{CAR_QUESTION}\n"
    options = [str(wide), "--checkpoint", str(taught.folder), "--device", "cpu", "--json"]
    code, out, _ = chat(options, lines)
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert_shows(first["answer"], taught.car)
    [pose] = first["poses"]
    assert (pose["pose"]["px"], pose["pose"]["py"]) == pytest.approx((200 + taught.car.px, 100 + taught.car.py), abs=12)
    assert first["box"] == pytest.approx([200 + corner, 100 + corner, 200 + corner + side, 100 + corner + side])
    assert second["box"] is None


def test_poses_are_saved_as_a_picture_and_as_lines_that_convert_reads(taught, chat, tmp_path):
    files = [tmp_path / name for name in ("axes.png", "poses.csv", "poses.jsonl")]
    lines = "".join(f"/save {file}\n" for file in (*files, *files))  # the second time in place of the first
    assert chat(words(taught), f"Describe the picture.\n{lines}")[0] == 0
    assert Image.open(files[0]).size == (160, 160)
    for file in files[1:]:
        items, faults = read_poses(file, "llava-pose")
        assert faults == []
        assert [item.category for item in items] == ["car", "cup"]
        for item, pose in zip(items, (taught.car, taught.cup), strict=True):
            assert pose_error(np.array(item.pose.angles), np.array(pose.angles)) < math.radians(TAUGHT_WITHIN)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/box 1 2 three 4", "/box takes x, y, width and height in pixels"),
        ("/box 1 2 3", "/box takes x, y, width and height in pixels"),
        ("/box 900 900 10 10", "has no pixel of its picture, which is 160×160"),
        ("/box nan 0 1 1", "four finite numbers"),
        ("/image", "no further picture was given"),
        ("/image nowhere.png", "nowhere.png"),
        ("/save", "name the file"),
        ("/save axes.xyz", "give a name that ends in .png"),
        ("/save axes.png", "there is no pose yet"),
        ("/json", "there is no answer yet"),
        ("/qiut", "there is no command /qiut; /help lists them"),
        ("/\x1b[2J", "there is no command /\\u001b[2J"),
    ],
)
def test_a_command_that_cannot_be_done_ends_a_pipe_with_one_sentence(taught, chat, line, sentence):
    assert_refused(chat(words(taught), f"{line}\n{CAR_QUESTION}\n"), sentence)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The car is at <pose6D>.", ["car"]),
        ("This is a pair of scissors at <pose6D>.", ["scissors"]),
        ("A dining table at <pose6D>, and beside it a chair at <pose6D>.", ["diningtable", "chair"]),
        ("The object described is at <pose6D>.", ["object"]),
        ("No pose.", []),
    ],
)
def test_each_pose_has_the_category_that_stands_before_it(text, names):
    assert named_objects(text) == names


# The overlay


def test_the_axes_are_drawn_on_a_copy(taught, chat, predictor, tmp_path):
    before = taught.picture.read_bytes()
    out = tmp_path / "axes.png"
    code, _, _ = chat(words(taught, "--question", CAR_QUESTION, "--save-overlay", str(out)))
    assert code == 0
    picture, drawn = Image.open(taught.picture).convert("RGB"), Image.open(out)
    assert drawn.size == picture.size
    moved = np.abs(np.asarray(drawn, dtype=int) - np.asarray(picture, dtype=int)).max(-1) > 30
    assert 0.01 < moved.mean() < 0.5
    session = ChatSession(predictor, picture)
    session.ask(CAR_QUESTION)
    assert drawn.tobytes() == session.overlay().tobytes()
    assert taught.picture.read_bytes() == before


def test_an_overlay_that_cannot_be_written_is_refused(taught, chat, tmp_path):
    for name in ("axes", "axes.xyz", "axes.txt"):
        refused = chat(words(taught, "--question", CAR_QUESTION, "--save-overlay", str(tmp_path / name)))
        assert_refused(refused, f"{name}:", ".png")
    assert list(tmp_path.iterdir()) == []


def test_without_a_pose_no_overlay_is_written(taught, chat, caplog, tmp_path):
    out = tmp_path / "axes.png"
    options = words(taught, "--question", CAR_QUESTION, "--max-new-tokens", "1", "--save-overlay", str(out))
    assert chat(options)[0] == 0
    assert "was not written: no answer held a pose" in caplog.text
    assert not out.exists()


# Bad input


def test_a_question_that_cannot_be_asked_is_refused(taught, chat):
    assert_refused(chat(words(taught, "--question", " ")), "the question is empty")
    assert_refused(chat(words(taught), "What is at <pose6D>?\n"), "<pose6D>", "ask in plain words")
    assert_refused(chat(words(taught), "<image> What is this?\n"), "<image>", "ask in plain words")
    assert_refused(chat(words(taught), "? " * 1900), "start a new chat")
    assert_refused(chat(words(taught, "--question", "What is it? " * 1000)), "characters, more than 4000")
    assert_refused(chat(words(taught), "a" * 1_000_000), "more than 4000: ask in fewer words")


def test_bytes_that_are_no_text_do_no_harm(taught, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff?\n"), encoding="utf-8"))
    assert main(words(taught)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def _bad_pictures(folder: Path, good: Path) -> dict[str, Path]:
    picture = Image.open(good).convert("RGB")
    paths = {name: folder / f"{name}.jpg" for name in ("missing", "text", "empty", "truncated", "folder", "deep")}
    paths["text"].write_text("this is no picture")
    paths["empty"].touch()
    picture.save(paths["truncated"], quality=95)
    paths["truncated"].write_bytes(paths["truncated"].read_bytes()[:2000])
    paths["folder"].mkdir()
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(paths["deep"], "TIFF")
    return paths


@pytest.mark.parametrize("name", ["missing", "text", "empty", "truncated", "folder", "deep"])
def test_a_bad_picture_is_named(taught, chat, tmp_path, name):
    path = _bad_pictures(tmp_path, taught.picture)[name]
    # it is read before the checkpoint, which takes long to load: this one is not even there
    refused = chat([str(path), "--checkpoint", "nowhere", "--question", CAR_QUESTION])
    assert_refused(refused, str(path), "save it with 8" if name == "deep" else "give a JPEG, PNG or WebP file")
    assert refused[2].count(str(path)) == 1


def test_a_picture_and_a_checkpoint_are_needed(taught, chat):
    assert_refused(chat(["--checkpoint", str(taught.folder)]), "no picture is given")
    assert_refused(chat([str(taught.picture)]), "--checkpoint is needed")


def _bad_checkpoints(folder: Path, good: Path) -> dict[str, Path]:
    paths = {name: folder / name for name in ("missing", "empty", "cut", "other", "file", "no-processor")}
    paths["empty"].mkdir()
    paths["file"].write_text("this is no folder")
    for name in ("cut", "other", "no-processor"):
        shutil.copytree(good, paths[name])
    weights = paths["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    (paths["other"] / "config.json").write_text('{"model_type": "llama"}')
    for file in paths["no-processor"].glob("*processor*.json"):
        file.unlink()
    return paths


@pytest.mark.parametrize("name", ["missing", "empty", "cut", "other", "file", "no-processor"])
def test_a_wrong_checkpoint_is_named(taught, chat, tmp_path, name):
    path = _bad_checkpoints(tmp_path, taught.folder)[name]
    refused = chat([str(taught.picture), "--checkpoint", str(path), "--question", CAR_QUESTION, "--device", "cpu"])
    assert_refused(refused, str(path))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-new-tokens", "0"), ("--viewport", "0"), ("--viewport", "nan"), ("--viewport", "inf")],
)
def test_a_senseless_number_is_refused(taught, chat, option, value):
    assert_refused(chat(words(taught, option, value)), option, "must be")


# The session beneath chat and demo


def test_a_follow_up_is_asked_with_all_that_went_before(taught, predictor):
    picture = open_picture(taught.picture)
    session = ChatSession(predictor, picture, viewport=taught.viewport)
    session.ask(CAR_QUESTION)
    session.ask(CUP_FOLLOW_UP)
    alone = ChatSession(predictor, picture, viewport=taught.viewport).ask(CUP_FOLLOW_UP)
    assert session.messages == [
        {"role": "user", "content": CAR_QUESTION},
        {"role": "assistant", "content": "The car is at <pose6D>."},
        {"role": "user", "content": CUP_FOLLOW_UP},
        {"role": "assistant", "content": "The cup is at <pose6D>."},
    ]
    assert alone != session.turns[-1].answer


def test_a_question_that_fails_leaves_the_chat_as_it_was(taught, predictor):
    session = ChatSession(predictor, open_picture(taught.picture), viewport=taught.viewport)
    session.ask(CAR_QUESTION)
    before = list(session.turns)
    for question in ("", " \n", "at <pose6D>?", "<image>", "long " * 5000):
        with pytest.raises(InputError):
            session.ask(question)
    assert session.turns == before
    answer = session.ask(CUP_FOLLOW_UP)
    assert answer.text == "The cup is at <pose6D>."


def test_a_pose_without_a_place_is_told_and_drawn_without_one():
    """As the head gives one whose numbers of the place are none."""
    session = ChatSession(None, Image.new("RGB", (200, 100)))  # type: ignore[arg-type] (nothing is asked)
    answer = ChatAnswer("The car is at <pose6D>.", [Pose(0.1, 0.2, 0.3)], [0.5])
    session.turns.append(Turn("Where is the car?", answer))
    assert session.overlay(at_least=300, cube=True).size == (300, 150)
    assert describe_details(answer, 0).endswith("confidence 50%, its place is unknown")
    assert "<td></td><td>50%</td>" in table(session.objects(answer))


def test_a_pose_that_is_no_number_is_a_sentence(taught):
    damaged = PosePredictor.from_checkpoint(taught.folder, device="cpu")
    torch.nn.init.constant_(damaged._model.pose_head.linear_2.bias, float("nan"))
    session = ChatSession(damaged, open_picture(taught.picture), viewport=taught.viewport)
    with pytest.raises(InputError, match="a pose that is no number"):
        session.ask(CAR_QUESTION)
    assert session.turns == []


def test_the_overlay_shows_the_latest_poses(taught, predictor):
    picture = open_picture(taught.picture)
    session = ChatSession(predictor, picture, viewport=taught.viewport)
    assert session.overlay().tobytes() == picture.tobytes()
    [car] = session.ask(CAR_QUESTION).poses
    assert session.overlay().tobytes() == draw_axes(picture, car, taught.viewport).tobytes()
    [cup] = session.ask(CUP_FOLLOW_UP).poses
    assert session.overlay().tobytes() == draw_axes(picture, cup, taught.viewport).tobytes()
    assert session.overlay(at_least=400).size == (400, 400)
    assert session.overlay(at_least=100).size == picture.size


@pytest.mark.parametrize(
    ("angles", "shown"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((-1e-6, 0.0, 0.0), (0.0, 0.0, 0.0)),  # not 360
        ((TWO_PI + 0.5, 0.25, -0.25), (28.6, 14.3, -14.3)),
        ((0.0, math.pi, 0.0), (180.0, 0.0, -180.0)),  # the same rotation
    ],
)
def test_angles_in_degrees_are_canonical(angles, shown):
    assert angles_in_degrees(Pose(*angles)) == pytest.approx(shown, abs=1e-9)


def test_a_picture_is_turned_upright(tmp_path):
    lying = Image.new("RGB", (60, 40), "red")
    lying.paste("blue", (0, 0, 10, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    lying.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_picture(tmp_path / "turned.jpg")
    assert upright.size == (40, 60)
    assert upright.getpixel((20, 3))[2] > 200  # blue is at the top now
    assert upright.getpixel((20, 50))[0] > 200


# What the checkpoint was taught


def test_a_chat_doubts_answers_about_what_was_not_taught(taught, chat, tmp_path, caplog):
    folder = tmp_path / "knowing"
    shutil.copytree(taught.folder, folder)
    config = json.loads((folder / "pose_config.json").read_text())
    (folder / "pose_config.json").write_text(json.dumps({**config, "categories": ["car", "cup"]}))
    options = [str(taught.picture), "--checkpoint", str(folder), "--device", "cpu"]
    assert chat([*options, "--question", CAR_QUESTION])[0] == 0
    assert "was not taught" not in caplog.text
    assert chat([*options, "--question", "Where is the boat?"])[0] == 0
    assert "was not taught boat" in caplog.text


@pytest.mark.parametrize(
    ("question", "known", "doubted"),
    [
        ("What is the pose of the dining table?", ["car"], "dining table"),
        ("Can you tell the pose of this car?", ["car"], None),
        ("How is the car turned, and the boat behind the trees?", ["car"], "boat"),
        ("What is the pose of the boat?", [], None),
    ],
)
def test_a_question_about_something_else_is_doubted(question, known, doubted):
    said = doubt(question, known)
    assert (f"was not taught {doubted}:" in said) if doubted else said == ""


@pytest.mark.parametrize(
    ("question", "kinds", "doubted"),
    [
        ("hello", ["joint", "pose"], True),
        ("What colour is it?", ["joint", "pose"], True),
        ("And the car?", ["joint", "pose"], False),
        ("What's this?", ["joint", "pose"], False),
        ("hello", ["joint", "pose", "compare"], False),
        ("hello", [], False),
        *[(question, ["joint", "pose", "caption"], False) for question in (*JOINT_QUESTIONS, *CAPTION_QUESTIONS)],
        *[(question.format(object="car"), ["pose"], False) for question in POSE_QUESTIONS],
    ],
)
def test_a_question_of_another_kind_is_doubted(question, kinds, doubted):
    assert ("how it is turned" in doubt(question, ["car"], kinds)) is doubted
    assert doubt(question, [], kinds) == ""


def test_what_was_taught_is_a_sentence():
    assert known_sentence([]) == ""
    assert known_sentence(["car"]) == "It was taught car."
    assert known_sentence(["my_gadget"]) == "It was taught my gadget."
    assert known_sentence(["car", "diningtable", "cup"]) == "It was taught car, dining table and cup."


def test_the_square_round_a_box_is_never_made_vast():
    """That of a thin panorama would have 1.6 billion pixels."""
    picture = Image.new("RGB", (40_000, 20), "white")
    square, scale, left, top = cut_to_box(picture, (0.0, 0.0, 40_000.0, 20.0), margin=0.0)
    assert square.size == (MAX_SQUARE, MAX_SQUARE)
    assert (scale, left, top) == (MAX_SQUARE / 40_000, 0, -19_990)
    assert square.getpixel((1000, 1023)) == (255, 255, 255)
    small, scale, left, top = cut_to_box(picture, (10.0, 0.0, 30.0, 20.0), margin=0.5)
    assert (small.size, scale, left, top) == ((40, 40), 1.0, 0, -10)
    assert small.getpixel((20, 9)) == PADDING_COLOUR
    assert small.getpixel((20, 10)) == (255, 255, 255)


def test_a_half_turn_that_the_prediction_set_holds_is_said():
    front, rear = (0.0, 0.0, 0.0), (math.pi, 0.0, 0.0)
    one = PoseAnswer(Pose(*front), 0.6, "car", prediction_set=[front, rear])
    assert (
        possible_words(one) == "seen from its front, at its own height, or else seen from its rear, at its own height"
    )
    assert possible_words(replace(one, prediction_set=[front])) == possible_words(replace(one, prediction_set=None))
    near = replace(one, prediction_set=[front, (0.1, 0.0, 0.0)])
    assert possible_words(near) == "seen from its front, at its own height", "words that are the same are said once"
