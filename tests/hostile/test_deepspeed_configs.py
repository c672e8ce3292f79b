"""A DeepSpeed configuration that is none is one sentence with its name, before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava_pose.errors import InputError
from llava_pose.train.forecast import Way, way_of
from llava_pose.train.training_arguments import PoseTrainingArguments

FILES: dict[str, Any] = {
    "no JSON": b"{",
    "of another encoding": b"\xe9",
    "nested without end": b"[" * 100_000,
    "a list": [],
    "null": None,
    "zero_optimization of null": {"zero_optimization": None},
    "zero_optimization of a list": {"zero_optimization": []},
    "a stage in words": {"zero_optimization": {"stage": "auto"}},
    "a stage of null": {"zero_optimization": {"stage": None}},
    "a stage of a list": {"zero_optimization": {"stage": []}},
    "a negative stage": {"zero_optimization": {"stage": -1}},
    "offloading in a word": {"zero_optimization": {"stage": 3, "offload_param": "cpu"}},
    "offloading of a list": {"zero_optimization": {"stage": 2, "offload_optimizer": []}},
}


@pytest.mark.parametrize("name", [*FILES, "a sparse file"])
def test_a_deepspeed_config_that_is_none_is_a_sentence(name: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    content = FILES.get(name, b"{}")
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    if name == "a sparse file":
        os.truncate(file, 1 << 40)
    with pytest.raises(InputError, match=r"--deepspeed .*zero\.json: .*; (give|save)"):
        PoseTrainingArguments(output_dir=str(tmp_path / "run"), deepspeed=str(file), dry_run=True, use_cpu=True)


def test_what_is_not_offloaded_may_be_null(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": None}}))
    PoseTrainingArguments(output_dir=str(tmp_path / "run"), deepspeed=str(file), dry_run=True, use_cpu=True)
    assert way_of(str(file)) == Way("zero.json", 3)
