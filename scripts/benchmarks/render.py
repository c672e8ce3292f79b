"""Measure how fast the renderer is: whole images written to disk, and the parts of one image.

    python scripts/benchmarks/render.py [--sources parametric] [--size 256] [--samples 2] [--workers 0] [--images 400]
                                        [--profile]

The goal is 15 images a second at 256 pixels with 2 x 2 antialiasing on two cores. Times of parts are CPU seconds of one
process; the rate is wall time, with the start of the workers taken out by a first, small run. On a machine that does other
work, CPU time an image says more than the rate.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import logging
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.pool import default_workers
from data_prep.render.backgrounds import procedural_background
from data_prep.render.generate import render
from data_prep.render.options import RenderConfig, make_sources
from data_prep.render.parametric import BUILDERS, build
from data_prep.render.primitives import ellipsoid
from data_prep.render.raycast import RayCaster
from data_prep.render.sampling import ViewDistribution, draw_camera, draw_light, photograph
from data_prep.render.scene import render as render_scene


def images_per_second(sources: list[str], size: int, samples: int, workers: int, images: int) -> tuple[float, float]:
    """Wall-clock rate and CPU seconds an image of the whole stage, from the difference of a large and a small run."""
    views = 8
    seconds, cpu, counts = [], [], []
    for share in (8, 1):
        with tempfile.TemporaryDirectory() as folder:
            config = _config(sources, size, samples, Path(folder) / "set", images // share, views)
            config.workers = workers
            start, used = time.perf_counter(), sum(os.times()[:4])  # of this process and its workers
            counts.append(render(config).rendered)
            seconds.append(time.perf_counter() - start)
            cpu.append(sum(os.times()[:4]) - used)
    made = counts[1] - counts[0]
    return made / (seconds[1] - seconds[0]), (cpu[1] - cpu[0]) / made


def _config(sources: list[str], size: int, samples: int, out: Path, images: int, views: int) -> RenderConfig:
    """About ``images`` images, spread over the categories of the sources; of mesh files one of each category."""
    config = RenderConfig(str(out), sources, views=views, size=size, samples=samples, val_instances=0, val_share=0.0)
    config.meshes_per_category = 1
    objects = max(1, round(images / views))
    if sources == ["parametric"]:
        config.train_instances = max(1, round(objects / len(BUILDERS)))
        config.categories = list(BUILDERS)[:objects]
        return config
    config.train_instances = 1
    categories = sorted({item.category for source in make_sources(config) for item in source.instances()})
    config.categories = categories[:: max(1, len(categories) // objects)][:objects]
    return config


def hot_spots(sources: list[str], size: int, samples: int, images: int) -> str:
    """Return where one process spends its time."""
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        config = _config(sources, size, samples, Path(folder) / "set", images, views=8)
        config.workers = 1
        profile.runcall(render, config)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(25)
    return text.getvalue()


def cpu_milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Mean CPU time of a call."""
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats * 1000


def parts_of_an_image(size: int, samples: int, repeats: int = 20) -> dict[str, float]:
    """Mean CPU milliseconds of each part at size x size, over all categories."""
    rng = np.random.default_rng(0)
    meshes = [build(category, rng) for category in BUILDERS]
    casters = [RayCaster(mesh) for mesh in meshes]
    cameras = [draw_camera(rng, mesh, size, size, ViewDistribution()) for mesh in meshes]
    background = procedural_background(size, size, rng)
    light = draw_light(rng, cameras[0])
    image = render_scene(casters[0], cameras[0], light, background, samples=samples).image

    def draw_all() -> None:
        for caster, camera in zip(casters, cameras, strict=True):
            render_scene(caster, camera, light, background, samples=samples)

    ball = ellipsoid((0, 0, 0), (0.3, 0.3, 0.3), (0.5, 0.5, 0.5), sides=100)  # 10,000 triangles
    ball_caster = RayCaster(ball)
    ball_camera = draw_camera(rng, ball, size, size, ViewDistribution(truncation=0.0))
    return {
        "build an object": cpu_milliseconds(lambda: [build(name, rng) for name in BUILDERS], 3) / len(BUILDERS),
        "prepare it for rays": cpu_milliseconds(lambda: [RayCaster(mesh) for mesh in meshes], 3) / len(meshes),
        "background": cpu_milliseconds(lambda: procedural_background(size, size, rng), repeats),
        "cast, shade and filter": cpu_milliseconds(draw_all, 3) / len(meshes),
        f"the same, sphere of {len(ball.faces)} triangles": cpu_milliseconds(
            lambda: render_scene(ball_caster, ball_camera, light, background, samples=samples), repeats
        ),
        "blur and noise": cpu_milliseconds(lambda: photograph(rng, image), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", default=["parametric"], help="as those of llava-pose render")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--samples", type=int, default=2, help="rays a pixel along each axis")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one for each core")
    parser.add_argument("--images", type=int, default=400, help="how many to write, about")
    parser.add_argument("--profile", action="store_true", help="show the hot spots of one process instead")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    if options.profile:
        print(hot_spots(options.sources, options.size, options.samples, options.images))
        return
    for name, milliseconds in parts_of_an_image(options.size, options.samples).items():
        print(f"{name:45s} {milliseconds:7.1f} ms")
    workers = options.workers or default_workers()
    rate, cpu = images_per_second(options.sources, options.size, options.samples, workers, options.images)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"whole stage, {' '.join(options.sources)}, {workers} processes, {options.size} px, {options.samples}x antialiasing:"
        f" {rate:.1f} images/s, {1000 * cpu:.0f} ms of CPU an image{load}"
    )


if __name__ == "__main__":
    main()
