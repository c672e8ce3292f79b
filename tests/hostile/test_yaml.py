"""A --config file that is wrong in any way is one sentence with its name and a remedy, from every command, at once."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from data_prep.inspect.command import ROOMS
from eval.systems.classifier.system import ClassifierConfig
from eval.systems.neural_mesh.system import NeuralMeshRunConfig
from llava_pose import cli
from llava_pose.train.training_arguments import PoseTrainingArguments
from llava_pose.utils.yaml_files import read_yaml
from tests.hostile.every_command import run, shown

# words of a command -> its module; the rooms of inspect are commands of their own
COMMANDS = {
    **{(name,): module for name, (module, _) in cli.COMMANDS.items() if name != "inspect"},
    **{("inspect", room): "data_prep.inspect.command" for room in ROOMS},
}
# one of each way to a config class: what is the file's own fault is found before a field is looked at
SOME = [("prepare",), ("train",), ("joint",), ("inspect", "stats")]
OF_ALL = ("Latin-1", "a list at the top", "a field twice", "deep nesting", "a bomb of aliases")


def config_class(words: tuple[str, ...]) -> Any:
    """The dataclass that ``command(…)`` of its module was given."""
    if words[0] == "inspect":
        return ROOMS[words[1]].config_class
    # those that train join theirs with transformers' own; of the three that train fills, this is the largest
    trained = {"train": PoseTrainingArguments, "classifier": ClassifierConfig, "neural-mesh": NeuralMeshRunConfig}
    return trained[words[0]] if words[0] in trained else cli.command_of(words[0]).config_class


def field_of(words: tuple[str, ...], *types: Any) -> str | None:
    """The first field of one of these types."""
    hints = get_type_hints(config_class(words))
    return next((f.name for f in dataclasses.fields(config_class(words)) if f.init and hints[f.name] in types), None)


def refused(words: tuple[str, ...], file: Path, capsys) -> str:
    began = time.monotonic()
    code, error = run([*words, "--config", str(file)], capsys)
    assert time.monotonic() - began < 60  # on a busy machine; most of which is the import of the first command
    assert code == 2, error
    assert "Traceback" not in error
    (line,) = shown(error)
    assert line.startswith(f"error: {file}: ")
    assert len(line) < 600
    return line


BOMB = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
FILES = {
    "Latin-1": ("seed: 1 # für".encode("latin-1"), "is not UTF-8 text; save the file as UTF-8"),
    "UTF-16": ("seed: 1".encode("utf-16"), "is not UTF-8 text; save the file as UTF-8"),
    "bytes of no text": (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "is not UTF-8 text"),
    "NUL": (b"seed: 1\x00", "not valid YAML: unacceptable character #x0000"),
    "a list at the top": (b"- seed\n- data\n", "expected 'field: value' lines, found a list"),
    "a word at the top": (b"seed", "expected 'field: value' lines, found a str"),
    "two documents": (b"a: 1\n---\nb: 2\n", "expected a single document"),
    "a field twice": (
        b"data: a\nout: b\ndata: c\n",
        "the field 'data' stands there twice, the second time on line 3; take",
    ),
    "a field twice below": (b"systems:\n- {name: a, name: b}\n", "the field 'name' stands there twice"),
    "an unknown field": (b"dta: x\n", "there is no field 'dta'; "),
    "an unclosed list": (b"data: [a, b\n", "not valid YAML"),
    "a tab": (b"data:\n\t- x\n", "not valid YAML"),
    "code": (b"data: !!python/object/apply:os.system ['touch /tmp/no']\n", "not valid YAML"),
    "a list for a key": (b"? [a]\n: b\n", "found unhashable key"),
    "a date that is none": (b"data: 2024-13-45\n", "month must be in 1..12); put the value in quotes"),
    "a tag that does not fit": (b"data: !!int ''\n", "a number, date or tag is none"),
    "a number without end": (b"data: " + b"9" * 6000, "put the value in quotes"),
    "deep nesting": (b"data: " + b"[" * 2_000, "it is nested too deeply"),
    "deep nesting by lines": (b"- " * 20_000, "it is nested too deeply"),
    "a bomb of aliases": (BOMB.encode(), "its aliases (*name) unfold without a bound; write them out"),
    "a bomb of merges": (MERGE_BOMB.encode(), "its aliases (*name) unfold without a bound; write them out"),
    "an alias of itself": (b"data: &a [*a]\n", "its aliases (*name) unfold without a bound"),
    "an alias of nothing": (b"data: *b\n", "undefined alias"),
    "a number to the base of 60": (b"nothing: " + b"1:" * 100_000 + b"1\n", "there is no field 'nothing'"),
    "a tagged number to the base of 60": (b"nothing: !!int " + b"1:" * 100_000 + b"1\n", "there is no field 'nothing'"),
    "a hundred thousand fields": (b"".join(b"k%d: 1\n" % n for n in range(100_000)), "it has more than 256 KiB"),
    "a number without end for a field": (b"? 0x" + b"f" * 6000 + b"\n: 1", "there is no field '0xffffff"),
    "a list of numbers without end": (b"nothing: [0x" + b"f" * 6000 + b"]", "there is no field 'nothing'"),
    "a number of 20 million digits": (b"seed: 0b" + b"1" * 20_000_000, "it has more than 256 KiB"),
}


@pytest.mark.parametrize(
    ("words", "kind"),
    [(words, kind) for kind in FILES for words in (COMMANDS if kind in OF_ALL else SOME)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_file_that_is_no_recipe(words: tuple[str, ...], kind: str, tmp_path: Path, capsys):
    content, said = FILES[kind]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    assert said in refused(words, file, capsys)


@pytest.mark.parametrize("words", SOME, ids="-".join)
@pytest.mark.parametrize("kind", ["nothing", "a folder", "a FIFO", "a device"])
def test_what_is_no_file(words: tuple[str, ...], kind: str, tmp_path: Path, capsys):
    file = tmp_path / "recipe.yaml"
    if kind == "a folder":
        file.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a device":
        file = Path("/dev/zero")
    assert "cannot be read (" in refused(words, file, capsys)


VALUES = {
    "null": ("null", "must not be null or empty; give it a value, or leave the line out"),
    "nothing": ("", "must not be null or empty"),
    "text": ("many", "must be a whole number, not 'many'"),
    "a list": ("[1, 2]", "must be a whole number, not [1, 2]"),
    "a mapping": ("{a: 1}", "must be a whole number, not {'a': 1}"),
    "a truth": ("yes", "must not be True"),
    "a number without end": ("0x" + "f" * 6000, "must be a whole number, not '0xffffffff"),
    "a number of 300 digits": ("1" + "0" * 300, "must be a number of 64 bits, not 1000000"),
}


@pytest.mark.parametrize(
    ("words", "kind"),
    [(words, kind) for kind in VALUES for words in (COMMANDS if kind in ("null", "a mapping") else SOME)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_value_that_is_no_number(words: tuple[str, ...], kind: str, tmp_path: Path, capsys):
    name = field_of(words, int)
    if name is None:
        pytest.skip("it has no number")
    value, said = VALUES[kind]
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{name}: {value}\n", encoding="utf-8")
    line = refused(words, file, capsys)
    if kind == "a number of 300 digits":  # a field with a bound of its own says that one
        line = re.sub(r"must be at most \d+,", "must be a number of 64 bits,", line)
    assert f"the field '{name}' {said}" in line


@pytest.mark.parametrize("words", SOME, ids="-".join)
def test_a_name_with_a_nul_character(words: tuple[str, ...], tmp_path: Path, capsys):
    name = field_of(words, str, str | None)
    file = tmp_path / "recipe.yaml"
    file.write_text(f'{name}: "a\\0b"\n', encoding="utf-8")
    assert f"the field '{name}' holds a NUL character" in refused(words, file, capsys)


@pytest.mark.parametrize("words", SOME, ids="-".join)
@pytest.mark.parametrize(
    ("kind", "value"),
    [("a list", "[a]"), ("long numbers", f"[0x{1 << 24_000:x}]"), ("a mapping", "{a: {b: c}}"), ("a set", "!!set {a}")],
)
def test_a_value_that_is_no_word(words: tuple[str, ...], kind: str, value: str, tmp_path: Path, capsys):
    name = field_of(words, str, str | None)
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{name}: {value}\n", encoding="utf-8")
    assert f"the field '{name}' " in refused(words, file, capsys)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("predict",), "categories: [car, null]"),
        (("predict",), "categories: [[car]]"),
        (("predict",), "categories: [{car: 1}]"),
        (("predict",), "categories: {car: 1}"),
        (("joint",), "systems: {name: a}"),
        (("joint",), "systems: [a]"),
        (("joint",), "systems: [[{name: a}]]"),
        (("joint",), "systems: [null]"),
        (("joint",), "defaults: [classifier]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_list_of_the_wrong_things(words: tuple[str, ...], text: str, tmp_path: Path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    assert f"the field '{text.partition(':')[0]}' " in refused(words, file, capsys)


def test_the_mark_that_windows_puts_in_front_and_its_line_ends_are_no_text(workspace, tmp_path: Path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(f"data: {workspace.prepared}\r\nout: {tmp_path / 'train.json'}\r\nseed: 3\r\n".encode("utf-8-sig"))
    code, error = run(["instruct", "--config", str(file)], capsys)
    assert code == 0, error


def test_aliases_and_merges_that_are_meant_well_are_read(workspace, tmp_path: Path, capsys):
    file = tmp_path / "recipe.yaml"
    options = {"file": str(workspace.root / "predictions.jsonl")}
    text = f"systems:\n- &one {{name: a, kind: predictions, options: &o {options}}}\n- {{<<: *one, name: b, options: *o}}\n"
    file.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    _, error = run(
        ["joint", "--config", str(file), "--data", str(workspace.prepared), "--output-dir", str(out)], capsys
    )
    assert "holds" not in error
    assert (out / "a" / "predictions.jsonl").exists(), error
    assert (out / "b" / "predictions.jsonl").exists(), error


def test_a_time_of_day_is_text(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("a: 1:30\nb: 12\nc: -0x1f\nd: 1_000\ne: 1:30.5\nf: 2.5\n")
    assert read_yaml(file) == {"a": "1:30", "b": 12, "c": -31, "d": 1000, "e": "1:30.5", "f": 2.5}
