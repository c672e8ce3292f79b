"""The parser of YAML and command line, the exit codes, and writing whole files or none."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt

from llava_pose.errors import InputError
from llava_pose.utils.command import STEP_VARIABLE, command, run_main, say_next, steps_of_a_whole
from llava_pose.utils.config import check_fields, fill_config, parse_config, require, require_folder
from llava_pose.utils.files import atomic_file, write_atomic, write_json
from llava_pose.utils.output_folder import own_file
from llava_pose.utils.yaml_files import read_yaml, save_config


@dataclass
class DemoConfig:
    data: str | None = field(default=None, metadata={"help": "where the data is"})
    learning_rate: float = field(default=1e-3, metadata={"help": "step size"})
    epochs: int = field(default=3, metadata={"help": "passes over the data"})
    flip: bool = field(default=True, metadata={"help": "mirror images"})
    weights: list[float] = field(default_factory=lambda: [1.0, 2.0], metadata={"help": "one for each kind"})
    mode: Literal["lora", "full"] = field(default="lora", metadata={"help": "what trains"})
    report: list[str] | str | None = field(default=None, metadata={"help": "where to log"})
    extra: dict | str | None = field(default=None, metadata={"help": "passed on"})
    derived: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, not {self.epochs}")
        self.derived = self.epochs * 2


@dataclass
class NeedsPredictions:
    predictions: str = field(metadata={"help": "the file"})
    seed: int = 0


@dataclass
class NeedsTwo:
    data: str = field(metadata={"help": "the data"})
    out: str = field(metadata={"help": "the result"})


@dataclass
class Bounded:
    rank: PositiveInt = 8
    rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass
class HoldsMappings:
    entries: list[dict] = field(default_factory=list, metadata={"help": "in YAML alone"})


def parse(argv: list[str], config_class: type = DemoConfig, positional: str | None = None):
    return parse_config(
        config_class, argv, prog="demo", description="A demo.", example="demo --data D", positional=positional
    )


def write_yaml(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# Where values come from


def test_defaults_stand_in_the_dataclass():
    assert parse([]) == DemoConfig()


def test_command_line_fills_every_type():
    config = parse(
        ["--data", "d", "--learning-rate", "1e-4", "--epochs=5", "--no_flip", "--weights", "3", "4.5", "--mode", "full"]
    )
    expected = DemoConfig(data="d", learning_rate=1e-4, epochs=5, flip=False, weights=[3.0, 4.5], mode="full")
    assert config == expected
    assert config.derived == 10


def test_yaml_fills_every_type(tmp_path):
    recipe = write_yaml(
        tmp_path,
        "data: d\nlearning_rate: 1e-4\nepochs: 5\nflip: no\nweights: [3, 4.5]\nmode: full\nreport: [a, b]\nextra: {k: 1}\n",
    )
    assert parse(["--config", recipe]) == DemoConfig(
        data="d",
        learning_rate=1e-4,  # YAML 1.1 takes 1e-4 for a word
        epochs=5,
        flip=False,
        weights=[3.0, 4.5],
        mode="full",
        report=["a", "b"],
        extra={"k": 1},
    )


def test_the_command_line_wins_over_yaml_over_defaults(tmp_path):
    recipe = write_yaml(tmp_path, "epochs: 5\nlearning_rate: 0.5\nweights: [9]\n")
    config = parse(["--epochs", "7", "--config", recipe, "--weights", "1", "1"])
    assert (config.epochs, config.learning_rate, config.weights, config.mode) == (7, 0.5, [1.0, 1.0], "lora")


def test_null_in_yaml_is_none(tmp_path):
    assert parse(["--config", write_yaml(tmp_path, "data: null\n")]).data is None


def test_empty_yaml_is_all_defaults(tmp_path):
    assert parse(["--config", write_yaml(tmp_path, "# nothing\n")]) == DemoConfig()


def test_a_saved_config_reads_back_as_the_same_config(tmp_path):
    config = parse(["--data", "d", "--epochs", "9", "--no-flip", "--weights", "0.5"])
    save_config(config, tmp_path / "resolved.yaml")
    values = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert values.pop("derived") == 18  # made by the config itself, not an option
    assert parse(["--config", write_yaml(tmp_path, yaml.safe_dump(values))]) == config


def test_a_mapping_fills_a_config_as_a_yaml_file_does(tmp_path):
    values = {"learning_rate": "1e-2", "weights": [3], "mode": "full", "extra": {"a": [1]}, "data": None}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(values))
    assert fill_config(DemoConfig, values, source="here") == parse(["--config", str(tmp_path / "demo.yaml")])
    assert fill_config(DemoConfig, {}, source="here") == DemoConfig()
    for wrong, match in (
        ({"epoch": 1}, "here: there is no field 'epoch'; did you mean 'epochs'"),
        ({"epochs": "many"}, "here: the field 'epochs' must be a whole number"),
        ({"epochs": -1}, "here: epochs must not be negative"),
        ({"derived": 1}, "here: there is no field 'derived'"),
    ):
        with pytest.raises(InputError, match=match):
            fill_config(DemoConfig, wrong, source="here")
    with pytest.raises(InputError, match="here: the field 'predictions' is needed"):
        fill_config(NeedsPredictions, {"seed": 1}, source="here")


def test_a_list_may_hold_mappings(tmp_path):
    (tmp_path / "list.yaml").write_text("entries:\n- {name: a}\n- {name: b, size: 2}\n")
    config = parse(["--config", str(tmp_path / "list.yaml")], HoldsMappings)
    assert config.entries == [{"name": "a"}, {"name": "b", "size": 2}]
    (tmp_path / "list.yaml").write_text("entries: [a]")
    with pytest.raises(InputError, match="the field 'entries' must be a list, each of it a mapping, not"):
        parse(["--config", str(tmp_path / "list.yaml")], HoldsMappings)


def test_a_positional_word_or_its_option(tmp_path):
    assert parse(["p.jsonl"], NeedsPredictions, "predictions").predictions == "p.jsonl"
    assert parse(["--predictions", "p.jsonl"], NeedsPredictions, "predictions").predictions == "p.jsonl"
    recipe = write_yaml(tmp_path, "predictions: y.jsonl\nseed: 4\n")
    assert parse(["--config", recipe], NeedsPredictions, "predictions") == NeedsPredictions("y.jsonl", 4)
    assert parse(["--config", recipe, "p.jsonl"], NeedsPredictions, "predictions").predictions == "p.jsonl"


# Bad YAML


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("epochs: [1, 2\n", "not valid YAML"),
        ("- epochs\n- data\n", "expected 'field: value' lines, found a list"),
        ("just words\n", "found a str"),
        ("epoch: 3\n", "there is no field 'epoch'; did you mean 'epochs'"),
        ("learning-rate: 3\n", "did you mean 'learning_rate'"),
        ("zzz: 3\n", "no field 'zzz'; known fields: data, epochs,"),
        ("3: 3\n", "no field '3'"),
        ("derived: 3\n", "no field 'derived'"),
        ("config: other.yaml\n", "no field 'config'"),
        ("epochs: 1.5\n", "'epochs' must be a whole number, not 1.5"),
        ("epochs: [1, 2]\n", "'epochs' must be a whole number, not"),
        ("epochs: true\n", "'epochs' must not be True"),
        ("learning_rate: fast\n", "'learning_rate' must be a number, not 'fast'"),
        ("weights: 3\n", "'weights' must be a list, each of it a number, not 3"),
        ("weights: [1, x]\n", "'weights' must be a list, each of it a number, not"),
        ("flip: maybe\n", "'flip' must be true or false, not 'maybe'"),
        ("mode: both\n", "'mode' must be one of lora, full, not 'both'"),
        ("data: no\n", "'data' must not be False .* quotes"),
    ],
)
def test_bad_yaml_names_file_and_field(tmp_path, text, match):
    recipe = write_yaml(tmp_path, text)
    with pytest.raises(InputError, match=match) as caught:
        parse(["--config", recipe])
    assert str(caught.value).startswith(recipe)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_runs_no_code(tmp_path):
    recipe = write_yaml(tmp_path, "data: !!python/object/apply:os.mkdir ['made']\n")
    with pytest.raises(InputError, match="not valid YAML"):
        parse(["--config", recipe])


# How a command ends


def make_main(run):
    return command(DemoConfig, run, prog="demo", description="A demo.", example="demo --data D")


def test_a_step_of_a_script_does_not_say_what_comes_next(caplog, monkeypatch):
    """So that the last line of a script is its own."""
    with caplog.at_level(logging.INFO):
        assert run_main(lambda: say_next("llava-pose train")) == 0
        monkeypatch.setenv(STEP_VARIABLE, "1")
        assert run_main(lambda: say_next("llava-pose predict")) == 0
        monkeypatch.delenv(STEP_VARIABLE)
        with steps_of_a_whole():
            assert run_main(lambda: say_next("llava-pose score")) == 0
        assert run_main(lambda: say_next("llava-pose sheet")) == 0
    assert caplog.messages == ["next: llava-pose train", "next: llava-pose sheet"]


def test_exit_code_0_when_done():
    seen = []
    assert make_main(seen.append)(["--epochs", "4"]) == 0
    assert seen == [DemoConfig(epochs=4)]


def test_exit_code_2_on_bad_input(capsys):
    def run(config):
        raise InputError("x.json: there is no such file; make it with: demo")

    assert make_main(run)([]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: x.json: there is no such file; make it with: demo\n"
    assert captured.out == ""


def test_exit_code_2_on_a_value_that_the_config_refuses(capsys):
    assert make_main(lambda config: None)(["--epochs", "-1"]) == 2
    assert capsys.readouterr().err == "error: demo: epochs must not be negative, not -1\n"


def test_exit_code_2_on_bad_yaml(tmp_path, capsys):
    assert make_main(lambda config: None)(["--config", write_yaml(tmp_path, "epoch: 3\n")]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["--zzz"], "there is no option --zzz; see demo --help"),
        (["--epochs", "x"], "--epochs: must be a whole number, not 'x'"),
        (["--mode", "both"], "--mode: must be one of lora, full, not 'both'"),
        (["stray"], "there is no option stray"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_usage_errors_end_with_2_and_one_line(argv, match, capsys):
    assert make_main(lambda config: None)(argv) == 2
    error = capsys.readouterr().err
    assert match in error
    assert error.count("\n") == 1


def test_all_missing_options_are_named_at_once():
    with pytest.raises(InputError, match="the option --predictions is needed; see demo --help"):
        parse([], NeedsPredictions, "predictions")
    with pytest.raises(InputError, match="the options --data and --out are needed"):
        parse([], NeedsTwo)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"rank": 0}, "--rank: must be over 0, not 0"),
        ({"rate": 1.5}, "--rate: must be less than 1, not 1.5"),
        ({"rate": math.nan}, "--rate: must be a finite number|must be"),
        ({"rank": "many"}, "--rank: must be a whole number"),
    ],
)
def test_bounds_stand_in_the_type_and_hold_in_python_yaml_and_words(values, match, tmp_path):
    with pytest.raises(InputError, match=match):
        Bounded(**values)
    with pytest.raises(InputError, match=match.partition(":")[2].strip()):
        parse(["--config", write_yaml(tmp_path, yaml.safe_dump(values))], Bounded)
    (name, value), *_ = values.items()
    with pytest.raises(InputError, match=match.rpartition(", not")[0] or match):
        parse([f"--{name}", str(value)], Bounded)


def test_exit_code_1_when_stopped(capsys):
    def run(config):
        raise KeyboardInterrupt

    assert make_main(run)([]) == 1
    assert "run the same command again" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    def run():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(run)


def test_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        make_main(lambda config: None)(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for expected in ("A demo.", "example:\n  demo --data D", "passes over the data (default: 3)", "--learning-rate"):
        assert expected in text


def test_help_shows_each_option_once_and_no_default_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        make_main(lambda config: None)(["--help"])
    text = capsys.readouterr().out
    assert "learning_rate" not in text
    assert "--learning-rate LEARNING_RATE\n" in text
    assert "where the data is\n" in text
    assert "one for each kind (default: 1.0 2.0)" in text
    assert "--flip / --no-flip" in text
    assert "mirror images (default: on)" in text
    assert "None" not in text


def test_exit_codes_of_a_process():
    program = "import sys; from llava_pose.utils.command import run_main; from llava_pose.errors import InputError\n"
    program += "def run(): raise {}\nsys.exit(run_main(run))"
    codes = {}
    for error in ("InputError('bad')", "RuntimeError('bug')"):
        ended = subprocess.run([sys.executable, "-c", program.format(error)], capture_output=True, text=True)
        codes[error] = (ended.returncode, "Traceback" in ended.stderr)
    assert codes == {"InputError('bad')": (2, False), "RuntimeError('bug')": (1, True)}


# Early checks


@pytest.mark.parametrize("value", [None, ""])
def test_require(value):
    with pytest.raises(InputError, match="the option --data is needed"):
        require(value, "--data")
    require(0, "--seed")


def test_require_folder(tmp_path):
    assert require_folder(tmp_path, "--data", "make it") == tmp_path
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match=rf"--data {path}: there is no such folder; make it"):
            require_folder(path, "--data", "make it")


# Whole files or none


def test_atomic_file_replaces_only_when_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    write_atomic(path, "first Ü")

    def fail_half_way():
        with atomic_file(path) as file:
            file.write("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert path.read_text(encoding="utf-8") == "first Ü"
    write_atomic(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert os.listdir(path.parent) == ["x.txt"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x.json", tmp_path / "folder"):
        with pytest.raises(InputError, match=rf"{path}: cannot write the file \("):
            write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_write_json_refuses_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, "Ü"]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": [1, "Ü"]}


# One writer at a time


_TRIES = """
import sys
from pathlib import Path
from llava_pose.utils.output_folder import own_file
with own_file(Path(sys.argv[1]), "--out", "caption"):
    pass
