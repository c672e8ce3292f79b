"""MATLAB's level 5 files, as far as annotations need them: numbers, text, structs and cells, read in plain Python.

scipy.io.loadmat ends the process by a segmentation fault on some damaged files. This reader bounds what it unfolds, and
refuses what it does not know. The format is that of MathWorks' "MAT-File Level 5 File Format".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

MOST_UNFOLDED = 1 << 25  # bytes: an annotation has some thousand
_HEADER = 128  # bytes of text, version and byte order
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMERIC_CLASSES = range(6, 16)
_LOGICAL = 0x200
_DEEPEST = 20
_MOST_NODES = 1_000_000  # structs, cells and arrays of a file
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}


def read_mat(content: bytes) -> dict[str, Any]:
    """The variables of a file by their names.

    Structs are dicts, arrays of structs and cells are lists without regard to their shape, text is str, single numbers are
    Python's, arrays of numbers are lists in the order of MATLAB's indices, and what is empty is None.

    Raises:
        ValueError: it is no such file, is damaged, holds something else, or unfolds beyond all measure.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it is no MATLAB 5 file")
    reader = _Reader(order)
    found = {}
    for kind, data in reader.elements(content[_HEADER:]):
        inner = [(kind, data)] if kind != _COMPRESSED else reader.elements(reader.inflate(data))
        for inner_kind, inner_data in inner:
            if inner_kind == _MATRIX:
                name, value = reader.matrix(inner_data, 0)
                found[name] = value
    return found


class _Reader:
    def __init__(self, order: str) -> None:
        self._order = order
        self._unfolded = 0
        self._nodes = 0

    def inflate(self, data: bytes) -> bytes:
        inflater = zlib.decompressobj()
        try:
            text = inflater.decompress(data, MOST_UNFOLDED - self._unfolded + 1)
        except zlib.error as error:
            raise ValueError(f"it is damaged ({error})") from error
        self._unfolded += len(text)
        if self._unfolded > MOST_UNFOLDED:
            raise ValueError(f"it unfolds to more than {MOST_UNFOLDED >> 20} MiB")
        return text

    def elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, payload) of each data element."""
        place = 0
        while place < len(data):
            if place + 8 > len(data):
                raise ValueError("it is cut off")
            kind, size = struct.unpack(f"{self._order}II", data[place : place + 8])
            if kind >> 16:  # a small element: its size stands in the upper half, its payload in the tag
                kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
                place += 8
                if size > 4:
                    raise ValueError("it is damaged (a small element of more than 4 bytes)")
            else:
                start = place + 8
                place = start + size + (-size % 8 if kind != _COMPRESSED else 0)
            if start + size > len(data):
                raise ValueError("it is cut off")
            yield kind, data[start : start + size]

    def matrix(self, data: bytes, depth: int) -> tuple[str, Any]:
        """Name and value of an array of any class."""
        self._nodes += 1
        if depth > _DEEPEST or self._nodes > _MOST_NODES:
            raise ValueError("it is nested too deeply, or has too many parts")
        if not data:
            return "", None
        parts = self.elements(data)
        flags = int(self._numbers(next(parts, None), least=1)[0])
        count = 1
        for extent in self._numbers(next(parts, None), least=1).tolist():
            count *= int(extent)
        name = _bytes(next(parts, None)).decode("latin-1")
        kind = flags & 0xFF
        if count < 0 or kind not in (_CELL, _STRUCT, _CHAR, *_NUMERIC_CLASSES):
            raise ValueError("it holds something else than numbers, text, structs and cells")
        if kind == _CELL:
            return name, _without_one([self._inner(parts, depth) for _ in self._range(count)])
        if kind == _STRUCT:
            return name, self._structs(parts, count, depth)
        if count == 0:
            return name, None
        if kind == _CHAR:
            return name, self._text(next(parts, None), count)
        values = self._numbers(next(parts, None), least=count)[:count]
        if flags & _LOGICAL:
            values = values != 0
        return name, values.tolist() if count > 1 else values[0].item()

    def _structs(self, parts: Iterator[tuple[int, bytes]], count: int, depth: int) -> Any:
        length = int(self._numbers(next(parts, None), least=1)[0])
        table = _bytes(next(parts, None))
        if not 0 < length <= 1024:
            raise ValueError("it is damaged (names of fields of no length)")
        names = [
            table[i : i + length].split(b"\0", 1)[0].decode("latin-1")
            for i in range(0, len(table) - length + 1, length)
        ]
        if not names:
            return None
        return _without_one([{name: self._inner(parts, depth) for name in names} for _ in self._range(count)])

    def _range(self, count: int) -> range:
        if count > _MOST_NODES:
            raise ValueError("it has too many parts")
        return range(count)

    def _inner(self, parts: Iterator[tuple[int, bytes]], depth: int) -> Any:
        kind, data = next(parts, (0, b""))
        if kind != _MATRIX:
            raise ValueError("it is cut off")
        return self.matrix(data, depth + 1)[1]

    def _numbers(self, element: tuple[int, bytes] | None, *, least: int) -> np.ndarray:
        kind, data = element or (0, b"")
        if kind not in _TYPES:
            raise ValueError("it is damaged (numbers are missing)")
        dtype = np.dtype(_TYPES[kind]).newbyteorder(self._order)  # type: ignore[arg-type]
        values = np.frombuffer(data[: len(data) - len(data) % dtype.itemsize], dtype)
        if len(values) < least:
            raise ValueError("it is cut off")
        return values

    def _text(self, element: tuple[int, bytes] | None, count: int) -> str:
        kind, data = element or (0, b"")
        if kind in _TEXT:
            name = _TEXT[kind] if kind == 16 else f"{_TEXT[kind]}-{'le' if self._order == '<' else 'be'}"
            return data.decode(name, errors="replace")
        codes = self._numbers(element, least=count)[:count].tolist()
        return "".join(chr(code) if 0 <= code < 0xD800 else "\ufffd" for code in map(int, codes))


def _bytes(element: tuple[int, bytes] | None) -> bytes:
    if element is None:
        raise ValueError("it is cut off")
    return element[1]


def _without_one(values: list[Any]) -> Any:
    """A list; its only member where it has one, and None where it has none."""
    return None if not values else values[0] if len(values) == 1 else values
