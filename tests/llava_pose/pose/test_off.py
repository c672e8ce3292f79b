"""OFF files: what other programs write is read, and turning one changes its vertices and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.render.mesh import axis_rotation
from llava_pose.errors import InputError
from llava_pose.pose.meshes import read_off, turned_off

SQUARE = "OFF\n4 1 4\n0 0 0\n1 0 0\n1 1 0\n0 1 0.5\n4 0 1 2 3\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "model.off"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        SQUARE,
        SQUARE.replace("OFF\n4 1 4", "OFF 4 1 4"),  # counts on the first line
        SQUARE.replace("OFF\n4 1 4", "OFF4 1 4"),  # and right behind the word, as ModelNet has them
        SQUARE.replace("OFF\n", "# made by hand\nOFF\n\n"),
        SQUARE.replace("0 1 0.5", "0 1 5e-1   # the last"),
        SQUARE.replace("\n", "\r\n"),
        SQUARE.replace("4 0 1 2 3", "4 0 1 2 3 0.5 0.5 0.5"),  # a face with a colour
        SQUARE.replace("OFF", "COFF").replace("1 1 0\n", "1 1 0 255 0 0 255\n"),
        SQUARE.replace("4 1 4", "4 1"),  # no number of edges
    ],
)
def test_the_ways_in_which_off_is_written(tmp_path, text):
    mesh = read_off(written(tmp_path, text))
    np.testing.assert_array_equal(mesh.vertices, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.5]])
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])  # the square as a fan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin with OFF"),
        ("ply\n", "does not begin with OFF"),
        ("OFF\n", "numbers of vertices and faces are missing"),
        ("OFF\nfour 1 0\n", "numbers of vertices and faces are missing"),
        (SQUARE[:30], "cut off, 4 vertices and 1 faces are announced and"),
        (SQUARE.replace("1 1 0\n", "1 1\n"), "a vertex is not three"),
        (SQUARE.replace("1 1 0\n", "1 one 0\n"), "a vertex is not three numbers"),
        (SQUARE.replace("1 1 0\n", "1 nan 0\n"), "a vertex is not three finite numbers"),
        (SQUARE.replace("4 0 1 2 3", "4 0 1 2"), "a face of 4 corners names 3"),
        (SQUARE.replace("4 0 1 2 3", "4 a b c d"), "model.off:7: a face is not"),
        (SQUARE.replace("4 0 1 2 3", "4 0 1 2 4"), "a face names vertex 4, there are 4"),
        (SQUARE.replace("4 0 1 2 3", "2 0 1"), "there is no face in it"),
        (b"OFF\n\xff\xfe", "line 2 is not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_off(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.off: cannot be read \(No such file"):
        read_off(tmp_path / "none.off")


def test_turning_by_a_right_angle_moves_numbers_and_nothing_else(tmp_path):
    text = "# a comment\nCOFF\n3 1 0\n0.1234567 -0.2 0.3 9 8 7\n1e-05 0 0\n0 1 0\n3 0 1 2 5 5 5\n"
    path = written(tmp_path, text)
    rotation = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # -90 degrees about z
    turned = turned_off(path, rotation)
    assert turned.splitlines()[3] == "-0.2 -0.1234567 0.3 9 8 7"
    assert [line for i, line in enumerate(turned.splitlines()) if i not in (3, 4, 5)] == [
        line for i, line in enumerate(text.splitlines()) if i not in (3, 4, 5)
    ]
    np.testing.assert_array_equal(
        read_off(written(tmp_path, turned)).vertices, read_off_of(tmp_path, text) @ rotation.T
    )


def read_off_of(tmp_path: Path, text: str) -> np.ndarray:
    other = tmp_path / "other.off"
    other.write_text(text)
    return read_off(other).vertices


def test_any_rotation_is_written_in_full(tmp_path):
    path = written(tmp_path, SQUARE)
    rotation = axis_rotation("x", 0.3) @ axis_rotation("z", 1.1)
    expected = read_off(path).vertices @ rotation.T
    path.write_text(turned_off(path, rotation))
    np.testing.assert_array_equal(read_off(path).vertices, expected)


def test_normals_would_have_to_be_turned_too(tmp_path):
    text = "NOFF\n3 1 0\n0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n3 0 1 2\n"
    with pytest.raises(InputError, match="normals beside its vertices"):
        turned_off(written(tmp_path, text), np.eye(3))
