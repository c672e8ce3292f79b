"""Damaged and odd input: nothing crashes, nothing is lost silently, and the sentence names the file."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep.prepare.command import PrepareConfig, main, prepare
from data_prep.raw.imagenet3d import write_annotation, write_list
from llava_pose.data.images import PADDING_COLOUR
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.records import ObjectRecord, read_records
from llava_pose.errors import InputError

COLORS = {
    "left top": (200, 30, 40),
    "right top": (30, 180, 60),
    "left bottom": (40, 60, 210),
    "right bottom": (220, 200, 40),
}


class Outcome:
    """What prepare wrote, with a good image beside the bad one to see that it went on."""

    def __init__(self, dataset: Any, out: Path, **options: Any) -> None:
        dataset.add("good", category="bus", objects=[dataset.object(**{"class": "bus"})])
        config = {"splits": "train", "workers": 1, "crop": "box", "margin": 0.0, **options}
        prepare(PrepareConfig(data_root=str(dataset.root), out=str(out), **config))
        self.out = out
        self.records = [record for record in read_records(out, "train") if record.id != "bus/good/0"]
        self.rejects = [reject for _, reject in read_jsonl(out / "rejects.jsonl")]
        self.summary = json.loads((out / "summary.json").read_text())
        account = self.summary["splits"]["train"]
        assert account["read"] == account["written"] + account["filtered"] + account["rejected"]
        assert account["written"] == len(self.records) + 1, "the good image is not lost with the bad one"
        assert account["rejected"] == len(self.rejects)
        assert sum(account["rejected_by_reason"].values()) == len(self.rejects)

    def pixels(self, record: ObjectRecord) -> np.ndarray:
        return np.asarray(Image.open(self.out / "train" / record.file_name).convert("RGB")).astype(int)


@pytest.fixture
def outcome(raw_dataset: Any, tmp_path: Path) -> Callable[..., Outcome]:
    return lambda **options: Outcome(raw_dataset, tmp_path / "out", **options)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


def quarters(width: int = 640, height: int = 480) -> Image.Image:
    """Four colours, so that a turn or a wrong conversion shows."""
    image = Image.new("RGB", (width, height))
    for index, color in enumerate(COLORS.values()):
        x, y = (index % 2) * width // 2, (index // 2) * height // 2
        image.paste(color, (x, y, x + width // 2, y + height // 2))
    return image


def quarter_colors(pixels: np.ndarray, record: ObjectRecord) -> list[tuple[int, ...]]:
    """The colours at the quarters' centres of the raw image, as the crop's mapping finds them."""
    found = []
    for v in (0.25, 0.75):
        for u in (0.25, 0.75):
            x = (u * record.source["width"] - record.crop["left"]) * record.crop["scale"]
            y = (v * record.source["height"] - record.crop["top"]) * record.crop["scale"]
            found.append(tuple(pixels[int(y), int(x)]))
    return found


def assert_quarters(result: Outcome, expected: list[tuple[int, ...]], tolerance: int = 12) -> None:
    (record,) = result.records
    assert np.abs(np.array(quarter_colors(result.pixels(record), record)) - np.array(expected)).max() <= tolerance


def whole_object(dataset: Any, width: int = 640, height: int = 480, /, **changes: Any) -> dict[str, Any]:
    return dataset.object(width, height, bbox=np.array([0.0, 0.0, width, height]), **changes)


def assert_one_reject(result: Outcome, file: str, reason: str, index: int | None, *words: str) -> None:
    (reject,) = result.rejects
    assert (reject["split"], reject["file"], reject["reason"], reject["object_index"]) == ("train", file, reason, index)
    assert file in reject["sentence"]
    for word in words:
        assert word in reject["sentence"]
    assert result.records == []


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("size", [(640, 480), (2400, 1800)], ids=["whole", "decoded at reduced size"])
def test_truncated_jpeg(raw_dataset: Any, outcome: Callable[..., Outcome], part: float, size: tuple[int, int]) -> None:
    content = jpeg(raw_dataset.picture(*size))
    cut = content[: int(part * len(content))] or b"\xff"
    raw_dataset.add("n1", image=cut, objects=[whole_object(raw_dataset, *size)] * 2)
    result = outcome()
    assert [reject["object_index"] for reject in result.rejects] == [0, 1]
    for reject in result.rejects:
        assert reject["file"] == "images/car/n1.JPEG"
        assert reject["reason"] == "image unreadable"
        assert "images/car/n1.JPEG" in reject["sentence"]


def test_truncated_png_and_a_text_file_called_jpeg(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    stream = io.BytesIO()
    raw_dataset.picture().save(stream, "PNG")
    raw_dataset.add("n1", image=stream.getvalue()[:3000], suffix=".png")
    raw_dataset.add("n2", image=b"<html>404 not found</html>")
    result = outcome()
    assert [reject["file"] for reject in result.rejects] == ["images/car/n1.png", "images/car/n2.JPEG"]
    assert {reject["reason"] for reject in result.rejects} == {"image unreadable"}


def test_missing_image(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", image=b"")
    assert_one_reject(outcome(), "images/car/n1.JPEG", "image missing", 0, "is not there", "off the list")


def test_missing_annotation(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=b"")
    assert_one_reject(outcome(), "annotations/car/n1.npz", "annotation missing", None, "is not there")


def test_list_that_names_a_file_that_is_not_there(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    write_list(raw_dataset.layout.list_file("car", "train"), ["n02958343_99"])
    assert_one_reject(outcome(), "annotations/car/n02958343_99.npz", "annotation missing", None)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a/b", "..", "a\\b"])
def test_list_that_names_a_file_elsewhere(raw_dataset: Any, outcome: Callable[..., Outcome], name: str) -> None:
    path = raw_dataset.layout.list_file("car", "train")
    path.parent.mkdir(parents=True)
    path.write_text(name + "\n")
    assert_one_reject(outcome(), "lists/car_imagenet_train.txt", "bad name", None, repr(name))


def test_empty_list_file_is_an_empty_list(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    path = raw_dataset.layout.list_file("car", "train")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    result = outcome()
    assert result.rejects == result.records == []


@pytest.mark.parametrize("value", [math.nan, math.inf, None, ..., "front"], ids=str)
@pytest.mark.parametrize("angle", ["azimuth", "elevation", "theta"])
def test_nan_or_missing_angles(raw_dataset: Any, outcome: Callable[..., Outcome], angle: str, value: Any) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(**{angle: value})])
    kind = {float: "not finite", str: "malformed"}.get(type(value), "missing")
    assert_one_reject(outcome(), "annotations/car/n1.npz", f"{angle} {kind}", 0, f"object 0: '{angle}'")


@pytest.mark.parametrize("crop", ["pose", "box"])
@pytest.mark.parametrize("distance", [0, 0.0, -3.0, np.float32(0)], ids=str)
def test_zero_distance(raw_dataset: Any, outcome: Callable[..., Outcome], crop: str, distance: float) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=distance)])
    result = outcome(crop=crop)
    assert_one_reject(result, "annotations/car/n1.npz", "distance not positive", 0, "'distance'", "positive")


def test_distance_that_leaves_no_pixel(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=1e-7), raw_dataset.object(distance=1e9)])
    result = outcome(crop="pose")
    found = [(reject["object_index"], reject["reason"]) for reject in result.rejects]
    assert found == [(0, "crop shows nothing"), (1, "crop shows too little")]


def test_distance_in_other_units_than_the_objects_size(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(distance=4500.0, px=320.0, py=240.0)])
    result = outcome(crop="pose")
    words = "703 times as large as the crop that its distance gives (is it in units of the object's size?)"
    assert_one_reject(result, "images/car/n1.JPEG", "crop shows too little", 0, words)


@pytest.mark.parametrize("crop", ["pose", "box"])
@pytest.mark.parametrize("bbox", [(-50, -50, 0, -1), (640, 100, 700, 200), (10, 480, 20, 490)], ids=str)
def test_bbox_outside_the_image(
    raw_dataset: Any, outcome: Callable[..., Outcome], crop: str, bbox: tuple[float, ...]
) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(bbox=np.array(bbox, float))])
    assert_one_reject(outcome(crop=crop), "images/car/n1.JPEG", "bbox outside image", 0, "640x480", "outside")


def test_bbox_that_reaches_over_the_edge_is_kept(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(bbox=np.array([-100.0, -20.0, 300.0, 380.0]))])
    (record,) = outcome().records
    np.testing.assert_allclose(record.bbox, (0, 0, 256, 256), atol=1e-9)


@pytest.mark.parametrize("crop", ["pose", "box"])
@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        (..., "bbox missing"),
        (np.array([1.0, 2.0, 3.0]), "bbox malformed"),
        (np.array([300.0, 100.0, 100.0, 200.0]), "bbox malformed"),
        (np.array([1.0, 2.0, math.nan, 9.0]), "bbox malformed"),
    ],
    ids=["missing", "three", "reversed", "nan"],
)
def test_bbox_missing_or_malformed(
    raw_dataset: Any, outcome: Callable[..., Outcome], crop: str, bbox: Any, reason: str
) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(bbox=bbox)])
    assert_one_reject(outcome(crop=crop), "annotations/car/n1.npz", reason, 0, "object 0: 'bbox'")


def test_px_far_from_the_object(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(px=5000.0)])
    assert_one_reject(outcome(crop="pose"), "images/car/n1.JPEG", "crop shows nothing", 0, "px, py and distance")


class _RunsCode:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def test_pickle_that_tries_to_run_code(raw_dataset: Any, outcome: Callable[..., Outcome], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    raw_dataset.add("n1", objects=[raw_dataset.object(note=_RunsCode(mark))])
    result = outcome(workers=2)
    assert not mark.exists()
    assert_one_reject(
        result, "annotations/car/n1.npz", "annotation unreadable", None, "refused, it wants to load builtins.exec"
    )
    np.load(raw_dataset.layout.annotation("car", "n1"), allow_pickle=True)["annotations"]
    assert mark.exists(), "the file does carry code"


@pytest.mark.parametrize(
    "content", [b"\x00", b"PK\x03\x04 cut off", b"plain text"], ids=["one byte", "cut off", "text"]
)
def test_damaged_annotation(raw_dataset: Any, outcome: Callable[..., Outcome], content: bytes) -> None:
    raw_dataset.add("n1", objects=content)
    result = outcome()
    assert_one_reject(result, "annotations/car/n1.npz", "annotation unreadable", None, "not a readable npz file")
    assert str(raw_dataset.root) not in result.rejects[0]["sentence"], "paths are relative to the data root"


def test_annotation_without_objects(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[])
    assert_one_reject(outcome(), "annotations/car/n1.npz", "annotation empty", None, "holds no object")


def test_unknown_category(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", category="flux_capacitor", objects=[raw_dataset.object(**{"class": ...})])
    assert_one_reject(
        outcome(),
        "annotations/flux_capacitor/n1.npz",
        "unknown category",
        0,
        "'flux_capacitor'",
        "--allow-custom-categories",
    )


def test_an_unknown_class_goes_by_its_folder_and_is_counted(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add(
        "n1", objects=[raw_dataset.object(**{"class": name}) for name in ("flux_capacitor", "gizmo", "bus")]
    )
    result = outcome()
    assert [record.category for record in result.records] == ["car", "car", "bus"]
    assert result.records[0].source["class"] == "flux_capacitor", "what was annotated is kept"
    assert result.summary["splits"]["train"]["classes_by_folder"] == {"flux_capacitor": 1, "gizmo": 1}


def test_an_unknown_class_in_an_unknown_folder_is_rejected(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", category="gizmo", objects=[raw_dataset.object(**{"class": "flux_capacitor"})])
    assert_one_reject(outcome(), "annotations/gizmo/n1.npz", "unknown category", 0, "'flux_capacitor'")


def test_unknown_category_allowed(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", category="flux_capacitor", objects=[raw_dataset.object(**{"class": "flux_capacitor"})])
    (record,) = outcome(allow_custom_categories=True).records
    assert record.category == "flux_capacitor"


@pytest.mark.parametrize(
    "name",
    ["../../evil", "a/b", "..", "a <pose6D>", "<image>", "a cat, a dog", "a|b", "line\nend", "\x1b[31m", "x" * 300],
)
def test_a_category_that_can_be_no_name(raw_dataset: Any, outcome: Callable[..., Outcome], name: str) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(**{"class": name})])
    result = outcome(allow_custom_categories=True)
    assert_one_reject(result, "annotations/car/n1.npz", "category malformed", 0, "cannot name a category; use letters")
    assert result.rejects[0]["sentence"].isprintable()


@pytest.mark.parametrize("name", ["Élan", "汽车", "half-track (WW2)", "R2.D2", "lamp & shade", "_private"])
def test_categories_of_peoples_own(raw_dataset: Any, outcome: Callable[..., Outcome], name: str) -> None:
    raw_dataset.add("n1", category=name, objects=[raw_dataset.object(**{"class": ...})])
    assert [record.category for record in outcome(allow_custom_categories=True).records] == [name]


def test_text_that_is_no_text_in_names_of_fields_and_lists(
    raw_dataset: Any, outcome: Callable[..., Outcome], tmp_path: Path
) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(**{"note \ud800": "\ud800"})])
    (record,) = outcome().records
    assert json.loads(record.source["extra"]) == {"note \\ud800": "\\ud800"}
    latin_1 = os.fsdecode(b"caf\xe9_imagenet_train.txt")
    (raw_dataset.root / "lists" / latin_1).write_text("n1\n")
    with pytest.raises(InputError, match=r"lists: the file name 'caf.*' cannot stand in a data set; rename it"):
        prepare(PrepareConfig(str(raw_dataset.root), str(tmp_path / "other"), splits="train", workers=1))


def test_aliases_of_categories_are_known(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", category="trolley_bus", objects=[raw_dataset.object(**{"class": "trolleybus"})])
    assert [record.category for record in outcome().records] == ["trolleybus"]


def test_cmyk(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    image = quarters().convert("CMYK")
    raw_dataset.add("n1", image=jpeg(image), objects=[whole_object(raw_dataset)])
    assert_quarters(outcome(), list(COLORS.values()))


def test_cmyk_decoded_at_reduced_size(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    image = quarters(2401, 1801).convert("CMYK")
    raw_dataset.add("n1", image=jpeg(image), objects=[whole_object(raw_dataset, 2401, 1801)])
    assert_quarters(outcome(), list(COLORS.values()))


def test_16_bit_is_scaled(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    deep = (np.asarray(quarters().convert("L")).astype(np.uint16) * 257).astype(np.uint16)
    raw_dataset.add("n1", image=Image.fromarray(deep), suffix=".png", objects=[whole_object(raw_dataset)])
    assert Image.open(raw_dataset.layout.image("car", "n1")).mode.startswith("I")
    gray = [Image.new("RGB", (1, 1), color).convert("L").getpixel((0, 0)) for color in COLORS.values()]
    assert_quarters(outcome(), [(value,) * 3 for value in gray])


def test_16_bit_tiff_and_32_bit_tiff(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    deep = np.asarray(quarters().convert("L"))
    for name, values in (("n16", deep.astype(np.uint16) * 257), ("n32", deep.astype(np.float32))):
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "TIFF")
        raw_dataset.add(name, image=stream.getvalue(), suffix=".tif", objects=[whole_object(raw_dataset)])
    result = outcome()
    gray = [Image.new("RGB", (1, 1), color).convert("L").getpixel((0, 0)) for color in COLORS.values()]
    assert_quarters(result, [(value,) * 3 for value in gray])
    (reject,) = result.rejects
    assert (reject["file"], reject["reason"]) == ("images/car/n32.tif", "image unreadable")
    assert "32-bit pixels" in reject["sentence"]


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "PA"])
def test_other_pixel_formats(raw_dataset: Any, outcome: Callable[..., Outcome], mode: str) -> None:
    source = quarters()
    expected = [
        source.convert("L" if mode in ("1", "L", "LA") else "RGB").convert("RGB").getpixel(at) for at in CENTERS
    ]
    if mode == "1":
        source = source.convert("L").point(lambda value: 255 * (value > 100))
        expected = [source.convert("RGB").getpixel(at) for at in CENTERS]
    image = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "PA" else "PNG")
    suffix = ".tif" if mode == "PA" else ".png"
    raw_dataset.add("n1", image=stream.getvalue(), suffix=suffix, objects=[whole_object(raw_dataset)])
    # the palette that is made for the test is not exact
    assert_quarters(outcome(), expected, tolerance=40 if mode in ("P", "PA") else 12)


CENTERS = [(160, 120), (480, 120), (160, 360), (480, 360)]


def test_transparent_pixels_have_the_padding_colour(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    image = quarters().convert("RGBA")
    image.paste((255, 255, 255, 0), (0, 0, 320, 240))
    raw_dataset.add("n1", image=image, suffix=".png", objects=[whole_object(raw_dataset)])
    assert_quarters(outcome(), [PADDING_COLOUR, *list(COLORS.values())[1:]])


def exif_jpeg(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(image, exif=exif)


TURNED = {  # orientation -> where the stored quarters stand once the picture is turned
    5: (0, 2, 1, 3),
    6: (2, 0, 3, 1),
    7: (3, 1, 2, 0),
    8: (1, 3, 0, 2),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("size", [(640, 480), (2401, 1803)], ids=["small", "large"])
def test_exif_rotated_image_annotated_as_it_is_seen(
    raw_dataset: Any, outcome: Callable[..., Outcome], orientation: int, size: tuple[int, int]
) -> None:
    width, height = size
    raw_dataset.add(
        "n1",
        image=exif_jpeg(quarters(*size), orientation),
        objects=[whole_object(raw_dataset, height, width)],
    )
    result = outcome()
    colors = list(COLORS.values())
    assert_quarters(result, [colors[k] for k in TURNED[orientation]])
    source = result.records[0].source
    assert (source["width"], source["height"], source["exif_transposed"]) == (height, width, True)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_rotated_image_annotated_as_it_is_stored(
    raw_dataset: Any, outcome: Callable[..., Outcome], orientation: int
) -> None:
    raw_dataset.add("n1", image=exif_jpeg(quarters(), orientation), objects=[whole_object(raw_dataset)])
    result = outcome()
    assert_quarters(result, list(COLORS.values()))
    assert result.records[0].source["exif_transposed"] is False


def test_image_of_another_size_than_annotated(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", image=raw_dataset.picture(600, 400))
    assert_one_reject(
        outcome(), "images/car/n1.JPEG", "image size differs", 0, "is 600x400 pixels but was annotated at 640x480"
    )


def test_objects_annotated_at_different_sizes(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    raw_dataset.add("n1", objects=[raw_dataset.object(), raw_dataset.object(600, 400)])
    result = outcome()
    assert [(r["reason"], r["object_index"]) for r in result.rejects] == [
        ("image size differs", 0),
        ("image size differs", 1),
    ]


def test_the_size_that_one_object_gives_holds_for_the_others(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    objects = [whole_object(raw_dataset, 480, 640, height=...), whole_object(raw_dataset, 480, 640)]
    raw_dataset.add("n1", image=exif_jpeg(quarters(), 6), objects=objects)
    assert [record.source["exif_transposed"] for record in outcome().records] == [True, True]


@pytest.mark.parametrize("missing", ["height", "width", "both"])
def test_annotation_without_size(raw_dataset: Any, outcome: Callable[..., Outcome], missing: str) -> None:
    without = dict.fromkeys(["height", "width"] if missing == "both" else [missing], ...)
    raw_dataset.add("n1", image=quarters(), objects=[whole_object(raw_dataset, **without)])
    raw_dataset.add("n2", image=exif_jpeg(quarters(), 3), objects=[whole_object(raw_dataset, **without)])
    result = outcome()
    assert [record.id for record in result.records] == ["car/n1/0"]
    assert quarter_colors(result.pixels(result.records[0]), result.records[0])
    (reject,) = result.rejects
    assert (reject["file"], reject["reason"]) == ("images/car/n2.JPEG", "image orientation unknown")
    assert "'height' and 'width'" in reject["sentence"]


def test_decompression_bomb(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )
    raw_dataset.add("n1", image=bomb, suffix=".png", objects=[raw_dataset.object(60000, 60000)])
    assert_one_reject(outcome(), "images/car/n1.png", "image too large", 0, "pixels; make it smaller")


def test_every_kind_at_once_in_several_processes(raw_dataset: Any, outcome: Callable[..., Outcome]) -> None:
    """One bad object does not spoil the good ones of its image, nor a bad image the others."""
    for index in range(6):
        objects = [raw_dataset.object(), raw_dataset.object(theta=math.nan), raw_dataset.object(object_status=...)]
        raw_dataset.add(f"ok{index}", objects=objects)
        raw_dataset.add(f"cut{index}", image=jpeg(raw_dataset.picture(seed=index))[:500])
        raw_dataset.add(f"none{index}", objects=b"")
    result = outcome(workers=2)
    account = result.summary["splits"]["train"]
    assert account["rejected_by_reason"] == {"annotation missing": 6, "image unreadable": 6, "theta not finite": 6}
    assert account["filtered_by_reason"] == {"object_status missing": 6}
    assert len(result.records) == 6


def run_main(root: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["--data-root", str(root), "--out", str(out), "--workers", "1", *words])
    return code, capsys.readouterr().err


def test_nothing_to_read_ends_with_2_and_one_sentence(
    raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, said = run_main(tmp_path / "nowhere", out, capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert f"--data-root {tmp_path / 'nowhere'}: there is no such folder" in said

    raw_dataset.root.mkdir(exist_ok=True)
    code, said = run_main(raw_dataset.root, out, capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert f"{raw_dataset.root}: there are no images/, annotations/ and lists/ in it" in said

    (raw_dataset.root / "annotations").mkdir(exist_ok=True)
    code, said = run_main(raw_dataset.root, out, capsys)
    assert code == 2
    assert f"{raw_dataset.root / 'lists'}: no list of the split 'train' (there are no lists)" in said

    write_list(raw_dataset.layout.list_file("car", "train"), [])
    code, said = run_main(raw_dataset.root, out, capsys, "--splits", "train")
    assert (code, said.count("\n")) == (2, 1)
    assert "there is nothing to read" in said
    assert not out.exists()

    raw_dataset.add("n1", objects=b"")
    code, said = run_main(raw_dataset.root, out, capsys)
    assert code == 2
    assert "no list of the split 'val' (there are lists of train)" in said

    code, said = run_main(raw_dataset.root, out, capsys, "--splits", "train")
    assert code == 2
    assert f"no object could be used; {out / 'rejects.jsonl'} says why" in said
    assert len(list(read_jsonl(out / "rejects.jsonl"))) == 1


def test_a_failure_to_write_is_no_reject(raw_dataset: Any, tmp_path: Path) -> None:
    """A full disk must stop the run, and must not be taken for a bad photograph."""
    raw_dataset.add("n1")
    out = prepare(PrepareConfig(data_root=str(raw_dataset.root), out=str(tmp_path / "out"), splits="train"))
    shutil.rmtree(out / "train")
    (out / "summary.json").unlink()
    (out / "train").write_text("a file where a folder is needed")
    with pytest.raises(InputError, match=r"n1_00\.JPEG: cannot write"):
        prepare(PrepareConfig(data_root=str(raw_dataset.root), out=str(out), splits="train", workers=1))
    assert not (out / "summary.json").exists()


def test_list_that_is_no_text(raw_dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = raw_dataset.layout.list_file("car", "train")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00\x01")
    code, said = run_main(raw_dataset.root, tmp_path / "out", capsys, "--splits", "train")
    assert code == 2
    assert f"{path}: cannot be read, for line 1 is not UTF-8 text" in said


def test_annotations_changed_to_bad_take_their_crops_with_them(raw_dataset: Any, tmp_path: Path) -> None:
    raw_dataset.add("n1")
    first = Outcome(raw_dataset, tmp_path / "out")
    (record,) = first.records
    write_annotation(raw_dataset.layout.annotation("car", "n1"), [raw_dataset.object(distance=0)])
    config = PrepareConfig(
        data_root=str(raw_dataset.root), out=str(first.out), splits="train", workers=1, crop="box", margin=0.0
    )
    prepare(config)
    assert [r.id for r in read_records(first.out, "train")] == ["bus/good/0"]
    assert not (first.out / "train" / record.file_name).exists()
