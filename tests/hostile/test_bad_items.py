"""One bad item stops nothing: it is listed, and the others are done. Files without an end or of any size are not read."""

from __future__ import annotations

import io
import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.inspect.command import main as inspect_main
from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.prepare.command import main as prepare_main
from data_prep.raw.imagenet3d import write_annotation, write_list
from data_prep.raw.safe_npz import read_npz
from eval.score import main as score_main
from llava_pose.cli import main
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.poses.formats import read_poses
from llava_pose.data.poses.posed_object import read_json
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.pose.meshes import off_vertices, read_off, turned_off
from scripts.mix import MixConfig, mix
from tests.hostile.data_commands import COMMANDS, POSE, device, fifo, picture, prepared_with, record, sparse, time_limit

ENDLESS = {"fifo": fifo, "device": device, "sparse": sparse}
every_endless_file = pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)


def zipped(method: int, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("annotations.npy", content)
    return stream.getvalue()


def npy(content: bytes) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (len(content),)})
    return stream.getvalue() + content


# The raw layout

LINES = {
    "300_letters": "x" * 300,
    "250_letters": "x" * 250,
    "300_bytes_of_100_letters": "汽" * 100,
    "parent": "../../secret",
    "absolute": "/etc/passwd",
    "nul": "n\0ul",
    "terminal_codes": "\x1b[2J",
    "reversed_text": "\u202egpj",
    "drive": "C:n1",
    "dots": "..",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_of_a_list_that_is_no_name(raw_dataset: Any, tmp_path: Path, line: str, capsys: Any) -> None:
    raw_dataset.add("good")
    with open(raw_dataset.layout.list_file("car", "train"), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with time_limit(60):
        words = [
            "--data-root",
            str(raw_dataset.root),
            "--out",
            str(tmp_path / "out"),
            "--splits",
            "train",
            "--size",
            "64",
        ]
        assert prepare_main([*words, "--workers", "1"]) == 0
        assert inspect_main([str(raw_dataset.root)]) == 0
    assert [made.id for made in read_records(tmp_path / "out", "train")] == ["car/good/0"]
    (reject,) = (value for _, value in read_jsonl(tmp_path / "out/rejects.jsonl"))
    assert reject["reason"] in ("bad name", "annotation missing")
    assert "\x1b" not in capsys.readouterr().out


ANNOTATIONS: dict[str, Callable[[Path], Any]] = {
    **ENDLESS,
    "folder": lambda path: path.mkdir(parents=True),
    "bomb": lambda path: path.write_bytes(zipped(zipfile.ZIP_DEFLATED, npy(bytes(100 << 20)))),
    "compressed_with_lzma": lambda path: path.write_bytes(zipped(zipfile.ZIP_LZMA, npy(b"1234"))),
    "compressed_with_bzip2": lambda path: path.write_bytes(zipped(zipfile.ZIP_BZIP2, npy(b"1234"))),
}
OBJECTS: dict[str, dict[str, Any]] = {
    "null_px": {"px": None, "principal": None},
    "nan_px": {"px": float("nan")},
    "text_px": {"px": "middle"},
    "azimuth_1e300": {"azimuth": 1e300},
    "distance_0": {"distance": 0},
    "distance_-3": {"distance": -3},
    "distance_1e308": {"distance": 1e308},
    "viewport_1e-320": {"viewport": 1e-320},
    "bbox_of_lists": {"bbox": [[1], [2], [3], [4]]},
    "class_of_lists": {"class": [["car"]]},
    "class_parent": {"class": "../evil"},
}


@pytest.mark.parametrize("kind", [*ANNOTATIONS, *OBJECTS])
def test_a_bad_annotation(raw_dataset: Any, tmp_path: Path, kind: str) -> None:
    raw_dataset.add("good")
    raw_dataset.add("bad", objects=b"" if kind in ANNOTATIONS else [raw_dataset.object(**OBJECTS[kind])])
    if kind in ANNOTATIONS:
        ANNOTATIONS[kind](raw_dataset.layout.annotation("car", "bad"))
    with time_limit(60):
        config = PrepareConfig(str(raw_dataset.root), str(tmp_path / "out"), splits="train", size=64, workers=1)
        prepare(config)
        assert inspect_main([str(raw_dataset.root)]) == 0
    assert [made.id for made in read_records(tmp_path / "out", "train")] == ["car/good/0"]
    (reject,) = (value for _, value in read_jsonl(tmp_path / "out/rejects.jsonl"))
    assert reject["file"] == "annotations/car/bad.npz"
    assert reject["sentence"].isprintable()


@every_endless_file
def test_a_list_without_an_end_is_one_sentence(
    raw_dataset: Any, tmp_path: Path, make: Callable[[Path], Path], capsys: Any
) -> None:
    raw_dataset.add("good")
    path = make(raw_dataset.root / "lists/cup_imagenet_train.txt")
    with time_limit(20):
        words = ["--data-root", str(raw_dataset.root), "--out", str(tmp_path / "out"), "--splits", "train"]
        assert prepare_main([*words, "--workers", "1"]) == 2
        assert f"error: {path}: cannot be read" in capsys.readouterr().err
        assert inspect_main([str(raw_dataset.root)]) == 0
        assert "list unreadable" in capsys.readouterr().out


@every_endless_file
def test_a_mesh_without_an_end_is_one_sentence(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "CAD/car/01.off")
    (tmp_path / "CAD/car/02.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    with time_limit(60):
        for read in (read_off, off_vertices, lambda path: turned_off(path, np.eye(3))):
            with pytest.raises(InputError, match=r"01\.off: cannot be read"):
                read(path)
        pytest.importorskip("embreex")
        assert (
            inspect_main(["align", "--cad", str(tmp_path / "CAD"), "--out", str(tmp_path / "sheets"), "--tile", "64"])
            == 0
        )


@pytest.mark.parametrize(
    "face", ["3 0 1 " + "9" * 30, "3 0 1 -1", "99999999999 0 1 2", "3 0 1 1e300", "-3 0 1 2", "3 0 1 " + "9" * 5000]
)
def test_a_face_of_a_mesh_that_is_none(tmp_path: Path, face: str) -> None:
    path = tmp_path / "a.off"
    path.write_text(f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n{face}\n")
    with pytest.raises(InputError, match=r"a\.off"):
        read_off(path)


@every_endless_file
def test_an_npz_without_an_end(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with time_limit(20), pytest.raises(InputError, match=r"a\.npz: "):
        read_npz(make(tmp_path / "a.npz"))


# Prepared data

RECORDS: dict[str, Any] = {
    "null_px": record(2, pose={**POSE, "px": None}),
    "null_distance": record(2, pose={**POSE, "distance": None}),
    "text_px": record(2, pose={**POSE, "px": "30"}),
    "azimuth_1e300": record(2, pose={**POSE, "azimuth": 1e300}),
    "null_azimuth": record(2, pose={**POSE, "azimuth": None}),
    "distance_0": record(2, pose={**POSE, "distance": 0}),
    "distance_-3": record(2, pose={**POSE, "distance": -3}),
    "distance_1e308": record(2, pose={**POSE, "distance": 1e308}),
    "viewport_1e-320": record(2, viewport=1e-320),
    "width_infinite": record(2, width=float("inf")),
    "bbox_1e308": record(2, bbox=[-1e308, 0, 1e308, 5]),
    "crop_of_text": record(2, crop={"left": "0", "top": 0, "scale": 1}),
    "crop_scale_0": record(2, crop={"left": 0, "top": 0, "scale": 0}),
    "source_image_a_list": record(2, source={"image": ["a"]}),
    "pose_missing": record(2, pose=...),
    "same_id_twice": record(1),
    "no_object": "[1, 2]",
    "no_json": '{"file_name": ',
    "no_utf8": "\udcff",
    "nested_deeply": "[" * 5000,
    "a_huge_integer": '{"id": ' + "9" * 5000 + "}",
}
WITHOUT_PLACE = ("null_px", "null_distance")  # only what needs the place leaves these out
ONLY_EXPORT = {
    "crop_missing": record(2, crop={}),
    "source_of_text": record(2, source={"width": "64"}),
    "source_width_huge": record(2, source={"width": 10**400}),
    "extra_no_json": record(2, source={"extra": "{"}),
    "extra_no_object": record(2, source={"extra": "[]"}),
}


def folder_with(tmp_path: Path, line: Any) -> Path:
    prepared = prepared_with(tmp_path / "prepared")
    picture(prepared / "val/car/n2_00.JPEG")
    text = line if isinstance(line, str) else json.dumps(line)
    with open(prepared / "val/metadata.jsonl", "ab") as file:
        file.write(f"{text}\n".encode("utf-8", "surrogateescape"))
    return prepared


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("command", ["export", "instruct", "caption", "sheet", "inspect"])
def test_a_bad_record(tmp_path: Path, command: str, kind: str, capsys: Any) -> None:
    prepared = folder_with(tmp_path, RECORDS[kind])
    code = COMMANDS[command].run(prepared, tmp_path / "out")
    said = capsys.readouterr()
    if kind in WITHOUT_PLACE and command in ("caption", "sheet", "inspect"):
        assert code == 0
        return
    assert code == COMMANDS[command].code
    assert COMMANDS[command].done(tmp_path / "out")
    assert "Traceback" not in said.err
    if kind not in WITHOUT_PLACE and (command, kind) != ("inspect", "same_id_twice"):
        assert "metadata.jsonl:3: " in said.err + said.out


@pytest.mark.parametrize("kind", ONLY_EXPORT)
def test_a_record_that_lacks_what_a_raw_annotation_has(tmp_path: Path, kind: str, capsys: Any) -> None:
    prepared = folder_with(tmp_path, ONLY_EXPORT[kind])
    assert COMMANDS["export"].run(prepared, tmp_path / "out") == 2
    assert COMMANDS["export"].done(tmp_path / "out")
    assert "record 'car/n2/0': " in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@every_endless_file
def test_records_without_an_end(tmp_path: Path, make: Callable[[Path], Path], command: str, capsys: Any) -> None:
    prepared = prepared_with(tmp_path / "prepared")
    (tmp_path / "out").mkdir()
    COMMANDS[command].before(prepared, tmp_path / "out")
    (prepared / "val/metadata.jsonl").unlink()
    make(prepared / "val/metadata.jsonl")
    words = [str(word) for word in COMMANDS[command].words(prepared, tmp_path / "out")]
    from importlib import import_module

    with time_limit(20):
        assert import_module(COMMANDS[command].module).main(words) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


@every_endless_file
def test_texts_and_predictions_without_an_end(tmp_path: Path, make: Callable[[Path], Path], capsys: Any) -> None:
    path = make(tmp_path / "file.jsonl")
    with time_limit(30):
        assert score_main([str(path), "--out", str(tmp_path / "scores.json")]) == 2
        assert inspect_main([str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_all_lists_are_written_as_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot stand in a list"):
        write_list(tmp_path / "list.txt", ["x" * 300])
    write_annotation(tmp_path / "a.npz", [])


def test_a_file_of_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"images": [')
    os.truncate(path, (1 << 32) - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_json(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("format_name", ["bop", "llava-pose", "orient-anything"])
def test_a_cell_without_an_end_is_a_sentence(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    path.write_text("id,azimuth,elevation,theta\n" + "x" * 200_000)
    with pytest.raises(InputError, match="not a CSV file"):
        read_poses(path, format_name)


@pytest.mark.parametrize(
    "bad", [{"file_name": "car/none.JPEG"}, {"source": {"annotation": float("nan")}}, {"id": "../n2/0"}], ids=str
)
def test_one_bad_record_stops_no_mixture(bad: dict[str, Any], tmp_path: Path) -> None:
    prepared = prepared_with(tmp_path / "prepared", record(2, **bad))
    mix(MixConfig(rendered=[str(prepared)], out=str(tmp_path / "mixed")))
    assert len(read_records(tmp_path / "mixed", "val")) == 2


@pytest.mark.parametrize("crop", ["whole", "box"])
@pytest.mark.parametrize(
    "other", [{}, {"class": "bus"}, {"bbox": [20.0, 20.0, 300.0, 300.0]}], ids=["all", "pose", "name"]
)
def test_an_object_that_is_annotated_twice_stops_nothing(
    raw_dataset, tmp_path: Path, crop: str, other: dict, caplog
) -> None:
    """Two objects of one pose: the same again, one of another category, and one with another box."""
    first = raw_dataset.object()
    raw_dataset.add("twice", objects=[first, {**first, **other}])
    raw_dataset.add("once")
    prepared, captions, train = (str(tmp_path / name) for name in ("prepared", "captions.jsonl", "train.json"))
    words = ["--data-root", str(raw_dataset.root), "--out", prepared, "--crop", crop, "--size", "96", "--workers", "1"]
    assert main(["prepare", *words, "--splits", "train"]) == 0
    assert main(["caption", "--data", prepared, "--out", captions]) == 0
    kinds = ["--kinds", "all", "--questions-per-object", "40"]
    for words in ([], ["--captions", captions]):
        assert main(["instruct", "--data", prepared, "--out", train, *kinds, *words]) == 0
        assert main(["validate", "--data", prepared, train]) == 0
    lines = [json.loads(line) for line in Path(captions).read_text().splitlines()]
    named = [line["objects"] for line in lines if "twice" in line["image"]]
    if "class" not in other:  # nothing that is said could tell the second from the first
        assert all(len(objects) == 1 for objects in named)
        assert "the first: car/twice/" in caplog.text or (crop == "box" and other)  # hardly seen in the crop
    asked = [sample for sample in json.loads(Path(train).read_text()) if "twice" in sample["image"]]
    assert {"yesno", "choice", "verify"} & {sample["kind"] for sample in asked} or not other
