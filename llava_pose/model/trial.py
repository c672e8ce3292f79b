"""A checkpoint's files, tried in a process of its own before this one reads them.

A config, a tokenizer, an image processor or an adapter's pattern is small, and can still ask for any amount of memory or
keep whoever reads it busy for years. What each of them can be made to do is not to be listed, so a child of this process
reads them first, within limits of memory and time; if it does not come back, nothing is read here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights, no_tie_weights
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from llava_pose.errors import InputError
from llava_pose.model.checkpoint_files import (
    NO_CODE,
    bounded_by_weights,
    read_config,
    require_objects,
    require_small_files,
)
from llava_pose.utils.apart import TooMuchError, apart

logger = logging.getLogger(__name__)

SECONDS = 20  # of a processor; a large tokenizer takes two
MOST_MEMORY = 3 << 30  # bytes beside those that this process has: no weight is read


def try_apart(path: str | os.PathLike[str], files: str, attempt: Callable[[], object]) -> None:
    """Attempt something with a checkpoint's files in a child process that has limits, before it is done here.

    Errors of any other kind than an InputError are left to this process, which meets them in its turn. A hub id is not tried,
    and only on Linux is more looked at than the files' sizes and kinds: elsewhere a fork is not safe.

    Args:
        path: the folder.
        files: which of its files are tried, for messages.
        attempt: what reads them. It must not use a GPU, and what it returns is lost.

    Raises:
        InputError: the attempt did, or it took more memory or time than the limits; a file is too large or of a wrong kind, or
            the path is a file's.
    """
    folder = Path(path)
    if not folder.is_dir():
        if os.path.lexists(folder):  # transformers take a file for a config, whatever its size
            raise InputError(f"{folder}: is no folder; give that of a model, or a hub id")
        return
    require_small_files(folder)
    if sys.platform != "linux":
        require_objects(folder)
        return

    def tried() -> None:
        torch.set_num_threads(1)  # the parent's threads are not here, and would be waited for
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        unset_hf_deepspeed_config()  # or a model would be built with the other processes of a run
        require_objects(folder)
        attempt()

    try:
        apart(tried, memory=MOST_MEMORY, seconds=SECONDS)
    except TooMuchError as error:
        raise InputError(
            f"{folder}: reading {files} takes more than {SECONDS} seconds or {MOST_MEMORY >> 30} GiB, which no sound "
            "checkpoint needs; take it from its source again"
        ) from error
    except InputError:
        raise
    except Exception:  # which this process meets in its turn
        logger.debug("%s: the trial of %s failed", folder, files, exc_info=True)


@contextmanager
def at_most(seconds: float, what: str) -> Iterator[None]:
    """Let what is done take so much time of the processor and no more. For :func:`try_apart`, in its child alone.

    Raises:
        InputError: ``what`` takes more.
    """

    def end(*_: object) -> NoReturn:
        raise InputError(
            f"{what} takes more than {seconds:g} seconds, which no sound one needs; take it from its source again"
        )

    signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


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
        stack.enter_context(bounded_by_weights(path))
        for context in (torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights(), no_tie_weights()):
            stack.enter_context(context)
        return model_class(config) if own is not None else model_class.from_config(config, **NO_CODE)
