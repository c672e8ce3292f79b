"""How fast the renderer is: whole images written to disk, and the parts of one image.

    python scripts/benchmarks/render.py [--size 256] [--samples 2] [--workers 0] [--images 400]

The goal is 15 images a second at 256 pixels with 2 x 2 antialiasing on two cores. Times of parts are CPU seconds of one
process; the rate is wall time, with the start of the workers taken out by a first, small run.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.pool import default_workers
from data_prep.render.backgrounds import procedural_background
from data_prep.render.generate import render
from data_prep.render.options import RenderConfig
from data_prep.render.parametric import BUILDERS, build
from data_prep.render.primitives import ellipsoid
from data_prep.render.raycast import RayCaster
from data_prep.render.sampling import ViewDistribution, draw_camera, draw_light, photograph
from data_prep.render.scene import render as render_scene


def images_per_second(size: int, samples: int, workers: int, images: int) -> float:
    """Wall-clock rate of the whole stage, from the difference of a large and a small run."""
    views = 8
    seconds = []
    counts = []
    for instances in (1, max(2, round(images / views / len(BUILDERS)) + 1)):
        with tempfile.TemporaryDirectory() as folder:
            config = RenderConfig(
                out=str(Path(folder) / "set"),
                train_instances=instances,
                val_instances=0,
                views=views,
                size=size,
                samples=samples,
                workers=workers,
            )
            start = time.perf_counter()
            counts.append(render(config).rendered)
            seconds.append(time.perf_counter() - start)
    return (counts[1] - counts[0]) / (seconds[1] - seconds[0])


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
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--samples", type=int, default=2, help="rays a pixel along each axis")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one for each core")
    parser.add_argument("--images", type=int, default=400, help="how many to write, about")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)

    for name, milliseconds in parts_of_an_image(options.size, options.samples).items():
        print(f"{name:45s} {milliseconds:7.1f} ms")
    workers = options.workers or default_workers()
    rate = images_per_second(options.size, options.samples, workers, options.images)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"whole stage, {workers} processes, {options.size} px, {options.samples}x antialiasing: {rate:.1f} images/s{load}"
    )


if __name__ == "__main__":
    main()
