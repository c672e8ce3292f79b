"""``llava-pose render``: images of meshes with their poses, in ImageNet3D's raw layout (docs/DATA.md).

Every instance is one task, every image has a seed of its own: the same seed gives the same files whatever the number of
workers. An image is written before its annotation, and both whole or not at all: a run that was stopped goes on where
it was by skipping what has an annotation.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.imagenet3d import RawLayout, write_annotation, write_list
from data_prep.pool import map_processes
from llava_pose.config import command, read_yaml, require, save_config, write_atomic
from llava_pose.errors import InputError

from . import sampling
from .backgrounds import list_photos, photo_background, procedural_background
from .mesh import Mesh, off_text
from .parametric import BUILDERS
from .raycast import RayCaster, require_embree
from .scene import Camera, Rendering
from .scene import render as render_scene
from .sources import SPLITS, Instance, MeshSource, ParametricSource

logger = logging.getLogger(__name__)

CONFIG_FILE = "render.yaml"
JPEG_QUALITY = 92
OCCLUDER_TRIES = 3  # drawings of occluders that hide too much before an image goes without


@dataclass
class RenderConfig:
    """What to render; see ``llava-pose render --help``."""

    out: str = field(
        default="", metadata={"help": "folder for images, annotations, lists and CAD (ImageNet3D's layout)"}
    )
    categories: list[str] = field(
        default_factory=list, metadata={"help": "which parametric categories; all if not given"}
    )
    train_instances: int = field(default=20, metadata={"help": "different objects of each category in the train split"})
    val_instances: int = field(default=5, metadata={"help": "different objects of each category in the val split"})
    views: int = field(default=8, metadata={"help": "images of each object"})
    size: int = field(default=256, metadata={"help": "longer side of the images in pixels; the aspect ratio varies"})
    samples: int = field(default=2, metadata={"help": "antialiasing: this many rays a pixel along each axis"})
    occlusion: float = field(default=0.2, metadata={"help": "probability that something stands before the object"})
    truncation: float = field(default=0.08, metadata={"help": "probability that the image's edge cuts the object"})
    min_visible: float = field(default=0.35, metadata={"help": "least visible fraction that occluders may leave"})
    backgrounds: str | None = field(
        default=None,
        metadata={"help": "folder of photographs to put behind the objects; procedural pictures if not given"},
    )
    seed: int = field(default=0, metadata={"help": "of shapes, cameras, lights and backgrounds"})
    workers: int = field(default=0, metadata={"help": "processes; 0: one a core. It does not change the result"})

    def validate(self) -> None:
        """Raise InputError for values that cannot work."""
        require(self.out, "--out")
        for name, least in (
            ("train_instances", 0),
            ("val_instances", 0),
            ("views", 1),
            ("size", 16),
            ("samples", 1),
            ("workers", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is too small: give {least} or more."
                )
        for name in ("occlusion", "truncation", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is no share: give a number from 0 to 1."
                )
        if self.train_instances + self.val_instances == 0:
            raise InputError(
                "--train-instances 0 and --val-instances 0 leave nothing to render: make one of them 1 or more."
            )
        if self.size > np.iinfo(np.uint16).max:
            raise InputError(
                f"--size {self.size} is too large: the annotations hold at most {np.iinfo(np.uint16).max} pixels."
            )
        for category in self.categories:
            if category not in BUILDERS:
                raise InputError(
                    f"--categories {category}: there is no such parametric object; choose from {', '.join(BUILDERS)}."
                )
        if len(set(self.categories)) != len(self.categories):
            raise InputError("--categories names a category twice: name each once.")


@dataclass(frozen=True)
class RenderResult:
    """Where the data is and what it holds.

    Attributes:
        out: the folder.
        rendered: images made by this run.
        skipped: images found from an earlier run.
        statuses: number of images made by this run of each object_status.
    """

    out: Path
    rendered: int
    skipped: int
    statuses: dict[str, int]


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know beside the instance."""

    layout: RawLayout
    source: MeshSource
    views: sampling.ViewDistribution
    config: RenderConfig
    photos: tuple[Path, ...]


def render(config: RenderConfig) -> RenderResult:
    """Render the data set that ``config`` describes, or the rest of it.

    Raises:
        InputError: a value cannot work, the render extra is not installed, a background photograph cannot be read, or
            the folder holds a data set of other settings.
    """
    config.validate()
    require_embree()
    photos = tuple(list_photos(Path(config.backgrounds))) if config.backgrounds else ()
    out = Path(config.out)
    source = ParametricSource(tuple(config.categories), config.train_instances, config.val_instances, config.seed)
    _claim_folder(config, out)
    job = _Job(
        layout=RawLayout(out),
        source=source,
        views=sampling.ViewDistribution(truncation=config.truncation),
        config=config,
        photos=photos,
    )
    instances = source.instances()

    statuses: Counter[str] = Counter()
    skipped = 0
    with tqdm(total=len(instances) * config.views, unit="image", desc="render", mininterval=0.5) as progress:
        results = map_processes(_render_instance, instances, job, workers=config.workers, most_items_a_task=1)
        for done in results:
            statuses.update(done)
            skipped += config.views - len(done)
            progress.update(config.views)
    _write_lists(job.layout, instances, config.views)
    logger.info(
        "%d images of %d objects in %s (%d made now). Next: llava-pose prepare --data-root %s --out %s",
        len(instances) * config.views, len(instances), out, statuses.total(), out, out.with_name(out.name + "_prepared"),
    )  # fmt: skip
    return RenderResult(out=out, rendered=statuses.total(), skipped=skipped, statuses=dict(statuses))


