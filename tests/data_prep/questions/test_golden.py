"""The files of ``instruct`` and ``caption``, byte for byte: what is written changes only where somebody means to change it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from data_prep.caption.command import CaptionConfig, caption
from data_prep.instruct.command import InstructConfig, instruct
from tests.data_prep.made_scenes import make_prepared, make_records

GOLDEN = {
    "the default": ({}, "bac0a62b3eaee32fb3e17d7fdd385d6a"),
    "all kinds": (
        {"kinds": ["all"], "questions_per_object": 8, "turns_per_conversation": 3, "seed": 2},
        "3568c80cfaeecb40c4d07433eae27f6c",
    ),
    "balanced kinds alone": (
        {"kinds": ["yesno", "choice", "relative", "given"], "questions_per_object": 6},
        "da03d0ebd15a6459acfad6ec4d4f4273",
    ),
    "weights": (
        {"kinds": ["several", "which", "locate"], "weights": [3.0, 2.0, 1.0], "phrasings": 2},
        "cf33ef014ce8d8f25c6ac037083f6c00",
    ),
}


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("golden") / "prepared", make_records(40, seed=5))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_same_records_and_seed_give_the_same_train_json(name: str, prepared: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = GOLDEN[name][0]
    out = tmp_path / "train.json"
    instruct(InstructConfig(data=str(prepared), out=str(out), **options))
    assert digest(out) == GOLDEN[name][1]


def test_the_same_records_and_seed_give_the_same_captions_and_the_same_questions_for_them(
    prepared: Path, tmp_path: Path
) -> None:
    captions, out = tmp_path / "captions.jsonl", tmp_path / "train.json"
    caption(CaptionConfig(data=str(prepared), out=str(captions), seed=1))
    assert digest(captions) == "e2bbd976eaeb952c18ac9762a4bf787c"
    instruct(InstructConfig(data=str(prepared), out=str(out), captions=str(captions)))
    assert digest(out) == "af9d837045abda0affb8622796e26514"
