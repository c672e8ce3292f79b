"""What only a second look found: links in a checkpoint, folders of the user's own, modules beside a picture, doubles."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.raw.safe_npz import read_npz
from llava_pose.cli import main
from llava_pose.errors import InputError
from llava_pose.train.checkpoints import COMPLETE_MARK, damage_of, last_complete_checkpoint
from llava_pose.utils.files import is_plain_name, printable, sync_folder
from tests.conftest import REPOSITORY


def marked(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / COMPLETE_MARK).write_text('{"step": 7, "files": {}}')
    return folder


@pytest.mark.parametrize("kind", ["a linked folder", "a linked file", "a FIFO", "a FIFO of weights"])
def test_a_checkpoint_that_holds_more_than_files_is_damaged(kind: str, tmp_path: Path) -> None:
    checkpoint = marked(tmp_path / "checkpoint-7")
    (tmp_path / "elsewhere").mkdir()
    if kind.startswith("a FIFO"):
        os.mkfifo(checkpoint / ("model.safetensors" if "weights" in kind else "latest"))
    else:
        (checkpoint / "global_step7").symlink_to(tmp_path / ("elsewhere" if "folder" in kind else "nothing"))
    assert "is no regular file" in (damage_of(checkpoint, 7) or "")


@pytest.mark.parametrize("name", ["checkpoint-best-7", "checkpoint-\u00b2", "checkpoint-7-copy"])
def test_a_folder_that_a_user_put_beside_the_checkpoints_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert last_complete_checkpoint(tmp_path) is None
    assert (tmp_path / name).is_dir()


def test_a_link_in_the_place_of_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").symlink_to(tmp_path / "nothing")
    assert last_complete_checkpoint(tmp_path) is None


def test_links_and_pipes_do_not_stop_what_is_forced_to_disk(tmp_path: Path) -> None:
    (tmp_path / ".#metrics.jsonl").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    sync_folder(tmp_path)


def test_the_decoder_takes_no_module_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 6)).save(picture)
    program = (
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom llava_pose.serve.decoding import decode_apart\n"
        "with open('picture.png', 'rb') as file:\n    sys.stdout.write(str(decode_apart(file, 'a').size))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "(8, 6)", ended.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mark", ["\u061c", "\u200e", "\u200f", "\ufeff", "\U000e0041"])
def test_marks_that_are_not_seen_are_written_out(mark: str) -> None:
    assert mark not in printable(f"a{mark}b")


def test_a_name_with_a_blank_at_its_end_is_no_plain_name() -> None:
    assert not is_plain_name(" n2")
    assert is_plain_name("n 2")


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ([[1 << (8 << 20)]] * 400, "refused, it has a step LONG4"),  # a number of more than 255 bytes
        ([[1 << 2000] * 1000] * 1000, "unfolds into more than a file may hold"),
    ],
    ids=["long", "often"],
)
def test_a_number_that_is_named_often_has_its_price(tmp_path: Path, extra: list[list[int]], match: str) -> None:
    import numpy as np

    objects = np.empty(1, dtype=object)
    objects[0] = {"azimuth": 0.1, "extra": extra}
    stream = io.BytesIO()
    np.savez_compressed(stream, annotations=objects)
    path = tmp_path / "bomb.npz"
    path.write_bytes(stream.getvalue())
    with pytest.raises(InputError, match=match):
        read_npz(path)


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
        ("instruct", "--data", ".", "--captions", "a.jsonl", "--out", "link.json"),
    ],
    ids="-".join,
)
def test_no_output_replaces_what_it_is_made_of(words: tuple[str, ...], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.jsonl", "b.jsonl"):
        Path(name).write_text("read\n")
    Path("link.html").symlink_to("b.jsonl")
    Path("link.json").symlink_to("a.jsonl")
    assert main(words) == 2
    assert "is one of the files that are read; name another" in capsys.readouterr().err
    assert {Path(name).read_text() for name in ("a.json", "a.jsonl", "b.jsonl")} == {"read\n"}


@pytest.mark.parametrize("crop", ["whole", "box"])
@pytest.mark.parametrize(
    "other", [{}, {"class": "bus"}, {"bbox": [20.0, 20.0, 300.0, 300.0]}], ids=["all", "pose", "name"]
)
def test_an_object_that_is_annotated_twice_stops_nothing(
    raw_dataset, tmp_path: Path, crop: str, other: dict, caplog
) -> None:
    """Two objects of one pose: the same again, one of another category, and one with another box."""
    first = raw_dataset.object()
    raw_dataset.add("twice", objects=[first, {**first, **other}])
    raw_dataset.add("once")
    prepared, captions, train = (str(tmp_path / name) for name in ("prepared", "captions.jsonl", "train.json"))
    words = ["--data-root", str(raw_dataset.root), "--out", prepared, "--crop", crop, "--size", "96", "--workers", "1"]
    assert main(["prepare", *words, "--splits", "train"]) == 0
    assert main(["caption", "--data", prepared, "--out", captions]) == 0
    kinds = ["--kinds", "all", "--questions-per-object", "40"]
    for words in ([], ["--captions", captions]):
        assert main(["instruct", "--data", prepared, "--out", train, *kinds, *words]) == 0
        assert main(["validate", "--data", prepared, train]) == 0
    lines = [json.loads(line) for line in Path(captions).read_text().splitlines()]
    named = [line["objects"] for line in lines if "twice" in line["image"]]
    if "class" not in other:  # nothing that is said could tell the second from the first
        assert all(len(objects) == 1 for objects in named)
        assert "the first: car/twice/" in caplog.text or (crop == "box" and other)  # hardly seen in the crop
    asked = [sample for sample in json.loads(Path(train).read_text()) if "twice" in sample["image"]]
    assert {"yesno", "choice", "verify"} & {sample["kind"] for sample in asked} or not other
