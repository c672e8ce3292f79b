"""A stranger's picture, decoded in a process of its own that has a limit of time and of memory.

A file of a few kilobytes can keep a decoder busy for hours or ask it for gigabytes (a progressive JPEG of a hundred
thousand scans, for one), and nothing but the end of its process stops it then.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from PIL import Image

from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.serve.limits import DECODING_BYTES, DECODING_SECONDS, LARGEST_SIDE

REMEDY = "give a JPEG, PNG or WebP file"
_ROOT = str(Path(__file__).resolve().parents[2])
_DECODE = """
import sys
sys.path[0] = sys.argv[2]  # in place of the current folder, whose files must not be taken for modules
from llava_pose.errors import InputError
from llava_pose.serve.decoding import decode_within_limits
try:
    sys.stdout.buffer.write(decode_within_limits(sys.stdin.buffer, sys.argv[1]))
except InputError as error:
    sys.stdout.buffer.write(f"{error}".encode())  # on stderr it would stand behind what libtiff has to say
    sys.exit(2)
"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def decode_apart(file: IO[bytes], name: str, *, seconds: float = DECODING_SECONDS) -> Image.Image:
    """Return a picture as 8-bit RGB, upright, with no side longer than :data:`LARGEST_SIDE` pixels.

    Args:
        file: an open file; the other process gets this, and no path.
        name: what the person calls it, for messages.
        seconds: after which decoding is ended.

    Raises:
        InputError: it is damaged, too large, no picture of a known format, or takes too long.
    """
    command = [sys.executable, "-W", "ignore", "-c", _DECODE, name, _ROOT]
    try:
        done = subprocess.run(
            command, stdin=file, capture_output=True, timeout=seconds, env={**os.environ, **_ONE_THREAD}
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: it takes too long to decode; save it anew as a plain JPEG or PNG") from error
    if done.returncode == 2:
        raise InputError(done.stdout.decode(errors="replace"))
    if done.returncode != 0:  # the decoder itself has died
        raise InputError(f"{name}: cannot read the picture (it is damaged, or too large to decode); {REMEDY}")
    size, _, pixels = done.stdout.partition(b"\n")
    width, height = map(int, size.split())
    return Image.frombytes("RGB", (width, height), pixels)


def decode_within_limits(file: IO[bytes], name: str) -> bytes:
    """Limit this process, decode a picture in it, and return its size and pixels as :func:`decode_apart` takes them.

    Raises:
        InputError: as :func:`decode_apart`.
    """
    with suppress(ImportError, ValueError, OSError):  # where the system has no such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (DECODING_BYTES, DECODING_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (DECODING_SECONDS, DECODING_SECONDS))  # should nobody be left to end it
    picture = load_rgb(file, upright=True, name=name, remedy=REMEDY, max_side=LARGEST_SIDE)
    return b"%d %d\n" % picture.size + picture.tobytes()