def image_name(instance: Instance, view: int) -> str:
    """Name (without suffix) of an instance's image number ``view``, from 0."""
    return f"{instance.name}_{view:03d}"


def _claim_folder(config: RenderConfig, out: Path) -> None:
    """Refuse a folder that holds images of other settings, which would be mixed; note the settings in a new one."""
    path = out / CONFIG_FILE
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "workers")}
    if path.exists():
        earlier = read_yaml(path)
        changed = sorted(name for name in settings.keys() | earlier.keys() if settings.get(name) != earlier.get(name))
        if changed:
            raise InputError(
                f"{path} says that this folder was rendered with {changed[0]} = {earlier.get(changed[0])}, not"
                f" {settings.get(changed[0])}: give the same settings, another --out, or delete the folder."
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {CONFIG_FILE}: give --out a new or empty folder.")
    else:
        save_config(settings, path)


def _render_instance(instance: Instance, job: _Job) -> list[str]:
    """Write an instance's CAD file and the images that are missing; return the object_status of each image made."""
    cad = job.layout.cad(instance.category, instance.cad_index)
    annotations = [
        job.layout.annotation(instance.category, image_name(instance, view)) for view in range(job.config.views)
    ]
    missing = [view for view, annotation in enumerate(annotations) if not annotation.exists()]
    if not missing and cad.exists():
        return []
    mesh = job.source.mesh(instance)
    write_atomic(cad, off_text(mesh))
    caster = RayCaster(mesh)
    return [_render_view(job, instance, mesh, caster, view) for view in missing]


def _render_view(job: _Job, instance: Instance, mesh: Mesh, caster: RayCaster, view: int) -> str:
    rng = np.random.default_rng(np.random.SeedSequence([job.config.seed, *instance.key, view]))
    width, height = sampling.draw_image_size(rng, job.config.size, job.views)
    camera = sampling.draw_camera(rng, mesh, width, height, job.views)
    light = sampling.draw_light(rng, camera)
    if job.photos:
        background = photo_background(job.photos[rng.integers(len(job.photos))], width, height, rng)
    else:
        background = procedural_background(width, height, rng)

    tries = OCCLUDER_TRIES if rng.random() < job.config.occlusion else 0
    for remaining in range(tries, -1, -1):
        occluders = [RayCaster(solid) for solid in sampling.draw_occluders(rng, camera, mesh)] if remaining else []
        rendering = render_scene(caster, camera, light, background, occluders=occluders, samples=job.config.samples)
        if rendering.visible_fraction >= job.config.min_visible:
            break
    pixels = sampling.photograph(rng, rendering.image)

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    write_atomic(job.layout.image(instance.category, image_name(instance, view)), buffer.getvalue())
    annotation = _annotation(instance, camera, rendering)
    write_annotation(job.layout.annotation(instance.category, image_name(instance, view)), [annotation])
    return annotation["object_status"]


def _annotation(instance: Instance, camera: Camera, rendering: Rendering) -> dict[str, Any]:
    """One object in ImageNet3D's fields, with ``source``, ``instance`` and ``visible_fraction`` beside them."""
    return {
        "azimuth": camera.azimuth,
        "elevation": camera.elevation,
        "theta": camera.theta,
        "distance": camera.distance,
        "focal": camera.focal,
        "viewport": camera.viewport,
        "px": camera.px,
        "py": camera.py,
        "principal": np.array([camera.px, camera.py]),
        "cad_index": instance.cad_index,
        "height": np.uint16(camera.height),
        "width": np.uint16(camera.width),
        "bbox": rendering.bbox,
        "class": instance.category,
        "object_status": sampling.object_status(rendering.visible_fraction),
        "dense": "dense_no",
        "source": "rendered",
        "instance": instance.name,
        "visible_fraction": rendering.visible_fraction,
    }


def _write_lists(layout: RawLayout, instances: Sequence[Instance], views: int) -> None:
    """lists/<category>_imagenet_<split>.txt, last of all: what is listed is there."""
    for category in dict.fromkeys(instance.category for instance in instances):
        for split in SPLITS:
            chosen = [instance for instance in instances if (instance.category, instance.split) == (category, split)]
            names = [image_name(instance, view) for instance in chosen for view in range(views)]
            write_list(layout.list_file(category, split), names)


main = command(
    RenderConfig,
    render,
    prog="llava-pose render",
    description="Render parametric objects with known poses into ImageNet3D's raw layout.",
    example="llava-pose render --out data/rendered --train-instances 20 --val-instances 5 --views 8",
)

if __name__ == "__main__":
    raise SystemExit(main())
