"""llava-pose: help, wrong words, and Ctrl-C, for every command there is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llava_pose import __version__
from llava_pose.cli import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[2]
STOPPED = "stopped; run the same command again to go on"
REQUIRED = {  # what argparse asks for first
    "prepare": ["--data-root", "d", "--out", "p"],
    "export": ["--data", "d", "--out", "p"],
    "align": ["--data-root", "d", "--out", "a"],
    "assemble": ["--out", "b"],
}
NEED_NOTHING = ("doctor",)
CHECKS = {"chat": ["--max-new-tokens", "0"], "demo": ["--port", "0"]}


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    """Words after llava-pose -> (exit code, stdout, stderr), in this process."""

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as end:  # argparse ends so
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def start(words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "llava_pose.cli", *words],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # tests that run in the background ignore Ctrl-C, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# Help


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_every_command(run, word):
    code, out, err = run(word)
    assert (code, err) == (0, "")
    listed = re.findall(r"^  ([\w-]+) {2,}(\S.*)$", out, re.MULTILINE)
    assert listed == [(name, what) for name, (_, what) in COMMANDS.items()]
    assert "usage: llava-pose COMMAND" in out
    assert "example:" in out


def test_without_a_command_the_help_is_shown_as_a_mistake(run):
    assert run()[:2] == (2, run("--help")[1])


def test_version(run):
    assert run("--version") == (0, f"llava-pose {__version__}\n", "")


def test_the_installed_command_is_this_main():
    [command] = entry_points(group="console_scripts", name="llava-pose")
    assert command.load() is main


def test_help_is_there_at_once():
    """Nobody waits for torch to read a list of commands."""
    script = "import sys; from llava_pose.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_model_library(name):
    script = f"""
import sys
from llava_pose.cli import main
try:
    code = main([{name!r}, "--help"])
except SystemExit as end:
    code = end.code
sys.exit(code or " ".join(sorted({{"torch", "transformers"}} & set(sys.modules))) or 0)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: llava-pose {name}")
    example = out.split("example:\n", 1)[1]
    assert f"llava-pose {name}" in example
    assert "--config" in out


# Wrong words


@pytest.mark.parametrize("word", ["no-such-command", "Chat", "", "--no-such-option", "chat "])
def test_an_unknown_command_is_one_sentence(run, word):
    code, out, err = run(word)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"there is no command '{word}'" in err
    assert ("did you mean chat?" if word.strip().lower() == "chat" else "--help lists them") in err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_named(run, name):
    code, out, err = run(name, *REQUIRED.get(name, []), "--no-such-option", "3")
    assert (code, out) == (2, "")
    assert "--no-such-option" in err.splitlines()[-1]
    assert err.startswith("error: there is no option --no-such-option")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_without_its_value_is_named(run, name):
    code, out, err = run(name, "--config")
    assert (code, out) == (2, "")
    assert "--config" in err.splitlines()[-1]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in NEED_NOTHING])
def test_a_command_that_is_told_nothing_says_what_it_needs(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(name)
    assert (code, out) == (2, "")
    assert re.search(r"--\w+|required|is given", err.splitlines()[-1])
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_recipe_with_a_wrong_field_is_one_sentence(run, name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("no_such_field: 3\n")
    code, out, err = run(name, "--config", str(recipe))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {recipe}: there is no field 'no_such_field'")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", CHECKS)
def test_a_senseless_value_is_one_sentence(run, name):
    code, out, err = run(name, *CHECKS[name])
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {CHECKS[name][0]} 0: must be ")
    assert err.count("\n") == 1


# Ctrl-C


def assert_stopped(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert err.splitlines()[-1] == STOPPED, err
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def test_ctrl_c_during_work(tmp_path):
    """Ctrl-C reaches every process of the group: neither the command nor its workers show a traceback."""
    options = ["--categories", "hammer", "--train-instances", "500", "--size", "64", "--workers", "2"]
    process = start(["render", "--out", str(tmp_path / "set"), *options])
    try:
        while not list((tmp_path / "set").glob("annotations/*/*.npz")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert_stopped(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


# Ctrl-C at the moment when Python begins to import torch, which takes seconds
_CTRL_C_AT_TORCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
def press(event, arguments):
    if event == "import" and arguments[0] == "torch":
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(press)
from llava_pose.cli import main
sys.exit(main(["classifier", "--help-all"]))  # whose options are transformers' own
"""


def test_ctrl_c_while_a_command_is_still_starting():
    result = subprocess.run(
        [sys.executable, "-c", _CTRL_C_AT_TORCH], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"{STOPPED}\n")
