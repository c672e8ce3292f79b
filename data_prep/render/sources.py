"""A source of meshes lists the instances of its categories and gives the mesh of each.

A source is small and picklable: every worker process gets a copy.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .mesh import Mesh
from .parametric import BUILDERS, build

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Instance:
    """One shape of a category.

    Attributes:
        category: the category's name.
        name: unique over the source, and part of file names.
        split: "train" or "val": all images of an instance are in one split. "" until :mod:`.plan` has decided.
        cad_index: number of its file in CAD/<category>/, from 1; 0 until :mod:`.plan` has decided.
        key: integers that seed everything drawn for this instance, beside the run's seed.
        source: name of the source.
        file: which file of the source; "" where there is none.
        credit: whose work it is and under which licence; "" where the source does not say.
    """

    category: str
    name: str
    split: str
    cad_index: int
    key: tuple[int, ...]
    source: str = "parametric"
    file: str = ""
    credit: str = ""


class MeshSource(Protocol):
    """The Protocol that :func:`data_prep.render.generate.render` wants of a source."""

    @property
    def name(self) -> str:
        """Return what the annotations call it."""
        ...

    def instances(self) -> list[Instance]:
        """Return all instances, in a fixed order.

        Raises:
            InputError: there are none, or they cannot be listed.
        """
        ...

    def mesh(self, instance: Instance) -> Mesh:
        """Return the mesh of an instance in the canonical frame.

        Raises:
            MeshError: it cannot be used; the message names its file.
        """
        ...


@dataclass(frozen=True)
class ParametricSource:
    """Objects of :mod:`data_prep.render.parametric`: as many different ones as asked for.

    Instance k of a category and split is the same whatever the number of instances and categories.

    Attributes:
        categories: which, in the order of the data set; all if empty.
        train_instances, val_instances: of each category.
        seed: of the shapes.
    """

    categories: tuple[str, ...] = ()
    train_instances: int = 20
    val_instances: int = 5
    seed: int = 0
    name: str = "parametric"

    def instances(self) -> list[Instance]:
        """Return all instances, category by category, train before val."""
        found = []
        for category in self.categories or tuple(BUILDERS):
            numbers = {"train": self.train_instances, "val": self.val_instances}
            for split_index, split in enumerate(SPLITS):
                for number in range(1, numbers[split] + 1):
                    found.append(
                        Instance(
                            category=category,
                            name=f"{category}_{split[0]}{number:03d}",
                            split=split,
                            cad_index=number + (self.train_instances if split == "val" else 0),
                            key=(zlib.crc32(category.encode()), split_index, number),
                        )
                    )
        return found

    def mesh(self, instance: Instance) -> Mesh:
        """Return the normalised mesh of an instance (see :meth:`Mesh.normalized`)."""
        return build(instance.category, np.random.default_rng([self.seed, *instance.key]))
