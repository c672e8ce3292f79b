"""A folder of damaged input: each kind by its name, how it is made, and the sentence that prepare must say about it.

``{words}`` in a sentence stands for what Pillow or the standard library says, which changes with their versions.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Kind:
    """One kind of damage.

    Attributes:
        make: of (dataset, name): adds an image of that name to the category car; or returns a line for the list of cars.
        file: that the reject names; ``{name}`` is filled in.
        reason, index, sentence: of the reject.
    """

    make: Callable[[Any, str], str | None]
    file: str
    reason: str
    index: int | None
    sentence: str


ANNOTATION, IMAGE, LIST = "annotations/car/{name}.npz", "images/car/{name}.JPEG", "lists/car_imagenet_train.txt"


def _field(reason: str, sentence: str, **changes: Any) -> Kind:
    """An object with a bad field."""

    def make(dataset: Any, name: str) -> None:
        dataset.add(name, objects=[dataset.object(**changes)])

    return Kind(make, ANNOTATION, reason, 0, "annotations/car/{name}.npz object 0: " + sentence)


def _placed(reason: str, sentence: str, **changes: Any) -> Kind:
    """An object that cannot be where it is said to be."""

    def make(dataset: Any, name: str) -> None:
        dataset.add(name, objects=[dataset.object(**changes)])

    return Kind(make, IMAGE, reason, 0, "images/car/{name}.JPEG object 0: " + sentence)


def _file(sentence: str, content: Callable[[Any], bytes]) -> Kind:
    """An annotation file that cannot be read."""

    def make(dataset: Any, name: str) -> None:
        dataset.add(name, objects=content(dataset))

    return Kind(make, ANNOTATION, "annotation unreadable", None, "annotations/car/{name}.npz: " + sentence)


def _picture(reason: str, sentence: str, content: Callable[[Any], Any], suffix: str = ".JPEG", **changes: Any) -> Kind:
    """An image that cannot be used."""

    def make(dataset: Any, name: str) -> None:
        dataset.add(name, image=content(dataset), suffix=suffix, objects=[dataset.object(**changes)])

    file = f"images/car/{{name}}{suffix}"
    return Kind(make, file, reason, 0, f"{file} {sentence}")


def _listed(line: str) -> Kind:
    """A list that holds something that is no name. The other names of the list are not hurt."""

    def make(dataset: Any, name: str) -> str:
        return line

    sentence = f"{LIST} lists {line!r}, which is no plain file name; mend the list"
    return Kind(make, LIST, "bad name", None, sentence)


def npz(value: Any, key: str = "annotations", *, compressed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **{key: value})
    return stream.getvalue()


def npz_of_pickle(payload: bytes, shape: tuple[int, ...] = (1,)) -> bytes:
    """An npz whose array of objects is this pickle."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": shape})
    return zipped(member.getvalue() + payload)


