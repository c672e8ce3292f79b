"""The few solids that the parametric objects are put together from. All are closed, with outward faces.

A colour is (3,) sRGB in [0, 1]. Lengths are free: a finished object is normalised by :meth:`Mesh.normalized`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .mesh import Mesh

Color = Sequence[float]
Point = Sequence[float] | np.ndarray


def loft(rings: Sequence[np.ndarray] | np.ndarray, color: Color, *, gloss: float = 0.1, closed: bool = False) -> Mesh:
    """Return the skin over a row of rings (n_rings, n, 3) of corresponding points, with a flat cap at either end.

    A ring may shrink to a point. With ``closed`` the last ring joins the first and there are no caps. A cap is a fan
    about the ring's centre: end rings must be star-shaped about it.
    """
    rings = np.asarray(rings, dtype=np.float64)
    n_rings, n = rings.shape[:2]
    vertices = rings.reshape(-1, 3)
    here = np.arange(n)
    following = (here + 1) % n
    faces = []
    for first in range(n_rings if closed else n_rings - 1):
        a, b = first * n, (first + 1) % n_rings * n
        faces += [
            np.stack([a + here, a + following, b + following], -1),
            np.stack([a + here, b + following, b + here], -1),
        ]
    if not closed:
        vertices = np.concatenate([vertices, rings[:1].mean(axis=1), rings[-1:].mean(axis=1)])
        start, end, last = n_rings * n, n_rings * n + 1, (n_rings - 1) * n
        faces.append(np.stack([np.full(n, start), following, here], -1))
        faces.append(np.stack([np.full(n, end), last + here, last + following], -1))
    return _solid(vertices, np.concatenate(faces), color, gloss)


def box(
    center: Point,
    size: Point,
    color: Color,
    *,
    top: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
    gloss: float = 0.1,
) -> Mesh:
    """Return a box of ``size`` (x, y, z); its upper face scaled by ``top`` and moved by ``shift`` along x and y."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    rings = []
    for z, scale, move in ((-0.5, (1.0, 1.0), (0.0, 0.0)), (0.5, top, shift)):
        ring = corners * np.array(size[:2]) * np.array(scale) + np.array(move)
        rings.append(np.column_stack([ring, np.full(4, z * size[2])]))
    return loft(np.array(rings) + np.asarray(center), color, gloss=gloss)


def rounded_box(center: Point, size: Point, color: Color, *, radius: float, gloss: float = 0.1) -> Mesh:
    """Return a box of ``size`` with all edges rounded by ``radius`` (made smaller where the box is thinner than that)."""
    x, y, z = (length / 2 for length in size)
    radius = min(radius, 0.98 * x, 0.98 * y, 0.98 * z)
    turn = np.linspace(0, np.pi / 2, 4)
    arcs = [np.column_stack([np.cos(turn + start), np.sin(turn + start)]) for start in np.arange(4) * np.pi / 2]
    corners = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (x - radius, y - radius)
    rings = []
    for end, tilts in ((-1, turn[::-1]), (1, turn)):
        for tilt in tilts:
            bulge = radius * np.cos(tilt)
            outline = np.concatenate([corner + bulge * arc for corner, arc in zip(corners, arcs, strict=True)])
            height = end * (z - radius + radius * np.sin(tilt))
            rings.append(np.column_stack([outline, np.full(len(outline), height)]))
    return loft(np.array(rings) + np.asarray(center), color, gloss=gloss)


def cylinder(
    start: Point,
    end: Point,
    radius: float,
    color: Color,
    *,
    end_radius: float | None = None,
    sides: int = 20,
    gloss: float = 0.1,
) -> Mesh:
    """Return a cylinder, or with ``end_radius`` a cone or its frustum, from ``start`` to ``end``."""
    path = np.array([start, end], dtype=np.float64)
    return tube(path, [radius, radius if end_radius is None else end_radius], color, sides=sides, gloss=gloss)


def tube(
    path: np.ndarray, radius: float | Sequence[float] | np.ndarray, color: Color, *, sides: int = 10, gloss: float = 0.1
) -> Mesh:
    """Return a round bar along ``path`` (n, 3), of one radius or one a point.

    The cross-section is carried along without twisting, as well as a bend in one plane needs it.
    """
    path = np.asarray(path, dtype=np.float64)
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(path))
    angles = np.arange(sides) * 2 * np.pi / sides
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    rings = []
    for point, tangent, r in zip(path, tangents, radii, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        other = np.cross(tangent, side)
        rings.append(point + r * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * other))
    return loft(rings, color, gloss=gloss)


