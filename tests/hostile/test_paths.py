"""Names in data files that lead out of their folder: every command leaves the object out, names it, and does the others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.inspect.command import main as inspect_main
from data_prep.instruct.validate import main as validate_main
from eval.predict import main as predict_main
from eval.systems.record_choice import select_records
from llava_pose.data.dataset import PoseDataset, read_samples
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.utils.files import inside, is_plain_name, of_split, unsafe_name
from tests.hostile.data_commands import COMMANDS, GOOD, picture, prepared_with, record
from tests.llava_pose.small_models import small_processor

NAMES = {
    "parent": "../../secret.JPEG",
    "parent_below": "car/../../../secret.JPEG",
    "parent_of_windows": "car\\..\\..\\..\\secret.JPEG",
    "absolute": "{root}/secret.JPEG",
    "drive": "C:\\secret.JPEG",
    "drive_relative": "C:secret.JPEG",
    "network_share": "\\\\server\\secret.JPEG",
    "nul": "car/n0_00.JPEG\0",
    "300_letters": "car/" + "x" * 300 + ".JPEG",
    "terminal_codes": "car/\x1b[2J.JPEG",
    "reversed_text": "car/\u202egepj.JPEG",
    "half_a_letter": "car/\ud800.JPEG",
    "no_name": "",
    "the_folder": ".",
    "symbolic_link": "car/link.JPEG",
    "link_of_a_folder": "elsewhere/secret.JPEG",
    "links_in_a_circle": "car/circle.JPEG",
}
IDS = {
    "parent": "../n2/0",
    "absolute": "/n2/0",
    "two_parts": "car/n2",
    "four_parts": "car/a/n2/0",
    "an_empty_part": "car//0",
    "index_no_number": "car/n2/first",
    "index_of_other_digits": "car/n2/²",
    "index_of_300_digits": "car/n2/" + "9" * 300,
    "300_letters": "car/" + "x" * 300 + "/0",
    "nul": "car/n2\0/0",
    "terminal_codes": "car/\x1b]0;title\x07/0",
    "backslash": "car/..\\n2/0",
}
CATEGORIES = {
    "parent": "../evil",
    "parent_alone": "..",
    "absolute": "/evil",
    "drive": "C:",
    "nul": "car\0",
    "300_letters": "x" * 300,
    "terminal_codes": "\x1b[31mcar",
    "empty": "",
}


def hostile_folder(tmp_path: Path, name: str) -> tuple[Path, str]:
    """A prepared folder whose third object's picture has that name, with a picture outside where it may lead."""
    name = name.replace("{root}", str(tmp_path))
    picture(tmp_path / "secret.JPEG", 255)
    prepared = prepared_with(tmp_path / "prepared", record(2, file_name=name))
    (prepared / "val/car/link.JPEG").symlink_to(tmp_path / "secret.JPEG")
    (prepared / "val/elsewhere").symlink_to(tmp_path)
    (prepared / "val/car/circle.JPEG").symlink_to("circle.JPEG")
    return prepared, name


