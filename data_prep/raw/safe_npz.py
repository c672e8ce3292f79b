"""Reading npz files from strangers: arrays of numbers, text and plain objects, and nothing that can run code.

An object array inside an npz is a pickle, and ``numpy.load(allow_pickle=True)`` runs whatever code a pickle names. Here a
pickle may name only what numpy writes for arrays, scalars and dtypes, and gets functions of ours under these names. numpy's
``__setstate__`` methods trust the flags and pointers of a crafted file: they get states that were checked or made here.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import numpy as np

from data_prep.raw.pickle_steps import refused_step
from llava_pose.errors import InputError
from llava_pose.utils.files import open_regular

MAX_BYTES = 64 * 2**20  # an annotation file is a few KB; a compressed member may not grow past this
_MAX_DEPTH = 32
_BYTES_A_VALUE = 64  # about what a number or a reference takes in memory
_REMEDY = "write the file again or take it off the list"
_DTYPE = r"[<>|=]?([biufcO][0-9]{0,2}|[SU][0-9]{1,7}|\?)"  # bools, numbers, bytes, text and objects
# every way in which a damaged zip, npy header or pickle makes the standard library and numpy complain
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError, tokenize.TokenError, SyntaxError, EOFError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError, RuntimeError),
)


class UnsafePickle(pickle.UnpicklingError):
    """The pickle names something other than arrays, scalars, dtypes and plain containers."""


def read_npz(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file, object arrays included, without running any code that the file may carry.

    Args:
        max_bytes: the most that all members together may hold once decompressed.

    Raises:
        InputError: the file is missing, not an npz, cut off, damaged, too large, or names anything but arrays, numbers,
            text and plain containers. The sentence names the file.
    """
    arrays: dict[str, np.ndarray] = {}
    left = max_bytes
    try:
        with _archive(path, max_bytes) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is compressed as numpy does not")  # others ask for memory before they read
                with archive.open(member) as stream:
                    # the size that the directory declares may be a lie: count what really comes out
                    content = stream.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise InputError(f"{path}: holds more than {max_bytes >> 20} MiB; {_REMEDY}")
                arrays[member.filename.removesuffix(".npy")] = _read_array(content, max_bytes)
    except InputError:
        raise
    except UnsafePickle as error:
        raise InputError(f"{path}: refused, {shown(error)}; only arrays, numbers, text and lists are read") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; add it or take it off the list") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror or error}); check the path") from error
    except _DAMAGE as error:
        reason = shown(error) or type(error).__name__
        raise InputError(f"{path}: not a readable npz file ({reason}); {_REMEDY}") from error
    return arrays


@contextmanager
def _archive(path: str | os.PathLike[str], max_bytes: int) -> Iterator[zipfile.ZipFile]:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:  # before its directory is read
            raise InputError(f"{path}: has more than {max_bytes >> 20} MiB; {_REMEDY}")
        with zipfile.ZipFile(file) as archive:
            yield archive


def shown(value: object, most: int = 120) -> str:
    """Return what a file says, or an error that quotes its bytes, for a sentence: short, in one line, and nothing that a
    terminal would obey.
    """
    line = " ".join(str(value).split())[:most]
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _read_array(content: bytes, max_bytes: int) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy format version {version} is not known")
    body = content[stream.tell() :]
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize != len(body):
            raise ValueError(f"the header declares {shape} of {dtype}, the file holds {len(body)} bytes")
        flat = np.frombuffer(body, dtype=dtype).copy()
        return flat.reshape(shape, order="F" if fortran else "C")
    refused = refused_step(body)
    if refused is not None:
        raise UnsafePickle(refused)
    unpickler = _Unpickler(body, max_bytes)
    value = unpickler.load()
    unpickler.require_plain(value)
    if not isinstance(value, np.ndarray) or value.shape != tuple(shape):
        raise ValueError("the pickle does not hold the array that the header declares")
    return value


def _new_array(*_: Any) -> np.ndarray:
    return np.empty(0)  # its state comes next


def _dtype(code: Any, *_: Any) -> np.dtype:
    if isinstance(code, bytes):
        code = code.decode("ascii")
    if not isinstance(code, str) or not re.fullmatch(_DTYPE, code):
        raise UnsafePickle(
            f"it holds an array of the type {code[:40]!r}" if isinstance(code, str) else "it holds an array of no type"
        )
    return np.dtype(code, copy=True)  # type: ignore[call-overload]  # a state would change numpy's own


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    return np.frombuffer(_bytes(data), _require_dtype(dtype)).copy().reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any = None) -> Any:
    (value,) = _from_buffer(data, dtype, -1)
    return value


