"""A merged checkpoint goes to the hub, by huggingface_hub's own upload."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi

from llava_pose.errors import InputError, RunError
from llava_pose.model.checkpoint_files import blaming

logger = logging.getLogger(__name__)
_LOCAL = ("*.yaml", ".*")  # the settings of commands, which hold paths of this machine


def require_repository(name: str) -> None:
    """Make a repository of the hub, private, if it is not there; a command does so before its work is.

    Raises:
        InputError: the hub cannot be reached or refuses it: no network, no token, no right, or no such name.
    """
    with blaming(f"--push-to {name}: the hub does not take it; log in with `hf auth login`, or leave it out"):
        HfApi().create_repo(name, private=True, exist_ok=True)


def push(folder: Path, name: str) -> None:
    """Upload a checkpoint to a repository of the hub.

    Raises:
        RunError: it was not taken; the folder is whole none the less.
    """
    try:
        with blaming(f"--push-to {name}: the upload failed"):
            done = HfApi().upload_folder(
                repo_id=name, folder_path=folder, ignore_patterns=list(_LOCAL), commit_message="LLaVA-pose checkpoint"
            )
    except InputError as error:
        raise RunError(f"{folder} is whole, but {error}; try again with `hf upload {name} {folder}`") from error
    logger.info(f"{folder}: is on the hub, {done.commit_url}")
