"""Objects made of a few solids, whose proportions, parts and colours are drawn from a seed.

Each builder takes a random generator and gives a mesh in the canonical frame (z up, front towards -y, as the ImageNet3D
CAD of the category stands). A new category is a function in the file of its meta class and a line in ``BUILDERS``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llava_pose.errors import InputError

from ..mesh import Mesh
from .electronics import camera, laptop, tvmonitor
from .furniture import bed, chair, sofa
from .household import cup, teapot, toilet
from .music import guitar, piano
from .sports import skate, treadmill
from .vehicles import aeroplane, bus, car
from .work import hammer, power_drill

BUILDERS: dict[str, Callable[[np.random.Generator], Mesh]] = {
    "aeroplane": aeroplane,
    "bed": bed,
    "bus": bus,
    "camera": camera,
    "car": car,
    "chair": chair,
    "cup": cup,
    "guitar": guitar,
    "hammer": hammer,
    "laptop": laptop,
    "piano": piano,
    "power_drill": power_drill,
    "skate": skate,
    "sofa": sofa,
    "teapot": teapot,
    "toilet": toilet,
    "treadmill": treadmill,
    "tvmonitor": tvmonitor,
}


def build(category: str, rng: np.random.Generator) -> Mesh:
    """One normalised instance of a category: centred, bounding-box diagonal 1.

    Raises:
        InputError: there is no parametric object of this category.
    """
    if category not in BUILDERS:
        raise InputError(f"There is no parametric object for category {category!r}: choose from {', '.join(BUILDERS)}.")
    return BUILDERS[category](rng).normalized()
