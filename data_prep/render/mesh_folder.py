"""Meshes of one's own: a folder with one folder a category, ``<category>/*.{glb,obj,off,ply}``."""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.utils.files import file_digest, is_plain_name, is_regular, shortened

from .mesh import Mesh
from .mesh_files import MESH_SUFFIXES, axes_to_canonical, read_mesh
from .sources import Instance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeshFolderSource:
    """Every mesh file of the category folders below ``folder``.

    Folders of one category under two names (trolleybus, trolley_bus) are joined under the taxonomy's name. Of files of a
    category that are equal byte for byte only the first counts, so that no shape is in both splits.

    Attributes:
        folder: holds the category folders.
        name: of the source, by default the folder's own.
        up, front: the files' axes; by default the canonical frame's, z and minus-y.
        normalize: centre each mesh on its bounding box and scale its diagonal to 1.
    """

    folder: Path
    name: str
    up: str = "z"
    front: str = "minus-y"
    normalize: bool = False

    def instances(self) -> list[Instance]:
        """Return all instances by category and file name, not yet split.

        Raises:
            InputError: the folder is missing or holds no mesh in a category folder.
        """
        if not self.folder.is_dir():
            raise InputError(f"--sources {self.folder}: there is no such folder of meshes; check the path.")
        files = [file for folder in _category_folders(self.folder) for file in _mesh_files(folder)]
        if not files:
            raise InputError(
                f"--sources {self.folder}: there is no mesh in it; put files of type {', '.join(MESH_SUFFIXES)} into one"
                " folder a category, such as car/01.off."
            )
        by_category: dict[str, list[Path]] = {}
        for file in files:
            by_category.setdefault(category_of(file.parent.name), []).append(file)
        found = []
        for category, members in sorted(by_category.items()):
            names = [file.relative_to(self.folder).as_posix() for file in _without_copies(members)]
            found += shape_instances(self.name, category, names)
        return found

    def mesh(self, instance: Instance) -> Mesh:
        """Return the mesh of an instance; raises MeshError as :func:`~.mesh_files.read_mesh` does."""
        path = self.folder / instance.file
        mesh = read_mesh(path, name=str(path), file_type=path.suffix.lower().removeprefix("."))
        if (self.up, self.front) != ("z", "minus-y"):
            mesh = mesh.transformed(axes_to_canonical(self.up, self.front))
        return mesh.normalized() if self.normalize else mesh


def category_of(name: str) -> str:
    """Return the taxonomy's name of a category, or the name as it is if the taxonomy has it not."""
    category = categories.find(name)
    return name if category is None else category.name


def shape_instances(source: str, category: str, files: Iterable[str], credits: Iterable[str] = ()) -> list[Instance]:
    """Instances of the files of a category, not yet split, with names that can be file names."""
    files = list(files)
    credits = list(credits) or [""] * len(files)
    taken: Counter[str] = Counter()
    found = []
    for file, credit in zip(files, credits, strict=True):
        name = f"{category}_{re.sub(r'[^A-Za-z0-9._-]+', '-', f'{source}_{Path(file).stem}')}"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}~{taken[name]}"
        key = (zlib.crc32(source.encode()), zlib.crc32(f"{category}/{file}".encode()))
        found.append(Instance(category, name, "", 0, key, source=source, file=file, credit=credit))
    return found


def _category_folders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in found:
        if not is_plain_name(path.name) or path.name != path.name.strip():
            raise InputError(f"{path}: the folder's name cannot be a category's; rename it.")
    return found


def _mesh_files(folder: Path) -> list[Path]:
    # hidden: what macOS puts beside every file on other people's disks is called ._01.off
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [path for path in visible if path.suffix.lower() in MESH_SUFFIXES and is_regular(path)]
    for path in found:
        if not is_plain_name(path.name):
            raise InputError(f"{folder}: the file name {shortened(path.name)} cannot stand in a data set; rename it.")
    return found


def _without_copies(files: list[Path]) -> list[Path]:
    """Return the files, each content once; only files of one size are compared."""
    sizes = Counter(file.stat().st_size for file in files)
    seen: dict[str, Path] = {}
    kept = []
    for file in files:
        if sizes[file.stat().st_size] > 1:
            digest = file_digest(file)
            if digest in seen:
                logger.info("%s is left out: it is the same file as %s", file, seen[digest])
                continue
            seen[digest] = file
        kept.append(file)
    return kept
