"""Names that would not stay on their line of a table, or on their own file, are listed or made to."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from llava_pose.data.poses.formats import FORMATS, read_poses, write_poses
from llava_pose.data.records import Pose
from llava_pose.errors import InputError
from llava_pose.inference import photos
from llava_pose.inference.answers import PoseAnswer
from llava_pose.inference.pose_lines import pose_line
from llava_pose.utils.files import is_plain_name
from tests.hostile.data_commands import posed_object


@pytest.mark.parametrize("format_name", sorted(FORMATS))
def test_every_format_gives_back_what_it_was_given_and_no_line_more(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    write_poses(path, format_name, [posed_object()])
    assert len(read_poses(path, format_name)[0]) == 1


@pytest.mark.parametrize("name", ["id", "picture", "category"])
@pytest.mark.parametrize("text", ["a\n2 1 0 0 0 0 0 1 2 b.jpg", "a\rb", "\x1b[2J"], ids=["line", "return", "codes"])
def test_a_name_that_would_not_stay_on_its_line_is_refused(name: str, text: str) -> None:
    with pytest.raises(InputError, match="control characters"):
        posed_object(**{name: text})


def test_a_photograph_whose_name_breaks_a_line_is_listed(tmp_path: Path) -> None:
    faults: list[InputError] = []
    for name in ("a\rb.jpg", "a\nb.jpg", "\x1b[2J.jpg", "a\u202eb.jpg"):
        assert not photos._is_text(tmp_path / name, faults)
    assert photos._is_text(tmp_path / "Screenshot at 10.30\u202fAM.jpg", faults)
    assert len(faults) == 4


def test_photographs_of_one_name_are_drawn_each_and_a_name_too_long_is_listed(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.png.jpg", "x" * 245 + ".png", "z.png"]
    for name in names:
        Image.new("RGB", (20, 20)).save(tmp_path / name, "PNG")
    paths, out = [tmp_path / name for name in names], tmp_path / "poses.jsonl"
    answer = PoseAnswer(Pose(0.1, 0.2, 0.3, 1.0, 2.0, 3.0), 0.5, "car", viewport=10.0)
    lines = [pose_line(f"{path}#0", str(path), (20, 20), None, answer) for path in paths]
    photos._append(out, lines)
    faults = photos._draw_all(tmp_path / "drawn", paths, out)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "a.jpg",
        "a.png.jpg",
        "a.png.jpg.jpg",
        "z.jpg",
    ]
    assert len(faults) == 1
    assert "too long" in str(faults[0])


def test_a_name_with_a_blank_at_its_end_is_no_plain_name() -> None:
    assert not is_plain_name(" n2")
    assert is_plain_name("n 2")
