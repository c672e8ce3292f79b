"""Annotations whose pickle is a few bytes and asks for any memory or time: one sentence, before a step of it is taken."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.raw.pickle_steps import ALLOWED, MOST_STEPS, refused_step
from data_prep.raw.safe_npz import read_npz
from llava_pose.errors import InputError
from tests.hostile.data_commands import time_limit

_OF_TUPLES = b"NN\x86q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"h\x00"  # which has 2^60 parts to be hashed or shown
BOMBS = {
    "a key of nested tuples": b"\x80\x05})" + b"2\x86" * 60 + b"Ns.",
    "a key of named tuples": b"\x80\x02}" + _OF_TUPLES + b"Ns.",
    "keys of named tuples": b"\x80\x02}(" + _OF_TUPLES + b"Nu.",
    "a mapping of named tuples": b"\x80\x02(" + _OF_TUPLES + b"Nd.",
    "a set of nested tuples": b"\x80\x05\x8f()" + b"2\x86" * 60 + b"\x90.",
    "a set by its name": b"\x80\x02cbuiltins\nset\n](" + _OF_TUPLES + b"e\x85R.",
    "a type of named tuples": b"\x80\x02cnumpy\ndtype\n(" + _OF_TUPLES + b"tR.",
    "12 GiB declared": b"\x80\x05\x96" + struct.pack("<Q", 12 << 30) + b".",
    "12 GiB declared and dropped": b"\x80\x05\x96" + struct.pack("<Q", 12 << 30) + b"0N.",
    "millions of sets": b"\x80\x05" + b"\x8f" * 20_000_000 + b".",
    "millions of marks": b"\x80\x05" + b"(" * 20_000_000 + b".",
    "millions of Nones": b"\x80\x05" + b"N" * 20_000_000 + b".",
    "millions of memories": b"\x80\x05N" + b"\x94" * 20_000_000 + b".",
    "a number of 20 MB": b"\x80\x05\x8b" + struct.pack("<i", 20_000_000) + b"\x01" * 20_000_000 + b".",
    "a list in a list in a list": b"\x80\x02]q\x00" + b"(h\x00e" * 80_000 + b".",
    "a call with a long list, often": b"\x80\x02]q\x00("
    + b"K\x01" * 50_000
    + b"ecnumpy\ndtype\nq\x01"
    + b"h\x01h\x00\x85R" * 20_000
    + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_asks_for_much_is_a_sentence(tmp_path: Path, kind: str) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("annotations.npy", header.getvalue() + BOMBS[kind])
    assert path.stat().st_size < 2**20
    with time_limit(20), pytest.raises(InputError, match=r"^\S+a\.npz: [^\n]+$"):
        read_npz(path)


def test_steps_are_counted_and_named() -> None:
    assert refused_step(b"\x80\x05" + b"N0" * 3 + b"N.") == "it has a step POP"
    assert refused_step(b"\x80\x05]" + b"Na" * (MOST_STEPS // 2 - 2) + b".") is None
    assert refused_step(b"\x80\x05]" + b"Na" * MOST_STEPS + b".") == f"it has more than {MOST_STEPS} steps"
    assert not ALLOWED & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EMPTY_SET", "FROZENSET", "ADDITEMS", "PERSID", "EXT1"}


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ([[1 << (8 << 20)]] * 400, "refused, it has a step LONG4"),  # a number of more than 255 bytes
        ([[1 << 2000] * 1000] * 1000, "unfolds into more than a file may hold"),
    ],
    ids=["long", "often"],
)
def test_a_number_that_is_named_often_has_its_price(tmp_path: Path, extra: list[list[int]], match: str) -> None:
    import numpy as np

    objects = np.empty(1, dtype=object)
    objects[0] = {"azimuth": 0.1, "extra": extra}
    stream = io.BytesIO()
    np.savez_compressed(stream, annotations=objects)
    path = tmp_path / "bomb.npz"
    path.write_bytes(stream.getvalue())
    with pytest.raises(InputError, match=match):
        read_npz(path)
