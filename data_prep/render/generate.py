"""``llava-pose render``: images of meshes with their poses, in ImageNet3D's raw layout (docs/DATA.md).

Every instance is one task, every image has a seed of its own: the same seed gives the same files whatever the number of
workers. An image is written before its annotation, and both whole or not at all: a run that was stopped goes on where
it was by skipping what has an annotation. A mesh that cannot be used stops nothing: it is logged, and listed with its
reason in meshes.jsonl.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep.pool import map_processes
from data_prep.raw.imagenet3d import RawLayout, write_annotation, write_list
from llava_pose.data.jsonl import write_jsonl
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.command import command, say_next
from llava_pose.utils.files import write_atomic
from llava_pose.utils.output_folder import keep_settings, own_folder

from . import sampling
from .backgrounds import list_photos
from .mesh import Mesh, off_text
from .mesh_files import MeshError
from .options import RenderConfig, canonical_categories, make_poses, make_sources
from .plan import Selection, companions, count_by_source, plan
from .raycast import require_embree
from .sources import SPLITS, Instance, MeshSource
from .studio import Studio

logger = logging.getLogger(__name__)

MESHES_FILE = "meshes.jsonl"
UNIT_SCALE = (0.2, 1.5)  # reaches that pass for unit scale; ImageNet3D's CADs have 0.3 to 0.85


@dataclass(frozen=True)
class RenderResult:
    """The rendered data: where it is and what it holds.

    Attributes:
        out: the folder.
        rendered: images made by this run.
        skipped: images found from an earlier run.
        statuses: number of images made by this run of each object_status.
        unusable: the sentence on each mesh that could not be used, by the instance's name.
    """

    out: Path
    rendered: int
    skipped: int
    statuses: dict[str, int]
    unusable: dict[str, str]


@dataclass(frozen=True)
class _Job:
    """The knowledge that a worker needs beside the instance."""

    layout: RawLayout
    sources: dict[str, MeshSource]
    views: sampling.ViewDistribution
    config: RenderConfig
    photos: tuple[Path, ...]

    def mesh(self, instance: Instance) -> Mesh:
        return self.sources[instance.source].mesh(instance)


@dataclass(frozen=True)
class _Task:
    """An instance, and those that may stand beside it."""

    instance: Instance
    companions: tuple[Instance, ...]


@dataclass(frozen=True)
class _Done:
    """The outcome of a task: the object_status of each image made, and the mesh's reach or why it cannot be used."""

    statuses: tuple[str, ...] = ()
    reach: float | None = None
    unusable: str | None = None


def render(config: RenderConfig) -> RenderResult:
    """Render the data set that ``config`` describes, or the rest of it.

    Raises:
        InputError: a value cannot work, the render extra is not installed, a source or a background photograph cannot be
            read, no mesh can be used, or the folder holds a data set of other settings.
    """
    config.validate()
    require_embree()
    with own_folder(config.out, "--out", "render"):
        return _render(config)


def _render(config: RenderConfig) -> RenderResult:
    photos = tuple(list_photos(Path(config.backgrounds))) if config.backgrounds else ()
    sources = make_sources(config)
    selection = Selection(
        categories=canonical_categories(config.categories),
        val_share=config.val_share,
        meshes_per_category=config.meshes_per_category,
        min_meshes=config.min_meshes,
    )
    instances = plan(sources, selection)
    views = sampling.ViewDistribution(poses=make_poses(config), truncation=config.truncation)
    out = Path(config.out)
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "workers")}
    keep_settings(out, "--out", "render", settings)
    job = _Job(RawLayout(out), {source.name: source for source in sources}, views, config, photos)
    beside = companions(instances, config.seed) if config.distractors else [()] * len(instances)
    tasks = [_Task(*pair) for pair in zip(instances, beside, strict=True)]

    statuses: Counter[str] = Counter()
    ended: list[_Done] = []
    with tqdm(total=len(instances) * config.views, unit="image", desc="render", mininterval=0.5) as progress:
        for done in map_processes(_render_instance, tasks, job, workers=config.workers, most_items_a_task=1):
            ended.append(done)
            statuses.update(done.statuses)
            progress.update(config.views)
    unusable = {i.name: done.unusable for i, done in zip(instances, ended, strict=True) if done.unusable is not None}
    _write_meshes(out / MESHES_FILE, instances, unusable)
    usable = [instance for instance in instances if instance.name not in unusable]
    if not usable:
        raise InputError(f"none of the {len(instances)} meshes can be used; {out / MESHES_FILE} says why of each.")
    _write_lists(job.layout, instances, usable, config.views)
    _report(config, usable, ended, unusable, statuses.total())
    return RenderResult(
        out=out,
        rendered=statuses.total(),
        skipped=len(usable) * config.views - statuses.total(),
        statuses=dict(statuses),
        unusable=unusable,
    )