def _require_dtype(dtype: Any) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        raise ValueError("an array without a type")
    return dtype


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    """Return bytes as the older protocols and Python 2 write them; of a number, ``bytes`` would make so many."""
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return content.encode("latin-1")
    if not isinstance(content, (bytes, bytearray)):
        raise UnsafePickle("it makes bytes of something else")
    return bytes(content)


_NAMES: dict[tuple[str, str], Any] = {
    **{("numpy", "ndarray"): _new_array, ("numpy", "dtype"): _dtype, ("_codecs", "encode"): _bytes},
    # numpy 1.x and 2.x
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    # how protocols 0 to 3 write what has no opcode of its own
    **{(module, "complex"): complex for module in ("builtins", "__builtin__")},
    **{(module, name): _bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}


class _Unpickler(pickle._Unpickler):  # the one in Python: a crafted memo index makes the one in C fill all memory
    """Reads a pickle within a budget, so that a small one that names a part many times over cannot fill the memory."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, content: bytes, budget: int) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._left = budget

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UnsafePickle(f"it wants to load {f'{module}.{name}'[:80]}")
        return partial(self._call, _NAMES[module, name])  # which can be called, and nothing else

    def _call(self, function: Any, *args: Any) -> Any:
        for value in args:
            self._spend(_BYTES_A_VALUE * (1 + (len(value) if isinstance(value, (list, tuple)) else 0)) + _length(value))
        return function(*args)

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("it refers to an object outside the file")

    def get_extension(self, code: int) -> Any:
        raise UnsafePickle("it uses the extension registry")

    def load_build(self) -> None:
        """Give an array or a dtype the state that a file says."""
        state, value = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(value, (np.ndarray, np.dtype)) or not isinstance(state, tuple):
            raise UnsafePickle("it changes a function or an object")
        if isinstance(value, np.dtype):
            # (version, byte order, subtype, names, fields, item size, alignment, flags): all but the order is in the code
            if len(state) < 5 or any(part is not None for part in state[2:5]):
                raise UnsafePickle("it holds a structured array")
            order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
            if order not in ("<", ">", "|", "="):
                raise ValueError("a dtype without a byte order")
            value.__setstate__(value.newbyteorder(order).__reduce__()[2])  # type: ignore
            return
        _, shape, dtype, fortran, data = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        count = math.prod(shape)
        if _require_dtype(dtype).hasobject:
            if not isinstance(data, list) or len(data) != count:
                raise ValueError("an object array without a list of its size")
        else:
            data = _bytes(data)
            if len(data) != count * dtype.itemsize:
                raise ValueError("an array whose shape and content differ")
        self._spend(_BYTES_A_VALUE * (1 + len(shape)) + max(len(data), count))
        value.__setstate__((1, shape, dtype.newbyteorder("="), bool(fortran), data))  # type: ignore[arg-type]
        if not dtype.isnative:
            # which __setstate__ would have changed, and the bytes with it
            value.dtype = dtype  # type: ignore[misc]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set([key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._set(items)

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        """Put keys and values into a mapping. A key of nested tuples would be hashed for ever, so that keys are text."""
        mapping = self.stack[-1]  # type: ignore[attr-defined]
        if type(mapping) is not dict or not all(type(key) is str for key in items[::2]):
            raise UnsafePickle("it holds a mapping with keys other than text")
        mapping.update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = load_setitem  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = load_setitems  # type: ignore[assignment]
    dispatch[pickle.DICT[0]] = load_dict  # type: ignore[assignment]

    def require_plain(self, value: Any, depth: int = 0) -> None:
        """Raise UnsafePickle for a value that holds anything but arrays, numbers, text and plain containers."""
        self._spend(_BYTES_A_VALUE + _length(value))
        if depth > _MAX_DEPTH:
            raise UnsafePickle("it is nested too deeply")
        parts: Any = ()
        if isinstance(value, dict):
            self._spend(sum(map(_length, value)))
            parts = value.values()
        elif isinstance(value, (list, tuple)):
            parts = value
        elif isinstance(value, np.ndarray):
            parts = value.flat if value.dtype.hasobject else ()
        elif not isinstance(value, (int, float, complex, str, bytes, bytearray, np.generic, type(None))):
            raise UnsafePickle(f"it holds a bare {type(value).__name__}")
        for part in parts:
            self.require_plain(part, depth + 1)

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise UnsafePickle("it unfolds into more than a file may hold")


def _length(value: Any) -> int:
    """Return the bytes that a value takes, or a whole number's digits: what is named often is copied often."""
    if isinstance(value, int):
        return value.bit_length() // 4
    if isinstance(value, (np.ndarray, np.generic)):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes, bytearray)) else 0
