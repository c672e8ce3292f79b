"""The taxonomy: what is known of every object category, from one data file beside this module (categories.json).

The names are those of ImageNet3D (Ma et al., 2024). For each there is a name to print, a meta class, whether it is one
of the 63 categories that open-vocabulary models are trained on ("known"; the rest is "novel"), its symmetries in the
canonical frame (z up, the front faces -y), and a description in plain English for open-vocabulary prompts.

The released version 1 of ImageNet3D has 189 of them (``in_v1``); the others stand in the published lists of names alone.

The paper names the seven meta classes but publishes no list of their members, so the assignment here is the project's
own. It goes by the first that fits: Vehicles (carries people or loads), Music, Sports (and games and amusements),
Furniture (and fixtures of a room), Work (tools, instruments, office, laboratory, street), Electronics (runs on
electricity; household appliances), Household.

Symmetries are those of the ideal shape: structure that defines a front (a spout, a handle, a door) breaks them, small
hardware (a clip, a switch, a label) does not. Left and right come from the viewer who looks at the front, so that the
viewer's right is +x.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from llava_pose.errors import InputError
from llava_pose.utils.files import shortened

META_CLASSES = ("Electronics", "Furniture", "Household", "Music", "Sports", "Vehicles", "Work")
CUSTOM_META_CLASS = "Other"  # of categories that the taxonomy does not hold
SYMMETRY_ORDERS: Mapping[str, float] = {"none": 1, "2-fold": 2, "4-fold": 4, "continuous": math.inf}


class SymmetryGroup(NamedTuple):
    """The rotations of the object frame that leave a category's ideal shape as it is: plain data for the metrics.

    Without an axis the group is ``rotations``. With an axis it is every rotation about ``axis`` after each of
    ``rotations``, and the symmetry-aware error has a closed form: the least angle over g in ``rotations`` between the
    directions ``R_pred @ axis`` and ``R_true @ g @ axis`` (the twist about the axis is free, so the swing remains).
    """

    rotations: np.ndarray
    """(k, 3, 3) float64, the identity first; with an axis, one representative of each coset of its turns."""
    axis: np.ndarray | None
    """(3,) unit vector of the axis of continuous symmetry, or None."""

    def sampled(self, step_degrees: float = 1.0) -> np.ndarray:
        """The whole group as a list, (n, 3, 3): turns about a continuous axis are sampled every ``step_degrees``.

        Sampling overstates an error by at most half a step. ``step_degrees`` is reduced to divide the full turn.

        Raises:
            ValueError: the step is not positive.
        """
        if not step_degrees > 0:
            raise ValueError(f"step_degrees must be positive, not {step_degrees}")
        if self.axis is None:
            return self.rotations
        steps = math.ceil(360 / step_degrees)
        turns = [_turn(int(np.argmax(self.axis)), 2 * math.pi * i / steps) for i in range(steps)]
        return np.stack([turn @ rotation for rotation in self.rotations for turn in turns])


@dataclass(frozen=True)
class Category:
    """One object category.

    Args:
        name: the canonical name, as in ImageNet3D's folders.
        display_name: what people read: "dining table". A plural noun for scissors, eyeglasses and headphones.
        indefinite: with its article: "an airplane", "a pair of scissors".
        plural: "airplanes"; the display name itself where that is a plural noun.
        meta_class: one of META_CLASSES, or CUSTOM_META_CLASS.
        known: one of the categories that open-vocabulary models are trained on.
        symmetry: rotational symmetry about x, y and z, each a key of SYMMETRY_ORDERS.
        mirror_axis: "x" or "y", the normal of a plane through the z axis in which the object, or the kind of object
            (a left shoe is the mirror image of a right one), is its own mirror image; None for chiral categories.
        front, up: noun phrases that say what looks to -y and to +z; empty if not known.
        description: shape, parts, use, front and up, in a few sentences; empty if not known.
        aliases: further names that mean this category.
        in_v1: one of the 189 categories of the released ImageNet3D v1.
    """

    name: str
    display_name: str
    indefinite: str
    plural: str
    meta_class: str
    known: bool
    symmetry: tuple[str, str, str]
    mirror_axis: str | None
    front: str = ""
    up: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    in_v1: bool = True

    @classmethod
    def custom(cls, name: str) -> Category:
        """A category of the user's own, with the most careful assumptions: no symmetry, never flipped, no description.

        Raises:
            InputError: the name is empty.
        """
        display_name = re.sub(r"[\s_]+", " ", name).strip()
        if not display_name:
            raise InputError("a category's name is empty: give every object a category")
        article = "an" if display_name[0].lower() in "aeiou" else "a"
        return cls(
            name=name,
            display_name=display_name,
            indefinite=f"{article} {display_name}",
            plural=_plural(display_name),
            meta_class=CUSTOM_META_CLASS,
            known=False,
            symmetry=("none", "none", "none"),
            mirror_axis=None,
            in_v1=False,
        )

    @property
    def chiral(self) -> bool:
        """Whether a mirror image is no object of this kind, so that its images must not be flipped."""
        return self.mirror_axis is None

    @property
    def has_front(self) -> bool:
        """Whether front and rear can be told apart in a picture: a bottle, which turns into itself, has no front, nor has
        a table. A cup, whose front and rear are mirror images of each other, has one by convention only, which no picture
        shows."""
        about_x, _, about_z = (kind != "none" for kind in self.symmetry)
        return not (about_x or about_z) and self.mirror_axis != "y"

    @property
    def has_up(self) -> bool:
        """Whether no symmetry turns its top elsewhere."""
        about_x, about_y, _ = (kind != "none" for kind in self.symmetry)
        return not (about_x or about_y)

    @property
    def is_plural(self) -> bool:
        """Whether the display name takes a plural verb: "the scissors are"."""
        return self.display_name == self.plural

    @property
    def flip_azimuth_offset(self) -> float | None:
        """Return what is to be added (radians) to the azimuth of ``geometry.flip_pose`` for the pose in the flipped image.

        0 where x = 0 is the plane of symmetry. Where it is y = 0 (a cup's handle is at +x, and in a flipped image the
        handle of the canonical cup is at -x) the flipped image shows the object turned by half a turn about z: pi.
        None for chiral categories. (With S = diag(-1, 1, 1) the flipped pose is S R S G; G = Rz(pi) = S diag(1, -1, 1).)
        """
        return {None: None, "x": 0.0, "y": math.pi}[self.mirror_axis]

    @property
    def symmetry_group(self) -> SymmetryGroup:
        """The group that ``symmetry`` generates; see :class:`SymmetryGroup`."""
        return _symmetry_group(self.symmetry)


def all_categories() -> tuple[Category, ...]:
    """Every category of the taxonomy, by name."""
    return tuple(_load().values())


def find(name: str) -> Category | None:
    """The category of a name, alias or display name, whatever its case, spaces and hyphens; None if there is none."""
    canonical = _index().get(_normalize(name))
    return None if canonical is None else _load()[canonical]


def get(name: str, *, allow_custom: bool = False, source: str | None = None) -> Category:
    """The category of a name, alias or display name.

    Args:
        name: for example "trolley_bus", "trolleybus" or "dining table".
        allow_custom: answer ``Category.custom(name)`` for a name that the taxonomy does not hold.
        source: the file or option the name came from, for the message.

    Raises:
        InputError: the name is not in the taxonomy and ``allow_custom`` is false; the message names near ones.
    """
    category = find(name)
    if category is not None:
        return category
    if allow_custom:
        return Category.custom(name)
    where = f"{source}: " if source else ""
    keys = difflib.get_close_matches(_normalize(name), _index(), n=5, cutoff=0.6)
    near = list(dict.fromkeys(_index()[key] for key in keys))[:3]
    hint = f"did you mean {' or '.join(near)}" if near else "llava_pose/categories.json lists the names"
    raise InputError(
        f"{where}unknown category {shortened(name)}: {hint}, or allow categories of your own (--allow-custom-categories)"
    )


class _Categorised(Protocol):
    @property
    def category(self) -> str: ...


CategorisedT = TypeVar("CategorisedT", bound=_Categorised)


def only_of(names: Iterable[str], objects: Iterable[CategorisedT], *, option: str, place: str) -> list[CategorisedT]:
    """The records, or what else has a category, whose category is one of the names, whatever alias it is filed under.

    Args:
        option, place: by which the names were given, and where the objects are from, for the message.

    Raises:
        InputError: there is no object of one of the names.
    """
    wanted = {get(name, allow_custom=True).name for name in names}
    named = [(one, get(one.category, allow_custom=True).name) for one in objects]
    absent = wanted - {name for _, name in named}
    if absent:
        raise InputError(f"{option} {sorted(absent)[0]}: no object of it in {place}; choose among those that are there")
    return [one for one, name in named if name in wanted]


def canonical_name(name: str) -> str:
    """The canonical name of a name, alias or display name; raises InputError as :func:`get` does."""
    return get(name).name


def display_name(name: str) -> str:
    """The name that people read, of a name or alias; raises InputError as :func:`get` does."""
    return get(name).display_name


def symmetry_rotations(name: str) -> SymmetryGroup:
    """The symmetry group of a category; raises InputError as :func:`get` does.

    ``metrics.symmetric_pose_error(pred, true, *symmetry_rotations(name))`` scores with it.
    """
    return get(name).symmetry_group


@functools.cache
def _load() -> dict[str, Category]:
    text = resources.files("llava_pose.pose").joinpath("categories.json").read_text(encoding="utf-8")
    return {name: _category(name, entry) for name, entry in json.loads(text).items()}


def _category(name: str, entry: Mapping[str, Any]) -> Category:
    fields = dict(entry)
    frame = f"In the canonical frame the front is {fields['front']}, and up points to {fields['up']}."
    fields["description"] = f"{fields['description']} {frame}"
    fields["symmetry"] = tuple(fields["symmetry"][axis] for axis in "xyz")
    fields["aliases"] = tuple(fields["aliases"])
    return Category(name=name, **fields)


@functools.cache
def _index() -> dict[str, str]:
    """Normalized name, alias or display name -> canonical name; where they clash, a name goes before the others."""
    index: dict[str, str] = {}
    for names_of in (lambda c: [c.name], lambda c: c.aliases, lambda c: [c.display_name]):
        for category in _load().values():
            for name in names_of(category):
                index.setdefault(_normalize(name), category.name)
    return index


def _plural(noun: str) -> str:
    """Return the plural by the rules of spelling; categories.json has those of nouns that keep none of them."""
    if noun.lower().endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", noun, flags=re.IGNORECASE) + "s"


def _normalize(name: str) -> str:
    return re.sub(r"[\s_\-]+", "_", name.strip()).lower()


@functools.cache
def _symmetry_group(symmetry: tuple[str, str, str]) -> SymmetryGroup:
    orders = [SYMMETRY_ORDERS[kind] for kind in symmetry]
    axis = np.eye(3)[orders.index(math.inf)] if math.inf in orders else None
    generators = [_turn(i, 2 * math.pi / n) for i, n in enumerate(orders) if 1 < n < math.inf]
    elements = [np.eye(3)]
    for element in elements:  # grows as it runs, until the products bring nothing new
        for generator in generators:
            product = element @ generator
            if not any(_same(product, other, axis) for other in elements):
                elements.append(product)
    rotations = np.stack(elements)
    for array in (rotations, axis):  # shared by every caller
        if array is not None:
            array.flags.writeable = False
    return SymmetryGroup(rotations, axis)


def _same(a: np.ndarray, b: np.ndarray, axis: np.ndarray | None) -> bool:
    """Whether two rotations are the same, or with an axis: the same up to a turn about it."""
    return np.allclose(a, b) if axis is None else np.allclose(a @ axis, b @ axis)


def _turn(axis: int, angle: float) -> np.ndarray:
    """Rotation by ``angle`` (radians) about coordinate axis 0, 1 or 2, (3, 3); exact at multiples of a right angle."""
    quarter = round(angle / (math.pi / 2))
    if math.isclose(angle, quarter * math.pi / 2):
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[quarter % 4]
    else:
        cos, sin = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = cos, -sin, sin, cos
    return rotation