def nothing_leaked(folder: Path, secret: bytes) -> bool:
    return all(path.read_bytes() != secret for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_name_that_leads_out_is_not_followed(
    tmp_path: Path, command: str, name: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, _ = hostile_folder(tmp_path, name)
    out = tmp_path / "out"
    assert COMMANDS[command].run(prepared, out) == COMMANDS[command].code
    assert COMMANDS[command].done(out)
    assert nothing_leaked(out, (tmp_path / "secret.JPEG").read_bytes())
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if COMMANDS[command].code == 2:
        assert "error: " in said.err
        assert "1 " in said.err.splitlines()[-1]
        assert sum(record.levelname == "WARNING" for record in caplog.records) >= 1
    assert "\x1b" not in said.err + said.out
    assert "\u202e" not in said.err + said.out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(pytest.param("id", value, id=f"id_{name}") for name, value in IDS.items()),
        *(pytest.param("category", value, id=f"category_{name}") for name, value in CATEGORIES.items()),
    ],
)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "inspect-page"])
def test_an_id_or_a_category_that_names_no_file_is_listed(
    tmp_path: Path, command: str, field: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepared_with(tmp_path / "prepared", record(2, **{field: value}))
    picture(prepared / "val/car/n2_00.JPEG")
    assert COMMANDS[command].run(prepared, tmp_path / "out") == COMMANDS[command].code
    assert COMMANDS[command].done(tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "metadata.jsonl:3: " in said.err + said.out
    assert f"'{field}'" in said.err + said.out
    assert "\x1b" not in said.err + said.out


def test_predict_answers_the_others(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, _ = hostile_folder(tmp_path, "")
    lines = [record(10 + i, file_name=name.replace("{root}", str(tmp_path))) for i, name in enumerate(NAMES.values())]
    lines += [record(2, id=value) for value in IDS.values()]
    with open(prepared / "val/metadata.jsonl", "a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
    out = tmp_path / "p.jsonl"
    assert (
        predict_main(["--checkpoint", str(tiny_base), "--data", str(prepared), "--out", str(out), "--device", "cpu"])
        == 2
    )
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["car/n0/0", "car/n1/0"]
    assert f"{1 + len(lines)} of {1 + len(lines) + GOOD} objects have no prediction" in capsys.readouterr().err


def test_training_of_baselines_names_all_lines_at_once(tmp_path: Path) -> None:
    prepared = prepared_with(tmp_path / "prepared", *(record(2, id=value) for value in IDS.values()))
    with pytest.raises(InputError, match="12 lines cannot be used") as caught:
        select_records(prepared, "val", None, "--train-categories")
    assert str(caught.value).count("\n  /") == 10
    assert str(caught.value).endswith("and 2 more")


# Files that name pictures from the prepared folder on


def sample(image: str) -> dict[str, Any]:
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A car.")]
    return {
        "id": "a",
        "image": image,
        "conversations": [{"from": who, "value": text} for who, text in turns],
        "poses": [],
    }


IMAGES = {name: value.replace("../../", "val/../../", 1) if value else "val/" for name, value in NAMES.items()}
IMAGES = {name: value if name in ("absolute", "network_share") or value.startswith(("val/", "C:")) else f"val/{value}"
          for name, value in IMAGES.items()}  # fmt: skip


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_an_image_of_a_train_json_that_leads_out_is_not_learned_from(tmp_path: Path, image: str) -> None:
    prepared, image = hostile_folder(tmp_path, image)
    path = tmp_path / "train.json"
    path.write_text(json.dumps([sample(image), sample("val/car/n0_00.JPEG")]), encoding="utf-8")
    with pytest.raises(InputError, match=r"sample|surrogate"):
        PoseDataset(read_samples(path), prepared, small_processor())
    if "\ud800" not in image:
        assert validate_main(["--data", str(prepared), str(path)]) == 2


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("kind", ["captions", "train"])
def test_an_image_of_a_text_that_leads_out_is_not_shown(
    tmp_path: Path, kind: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, image = hostile_folder(tmp_path, image)
    good = "val/car/n0_00.JPEG"
    path = prepared / ("captions.jsonl" if kind == "captions" else "train.json")
    if kind == "captions":
        lines = [
            {"image": name, "status": "ok", "caption": "A car.", "objects": [], "writer": "me"}
            for name in (good, image)
        ]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    elif "\ud800" in image:
        pytest.skip("a train.json with half a letter is refused as a whole")
    else:
        path.write_text(json.dumps([sample(good), sample(image)]))
    page = tmp_path / "page.html"
    assert inspect_main(["page", str(path), "--prepared", str(prepared), "--out", str(page), "--no-wireframes"]) == 0
    assert page.read_text().count("data:image/jpeg") == 1
    assert inspect_main([str(path), "--prepared", str(prepared)]) == 0
    assert "image " in capsys.readouterr().out or "\ud800" in image


# What goes on working


def test_a_split_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    prepared = prepared_with(tmp_path / "prepared")
    (prepared / "val").rename(tmp_path / "other_disk")
    (prepared / "val").symlink_to(tmp_path / "other_disk")
    for name, command in COMMANDS.items():
        assert command.run(prepared, tmp_path / name) == 0
        assert command.done(tmp_path / name)
    assert len(PoseDataset([sample("val/car/n0_00.JPEG")], prepared, small_processor())) == 1


def test_folders_of_the_raw_layout_may_be_links(raw_dataset: Any, tmp_path: Path) -> None:
    from data_prep.prepare.command import PrepareConfig, prepare

    raw_dataset.add("n1")
    for name in ("images", "annotations", "lists"):
        (raw_dataset.root / name).rename(tmp_path / f"disk_{name}")
        (raw_dataset.root / name).symlink_to(tmp_path / f"disk_{name}")
    prepare(PrepareConfig(str(raw_dataset.root), str(tmp_path / "out"), splits="train", workers=1))
    assert len(read_records(tmp_path / "out", "train")) == 1


@pytest.mark.parametrize("name", ["a b", "Élan", "汽车", "n..1", "half-track (WW2)", "Screenshot at 10.30\u202fAM"])
def test_names_that_people_have_are_taken(tmp_path: Path, name: str) -> None:
    assert unsafe_name(f"car/{name}.JPEG") is None
    assert is_plain_name(name)
    assert inside(*of_split(tmp_path, f"val/car/{name}.JPEG")) == tmp_path / "val" / "car" / f"{name}.JPEG"


def test_links_that_lead_to_each_other_are_an_answer(tmp_path: Path) -> None:
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    assert inside(tmp_path, "a") == tmp_path / "a"
