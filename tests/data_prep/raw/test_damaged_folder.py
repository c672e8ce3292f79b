"""A folder with every kind of damaged input, in one run: each is refused with its sentence, the good ones go through."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.prepare.command import PrepareConfig, prepare
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.records import read_records
from tests.conftest import RawDataset
from tests.data_prep.damaged_input import KINDS


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The prepared folder and its rejects."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "raw").mkdir()
    dataset = RawDataset(folder / "raw")
    dataset.add("good_first")
    lines = [line for line in (kind.make(dataset, name) for name, kind in KINDS.items()) if line]
    dataset.add("good_last")
    listed = dataset.layout.list_file("car", "train")
    listed.write_text("\n".join([*listed.read_text().split(), *lines]))
    out = prepare(PrepareConfig(data_root=str(dataset.root), out=str(folder / "out"), splits="train", workers=2))
    return out, [reject for _, reject in read_jsonl(out / "rejects.jsonl")]


def test_there_are_more_than_thirty_kinds() -> None:
    assert len(KINDS) >= 30
    assert len({kind.sentence for kind in KINDS.values()}) >= 30


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_refused_with_its_sentence(damaged: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    _, rejects = damaged
    kind = KINDS[name]
    file = kind.file.replace("{name}", name)
    pattern = re.escape(kind.sentence.replace("{name}", name)).replace(re.escape("{words}"), ".+")
    found = [reject for reject in rejects if reject["file"] == file and re.fullmatch(pattern, reject["sentence"])]
    assert found, [reject["sentence"] for reject in rejects if reject["file"] == file]
    assert (found[0]["split"], found[0]["reason"], found[0]["object_index"]) == ("train", kind.reason, kind.index)
    assert "\n" not in found[0]["sentence"]


def test_the_good_ones_go_through_and_everything_is_accounted_for(damaged: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rejects = damaged
    assert [record.id for record in read_records(out, "train")] == ["car/good_first/0", "car/good_last/0"]
    account = json.loads((out / "summary.json").read_text())["total"]
    # objects_of_two_sizes has one filtered object and two bad ones, every other kind is one reject
    assert account == {
        **{"images": len(KINDS) + 2, "read": len(KINDS) + 4, "written": 2, "filtered": 1},
        "rejected": len(KINDS) + 1,
    }
    assert len(rejects) == len(KINDS) + 1
