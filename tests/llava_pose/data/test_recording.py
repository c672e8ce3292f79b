"""convert --to-format rerun: a recording that rerun's own program reads, of photographs with their objects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from llava_pose.cli import main
from llava_pose.data.jsonl import write_jsonl
from tests.test_extras import run_without

LINE = {
    "id": "a.jpg#0",
    "file_name": "a.jpg",
    "category": "car",
    "pose": {"azimuth": 0.5, "elevation": 0.2, "theta": 0.0, "distance": 3.0, "px": 30.0, "py": 20.0},
    "viewport": 64.0,
    "width": 64,
    "height": 48,
    "confidence": 0.9,
}


def described(path: Path) -> str:
    """What rerun's own program says of a recording: whether it is sound, and what it holds."""
    for verb in ("verify", "print"):
        ended = subprocess.run(
            [sys.executable, "-m", "rerun", "rrd", verb, *(["-vv"] if verb == "print" else []), str(path)],
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_recording_holds_each_photograph_with_its_camera_and_its_objects(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rerun")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (200, 10, 10)).save("a.jpg")
    second = {**LINE, "id": "b.jpg#0", "file_name": "b.jpg"}  # which is not there
    write_jsonl(tmp_path / "poses.jsonl", [LINE, {**LINE, "id": "a.jpg#1", "category": "cup"}, second])
    assert main(["convert", "poses.jsonl", "--to-format", "rerun", "--out", "poses.rrd"]) == 0, capsys.readouterr().err
    text = described(tmp_path / "poses.rrd")
    for entity in ("/world/camera", "/world/objects/0/box", "/world/objects/1/axes"):
        assert entity in text
    for component in ("Pinhole", "EncodedImage", "Boxes3D", "Arrows3D", "Transform3D"):
        assert component in text


def test_an_object_without_a_camera_is_named_and_the_others_are_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rerun")
    monkeypatch.chdir(tmp_path)
    lost = {name: value for name, value in LINE.items() if name != "viewport"}
    write_jsonl(tmp_path / "poses.jsonl", [LINE, {**lost, "id": "c.jpg#0", "file_name": "c.jpg"}])
    assert main(["convert", "poses.jsonl", "--to-format", "rerun", "--out", "poses.rrd"]) == 2
    assert "1 of 2 poses could not be converted" in capsys.readouterr().err
    assert "Boxes3D" in described(tmp_path / "poses.rrd")


def test_a_recording_is_an_rrd_file(tmp_path, capsys):
    write_jsonl(tmp_path / "poses.jsonl", [LINE])
    words = ["convert", str(tmp_path / "poses.jsonl"), "--to-format", "rerun", "--out", str(tmp_path / "poses.jsonl2")]
    assert main(words) == 2
    assert ".rrd" in capsys.readouterr().err


def test_without_rerun_it_is_one_sentence(tmp_path):
    write_jsonl(tmp_path / "poses.jsonl", [LINE])
    words = ["convert", str(tmp_path / "poses.jsonl"), "--to-format", "rerun", "--out", str(tmp_path / "poses.rrd")]
    ended = run_without("rerun", *words)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "pip install 'llava-pose[rerun]'" in ended.stderr
    assert not (tmp_path / "poses.rrd").exists()
