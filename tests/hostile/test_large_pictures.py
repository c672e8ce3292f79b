"""Large pictures in the demo and in PosePredictor: little memory, a limit of time, and poses where they belong."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_pose.data.images import MAX_SQUARE, load_rgb, shrink
from llava_pose.errors import InputError
from llava_pose.inference.pipeline import PosePipeline
from llava_pose.inference.predictor import PosePredictor
from llava_pose.pose.metrics import pose_error
from llava_pose.serve.decoding import decode_apart
from llava_pose.serve.limits import DECODING_BYTES
from tests.llava_pose.small_models import model_for, small_processor

MEGAPIXELS_60 = (7800, 7700)


def _saved(folder: Path, kind: str) -> Path:
    """A picture of a few kilobytes on disk and 60 million pixels in memory."""
    modes = {
        "grey": "L",
        "transparent": "RGBA",
        "palette": "P",
        "colour": "RGB",
        "progressive": "RGB",
        "sixteen": "I;16",
    }
    picture = Image.new(modes[kind], MEGAPIXELS_60)
    path = folder / ("picture.jpg" if kind == "progressive" else "picture.png")
    options: dict[str, Any] = (
        {"progressive": True, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 1}
    )
    picture.save(path, **options)
    return path


_DECODE = """
import resource, sys
from llava_pose.serve.decoding import decode_apart
from llava_pose.serve.limits import LARGEST_SIDE
peak = lambda who: resource.getrusage(who).ru_maxrss >> 10
before = peak(resource.RUSAGE_SELF)
assert max(decode_apart(open(sys.argv[1], "rb"), "picture", seconds=60).size) == LARGEST_SIDE
print(peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN))
"""


@pytest.mark.parametrize(
    "kind",
    [
        *("progressive", "transparent"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("grey", "palette", "colour", "sixteen")),
    ],
)
def test_a_strangers_picture_costs_the_server_what_is_kept_of_it(tmp_path, kind):
    path = _saved(tmp_path, kind)
    done = subprocess.run([sys.executable, "-c", _DECODE, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, of_decoder = map(int, done.stdout.split())
    assert grown < 60
    assert of_decoder < DECODING_BYTES >> 20


def test_decoding_apart_gives_what_decoding_here_gives(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    with open(tmp_path / "turned.png", "rb") as file:
        apart = decode_apart(file, "turned.png")
    here = load_rgb(tmp_path / "turned.png", upright=True)
    assert apart.size == here.size == (60, 80)
    assert apart.tobytes() == here.tobytes()


def test_a_decoder_is_ended_after_its_time(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("L", (8000, 8000), 9).save(path, "JPEG", progressive=True)
    begin = time.monotonic()
    with open(path, "rb") as file, pytest.raises(InputError, match=r"^photo: it takes too long to decode"):
        decode_apart(file, "photo", seconds=0.05)
    assert time.monotonic() - begin < 10


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path):
    """A progressive JPEG whose last scan comes 3000 times: 660 kilobytes, and half a minute of work."""
    out = io.BytesIO()
    Image.new("L", (8000, 8000), 9).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    path = tmp_path / "bomb.jpg"
    path.write_bytes(whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * 3000 + b"\xff\xd9")
    with open(path, "rb") as file, pytest.raises(InputError, match=r"^photo: .*scans"):
        decode_apart(file, "photo")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff\xd8\xff" * 100])
def test_what_is_no_picture_is_one_sentence(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with open(path, "rb") as file, pytest.raises(InputError, match=r"^photo: [^\n]* JPEG, PNG or WebP file$") as caught:
        decode_apart(file, "photo")
    assert str(tmp_path) not in str(caught.value)


# PosePredictor


_PREDICT = """
import resource
from PIL import Image
from tests.llava_pose.small_models import model_for, small_processor
from llava_pose.inference.predictor import PosePredictor
processor = small_processor()
predictor = PosePredictor(model_for(processor), processor)
predictor.predict([Image.new("RGB", (64, 64))], ["car"])
pictures = [Image.new("RGB", size) for size in ((8000, 200), (20000, 300), (300, 20000))]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for picture in pictures:
    before = peak()
    predictor.predict([picture], ["car"])
    print(picture.size, (peak() - before) // 1024)
    assert peak() - before < 150 * 1024, picture.size
"""


def test_a_panorama_is_shrunk_before_it_is_padded():
    """1.3 GB for 8000x200 pixels, and MemoryError for 20000x300, where the square was made first."""
    done = subprocess.run([sys.executable, "-c", _PREDICT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", [(4096, 3000), (1200, 4096), (4096, 4096)])
def test_poses_of_a_shrunk_picture_are_in_pixels_of_the_original(size):
    """A picture of twice the size that a model is shown: the same angles, its place twice as far."""
    processor = small_processor()
    predictor = PosePredictor(model_for(processor), processor)
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    larger = coarse.resize(size, Image.Resampling.BICUBIC)
    [one], [two] = predictor.predict([shrink(larger, MAX_SQUARE)], ["car"]), predictor.predict([larger], ["car"])
    assert float(pose_error(np.array(one.pose.angles), np.array(two.pose.angles))) < 1e-4
    assert two.pose.distance == pytest.approx(one.pose.distance, rel=1e-4)
    assert (two.pose.px, two.pose.py) == pytest.approx((2 * one.pose.px, 2 * one.pose.py), abs=0.1)


def test_an_answer_that_takes_too_long_is_cut_off_and_says_so(taught):
    predictor = PosePredictor.from_checkpoint(taught.folder, device="cpu")
    question = [{"role": "user", "content": "What is the pose of the car?"}]
    picture = Image.open(taught.picture)
    cut = predictor.chat(picture, question, max_seconds=1e-6)
    assert cut.took_too_long
    assert not cut.complete
    whole = predictor.chat(picture, question, max_seconds=600)
    assert whole.complete
    assert not whole.took_too_long
    assert not predictor.chat(picture, question, max_new_tokens=3, max_seconds=600).took_too_long


@pytest.mark.parametrize("box", [None, (0.0, 0.0, 60_000.0, 500.0)], ids=["whole", "box"])
def test_what_is_asked_of_a_panorama_takes_no_more_than_a_model_sees(box: Any) -> None:
    picture = Image.new("RGB", (60_000, 500), "red")
    asked = PosePipeline(SimpleNamespace()).asked(picture, ("car",), box)  # type: ignore[arg-type]
    assert max(asked.seen.size) == MAX_SQUARE
    middle = asked.seen.width / 2 / asked.scale + asked.left, asked.seen.height / 2 / asked.scale + asked.top
    assert middle == pytest.approx((30_000, 250), abs=20)
    assert asked.seen.getpixel((asked.seen.width // 2, asked.seen.height // 2)) == (255, 0, 0)


def test_a_box_of_usual_size_is_cut_out_as_it_is() -> None:
    picture = Image.effect_noise((200, 100), 80).convert("RGB")
    asked = PosePipeline(SimpleNamespace(), margin=0.1).asked(picture, ("car",), (-50, 20, 150, 80))  # type: ignore[arg-type]
    assert (asked.scale, asked.seen.size) == (1.0, (180, 180))
    square = Image.new("RGB", (180, 180), asked.seen.getpixel((0, 0)))
    square.paste(picture, (-asked.left, -asked.top))
    assert asked.seen.tobytes() == square.tobytes()
