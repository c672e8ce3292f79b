from __future__ import annotations

import io
import math
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.raw.imagenet3d import (
    AnnotatedObject,
    AnnotationError,
    RawLayout,
    filter_reason,
    object_status,
    parse_object,
    read_annotation,
    read_list,
    write_annotation,
    write_list,
)
from data_prep.raw.safe_npz import read_npz
from llava_pose.errors import InputError

GOOD = {
    "azimuth": 0.1,
    "elevation": 0.2,
    "theta": 0.3,
    "distance": 5.0,
    "px": 10.0,
    "py": 20.0,
    "bbox": np.array([1.0, 2.0, 30.0, 40.0]),
    "object_status": "status_good",
}


def npy_of_objects(payload: bytes, shape: tuple[int, ...] = (1,)) -> bytes:
    """An npy file of an object array whose pickle is the payload."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": shape})
    return stream.getvalue() + payload


def npz_of(path: Path, member: bytes, name: str = "annotations.npy", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, member)
    return path


def assert_same(read: Any, written: Any) -> None:
    assert type(read) is type(written)
    if isinstance(written, dict):
        assert list(read) == list(written)
        for key in written:
            assert_same(read[key], written[key])
    elif isinstance(written, (list, tuple)):
        assert len(read) == len(written)
        for a, b in zip(read, written, strict=True):
            assert_same(a, b)
    elif isinstance(written, np.ndarray):
        assert (read.dtype, read.shape) == (written.dtype, written.shape)
        if written.dtype == object:
            assert_same(read.tolist(), written.tolist())
        else:
            np.testing.assert_array_equal(read, written)
    else:
        assert read == written or (read != read and written != written)


VALUES: list[Any] = [
    *(np.uint16(65535), np.int64(-3), np.float32(0.1), np.float64(math.nan), np.bool_(True), np.str_("café")),
    *(np.bytes_(b"ab"), np.complex128(1 + 2j)),
    *(np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    *(np.arange(4, dtype=">i4"), np.zeros((0, 4)), np.array("text"), np.array(["a", "bcd"]), np.array([True, False])),
    np.array([None, "x", np.uint16(7)], dtype=object),
    *(None, True, 2**70, 1.5, "bed", b"\x00\xff", [1, [2, 3]], (1, "a"), {"a": {"b": [1]}}, bytearray(b"12")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
@pytest.mark.parametrize("protocol", range(5))
def test_reads_what_numpy_1_and_2_write(tmp_path: Path, value: Any, core: str, protocol: int) -> None:
    array = np.empty(1, dtype=object)
    array[0] = {"field": value}
    payload = pickle.dumps(array, protocol=protocol)
    if protocol < 4:  # names stand as lines of text, so that a file of the other numpy can be made
        payload = payload.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", b"c%s." % core.encode())
    elif core == "numpy.core":
        payload = payload.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    path = npz_of(tmp_path / "a.npz", npy_of_objects(payload))
    if core == "numpy.core":
        assert b"_core." not in payload
    assert_same(read_annotation(path)[0]["field"], bytes(value) if isinstance(value, bytearray) else value)


def test_reads_pickles_of_protocol_5(tmp_path: Path) -> None:
    array = np.empty(2, dtype=object)
    array[:] = [{"bbox": np.arange(4.0), "raw": bytearray(b"xy")}, {"bbox": np.asfortranarray(np.eye(2, 3))}]
    payload = pickle.dumps(array, protocol=5)
    assert b"_frombuffer" in payload
    first, second = read_annotation(npz_of(tmp_path / "a.npz", npy_of_objects(payload, (2,))))
    np.testing.assert_array_equal(first["bbox"], np.arange(4.0))
    assert first["raw"] == b"xy"
    np.testing.assert_array_equal(second["bbox"], np.eye(2, 3))


def test_reads_pickles_of_python_2(tmp_path: Path) -> None:
    # what Python 2 writes for np.array([{'px': np.float64(1.5)}], dtype=object): byte strings everywhere
    payload = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
        b"}U\x02pxcnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + struct.pack("<d", 1.5) + b"\x86Rsatb."
    )
    assert read_annotation(npz_of(tmp_path / "a.npz", npy_of_objects(payload))) == [{"px": 1.5}]


def test_reads_plain_arrays_and_compressed_files(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.asfortranarray(np.eye(3, 2)), "c": np.array("car"), "d": np.zeros((0, 2))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    read = read_npz(tmp_path / "a.npz")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_same(read[name], array)


def test_reads_the_photographs_as_numpy_does(photos: Path) -> None:
    paths = sorted((photos / "annotations").glob("*/*.npz"))[::40]
    assert len(paths) > 100
    for path in paths:
        # these files are the project's own, so that numpy may be let loose on them
        assert_same(read_annotation(path), np.load(path, allow_pickle=True)["annotations"].tolist())


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w').write('code ran')",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    array = np.empty(1, dtype=object)
    array[0] = {**GOOD, "note": _RunsCode(mark)}
    path = tmp_path / "evil.npz"
    np.savez(path, annotations=array)

    with pytest.raises(InputError, match=r"evil\.npz: refused, it wants to load builtins\.exec"):
        read_annotation(path)
    assert not mark.exists()
    np.load(path, allow_pickle=True)["annotations"]
    assert mark.exists(), "the file does carry code that runs where it is let"


GLOBAL = b"\x80\x02c%s\n%s\n"
REFUSED = {
    "os.system": GLOBAL % (b"posix", b"system") + b"U\x04true\x85R.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0emultiarray.exec\x93.",
    "numpy function": GLOBAL % (b"numpy", b"load") + b"U\x05a.npy\x85R.",
    "numpy submodule": GLOBAL % (b"numpy.core.multiarray", b"fromfile") + b".",
    "getattr": GLOBAL % (b"builtins", b"getattr") + b".",
    "changes a function": GLOBAL % (b"numpy.core.multiarray", b"_reconstruct") + b"}b.",
    "changes a class": GLOBAL % (b"numpy", b"ndarray") + b"}U\x08__init__NsN\x86b.",
    "makes a new class": GLOBAL % (b"numpy", b"dtype") + b"U\x02f8\x85\x81.",
    "bare name": GLOBAL % (b"numpy", b"dtype") + b".",
    "bare dtype": GLOBAL % (b"numpy", b"dtype") + b"U\x02f8\x85R.",
    "persistent id": b"\x80\x02U\x01aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "void dtype": GLOBAL % (b"numpy", b"dtype") + b"U\x02V8\x85R.",
    "codec": GLOBAL % (b"_codecs", b"encode") + b"X\x01\x00\x00\x00aU\x05rot13\x86R.",
}


@pytest.mark.parametrize("payload", REFUSED.values(), ids=REFUSED.keys())
def test_pickles_that_name_anything_else_are_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.npz: "):
        read_annotation(npz_of(tmp_path / "a.npz", npy_of_objects(payload)))


def test_a_dtype_whose_flags_lie_makes_no_pointers_of_bytes(tmp_path: Path) -> None:
    # an object array with bytes for content: numpy's own __setstate__ relies on the dtype's flags here
    payload = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08AAAAAAAAtb."
    )
    with pytest.raises(InputError, match="not a readable npz"):
        read_annotation(npz_of(tmp_path / "a.npz", npy_of_objects(payload)))


def _nested(levels: int) -> bytes:
    """A list of two references to a list of two references to …: 2 ** levels items from a few bytes."""
    return b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (level + 1, level, level) for level in range(levels)) + b"."


MEMORY_EATERS = {
    "memo index": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b"a.",
    "cycle": b"\x80\x02]q\x00h\x00a.",
    "deep": b"\x80\x02" + b"]" * 2000 + b"a" * 1999 + b".",
    "references": _nested(30),
}


@pytest.mark.parametrize("payload", MEMORY_EATERS.values(), ids=MEMORY_EATERS.keys())
def test_a_small_pickle_cannot_fill_the_memory(tmp_path: Path, payload: bytes) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(InputError, match=r"a\.npz"):
        read_npz(npz_of(tmp_path / "a.npz", npy_of_objects(payload)), max_bytes=2**20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert time.monotonic() - started < 20


def test_a_zip_bomb_and_lying_headers_are_refused(tmp_path: Path) -> None:
    bomb = npz_of(tmp_path / "bomb.npz", bytes(80 * 2**20), method=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    with pytest.raises(InputError, match=r"bomb\.npz: holds more than 64 MiB"):
        read_npz(bomb)

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
    with pytest.raises(InputError, match=r"huge\.npz: not a readable npz file \(the header declares"):
        read_npz(npz_of(tmp_path / "huge.npz", stream.getvalue() + bytes(8)))


def test_a_file_cut_off_anywhere_is_an_input_error(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    write_annotation(whole, [GOOD])
    content = whole.read_bytes()
    cut = tmp_path / "cut.npz"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.npz: not a readable npz"):
            read_annotation(cut)


def test_a_file_with_a_wrong_byte_anywhere_is_read_or_an_input_error(tmp_path: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = GOOD
    payload = npy_of_objects(pickle.dumps(array, protocol=4))
    rng = np.random.default_rng(0)
    messages = []
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= int(rng.integers(1, 256))
        path = npz_of(tmp_path / "a.npz", bytes(damaged))
        try:
            read_annotation(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > len(payload) / 4
    assert all(message.startswith(f"{path}: ") for message in messages)


def test_what_is_no_annotation_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npz: there is no such file"):
        read_annotation(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot read the file"):
        read_annotation(tmp_path)
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(InputError, match=r"text\.npz: not a readable npz"):
        read_annotation(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", poses=np.eye(3))
    with pytest.raises(InputError, match=r"no array 'annotations' in it \(found: poses\)"):
        read_annotation(tmp_path / "other.npz")
    np.savez(tmp_path / "numbers.npz", annotations=np.eye(3))
    with pytest.raises(InputError, match="must hold one dict an object"):
        read_annotation(tmp_path / "numbers.npz")


def test_annotations_written_are_read_back_and_numpy_reads_them(tmp_path: Path) -> None:
    objects = [{**GOOD, "height": np.uint16(480), "class": "bed"}, {**GOOD, "note": {"by": ["a", None]}}]
    path = tmp_path / "annotations" / "bed" / "n1.npz"
    write_annotation(path, objects)
    assert_same(read_annotation(path), objects)
    loaded = np.load(path, allow_pickle=True)["annotations"]
    assert loaded.shape == (2,)
    assert_same(loaded.tolist(), objects)
    write_annotation(path, [])
    assert read_annotation(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["n1.npz"], "nothing temporary is left"


def test_an_array_without_dimension_that_holds_a_list_is_read(tmp_path: Path) -> None:
    array = np.empty((), dtype=object)
    array[()] = [GOOD, GOOD]
    np.savez(tmp_path / "a.npz", annotations=array)
    assert_same(read_annotation(tmp_path / "a.npz"), [GOOD, GOOD])


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "bed_imagenet_train.txt"
    path.write_bytes(b"")
    assert read_list(path) == []
    path.write_bytes(b"\n  \n")
    assert read_list(path) == []
    path.write_bytes(b"\xef\xbb\xbfa b\r\n\r\nc.1\r\n")
    assert read_list(path) == ["a b", "c.1"]
    write_list(path, ["a", "b"])
    assert path.read_bytes() == b"a\nb\n"
    write_list(path, [])
    assert read_list(path) == []
    for name in ("../a", "", " a", "a\nb", "a/b"):
        with pytest.raises(InputError, match="cannot stand in a list"):
            write_list(path, [name])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"bed_imagenet_train\.txt: cannot be read, for line 1 is not UTF-8"):
        read_list(path)


def test_layout(tmp_path: Path) -> None:
    layout = RawLayout(tmp_path)
    for name in ("bed_imagenet_val", "air_hammer_imagenet_train", "bed_imagenet_train", "notes"):
        write_list(tmp_path / "lists" / f"{name}.txt", [])
    found = {split: list(lists) for split, lists in layout.list_files().items()}
    assert found == {"train": ["air_hammer", "bed"], "val": ["bed"]}
    assert layout.image("bed", "n.1") == tmp_path / "images/bed/n.1.JPEG"
    (tmp_path / "images/bed").mkdir(parents=True)
    (tmp_path / "images/bed/n.1.png").touch()
    assert layout.image("bed", "n.1").name == "n.1.png"
    assert layout.annotation("bed", "n.1") == tmp_path / "annotations/bed/n.1.npz"
    assert layout.cad("bed", 3) == tmp_path / "CAD/bed/03.off"


@pytest.mark.parametrize(
    ("raw", "status", "left_out"),
    [
        ({"object_status": "status_good"}, "status_good", None),
        ({"object_status": np.str_("status_partially")}, "status_partially", None),
        ({"object_status": "status_barely", "ignore": True}, "status_barely", None),
        ({"object_status": "status_bad"}, "status_bad", "status_bad"),
        ({"object_status": "odd"}, "odd", "odd"),
        ({"ignore": False}, "status_good", None),
        ({"ignore": np.bool_(True)}, "status_bad", "status_bad"),
        ({}, None, "object_status missing"),
        ({"object_status": None}, None, "object_status missing"),
    ],
)
def test_status_of_both_variants(raw: dict[str, Any], status: str | None, left_out: str | None) -> None:
    assert object_status(raw) == status
    assert filter_reason(raw) == left_out


def test_numbers_become_plain_and_do_not_overflow() -> None:
    parsed = parse_object({**GOOD, "height": np.uint16(40000), "width": np.uint16(40000), "cad_index": np.uint8(3)})
    assert parsed.height * parsed.width == 1_600_000_000
    assert type(parsed.height) is int
    assert type(parse_object({**GOOD, "azimuth": np.float32(0.5)}).azimuth) is float
    assert parse_object({**GOOD, "distance": np.array([[5.0]]).reshape(1)}).distance == 5.0


def test_absent_fields_have_their_stand_ins_and_are_named() -> None:
    parsed = parse_object({**GOOD, "note": np.array([1, 2]), "when": np.str_("now")})
    assert (parsed.focal, parsed.viewport, parsed.height, parsed.cad_index) == (1.0, 2000.0, 0, 0)
    assert parsed.category == parsed.dense == parsed.source == parsed.instance == ""
    assert parsed.extra == {"note": [1, 2], "when": "now"}
    assert {"viewport", "focal", "class", "principal"} < set(parsed.absent)
    assert "px" not in parsed.absent


def test_principal_stands_in_for_px_and_py_and_is_kept_where_it_differs() -> None:
    without = {name: value for name, value in GOOD.items() if name not in ("px", "py")}
    parsed = parse_object({**without, "principal": np.array([7.0, 8.0])})
    assert (parsed.px, parsed.py, parsed.extra) == (7.0, 8.0, {})
    assert {"px", "py"} <= set(parsed.absent)
    assert parse_object({**GOOD, "principal": [1.0, 2.0]}).extra == {"principal": [1.0, 2.0]}
    with pytest.raises(AnnotationError, match="'px' is missing"):
        parse_object(without)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"azimuth": None}, "azimuth missing"),
        ({"theta": math.nan}, "theta not finite"),
        ({"elevation": np.float32(math.inf)}, "elevation not finite"),
        ({"elevation": "0.1"}, "elevation malformed"),
        ({"azimuth": True}, "azimuth malformed"),
        ({"azimuth": 10**400}, "azimuth not finite"),
        ({"azimuth": 270.0}, "azimuth out of range"),
        ({"distance": 0}, "distance not positive"),
        ({"distance": -2.0}, "distance not positive"),
        ({"distance": None}, "distance missing"),
        ({"viewport": 0.0}, "viewport not positive"),
        ({"height": -1}, "height malformed"),
        ({"bbox": None}, "bbox missing"),
        ({"bbox": np.array([1.0, 2.0, 3.0])}, "bbox malformed"),
        ({"bbox": [1.0, 2.0, math.nan, 4.0]}, "bbox malformed"),
        ({"bbox": [5, 2, 5, 4]}, "bbox malformed"),
        ({"bbox": "1,2,3,4"}, "bbox malformed"),
    ],
)
def test_bad_fields_are_named(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        parse_object({**GOOD, **change})
    assert caught.value.reason == reason
    assert f"'{next(iter(change))}'" in str(caught.value)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.reason, str(copied)) == (reason, str(caught.value))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.floats(width=32).map(np.float32),
    st.integers(0, 65535).map(np.uint16),
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=5),
    st.lists(st.floats(), max_size=5).map(np.array),
    st.dictionaries(st.text(max_size=3), scalars, max_size=3),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*GOOD, "principal", "height", "cad_index", "class", "focal", "x"]), values))
def test_any_annotation_is_parsed_or_refused_with_a_reason(changes: dict[str, Any]) -> None:
    raw = {**GOOD, **changes}
    filter_reason(raw)
    parsed: AnnotatedObject | AnnotationError
    try:
        parsed = parse_object(raw)
    except AnnotationError as error:
        parsed = error
    if isinstance(parsed, AnnotationError):
        assert parsed.reason
        assert str(parsed)
    else:
        numbers = (parsed.azimuth, parsed.elevation, parsed.theta, parsed.distance, parsed.px, parsed.py, *parsed.bbox)
        assert all(math.isfinite(number) for number in numbers)
        assert parsed.distance > 0
