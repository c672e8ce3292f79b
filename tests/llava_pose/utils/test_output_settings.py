"""One set of settings for every output: written down beside it, and refused where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_pose.data.jsonl import append_jsonl, resume_jsonl
from llava_pose.errors import InputError
from llava_pose.utils.output_folder import keep_settings, own_file, own_folder, settings_file
from llava_pose.utils.yaml_files import read_yaml

SETTINGS = {"seed": 0, "split": "val", "options": {"size": 64, "names": ["car", "cup"]}, "records_digest": "a1"}


def begin(path: Path, settings: object = SETTINGS) -> None:
    keep_settings(path, "--out", "predict", settings)


@pytest.fixture(params=["file", "folder"])
def output(request, tmp_path: Path) -> Path:
    """An output that has been begun."""
    path = tmp_path / "out"
    if request.param == "file":
        with own_file(path, "--out", "predict"):
            begin(path)
        path.write_text("something\n")
    else:
        with own_folder(path, "--out", "predict"):
            begin(path)
        (path / "something").touch()
    return path


def test_the_same_settings_go_on_and_are_not_written_again(output: Path) -> None:
    file = settings_file(output, "predict")
    assert read_yaml(file) == SETTINGS
    before = file.stat().st_mtime_ns
    begin(output)
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "with seed 0, not 1"),
        ({"split": None}, "with split 'val', not None"),
        ({"new": True}, "with new None, not True"),
        ({"options": {"size": 32, "names": ["car", "cup"]}}, "with options.size 64, not 32"),
        ({"records_digest": "b2"}, "before the records changed"),
        (
            {"seed": 1, "split": "test", "records_digest": None, "base_digest": "c3"},
            "with seed 0, not 1, and with split 'val', not 'test', and before the records and the base changed",
        ),
    ],
)
def test_each_setting_that_differs_is_named(output: Path, changes: dict, sentence: str) -> None:
    file = settings_file(output, "predict")
    before = file.read_bytes()
    with pytest.raises(InputError) as error:
        begin(output, {**SETTINGS, **changes})
    remedy = "choose another --out, or delete what is there to begin anew"
    assert str(error.value) == f"--out {output}: was begun {sentence}; {remedy}"
    assert file.read_bytes() == before


def test_settings_of_an_output_that_holds_nothing_bind_nobody(output: Path) -> None:
    if output.is_dir():
        (output / "something").unlink()
    else:
        output.write_text("")
    begin(output, {"seed": 5})
    assert read_yaml(settings_file(output, "predict")) == {"seed": 5}


def test_an_output_without_its_settings_is_somebody_elses(output: Path) -> None:
    settings_file(output, "predict").unlink()
    with pytest.raises(InputError, match=r"out: holds something that predict did not write.*; choose another --out$"):
        begin(output)


def test_a_persons_own_file_under_the_name_of_the_settings_stays(tmp_path: Path) -> None:
    for output in (tmp_path / "captions.jsonl", tmp_path / "folder"):
        if output.name == "folder":
            output.mkdir()
        recipe = settings_file(output, "predict")
        recipe.write_text("seed: 7  # mine\n")
        with pytest.raises(InputError, match=rf"^{recipe}: is there and was not written by predict"):
            begin(output)
        assert recipe.read_text() == "seed: 7  # mine\n"


def test_outputs_side_by_side_never_share_their_settings(tmp_path: Path) -> None:
    names = ["a", "a.jsonl", "a.txt", "b.a", "A"]
    for number, name in enumerate(names):
        begin(tmp_path / name, {"seed": number})
        (tmp_path / name).write_text("something\n")
    for number, name in enumerate(names):
        begin(tmp_path / name, {"seed": number})


def test_a_config_is_compared_as_it_is_written(tmp_path: Path) -> None:
    @dataclass
    class Config:
        path: Path
        sizes: tuple[int, ...]

    for _ in range(2):
        begin(tmp_path / "out", Config(tmp_path, (1, 2)))
        (tmp_path / "out").write_text("something\n")


@pytest.mark.parametrize("torn", [b"", b'{"id": "c", "answ', b'{"i'])
def test_a_torn_line_is_cut_once_every_other_line_is_known(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(resume_jsonl(path, "id")) == []
    append_jsonl(path, [{"id": "a"}, {"id": "b"}])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    lines = resume_jsonl(path, "id")
    assert next(lines) == (f"{path}:1", {"id": "a"})
    lines.close()  # as where a caller refuses the line
    assert path.read_bytes() == whole + torn
    assert [line["id"] for _, line in resume_jsonl(path, "id")] == ["a", "b"]
    assert path.read_bytes() == whole
    path.write_bytes(torn)
    assert list(resume_jsonl(path, "id")) == []
    assert path.read_bytes() == b""


def test_a_file_without_any_line_end_is_not_taken_for_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("years of work")
    with pytest.raises(InputError, match="holds no line of this command's"):
        list(resume_jsonl(path, "id"))
    assert path.read_text() == "years of work"
