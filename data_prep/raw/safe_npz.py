"""Reading npz files from strangers: arrays of numbers, text and plain objects, and nothing that can run code.

An object array inside an npz is a pickle, and ``numpy.load(allow_pickle=True)`` runs whatever code a pickle names.
Here a pickle may name only what numpy writes for arrays, scalars and dtypes, and even these names are answered by
stand-ins of our own: numpy's own ``__setstate__`` methods trust the flags and pointers of a crafted file, so they are
never called. What the stand-ins collected is turned into arrays after the pickle has been read to its end.
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
from typing import Any, Literal, cast

import numpy as np

from llava_pose.errors import InputError
from llava_pose.utils.files import open_regular

MAX_BYTES = 64 * 2**20  # an annotation file is a few KB; a compressed member may not grow past this
_MAX_DEPTH = 32
_BYTES_A_VALUE = 64  # about what a number or a reference takes in memory
_REMEDY = "write the file again or take it off the list"

# every way in which a damaged zip, npy header or pickle makes the standard library and numpy complain
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
)


class UnsafePickle(pickle.UnpicklingError):
    """The pickle names something other than arrays, scalars, dtypes and plain containers."""


def read_npz(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an npz file, object arrays included, without running any code that the file may carry.

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
    """What a file says, or an error that quotes its bytes, for a sentence: short, in one line, and nothing that a terminal
    would obey."""
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
    value = _Materialiser(max_bytes).build(_Unpickler(io.BytesIO(body), encoding="latin1").load())
    if not isinstance(value, np.ndarray) or value.shape != tuple(shape):
        raise ValueError("the pickle does not hold the array that the header declares")
    return value


class _Dtype:
    """Stands in for numpy.dtype while a pickle is read: a plain bool, number, bytes, text or object type."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?([biufcO][0-9]{0,2}|[SU][0-9]{1,7}|\?)", code):
            raise UnsafePickle(f"it holds an array of the type {str(code)[:40]!r}")
        self.code = code.lstrip("<>|=")
        self.order = code[0] if code[0] in "<>" else "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, item size, alignment, flags…): all but the order is in the code
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickle("it holds a structured array")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("a dtype has no byte order")
        self.order = order

    @property
    def is_object(self) -> bool:
        return self.code.startswith("O")

    def to_numpy(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(cast(Literal["<", ">", "|", "="], self.order))


class _Array:
    """Stands in for numpy.ndarray while a pickle is read, and for numpy scalars (``shape`` None)."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype: _Dtype | None = None
        self.fortran = False
        self.data: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


def _scalar(dtype: Any, data: Any = None) -> _Array:
    value = _Array()
    value.dtype, value.data = dtype, data
    return value


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    value = _Array()
    value.shape, value.dtype, value.fortran, value.data = shape, dtype, order == "F", data
    return value


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # how Python 3 writes bytes in pickles that Python 2 can read
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickle("it calls _codecs.encode for something other than bytes")
    return text.encode("latin-1")


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    # bytes() and bytearray(b"…") of the oldest protocols; a number would ask for so many bytes of memory
    if isinstance(content, str):
        return _encode(content, encoding)
    if not isinstance(content, (bytes, bytearray)):
        raise UnsafePickle("it makes bytes of something else")
    return bytes(content)


class _Name:
    """What a name in the pickle stands for: it can be called, and neither subclassed, instantiated anew nor changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickle("it changes a function")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
for _builtins in ("builtins", "__builtin__"):  # how protocols 0 to 3 write what has no opcode of its own
    _NAMES.update({(_builtins, kind.__name__): kind for kind in (set, frozenset, complex)})
    _NAMES.update({(_builtins, name): _bytes for name in ("bytes", "bytearray")})
for _core in ("numpy.core", "numpy._core"):  # numpy 1.x and 2.x
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Array
    _NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle._Unpickler):  # the one in Python: a crafted memo index makes the one in C fill all memory
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UnsafePickle(f"it wants to load {f'{module}.{name}'[:80]}")
        return _Name(_NAMES[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("it refers to an object outside the file")

    def get_extension(self, code: int) -> Any:
        raise UnsafePickle("it uses the extension registry")


class _Materialiser:
    """Builds the real value from what the stand-ins collected, within a budget: a small pickle that refers to one part
    many times over cannot fill the memory.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget

    def build(self, value: Any, depth: int = 0) -> Any:
        self._spend(_BYTES_A_VALUE + _length(value))
        if depth > _MAX_DEPTH:
            raise UnsafePickle("it is nested too deeply")
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return value
        if isinstance(value, dict):
            self._spend(sum(map(_length, value)))
            return {_plain_key(key): self.build(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(self.build(item, depth + 1) for item in value)
        if isinstance(value, bytearray):
            return bytes(value)
        if isinstance(value, _Array):
            return self._array(value, depth + 1)
        raise UnsafePickle(f"it holds a bare {type(value).__name__.lstrip('_').lower()}")

    def _spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise UnsafePickle("it unfolds into more than a file may hold")

    def _array(self, stand_in: _Array, depth: int) -> Any:
        dtype, data = stand_in.dtype, stand_in.data
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a type")
        shape = (1,) if stand_in.shape is None else stand_in.shape
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError("an array without a shape")
        flat = self._objects(data, depth) if dtype.is_object else self._numbers(data, dtype)
        if flat.size != math.prod(shape):
            raise ValueError("an array whose shape and content differ")
        if stand_in.shape is None:
            return flat[0]
        return flat.reshape(shape, order="F" if stand_in.fortran else "C")

    def _objects(self, data: Any, depth: int) -> np.ndarray:
        if not isinstance(data, list):
            raise ValueError("an object array without a list")
        flat = np.empty(len(data), dtype=object)
        for index, item in enumerate(data):
            flat[index] = self.build(item, depth)
        return flat

    def _numbers(self, data: Any, dtype: _Dtype) -> np.ndarray:
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin-1")
        if not isinstance(data, (bytes, bytearray)):
            raise ValueError("an array without bytes")
        self._spend(len(data))
        return np.frombuffer(bytes(data), dtype=dtype.to_numpy()).copy()


def _length(value: Any) -> int:
    """The bytes that a value takes, or its digits where it is a whole number: what is named often is copied often."""
    if isinstance(value, int):
        return value.bit_length() // 4
    return len(value) if isinstance(value, (str, bytes, bytearray)) else 0


def _plain_key(key: Any) -> Any:
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise UnsafePickle("it holds a mapping with keys other than text and numbers")
    return key
