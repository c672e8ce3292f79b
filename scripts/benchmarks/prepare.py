"""Measure how fast `llava-pose prepare` is beside the published order of work, and how near to bare JPEG decoding and encoding.

    python scripts/benchmarks/prepare.py [--images 1000] [--side 1500] [--size 256] [--out figures.json]

Everything runs on one core, one way after the other, on pictures made for the run in a temporary folder: one object each, whose
longer side is between 15% and 90% of the picture's. The ways:

- published order: decode the whole picture, resize the whole picture by distance / 4, pad it, cut out 512 x 512, resize
  that, encode;
- prepare: the whole stage with one worker, records, journal and account included;
- bare JPEG: read the file, decode it at the reduced size that its crop needs, encode a crop and write it; nothing else.

After them prepare does the same work with several workers, and the wall-clock ratio is given: how nearly linear it is in cores.

All three decode, resize and encode with the same library (Pillow). CPU seconds are what the ratio is taken from; wall-clock
seconds of a busy machine tell of its other work, too.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageChops
from tqdm import tqdm

from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.prepare.crop import Crop, encode_jpeg, pose_crop
from data_prep.raw.imagenet3d import RawLayout, parse_object, read_annotation, write_annotation, write_list
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from llava_pose.utils.command import command
from llava_pose.utils.files import write_json

VIEWPORT = 2000.0
SMALLEST, LARGEST = 0.15, 0.9  # of the picture's longer side
GOAL = 5.0
WINDOW = 512  # pixels, of the published protocol


@dataclass
class BenchmarkConfig:
    images: int = field(default=1000, metadata={"help": "pictures"})
    side: int = field(default=1500, metadata={"help": "their longer side, pixels"})
    size: int = field(default=256, metadata={"help": "side of the crops, pixels"})
    workers: int = field(default=2, metadata={"help": "of the run that tells how prepare scales with cores; 1: none"})
    seed: int = field(default=0, metadata={"help": "of pictures and objects"})
    out: str | None = field(default=None, metadata={"help": "a JSON file for the figures"})

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("side", 64), ("size", 16), ("workers", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name}: must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Row:
    """One way of doing the work.

    Attributes:
        cpu_seconds, wall_seconds: for all pictures.
        images_per_second: of CPU time.
        times_published: how many times the rate of the published order.
    """

    way: str
    images: int
    cpu_seconds: float
    wall_seconds: float
    images_per_second: float
    times_published: float


def benchmark(config: BenchmarkConfig) -> list[Row]:
    """Measure, print the table and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        layout = RawLayout(Path(folder) / "raw")
        names = make_pictures(layout, config)
        published_out, prepared_out = Path(folder) / "published", Path(folder) / "prepared"
        published_out.mkdir()
        bare_out = Path(folder) / "bare"
        bare_out.mkdir()
        stage = PrepareConfig(
            data_root=str(layout.root), out=str(prepared_out), splits="train", size=config.size, workers=1
        )
        published = _measure("published order", config, lambda: published_order(layout, names, published_out, config))
        rows = [
            published,
            _measure("prepare", config, lambda: prepare(stage), published),
        ]
        reduced = reductions(layout, names, config)
        with Image.open(prepared_out / "train" / read_records(prepared_out, "train")[0].file_name) as crop:
            crop.load()
        rows.append(_measure("bare JPEG", config, lambda: bare_jpeg(layout, names, reduced, bare_out, crop), published))
        difference = _difference(prepared_out, published_out)
        speedup = _speedup(stage, rows[1].wall_seconds, config.workers, Path(folder) / "several")
    _, ours, bare = rows
    share = bare.cpu_seconds / ours.cpu_seconds
    lines = [f"{'':18}{'CPU s':>9}{'wall s':>9}{'images/s':>10}{'times published':>17}"]
    lines += [
        f"{row.way:18}{row.cpu_seconds:9.1f}{row.wall_seconds:9.1f}{row.images_per_second:10.1f}{row.times_published:17.2f}"
        for row in rows
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(
        f"prepare: {ours.times_published:.1f} times the published order (goal {GOAL:g}), "
        f"{share:.0%} of its time is bare JPEG decoding and encoding\n"
        f"mean difference of the crops of both: {difference:.1f} of 255\n"
    )
    if speedup is not None:
        sys.stdout.write(f"prepare with {config.workers} workers: {speedup:.2f} times as fast by the wall clock\n")
    if config.out is not None:
        figures = {
            "pillow": PIL.__version__,
            "config": asdict(config),
            "rows": [asdict(row) for row in rows],
            "bare_share": share,
            "mean_difference": difference,
            "speedup": speedup,
        }
        write_json(config.out, figures)
    return rows


def make_pictures(layout: RawLayout, config: BenchmarkConfig) -> list[str]:
    """Photograph-like pictures (about 2 bits a pixel) with one annotated object each; returns their names."""
    rng = np.random.default_rng(config.seed)
    long, short = config.side, config.side * 3 // 4
    negatives = [_picture(rng, long, short) for _ in range(4)]
    names = [f"n{index:05d}" for index in range(config.images)]
    for name in tqdm(names, desc="making pictures", unit="image", delay=1, leave=False):
        picture = negatives[rng.integers(len(negatives))]
        picture = ImageChops.offset(picture, int(rng.integers(long)), int(rng.integers(short)))
        if rng.random() < 0.3:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        path = layout.root / "images" / "car" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        write_annotation(layout.annotation("car", name), [_object(rng, *picture.size)])
    write_list(layout.list_file("car", "train"), names)
    return names


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    def blobs(size: int) -> Image.Image:
        shape = (max(2, height // size), max(2, width // size), 3)
        small = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    picture = Image.blend(blobs(40), blobs(6), 0.25)
    noise = rng.normal(0, 3, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def _object(rng: np.random.Generator, width: int, height: int) -> dict[str, object]:
    part = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    box_width, box_height = part * width, part * height * rng.uniform(0.6, 1)
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    center = left + box_width / 2, top + box_height / 2
    return {
        **{"azimuth": rng.uniform(0, 6.28), "elevation": 0.2, "theta": 0.0, "class": "car"},
        **{"distance": VIEWPORT / max(box_width, box_height), "viewport": VIEWPORT, "focal": 1.0},
        **{"px": center[0], "py": center[1], "bbox": np.array([left, top, left + box_width, top + box_height])},
        **{"width": np.uint16(width), "height": np.uint16(height), "object_status": "status_good"},
    }


def published_order(layout: RawLayout, names: list[str], out: Path, config: BenchmarkConfig) -> None:
    """Everything decoded, everything resized, everything padded, as arrays, and then cropped."""
    half = WINDOW // 2
    for name in names:
        raw = parse_object(read_annotation(layout.annotation("car", name))[0])
        with Image.open(layout.image("car", name)) as image:
            picture = image.convert("RGB")
        rate = raw.distance / 4
        size = max(1, round(picture.width * rate)), max(1, round(picture.height * rate))
        pixels = np.array(picture.resize(size, Image.Resampling.BICUBIC))
        x, y = round(raw.px * rate), round(raw.py * rate)
        padding = (
            (max(half - y, 0), max(half + y - size[1], 0)),
            (max(half - x, 0), max(half + x - size[0], 0)),
            (0, 0),
        )
        pixels = np.pad(pixels, padding)
        top, left = y + padding[0][0] - half, x + padding[1][0] - half
        window = Image.fromarray(pixels[top : top + WINDOW, left : left + WINDOW])
        crop = window.resize((config.size, config.size), Image.Resampling.BICUBIC)
        (out / f"{name}_00.JPEG").write_bytes(encode_jpeg(crop))


def reductions(layout: RawLayout, names: list[str], config: BenchmarkConfig) -> list[int]:
    """The reduced size, 1 / n, that each picture's crop lets the JPEG decoder take."""
    objects = (parse_object(read_annotation(layout.annotation("car", name))[0]) for name in names)
    scales = [pose_crop(raw.px, raw.py, raw.distance, config.size).scale for raw in objects]
    return [next((n for n in (8, 4, 2) if n * scale <= 1), 1) for scale in scales]


def bare_jpeg(layout: RawLayout, names: list[str], reduced: list[int], out: Path, crop: Image.Image) -> None:
    """Do what no way that reads and writes these files with this library can do without."""
    for name, reduction in zip(names, reduced, strict=True):
        image = Image.open(layout.image("car", name))
        image.draft(None, (image.width // reduction, image.height // reduction))
        image.load()
        (out / f"{name}_00.JPEG").write_bytes(encode_jpeg(crop))


def _measure(way: str, config: BenchmarkConfig, work: Callable[[], object], published: Row | None = None) -> Row:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    rate = config.images / cpu_seconds
    times = 1.0 if published is None else rate / published.images_per_second
    return Row(way, config.images, cpu_seconds, wall_seconds, rate, times)


def _speedup(stage: PrepareConfig, alone: float, workers: int, out: Path) -> float | None:
    """Wall-clock seconds of one worker over those of several, of the same stage; None for one."""
    if workers == 1:
        return None
    start = time.perf_counter()
    prepare(replace(stage, out=str(out), workers=workers))
    return alone / (time.perf_counter() - start)


def _difference(prepared: Path, published: Path) -> float:
    """Return how the two ways' pixels differ inside of the picture, on up to 50 crops: they are to have done the same work."""
    differences = []
    for record in read_records(prepared, "train")[:50]:
        ours = np.asarray(Image.open(prepared / "train" / record.file_name)).astype(float)
        theirs = np.asarray(Image.open(published / Path(record.file_name).name)).astype(float)
        crop = Crop(**record.crop, size=record.width)
        x1, y1, x2, y2 = crop.visible(record.source["width"], record.source["height"])
        differences.append(np.abs(ours - theirs)[y1:y2, x1:x2].mean())
    return float(np.mean(differences))


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING)
    return _main(argv)


_main = command(
    BenchmarkConfig,
    benchmark,
    prog="python scripts/benchmarks/prepare.py",
    description="Pictures a second that prepare does, beside the published order of work and bare JPEG decoding.",
    example="python scripts/benchmarks/prepare.py --images 200 --out prepare.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