def zipped(member: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("annotations.npy", member)
    return stream.getvalue()


def good_npz(dataset: Any) -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = dataset.object()
    return npz(array)


class _Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _calls(function: Callable[..., Any], *arguments: Any) -> Callable[[Any], bytes]:
    def content(dataset: Any) -> bytes:
        array = np.empty(1, dtype=object)
        array[0] = {**dataset.object(), "note": _Calls(function, *arguments)}
        return npz(array)

    return content


def _one_bit_wrong(dataset: Any) -> bytes:
    content = bytearray(good_npz(dataset))
    content[len(content) // 3] ^= 1
    return bytes(content)


def _lying_header(dataset: Any) -> bytes:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    return zipped(member.getvalue() + bytes(8))


def _grows_when_read(dataset: Any) -> bytes:
    levels = b"".join(b"]q%c(h%ch%ce" % (level + 1, level, level) for level in range(30))
    return npz_of_pickle(b"\x80\x02]q\x00" + levels + b".")


def jpeg(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 95, **options})
    return stream.getvalue()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def bomb_png(side: int = 60000) -> bytes:
    """A small file that declares billions of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def _turned(dataset: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(dataset.picture(), exif=exif)


def _floats(dataset: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((480, 640), dtype=np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def _without_file(dataset: Any, name: str) -> None:
    dataset.add(name, objects=b"")


def _without_objects(dataset: Any, name: str) -> None:
    dataset.add(name, objects=[])


def _two_sizes(dataset: Any, name: str) -> None:
    dataset.add(name, objects=[dataset.object(object_status="status_bad"), dataset.object(), dataset.object(320, 240)])


def _folder_for_file(dataset: Any, name: str) -> None:
    dataset.add(name, objects=b"")
    dataset.layout.annotation("car", name).mkdir(parents=True)


def _folder_for_image(dataset: Any, name: str) -> None:
    dataset.add(name, image=b"")
    (dataset.root / "images" / "car" / f"{name}.JPEG").mkdir(parents=True)


NOT_THERE = "is not there; add it or take the name off the list"
AGAIN = "write the file again or take it off the list"
NO_NPZ = f"not a readable npz file ({{words}}); {AGAIN}"
FOUR_NUMBERS = "'bbox' must be four finite numbers (x1, y1, x2, y2); mend it"
ONLY = "only arrays, numbers, text and lists are read"

KINDS: dict[str, Kind] = {
    # lists
    "list_parent_folder": _listed("../../../etc/passwd"),
    "list_subfolder": _listed("a/b"),
    "list_backslash": _listed("a\\b"),
    "list_dots": _listed(".."),
    # annotation files
    "annotation_missing": Kind(
        _without_file,
        ANNOTATION,
        "annotation missing",
        None,
        f"{ANNOTATION} {NOT_THERE}",
    ),
    "annotation_is_a_folder": Kind(
        _folder_for_file,
        ANNOTATION,
        "annotation unreadable",
        None,
        f"{ANNOTATION}: cannot read the file (Is a directory); check the path",
    ),
    "annotation_without_objects": Kind(
        _without_objects,
        ANNOTATION,
        "annotation empty",
        None,
        f"{ANNOTATION} holds no object; take the name off the list",
    ),
    "annotation_one_byte": _file(NO_NPZ, lambda dataset: b"\0"),
    "annotation_text": _file(
        NO_NPZ,
        lambda dataset: b"car 0.5 0.2",
    ),
    "annotation_pickle": _file(
        NO_NPZ,
        lambda dataset: pickle.dumps([{"azimuth": 0.1}]),
    ),
    "annotation_npy": _file(
        NO_NPZ,
        lambda dataset: np.lib.format.magic(1, 0) + bytes(80),
    ),
    "annotation_cut_off": _file(
        NO_NPZ,
        lambda dataset: good_npz(dataset)[:-30],
    ),
    "annotation_one_bit_wrong": _file(NO_NPZ, _one_bit_wrong),
    "annotation_of_another_key": _file(
        "there is no array 'annotations' in it (found: poses); write the file again",
        lambda dataset: npz(np.eye(3), key="poses"),
    ),
    "annotation_of_numbers": _file(
        "'annotations' must hold one dict an object; write the file again", lambda dataset: npz(np.eye(3))
    ),
    "annotation_of_texts": _file(
        "'annotations' must hold one dict an object; write the file again",
        lambda dataset: npz(np.array(["car"], dtype=object)),
    ),
    "annotation_structured": _file(
        "'annotations' must hold one dict an object; write the file again",
        lambda dataset: npz(np.zeros(2, dtype=[("azimuth", "f8")])),
    ),
    "annotation_runs_exec": _file(
        f"refused, it wants to load builtins.exec; {ONLY}",
        _calls(exec, "raise SystemExit"),
    ),
    "annotation_runs_a_program": _file(
        f"refused, it wants to load posix.system; {ONLY}",
        _calls(os.system, "true"),
    ),
    "annotation_opens_a_file": _file(f"refused, it wants to load io.open; {ONLY}", _calls(io.open, "x", "w")),
    "annotation_lying_header": _file(
        f"not a readable npz file (the header declares (1099511627776,) of float64, the file holds 8 bytes); {AGAIN}",
        _lying_header,
    ),
    "annotation_grows_when_read": _file(
        f"refused, it unfolds into more than a file may hold; {ONLY}",
        _grows_when_read,
    ),
    "annotation_zip_bomb": _file(
        f"holds more than 64 MiB; {AGAIN}",
        lambda dataset: zipped(bytes(80 * 2**20), zipfile.ZIP_DEFLATED),
    ),
    "annotation_version_of_npy": _file(
        f"not a readable npz file (npy format version (9, 0) is not known); {AGAIN}",
        lambda dataset: zipped(b"\x93NUMPY\x09\x00" + bytes(80)),
    ),
    "annotation_pickle_cut_off": _file(
        NO_NPZ,
        lambda dataset: npz_of_pickle(b"\x80\x02]q\x00"),
    ),
    # fields
    "azimuth_missing": _field(
        "azimuth missing", "'azimuth' is missing; annotate it or take the object out", azimuth=...
    ),
    "azimuth_nan": _field(
        "azimuth not finite", "'azimuth' is nan; annotate it or take the object out", azimuth=math.nan
    ),
    "azimuth_in_degrees": _field(
        "azimuth out of range", "'azimuth' is 270, which cannot be radians; convert it", azimuth=270.0
    ),
    "elevation_text": _field(
        "elevation malformed", "'elevation' must be a number, not 'steep'; mend it", elevation="steep"
    ),
    "elevation_infinite": _field(
        "elevation not finite", "'elevation' is inf; annotate it or take the object out", elevation=np.float32(math.inf)
    ),
    "theta_true": _field("theta malformed", "'theta' must be a number, not 'True'; mend it", theta=True),
    "theta_two_numbers": _field(
        "theta malformed", "'theta' must be a number, not '[0.0, 0.0]'; mend it", theta=np.zeros(2)
    ),
    "distance_missing": _field(
        "distance missing", "'distance' is missing; annotate it or take the object out", distance=None
    ),
    "distance_zero": _field(
        "distance not positive", "'distance' is 0 and must be positive; annotate it again", distance=0.0
    ),
    "distance_negative": _field(
        "distance not positive", "'distance' is -3 and must be positive; annotate it again", distance=-3.0
    ),
    "distance_of_another_world": _field(
        "distance out of range", "'distance' is 1e+30, beyond all measure; annotate it again", distance=1e30
    ),
    "viewport_zero": _field(
        "viewport not positive", "'viewport' is 0 and must be positive; annotate it again", viewport=0
    ),
    "focal_negative": _field("focal not positive", "'focal' is -1 and must be positive; annotate it again", focal=-1.0),
    "px_missing": _field("px missing", "'px' is missing; annotate it or take the object out", px=..., principal=...),
    "py_nan": _field("py not finite", "'py' is nan; annotate it or take the object out", py=math.nan),
    "px_beyond_measure": _field("px out of range", "'px' is 1e+20, a place in no image; annotate it again", px=1e20),
    "bbox_missing": _field("bbox missing", "'bbox' is missing; annotate it or take the object out", bbox=...),
    "bbox_three_numbers": _field("bbox malformed", FOUR_NUMBERS, bbox=np.zeros(3)),
    "bbox_reversed": _field(
        "bbox malformed",
        "'bbox' [300.0, 100.0, 100.0, 200.0] is empty; it must be (x1, y1, x2, y2) with x1 < x2, y1 < y2",
        bbox=np.array([300.0, 100.0, 100.0, 200.0]),
    ),
    "bbox_nan": _field("bbox malformed", FOUR_NUMBERS, bbox=[1.0, 2.0, math.nan, 9.0]),
    "bbox_text": _field("bbox malformed", FOUR_NUMBERS, bbox="1,2,3,4"),
    "width_fraction": _field("width malformed", "'width' is 640.5 and must be a whole number; mend it", width=640.5),
    "height_negative": _field("height malformed", "'height' is -480 and must be a whole number; mend it", height=-480),
    "cad_index_negative": _field(
        "cad_index malformed", "'cad_index' is -1 and must be a whole number; mend it", cad_index=-1
    ),
    # where the object is
    "bbox_left_of_the_image": _placed(
        "bbox outside image",
        "the bbox [-50.0, 10.0, -1.0, 90.0] lies outside of the 640x480 image; annotate the object again",
        bbox=np.array([-50.0, 10.0, -1.0, 90.0]),
    ),
    "bbox_below_the_image": _placed(
        "bbox outside image",
        "the bbox [10.0, 480.0, 20.0, 490.0] lies outside of the 640x480 image; annotate the object again",
        bbox=np.array([10.0, 480.0, 20.0, 490.0]),
    ),
    "px_far_from_the_object": _placed(
        "crop shows nothing",
        "px, py and distance give a crop that misses the bbox; annotate the object again",
        px=9000.0,
    ),
    "distance_tiny": _placed(
        "crop shows nothing",
        "px, py and distance give a crop that misses the bbox; annotate the object again",
        distance=1e-7,
    ),
    # images
    "image_missing": _picture("image missing", NOT_THERE, lambda dataset: b""),
    "image_is_a_folder": Kind(
        _folder_for_image, IMAGE, "image unreadable", 0, f"{IMAGE} cannot be read ({{words}}); check it"
    ),
    "image_one_byte": _picture(
        "image unreadable", "is not an image that can be read; replace it", lambda dataset: b"\xff"
    ),
    "image_web_page": _picture(
        "image unreadable",
        "is not an image that can be read; replace it",
        lambda dataset: b"<html>404 not found</html>",
    ),
    "image_cut_off": _picture(
        "image unreadable", "cannot be decoded ({words}); replace it", lambda dataset: jpeg(dataset.picture())[:9000]
    ),
    "image_png_cut_off": _picture(
        "image unreadable",
        "cannot be decoded ({words}); replace it",
        lambda dataset: png(dataset.picture())[:3000],
        ".png",
    ),
    "image_of_another_size": _picture(
        "image size differs",
        "is 600x400 pixels but was annotated at 640x480; use the image that was annotated",
        lambda dataset: dataset.picture(600, 400),
    ),
    "image_turned_without_size": _picture(
        "image orientation unknown",
        "is turned by its EXIF orientation and the annotation gives no 'height' and 'width'; add them",
        _turned,
        height=...,
        width=...,
    ),
    "image_bomb": _picture(
        "image too large",
        "has more than 67 million pixels; make it smaller",
        lambda dataset: bomb_png(),
        ".png",
        height=60000,
        width=60000,
    ),
    "image_32_bit": _picture(
        "image unreadable",
        "cannot be used: the picture has 32-bit pixels, whose range is not known; save it with 8 or 16 bits",
        _floats,
        ".tif",
    ),
    "objects_of_two_sizes": Kind(
        _two_sizes,
        IMAGE,
        "image size differs",
        1,
        "images/car/{name}.JPEG has objects annotated at different sizes; annotate it again",
    ),
}