def lathe(
    profile: Sequence[tuple[float, float]],
    color: Color,
    *,
    base: Point = (0.0, 0.0, 0.0),
    sides: int = 24,
    gloss: float = 0.1,
) -> Mesh:
    """Return a solid of revolution about the vertical through ``base``; ``profile`` is a row of (radius, height).

    A profile that goes up outside and comes down inside makes a hollow vessel.
    """
    angles = np.arange(sides) * 2 * np.pi / sides
    unit = np.column_stack([np.cos(angles), np.sin(angles)])
    rings = [np.column_stack([r * unit, np.full(sides, z)]) for r, z in profile]
    return loft(np.array(rings) + np.asarray(base), color, gloss=gloss)


def ellipsoid(center: Point, radii: Point, color: Color, *, sides: int = 20, gloss: float = 0.1) -> Mesh:
    """Return an ellipsoid with half-axes ``radii`` along x, y, z."""
    tilt = np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 1)
    unit = lathe([(max(np.cos(t), 0.0), np.sin(t)) for t in tilt], color, sides=sides, gloss=gloss)
    return unit.transformed(np.diag(np.asarray(radii, dtype=np.float64)), center)


def prism(
    outline: Sequence[tuple[float, float]], axis: str, low: float, high: float, color: Color, *, gloss: float = 0.1
) -> Mesh:
    """Return a flat outline, which may be concave, drawn out along ``axis`` from ``low`` to ``high``.

    The outline's two coordinates are (y, z) for axis "x", (x, z) for "y" and (x, y) for "z".
    """
    corners = np.asarray(outline, dtype=np.float64)
    n = len(corners)
    i = "xyz".index(axis)
    others = [k for k in range(3) if k != i]
    vertices = np.zeros((2 * n, 3))
    vertices[:, others] = np.concatenate([corners, corners])
    vertices[:n, i], vertices[n:, i] = low, high
    cap = triangulate(corners)
    here = np.arange(n)
    following = (here + 1) % n
    if _signed_area(corners) < 0:
        here, following = following, here
    faces = np.concatenate(
        [
            cap[:, ::-1],
            cap + n,
            np.stack([here, following, following + n], -1),
            np.stack([here, following + n, here + n], -1),
        ]
    )
    return _solid(vertices, faces, color, gloss)


def triangulate(outline: np.ndarray) -> np.ndarray:
    """Return (n - 2, 3) anticlockwise triangles of a simple polygon (n, 2), by cutting off ears.

    Meisters, "Polygons have ears" (1975). Quadratic or worse, for outlines of tens of points.

    Raises:
        ValueError: the outline crosses itself.
    """
    outline = np.asarray(outline, dtype=np.float64)
    left = list(range(len(outline)))
    if _signed_area(outline) < 0:
        left.reverse()
    triangles = []
    while len(left) > 3:
        for k in range(len(left)):
            a, b, c = left[k - 1], left[k], left[(k + 1) % len(left)]
            if _is_ear(outline, a, b, c, left):
                triangles.append((a, b, c))
                del left[k]
                break
        else:
            raise ValueError("The outline crosses itself: give a simple polygon.")
    if _signed_area(outline[left]) <= 0:
        raise ValueError("The outline crosses itself: give a simple polygon.")
    return np.array([*triangles, tuple(left)], dtype=np.int64)


def _is_ear(outline: np.ndarray, a: int, b: int, c: int, left: list[int]) -> bool:
    corner = outline[[a, b, c]]
    if _signed_area(corner) <= 0:
        return False
    others = outline[[k for k in left if k not in (a, b, c)]]
    edges = np.roll(corner, -1, axis=0) - corner
    to_others = others[:, None, :] - corner[None]
    inside = edges[:, 0] * to_others[..., 1] - edges[:, 1] * to_others[..., 0] >= 0
    return not inside.all(axis=1).any()


def _signed_area(outline: np.ndarray) -> float:
    x, y = outline[:, 0], outline[:, 1]
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def _solid(vertices: np.ndarray, faces: np.ndarray, color: Color, gloss: float) -> Mesh:
    """Return a closed mesh of one colour: faces of no area dropped, the rest turned outward by the sign of the volume."""
    # rings that shrink to a point leave coinciding vertices: joined, so that normals are smooth across them
    _, first, joined = np.unique(np.round(vertices, 9) + 0.0, axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], joined.reshape(-1)[faces]
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    if np.einsum("ij,ij->i", a, np.cross(b, c)).sum() < 0:
        faces = faces[:, ::-1]
    return Mesh(
        vertices=vertices,
        faces=np.ascontiguousarray(faces, dtype=np.int32),
        colors=np.tile(np.asarray(color, dtype=np.float32), (len(faces), 1)),
        gloss=np.full(len(faces), gloss, dtype=np.float32),
    )
