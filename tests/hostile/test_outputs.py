"""No output replaces what it is made of, or a file beside it that nobody named."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from llava_pose.cli import main
from llava_pose.data.images import open_picture
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.serve.chat import ChatConfig, Talk
from llava_pose.utils.output_folder import own_new_folder
from scripts.mix import MixConfig, mix
from tests.hostile.data_commands import prepared_with
from tests.hostile.every_command import OUTPUTS, Workspace, run, shown


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        (("tables", "p.jsonl", "--table", "3", "--out", "t.md"), "t.json"),
        (("tables", "p.jsonl", "--table", "3", "--out", "t.json"), "t.html"),
        (("score", "p.jsonl", "--out", "s.json"), "s.html"),
        (("convert", "p.jsonl", "--to-format", "colmap", "--out", "images.txt"), "cameras.txt"),
        (("convert", "p.jsonl", "--to-format", "bop", "--out", "r.csv"), "r_names.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_file_that_nobody_named_is_not_replaced(
    words: tuple[str, ...], beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    line = {"id": "car/n/0", "system": "ours", "category": "car", "pred_category": "car"}
    pose = {"azimuth": 0.1, "elevation": 0.2, "theta": 0.3, "distance": 4.0, "px": 30.0, "py": 30.0}
    size = {"width": 64, "height": 64, "viewport": 100.0}
    Path("p.jsonl").write_text(json.dumps({**line, **size, "pose": pose, "true": pose}) + "\n")
    Path(beside).write_text("mine")
    assert main(words) == 2
    assert f"would replace {beside}" in capsys.readouterr().err
    assert Path(beside).read_text() == "mine"
    Path(beside).unlink()
    assert main(words) == 0
    assert main(words) == 0  # an earlier output is replaced, with all that goes with it


def test_a_mixture_is_not_written_into_what_it_is_made_of(tmp_path: Path) -> None:
    prepared = prepared_with(tmp_path / "prepared")
    before = (prepared / "val/metadata.jsonl").read_text()
    for out in (prepared, prepared / "mixed"):
        with pytest.raises(InputError, match="read"):
            mix(MixConfig(rendered=[str(prepared)], out=str(out)))
    assert (prepared / "val/metadata.jsonl").read_text() == before


def test_captions_are_not_written_over_notes(workspace, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my only notes")
    assert main(["caption", "--data", str(workspace.prepared), "--out", str(notes)]) == 2
    assert notes.read_text() == "my only notes"


@pytest.mark.parametrize(
    "words",
    [
        ("score", "a.json", "--out", "a.json"),
        ("tables", "a.json", "b.jsonl", "--table", "1", "--out", "a.md"),
        ("inspect", "page", "b.jsonl", "--out", "link.html"),
        ("inspect", "statistics.json", "--out", "."),
        ("instruct", "--data", ".", "--captions", "a.jsonl", "--out", "link.json"),
    ],
    ids="-".join,
)
def test_no_output_replaces_what_it_is_made_of(words: tuple[str, ...], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.jsonl", "b.jsonl", "statistics.json"):
        Path(name).write_text("read\n")
    Path("link.html").symlink_to("b.jsonl")
    Path("link.json").symlink_to("a.jsonl")
    assert main(words) == 2
    assert "is one of the files that are read; name another" in capsys.readouterr().err
    assert {Path(name).read_text() for name in ("a.json", "a.jsonl", "b.jsonl", "statistics.json")} == {"read\n"}


def test_a_chat_saves_over_none_of_the_pictures_that_it_was_given(tiny_base: Path, tmp_path: Path) -> None:
    pictures = [str(tmp_path / f"{name}.png") for name in "abc"]
    for path in pictures:
        Image.new("RGB", (32, 32)).save(path)
    config = ChatConfig(checkpoint=str(tiny_base), image=pictures[:2])
    talk = Talk(config, PosePredictor.from_checkpoint(str(tiny_base)), open_picture(pictures[0]))
    talk.take(f"/image {pictures[2]}")
    talk.take("/image")
    for path in pictures:  # one that was looked at, the present one, and one of a command
        with pytest.raises(InputError, match=r"/save .*: is one of the files that are read"):
            talk.take(f"/save {path}")
    other = tmp_path / "other.png"
    Image.new("RGB", (32, 32)).save(other)
    with pytest.raises(InputError, match=r"/save .*other\.png: is there already; name another"):
        talk.take(f"/save {other}")


TRAINED = ("classifier", "neural-mesh", "linear-probing", "vlm-api", "benchmark", "open-vocabulary", "joint", "train")


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name not in TRAINED])
def test_a_link_that_leads_to_itself_is_replaced_or_refused(
    name: str, workspace: Workspace, tmp_path: Path, capsys
) -> None:
    out = tmp_path / OUTPUTS[name]
    out.symlink_to(out.name)
    code, error = run(workspace.words(name, out), capsys)
    if out.is_file():  # as one that leads nowhere
        assert code == 0, error
    else:
        assert code == 2
        (line,) = shown(error)
        assert str(out) in line


@pytest.mark.parametrize(("name", "option"), [("predict", "--checkpoint"), ("render", "--sources")])
def test_a_folder_that_is_a_link_to_itself_is_none(
    name: str, option: str, workspace: Workspace, tmp_path: Path, capsys
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    words = workspace.words(name, tmp_path / OUTPUTS[name])
    if option not in words:
        words += [option, ""]
    words[words.index(option) + 1] = str(tmp_path / "loop")
    code, error = run(words, capsys)
    assert code == 2
    (line,) = shown(error)
    assert "is no folder" in line or "there is no such folder" in line


def test_a_file_that_stands_where_a_page_keeps_its_predictions_is_kept(
    workspace: Workspace, tmp_path: Path, capsys
) -> None:
    (tmp_path / "predictions").write_text("mine")
    code, error = run(workspace.words("leaderboard", tmp_path), capsys)
    assert code == 2
    (line,) = shown(error)
    assert f"{tmp_path / 'predictions'}" in line
    assert (tmp_path / "predictions").read_text() == "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_new_folder_is_made_where_a_link_leads(there: bool, tmp_path: Path) -> None:
    """The folder comes to its place by one step at the end, which a link would refuse."""
    target, out = tmp_path / "target", tmp_path / "out"
    out.symlink_to(target)
    if there:
        target.mkdir()
    with own_new_folder(out, "--out", "merge") as written:
        assert written.name == "target"
        (written / "model").write_text("new")
    assert (target / "model").read_text() == "new"
    assert out.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "target"]


def test_what_a_killed_run_left_of_a_new_folder_goes_with_the_next_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:
        with own_new_folder(out, "--out", "merge") as written:
            (written / "half").write_text("gigabytes")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    with own_new_folder(out, "--out", "merge") as written:
        (written / "model").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["export", "prepare"])
def test_a_run_that_was_killed_as_it_wrote_its_settings_begins_again(
    name: str, workspace: Workspace, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / f".{name}.yaml.7.tmp").write_text("# half")
    code, error = run(workspace.words(name, out), capsys)
    assert code == 0, error
