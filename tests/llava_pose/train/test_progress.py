"""A training shows one line: how far it is, and what its loss is made of."""

from __future__ import annotations

import logging
from typing import Any

from tests.llava_pose.conftest import run_training


def test_a_training_writes_no_dictionary_to_the_terminal(recipe: dict[str, Any], capfd) -> None:
    """transformers' own callbacks write each entry of the log as a dictionary, between pieces of the bar."""
    run_training({**recipe, "max_steps": 2, "logging_steps": 1, "disable_tqdm": False})
    out, err = capfd.readouterr()
    assert "{" not in out + err
    assert "training: 100%" in err
    assert "2/2" in err
    assert "loss " in err
    assert "rotation " in err


def test_without_a_bar_each_entry_of_the_log_is_a_line(recipe: dict[str, Any], capfd, caplog) -> None:
    with caplog.at_level(logging.INFO, "llava_pose.train.progress"):
        run_training({**recipe, "max_steps": 2, "logging_steps": 1, "disable_tqdm": True})
    assert "{" not in "".join(capfd.readouterr())
    lines = [record.getMessage() for record in caplog.records if record.name == "llava_pose.train.progress"]
    assert [line.split(":")[0] for line in lines] == ["step 1 of 2", "step 2 of 2"]
    assert all("text " in line and "rotation " in line and "learning rate " in line for line in lines)
