"""Annotation files of any content: read or refused with a sentence, by the reader and by the stage.

Never a crash, never code that runs. HYPOTHESIS_MAX_EXAMPLES asks for more examples than the few of every day.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep.prepare.image import (
    ImageJob,
    ImageOptions,
    ImageResult,
    bring_up_to_date,
    prepare_image,
    read_result,
    result_file,
)
from data_prep.raw.imagenet3d import read_annotation
from llava_pose.data.jsonl import write_jsonl
from llava_pose.data.records import ObjectRecord
from llava_pose.errors import InputError
from tests.conftest import RawDataset
from tests.data_prep.damaged_input import npz_of_pickle, zipped

FUZZ = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "60")),
    deadline=None,
    # the same examples in every run, so that CI fails for changes alone; HYPOTHESIS_MAX_EXAMPLES=5000 hunts for new ones
    derandomize="HYPOTHESIS_MAX_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


class Bench:
    """One image whose annotation file is written anew for each example."""

    def __init__(self, root: Path) -> None:
        (root / "raw").mkdir(parents=True)
        self.dataset = RawDataset(root / "raw")
        self.dataset.add("n1", image=self.dataset.picture(64, 48), objects=[self.dataset.object(64, 48)])
        self.file = self.dataset.layout.annotation("car", "n1")
        self.good = self.dataset.object(64, 48)
        self.good_bytes = self.file.read_bytes()
        self.out = root / "out"
        self.mark = root / "mark"

    def check(self, content: bytes) -> ImageResult:
        """The file is read, or refused in one sentence that names it; so by the reader and by the stage."""
        self.file.write_bytes(content)
        refusal = None
        try:
            objects = read_annotation(self.file)
        except InputError as error:
            refusal = str(error)
        else:
            assert all(isinstance(item, dict) for item in objects)
        if refusal is not None:
            assert refusal.startswith(f"{self.file}: ")
            assert refusal.isprintable(), "one line, and nothing that a terminal would obey"
        assert not self.mark.exists(), "code has run"
        result = self.prepare()
        assert refusal is None or [reject["reason"] for reject in result.rejects] == ["annotation unreadable"]
        return result

    def check_fields(self, changes: dict[str, Any]) -> ImageResult:
        array = np.empty(1, dtype=object)
        array[0] = {name: value for name, value in {**self.good, **changes}.items() if value is not ...}
        stream = io.BytesIO()
        np.savez(stream, annotations=array)
        return self.check(stream.getvalue())

    def prepare(self) -> ImageResult:
        """What the stage makes of the file: it can be journalled and written, and nothing is lost."""
        for crop in ("pose", "box", "whole"):
            options = ImageOptions(self.dataset.root, self.out, crop, 32, 0.05)
            result = prepare_image(ImageJob("train", "car", "n1"), options)
            assert bring_up_to_date(ImageJob("train", "car", "n1"), options)
            written = result_file(self.out, ImageJob("train", "car", "n1"))
            assert read_result(written) == result
            written.unlink()
            write_jsonl(self.out / "metadata.jsonl", result.records)
            for record in result.records:
                again = ObjectRecord.from_dict(record, where="here")
                assert isinstance(json.loads(again.source["extra"]), dict)
            for reject in result.rejects:
                assert reject["reason"]
                assert "car/n1" in reject["sentence"]
                assert reject["sentence"].isprintable()
                json.dumps(reject, ensure_ascii=False).encode()
            assert result.records or result.rejects or result.filtered
        return result


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("fuzz"))


@FUZZ
@given(st.binary(max_size=300))
@example(b"")
@example(b"PK\x05\x06" + bytes(18))
def test_random_bytes(bench: Bench, content: bytes) -> None:
    bench.check(content)


@pytest.mark.parametrize("name", ["os\x1csystem", "a\u2028b", "\x1b[2Jall", "a\tb", "\x7f"])
def test_a_name_with_signs_that_end_lines_or_move_cursors(bench: Bench, name: str) -> None:
    result = bench.check(npz_of_pickle(b"\x80\x04" + _short_text(name) + _short_text(name) + b"\x93."))
    assert "refused, it wants to load" in result.rejects[0]["sentence"]


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), min_size=1, max_size=4), st.integers(0, 200))
def test_a_good_file_with_wrong_bytes_and_a_lost_end(bench: Bench, wrong: list[tuple[int, int]], lost: int) -> None:
    content = bytearray(bench.good_bytes)
    for position, bits in wrong:
        content[position % len(content)] ^= bits
    bench.check(bytes(content[: len(content) - lost % 40]))


@FUZZ
@given(st.data())
def test_a_good_pickle_with_wrong_bytes(bench: Bench, data: st.DataObject) -> None:
    """Inside a zip whose checksums are right: the damage reaches the npy header and the pickle."""
    array = np.empty(1, dtype=object)
    array[0] = bench.good
    protocol = data.draw(st.sampled_from([2, 4, 5]))
    payload = bytearray(pickle.dumps(array, protocol=protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(payload) - 1))
        kind = data.draw(st.sampled_from(["change", "delete", "insert"]))
        if kind == "change":
            payload[position] = data.draw(st.integers(0, 255))
        elif kind == "delete":
            del payload[position : position + data.draw(st.integers(1, 8))]
            payload = payload or bytearray(b".")
        else:
            payload[position:position] = data.draw(st.binary(min_size=1, max_size=8))
    bench.check(npz_of_pickle(bytes(payload)))


@FUZZ
@given(st.binary(max_size=120), st.booleans())
def test_npy_members_of_any_header(bench: Bench, rest: bytes, magic: bool) -> None:
    bench.check(zipped((b"\x93NUMPY\x01\x00" if magic else b"") + rest))


def _short_text(text: str) -> bytes:
    content = text.encode()
    return b"\x8c" + bytes([len(content)]) + content


NAMES = [
    *[("builtins", name) for name in ("exec", "eval", "getattr", "open", "set", "bytes", "complex", "list", "dict")],
    *[("posix", "system"), ("os", "system"), ("subprocess", "Popen"), ("functools", "partial"), ("operator", "call")],
    *[("numpy", name) for name in ("ndarray", "dtype", "load", "core.multiarray")],
    *[("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar", "fromfile")],
    *[("numpy.core.multiarray", "_reconstruct"), ("numpy._core.numeric", "_frombuffer"), ("_codecs", "encode")],
    *[("copyreg", "_reconstructor"), ("builtins", "__import__"), ("pickle", "loads"), ("", "")],
]


def opcodes(mark: Path) -> st.SearchStrategy[bytes]:
    """One opcode of a pickle with its argument, near enough to real ones that many streams get far."""
    code = f"open({str(mark)!r}, 'w').close()"
    plain = [
        *(b"(", b")", b"]", b"}", b"N", b"\x88", b"\x89", b"0", b"1", b"2", b"a", b"b", b"d", b"e", b"l", b"s", b"t"),
        *(b"u", b"R", b"\x81", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"Q"),
        *(b"\x97", b"\x98", b"K\x00", b"K\x01", b"K\x05", b"G" + struct.pack(">d", 1.5), b"o", b"\x8a\x01\x02"),
        *(b"U\x01b", b"C\x08AAAAAAAA", b"\x96" + struct.pack("<Q", 4) + b"abcd", _short_text("azimuth"), b"."),
        *(_short_text("f8"), _short_text("O8"), _short_text("|"), _short_text("<"), _short_text(code)),
        *(b"K\x01\x85", b"(K\x01K\x01\x85", b"(K\x03", b"J\xff\xff\xff\xff", b"P1\n", b"\x82\x01", b"\x95" + bytes(8)),
    ]
    return st.one_of(
        st.sampled_from(plain),
        st.sampled_from(NAMES).map(lambda name: f"c{name[0]}\n{name[1]}\n".encode()),
        st.sampled_from(NAMES).map(lambda name: _short_text(name[0]) + _short_text(name[1]) + b"\x93"),
        st.sampled_from(NAMES).map(lambda name: f"(i{name[0]}\n{name[1]}\n".encode()),
        st.integers(0, 9).map(lambda index: b"h%c" % index),
        st.integers(0, 9).map(lambda index: b"q%c" % index),
        st.integers(0, 2**32 - 1).map(lambda index: b"r" + struct.pack("<I", index)),
        st.floats().map(lambda number: b"G" + struct.pack(">d", number)),
        st.sampled_from(NAMES[:9]).map(lambda name: f"c{name[0]}\n{name[1]}\n".encode() + _short_text(code) + b"\x85R"),
    )


@FUZZ
@given(st.data())
def test_pickles_of_random_opcodes(bench: Bench, data: st.DataObject) -> None:
    parts = data.draw(st.lists(opcodes(bench.mark), max_size=24))
    start = data.draw(st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"]))
    bench.check(npz_of_pickle(start + b"".join(parts) + b".", data.draw(st.sampled_from([(), (1,), (2,)]))))


numbers = st.one_of(
    st.floats(),
    st.floats(width=16).map(np.float16),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.longdouble),
    st.integers(),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 65535).map(np.uint16),
    st.sampled_from([0, -0.0, 1e-300, 1e300, 5e-324, 2**63, 10**400, 10**5000, -(10**5000), 1e9, -1e9, 1e-9, 640]),
    st.booleans(),
    st.booleans().map(np.bool_),
)
scalars = st.one_of(
    numbers,
    st.none(),
    st.text(st.characters(), max_size=6),  # lone surrogates, controls and line ends among them
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    st.text(max_size=4).map(np.str_),
    st.binary(max_size=6),
    st.complex_numbers(),
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=5),
    st.tuples(numbers, numbers, numbers, numbers),
    st.lists(st.floats(), max_size=5).map(np.array),
    st.lists(numbers, min_size=4, max_size=4).map(lambda items: np.array(items, dtype=object)),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.floats()), scalars, max_size=3),
    st.frozensets(st.integers(), max_size=3),
)
FIELDS = [
    *("azimuth", "elevation", "theta", "distance", "px", "py", "principal", "bbox", "viewport", "focal", "height"),
    *("width", "cad_index", "class", "object_status", "ignore", "dense", "source", "instance", "note", "weather\n"),
]


@FUZZ
@given(st.dictionaries(st.sampled_from(FIELDS), st.one_of(values, st.just(...)), max_size=5))
@example({"instance": "\ud800", "note": {"\udfff": ["\ud900"]}})
@example({"note": 10**5000, "source": [10**5000]})
@example({"azimuth": [10**5000, 1]})
@example({"distance": 1e-300})
@example({"px": 1.7e308, "py": -1.7e308})
@example({"bbox": [-1e300, -1e300, 1e300, 1e300]})
@example({"bbox": [0, 0, 10**400, 10**400]})
@example({"bbox": [0, 0, 5e-324, 5e-324]})
@example({"viewport": 5e-324, "focal": 1.7e308})
@example({"height": 1e300, "width": 1e300})
@example({"principal": [1, 2, 3]})
@example({"note": np.longdouble(1.5), "instance": np.array([np.longdouble(2)])})
@example({"class": "car\nbus"})
@example({"object_status": "odd\n\ud800"})
def test_fields_of_any_type(bench: Bench, changes: dict[str, Any]) -> None:
    bench.check_fields(changes)


@FUZZ
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "distance": st.floats(1e-9, 1e9),
            "px": st.floats(-1e9, 1e9),
            "py": st.floats(-1e9, 1e9),
            "viewport": st.floats(1e-9, 1e9),
            "focal": st.floats(1e-9, 1e9),
            "bbox": st.tuples(*[st.floats(-1e9, 1e9)] * 4).map(
                lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
            ),
        },
    )
)
@example({"distance": 1e9, "px": 63.999999})
@example({"bbox": [0.0, 0.0, 1e-9, 1e-9]})
@example({"bbox": [63.9999999, 47.9999999, 64.1, 48.1]})
@example({"bbox": [-1e9, 10.0, 1e9, 10.0000001]})
def test_numbers_within_their_bounds_at_any_place(bench: Bench, changes: dict[str, Any]) -> None:
    """Crops of any place and size are cut or refused, and no arithmetic on them fails."""
    result = bench.check_fields(changes)
    for record in result.records:
        numbers_of = [*record["bbox"], record["viewport"], *(v for v in record["pose"].values())]
        assert all(isinstance(number, float) and np.isfinite(number) for number in numbers_of)


def test_the_fuzzers_reach_what_they_are_to_guard(bench: Bench) -> None:
    """A stream of the same opcodes does run code where it is let: the mark would tell."""
    code = f"open({str(bench.mark)!r}, 'w').close()"
    payload = b"\x80\x04cbuiltins\nexec\n" + _short_text(code) + b"\x85R."
    result = bench.check(npz_of_pickle(payload))
    assert "it wants to load builtins.exec" in result.rejects[0]["sentence"]
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({payload!r})"], check=True)
    assert bench.mark.exists()
    bench.mark.unlink()
    assert bench.check(bench.good_bytes).records, "the good file is prepared"
    with zipfile.ZipFile(io.BytesIO(bench.good_bytes)) as archive:
        assert archive.namelist() == ["annotations.npy"]
