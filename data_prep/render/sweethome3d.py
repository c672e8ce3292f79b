"""The furniture libraries of Sweet Home 3D (Debian's package sweethome3d-furniture): textured models with a licence each.

The models are not part of this project. What is, is sweethome3d.csv beside this module: which model of which library
shows which category, and how it is turned into the canonical frame after the library's own frame (y up, front to +z).
"""

from __future__ import annotations

import csv
import io
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np

from llava_pose.errors import InputError

from .mesh import Mesh
from .mesh_files import MeshError, axes_to_canonical, read_mesh, require_trimesh
from .mesh_folder import shape_instances
from .sources import Instance

logger = logging.getLogger(__name__)

TABLE = "sweethome3d.csv"
DEFAULT_FOLDER = "/usr/share/sweethome3d/furniture"  # where Debian's package puts the libraries
CATALOGUE = "PluginFurnitureCatalog.properties"
LICENCES = {  # of each library's models, as the library says
    "BlendSwap-CC-0.sh3f": "CC0 1.0",
    "BlendSwap-CC-BY.sh3f": "CC BY 3.0",
    "KatorLegaz.sh3f": "CC BY 3.0 US",
    "Scopia.sh3f": "CC BY 3.0",
}
_PROPERTY = re.compile(r"(?P<field>\w+)#(?P<number>\d+)\s*=\s*(?P<value>.*)")
_TURN = re.compile(r"([xyz])(-?\d+)")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        library: file name of the library.
        model: path of the OBJ file inside the library.
        category: a category of the taxonomy.
        turns: rotations after the library's frame, axis and degrees, the first first: (("z", 90.0),).
    """

    library: str
    model: str
    category: str
    turns: tuple[tuple[str, float], ...]

    @property
    def file(self) -> str:
        return f"{self.library}/{self.model}"


@dataclass(frozen=True)
class Placement:
    """The way in which a library places one of its models.

    Attributes:
        rotation: (3, 3), before everything else.
        size: width, depth and height in centimetres.
        creator: whose work it is.
    """

    rotation: np.ndarray
    size: tuple[float, float, float]
    creator: str


@dataclass(frozen=True)
class SweetHome3DSource:
    """The models of the table whose library is in ``folder``.

    Attributes:
        folder: holds the .sh3f files.
    """

    folder: Path
    name: str = "sweethome3d"

    def instances(self) -> list[Instance]:
        """Return all instances by category and model, not yet split.

        Raises:
            InputError: none of the libraries is there, or one cannot be read.
        """
        entries = read_table()
        libraries = sorted({entry.library for entry in entries})
        present = {library: self.folder / library for library in libraries if (self.folder / library).is_file()}
        if not present:
            raise InputError(
                f"--sources sweethome3d: {self.folder} holds none of {', '.join(libraries)}; install them with"
                " 'apt-get install sweethome3d-furniture' or give their folder with --sweethome3d-folder."
            )
        if len(present) < len(libraries):
            absent = ", ".join(library for library in libraries if library not in present)
            logger.warning("%s has no %s: its models are left out", self.folder, absent)
        placements = {library: _open_catalogue(path) for library, path in present.items()}
        found = []
        for category in sorted({entry.category for entry in entries}):
            chosen = [entry for entry in entries if entry.category == category and entry.library in present]
            credits = [
                f"{placements[entry.library][entry.model].creator}, {LICENCES[entry.library]}"
                if entry.model in placements[entry.library]
                else LICENCES[entry.library]
                for entry in chosen
            ]
            found += shape_instances(self.name, category, [entry.file for entry in chosen], credits)
        return found

    def mesh(self, instance: Instance) -> Mesh:
        """Return the normalised mesh of an instance.

        Raises:
            MeshError: the library does not hold the model, or it cannot be read.
        """
        entry = next(entry for entry in read_table() if entry.file == instance.file)
        path = self.folder / entry.library
        name = f"{path}: {entry.model}"
        try:
            with zipfile.ZipFile(path) as library:
                placement = _placements(library).get(entry.model)
                folder = str(PurePosixPath(entry.model).parent) + "/"
                members = {member: library.read(member) for member in library.namelist() if member.startswith(folder)}
        except _ZIP_ERRORS as error:
            raise MeshError(f"{name}: cannot read the library ({error}); install it again") from error
        if placement is None or entry.model not in members:
            raise MeshError(f"{name}: the library has no such model; it is of another version than the project's table")
        resolver = require_trimesh().resolvers.ZipResolver(
            {member: io.BytesIO(content) for member, content in members.items()}, namespace=folder
        )
        mesh = read_mesh(io.BytesIO(members[entry.model]), name=name, file_type="obj", resolver=resolver)
        return canonical(mesh, placement, entry.turns)


def canonical(mesh: Mesh, placement: Placement, turns: tuple[tuple[str, float], ...]) -> Mesh:
    """Return a model in the canonical frame, centred, its bounding-box diagonal 1."""
    mesh = mesh.transformed(placement.rotation)
    extent = np.ptp(mesh.vertices, axis=0)
    width, depth, height = placement.size
    factors = np.where(extent > 0, np.array([width, height, depth]) / np.where(extent > 0, extent, 1), 1)
    mesh = mesh.transformed(np.diag(factors)).transformed(axes_to_canonical("y", "z"))
    for axis, degrees in turns:
        mesh = mesh.rotated(axis, np.radians(degrees))
    return mesh.normalized()


def read_table() -> list[Entry]:
    """Return the lines of sweethome3d.csv."""
    text = resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")
    return [
        Entry(
            library=row["library"],
            model=row["model"],
            category=row["category"],
            turns=tuple((axis, float(degrees)) for axis, degrees in _TURN.findall(row["turns"])),
        )
        for row in csv.DictReader(io.StringIO(text))
    ]


def _open_catalogue(path: Path) -> dict[str, Placement]:
    try:
        with zipfile.ZipFile(path) as library:
            return _placements(library)
    except _ZIP_ERRORS as error:
        raise InputError(f"{path}: cannot read the library ({error}); install sweethome3d-furniture again.") from error


def _placements(library: zipfile.ZipFile) -> dict[str, Placement]:
    """Return the placement of every model of a library by the path of its file."""
    rows: dict[str, dict[str, str]] = {}
    for field, number, value in _properties(library.read(CATALOGUE).decode("latin-1")):
        rows.setdefault(number, {})[field] = value
    found = {}
    for row in rows.values():
        if not {"model", "width", "depth", "height"} <= row.keys():
            continue
        rotation = np.array(row.get("modelRotation", "1 0 0 0 1 0 0 0 1").split(), dtype=float).reshape(3, 3)
        size = (float(row["width"]), float(row["depth"]), float(row["height"]))
        found[row["model"].lstrip("/")] = Placement(rotation, size, row.get("creator", ""))
    return found


def _properties(text: str) -> Iterator[tuple[str, str, str]]:
    """Return (field, number, value) of the lines ``field#number=value``."""
    for line in text.splitlines():
        match = _PROPERTY.fullmatch(line.strip())
        if match:
            yield match["field"], match["number"], match["value"].strip()