"""


def test_the_lock_goes_with_its_holder_and_keeps_others_out(tmp_path):
    out = tmp_path / "made" / "lines.jsonl"

    def another_tries():
        return subprocess.run([sys.executable, "-c", _TRIES, out], capture_output=True, text=True)

    with own_file(out, "--out", "caption"):
        refused = another_tries()
    assert refused.returncode != 0
    assert f"--out {out}: another caption is writing there; wait" in refused.stderr
    assert another_tries().returncode == 0
    assert not out.parent.exists()  # nothing was written, and what was made for it is gone


_TAKES_TURNS = """
import os, sys, time
from pathlib import Path
from llava_pose.utils.output_folder import own_file
from llava_pose.errors import InputError
folder, turns = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"ready-{os.getpid()}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
held = 0
while held < turns and not (folder / "other-is-done").exists():
    try:
        with own_file(folder / "lines.jsonl", "--out", "test"):
            os.close(os.open(folder / "held", os.O_CREAT | os.O_EXCL))  # fails where the other holds the lock as well
            os.unlink(folder / "held")
            held += 1
    except InputError:
        continue
(folder / "other-is-done").touch()
"""


def test_two_processes_never_hold_a_lock_at_once(tmp_path):
    """Each takes and leaves it as fast as it can, so that one often opens the file that the other is taking away."""
    command_line = [sys.executable, "-c", _TAKES_TURNS, str(tmp_path), "4000"]
    processes = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
