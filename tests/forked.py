"""Commands in processes of their own that need not import torch and transformers again: forked from one that has."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llava_pose import cli

REPOSITORY = Path(__file__).resolve().parent.parent
NONE: Mapping[str, str] = MappingProxyType({})
PATIENCE = 600.0  # seconds
# what the commands' modules import only after they have read their words
_HEAVY = (
    "torch._dynamo",
    "transformers.trainer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.convnext.modeling_convnext",
    "transformers.models.llama.modeling_llama",
    "peft",
    "llava_pose.inference.predictor",
    "llava_pose.train.evaluation",
    "llava_pose.train.run_folder",
    "llava_pose.train.trainable",
    "llava_pose.train.trainer",
    "llava_pose.train.training_arguments",
)
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [__name__, *_HEAVY, *(module for module, _ in cli.COMMANDS.values() if "serve" not in module)]
)


@dataclass(frozen=True)
class Ended:
    """How a command ended, as a shell's exit code or minus a signal, and what it said on stdout and stderr."""

    returncode: int
    said: str


def start(words: Sequence[str], log: Path, *, kill_at: str = "", environment: Mapping[str, str] = NONE) -> Any:
    """Start a command, or a script with its words, in a process that may be killed.

    What it says goes to the end of ``log``, a file or a terminal.

    Args:
        kill_at: it is killed with -9 as it is about to write a file whose path ends so.
        environment: variables beside those of the tests.
    """
    process = _forks.Process(target=_command, args=(list(words), str(log), kill_at, dict(environment)))
    process.start()
    return process


def run(words: Sequence[str], log: Path, *, kill_at: str = "", environment: Mapping[str, str] = NONE) -> Ended:
    """Start a command and wait for its end."""
    return _end([start(words, log, kill_at=kill_at, environment=environment)], log)


def run_together(words: Sequence[str], log: Path, *, kill_at: str = "", environment: Mapping[str, str] = NONE) -> Ended:
    """Run a command as two processes, as torchrun does: where one of them fails, the other is killed."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = ({**shared, **environment, "RANK": rank, "LOCAL_RANK": rank} for rank in "01")
    return _end([start(words, log, kill_at=kill_at, environment=variables) for variables in ranks], log)


def free_port() -> str:
    """Tests run beside each other: each run of several processes gets a port of its own."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return str(candidate.getsockname()[1])


def _end(processes: Sequence[Any], log: Path) -> Ended:
    waiting = {process.sentinel: process for process in processes}
    code = 0
    try:
        while waiting and code == 0:
            ended = wait(list(waiting), timeout=PATIENCE)
            assert ended, f"did not end:\n{log.read_text()[-4000:]}"
            for process in map(waiting.pop, ended):
                process.join()
                code = code or process.exitcode
    finally:
        for process in processes:
            process.kill()
            process.join()
    return Ended(code, log.read_text())


def _command(words: list[str], log: str, kill_at: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    if os.isatty(descriptor):  # the first that a new session opens is its own, whose Ctrl-C comes here
        os.dup2(descriptor, 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, 1) for n, mode in enumerate("rww"))
    os.chdir(REPOSITORY)
    if kill_at:
        # An audit hook sees every file that Python opens or renames: the process dies as it is about to write a chosen one,
        # with nothing of the command changed.
        def die(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "os.rename" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if writes and any(str(a).endswith(kill_at) for a in arguments[:2]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
    import torch

    torch.set_num_threads(1)
    if words[0].endswith(".py"):
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.exit(cli.main(words))
