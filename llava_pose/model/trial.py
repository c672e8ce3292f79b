"""A checkpoint's files, tried in a process of its own before this one reads them.

A config, a tokenizer, an image processor or an adapter's pattern is small, and can still ask for any amount of memory or
keep whoever reads it busy for years. What each of them can be made to do is not to be listed, so a child of this process
reads them first, within limits of memory and time; if it does not come back, nothing is read here.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights, no_tie_weights
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import NO_CODE, building, read_config, require_objects, require_small_files

SECONDS = 20  # of a processor; a large tokenizer takes two
MOST_MEMORY = 3 << 30  # bytes beside those that this process has: no weight is read
_LONGEST_WAIT = 10  # times SECONDS, where a machine has much else to do
_PARENT_DIED = 1  # Linux's PR_SET_PDEATHSIG


def try_apart(path: str | os.PathLike[str], files: str, attempt: Callable[[], object]) -> None:
    """Attempt something with a checkpoint's files in a child process that has limits, before it is done here.

    Errors of any other kind than an InputError are left to this process, which meets them in its turn. A hub id is not tried,
    and only on Linux is more looked at than the files' sizes and kinds: elsewhere a fork is not safe.

    Args:
        path: the folder.
        files: which of its files are tried, for messages.
        attempt: what reads them. It must not use a GPU, and what it returns is lost.

    Raises:
        InputError: the attempt did, or it took more memory or time than the limits; a file is too large or of a wrong kind.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    require_small_files(folder)
    if sys.platform != "linux":
        require_objects(folder)
        return
    reader, writer = os.pipe()
    with warnings.catch_warnings():  # later Pythons warn of other threads; the child waits for none of them
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _be_the_child(writer, folder, attempt)
    os.close(writer)
    try:
        said = _hear(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else has waited for it
            os.waitpid(child, 0)
    if said[:1] == b"!":
        raise InputError(said[1:].decode(errors="replace"))
    if said != b".":
        raise InputError(
            f"{folder}: reading {files} takes more than {SECONDS} seconds or {MOST_MEMORY >> 30} GiB, which no sound "
            "checkpoint needs; take it from its source again"
        )


def _hear(reader: int) -> bytes:
    """Return what the child says before it ends; nothing where it dies or takes too long."""
    said, deadline = b"", time.monotonic() + SECONDS * _LONGEST_WAIT
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        block = os.read(reader, 1 << 16)
        if not block:
            return said
        said += block
    return b""


def _be_the_child(writer: int, folder: Path, attempt: Callable[[], object]) -> NoReturn:
    """Say "." where all went well, or "!" and a sentence, and end without a trace in the parent's terminal and files."""
    said = b""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        _limit()
        torch.set_num_threads(1)  # the parent's threads are not here, and would be waited for
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        unset_hf_deepspeed_config()  # or a model would be built with the other processes of a run
        require_objects(folder)
        attempt()
        said = b"."
    except InputError as error:
        said = b"!" + str(error).encode(errors="replace")[:4000]
    except BaseException as error:  # noqa: BLE001 (the parent meets it)
        # torch's own error of memory is known by its words alone
        said = b"" if isinstance(error, MemoryError) or "memory" in str(error) else b"."
    finally:
        with suppress(BaseException):
            os.write(writer, said)
        os._exit(0)


def _limit() -> None:
    import resource

    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def on_meta(path: str | os.PathLike[str], model_class: Any, config: Any = None) -> PreTrainedModel:
    """Build a folder's model without its weights, as ``from_pretrained`` does before it reads them. For :func:`try_apart`.

    Args:
        model_class: a model's class, or an Auto class.
        config: what to build; by default what the folder's config says.

    Raises:
        InputError: the config is no checkpoint's, or describes a larger model than the weights fill.
    """
    read_config(path)
    own = getattr(model_class, "config_class", None)
    config = config if config is not None else (own or AutoConfig).from_pretrained(path, **NO_CODE)
    with ExitStack() as stack:
        stack.enter_context(building(path))
        for context in (torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights(), no_tie_weights()):
            stack.enter_context(context)
        return model_class(config) if own is not None else model_class.from_config(config, **NO_CODE)