def image_name(instance: Instance, view: int) -> str:
    """Return the name (without suffix) of an instance's image number ``view``, from 0."""
    return f"{instance.name}_{view:03d}"


def _render_instance(task: _Task, job: _Job) -> _Done:
    """Write an instance's CAD file and the images that are missing."""
    instance = task.instance
    cad = job.layout.cad(instance.category, instance.cad_index)
    annotations = [
        job.layout.annotation(instance.category, image_name(instance, view)) for view in range(job.config.views)
    ]
    missing = [view for view, annotation in enumerate(annotations) if not annotation.exists()]
    if not missing and cad.exists():
        return _Done()
    try:
        mesh = job.mesh(instance)
    except MeshError as error:
        return _Done(unusable=str(error))
    write_atomic(cad, off_text(mesh))
    studio = Studio(instance, mesh, task.companions, job.mesh, job.config, job.views, job.photos)
    return _Done(tuple(_write_view(job.layout, instance, studio, view) for view in missing), mesh.reach)


def _write_view(layout: RawLayout, instance: Instance, studio: Studio, view: int) -> str:
    """Shoot and write one image; its object_status."""
    shot = studio.shoot(view)
    name = image_name(instance, view)
    write_atomic(layout.root / "images" / instance.category / f"{name}.JPEG", shot.jpeg)
    write_annotation(layout.annotation(instance.category, name), [shot.annotation])
    return shot.annotation["object_status"]


def _write_meshes(path: Path, instances: Sequence[Instance], unusable: dict[str, str]) -> None:
    """One line a mesh: where it is from, whose work it is, which split it is in, and why it is not there if it is not."""
    lines = [
        {
            "category": instance.category,
            "instance": instance.name,
            "split": instance.split,
            "cad_index": instance.cad_index,
            "source": instance.source,
            "file": instance.file,
            "credit": instance.credit,
            "unusable": unusable.get(instance.name),
        }
        for instance in instances
    ]
    write_jsonl(path, lines)


def _write_lists(layout: RawLayout, instances: Sequence[Instance], usable: Sequence[Instance], views: int) -> None:
    """Write lists/<category>_imagenet_<split>.txt, last of all: what is listed is there."""
    for category in dict.fromkeys(instance.category for instance in instances):
        for split in SPLITS:
            chosen = [instance for instance in usable if (instance.category, instance.split) == (category, split)]
            names = [image_name(instance, view) for instance in chosen for view in range(views)]
            write_list(layout.list_file(category, split), names)


def _report(
    config: RenderConfig, usable: Sequence[Instance], ended: Sequence[_Done], unusable: dict[str, str], made: int
) -> None:
    """Log what there is to know at the end, the last line being where the data is and what comes next."""
    out = Path(config.out)
    for sentence in unusable.values():
        logger.warning("left out: %s", sentence)
    reaches = [done.reach for done in ended if done.reach is not None]
    odd = [reach for reach in reaches if not UNIT_SCALE[0] <= reach <= UNIT_SCALE[1]]
    if odd:
        logger.warning(
            "%d of %d meshes are far from unit scale (%.3g from the origin at the farthest), for which prepare's --crop"
            " pose is made: render them with --normalize, or prepare with --crop box",
            len(odd), len(reaches), max(odd),
        )  # fmt: skip
    own = sorted({instance.category for instance in usable if categories.find(instance.category) is None})
    if own:
        logger.info("not in the taxonomy: %s", ", ".join(own))
    logger.info("meshes: %s", count_by_source(usable))
    logger.info("%d images of %d objects in %s (%d made now)", len(usable) * config.views, len(usable), out, made)
    options = " --allow-custom-categories" if own else ""
    say_next(f"llava-pose prepare --data-root {out} --out {out.with_name(out.name + '_prepared')}{options}")


main = command(
    RenderConfig,
    render,
    prog="llava-pose render",
    description="Render objects with known poses into ImageNet3D's raw layout: parametric ones, or meshes.",
    example="llava-pose render --out data/rendered --sources my_meshes sweethome3d --views 8",
)

if __name__ == "__main__":
    raise SystemExit(main())
