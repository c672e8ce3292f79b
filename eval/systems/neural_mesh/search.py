"""The search for the class and the pose that explain a feature map best.

Classes are voted for by the positions of the map. A pose is scored by the vertices that it shows: each adds the cosine
between its feature and the map where it would be seen, less the best cosine of clutter there, times the share of the
picture that its piece of the surface covers. The sum is how much better than background the object explains the picture.
Cosines of every vertex with every position are computed once for an image and a class; a pose then costs four numbers a
vertex, however long the features are. From the best poses of the grid gradient ascent goes on, in rotation and, within
what training objects do, in place and size.

The published score, ``score="mean"``, is the mean cosine of the vertices that are seen. It is drawn away from the true
pose, for a cuboid by several degrees: where a side is seen flat or borders on background its cosines are low, and the mean
rises as that side is turned out of sight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.systems.neural_mesh.geometry import facing, project

_PAIRS = 16  # images of a class, and starts of a refinement, that are worked on at once: bounds the memory
_APART = math.radians(25)  # between poses of the grid that are followed
_SAME_SIDE = 0.7  # cosine of normals above which two points are on the same side of a mesh
_STRAY = 0.005  # what a standard deviation away from the expected camera costs, squared
_ROTATION_STEP, _CAMERA_STEP = 0.06, 0.3  # of Adam: radians, standard deviations


class Meshes(NamedTuple):
    """Meshes of some classes.

    vertices, normals: (classes, V, 3). area: (classes,) of the whole surface. features: (classes, V, dims) of length 1.
    """

    vertices: Tensor
    normals: Tensor
    area: Tensor
    features: Tensor


class Starts(NamedTuple):
    """The starts of a search.

    rotations: (poses, 3, 3). expected: (classes, poses, 3) and spread: (classes, 3), as of
    ``grid.expected_cameras``. distance: object units, what all objects are taken to be away.
    """

    rotations: Tensor
    expected: Tensor
    spread: Tensor
    distance: Tensor


class Found(NamedTuple):
    """The best pose of each pair of an image and a class.

    rotations: (pairs, 3, 3). cameras: (pairs, 3) as ``Starts.expected``. scores: (pairs,) of the best.
    """

    rotations: Tensor
    cameras: Tensor
    scores: Tensor


@dataclass
class PoseSearch:
    """Poses of the meshes of some classes.

    Args:
        meshes: whose vertices were learnt.
        fine: the same with more vertices, which refinement uses (:func:`interpolated`).
        clutter: (n, dims) of length 1.
        score: "ratio", or "mean" as published.
        steps: of gradient ascent; 0: the best of the grid.
        best: how many poses of the grid are followed, none near another.
    """

    meshes: Meshes
    fine: Meshes
    clutter: Tensor
    starts: Starts
    temperature: float = 0.07
    score: str = "ratio"
    steps: int = 30
    best: int = 3
    _views: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def votes(self, maps: Tensor) -> Tensor:
        """Return how much of each map (batch, dims, rows, columns) each class explains: (batch, classes), at most 1 together.

        A position's vote goes to the classes in proportion to exp(best cosine / temperature), and to clutter likewise.
        """
        positions = maps.flatten(2).transpose(1, 2)
        best = [(positions @ features.T).amax(-1) for features in self.meshes.features]
        best.append((positions @ self.clutter.T).amax(-1))
        return (torch.stack(best, -1) / self.temperature).softmax(-1)[..., :-1].mean(1)

    def search(self, maps: Tensor, images: Sequence[int], classes: Sequence[int]) -> Found:
        """Find the best pose for each pair of an image and a class.

        Args:
            maps: (batch, dims, rows, columns).
            images, classes: of the pairs; indices.
        """
        chosen, scores = self._grid(maps, images, classes)
        found = []
        for start in range(0, len(images), _PAIRS):
            block = slice(start, start + _PAIRS)
            of = torch.tensor(classes[block], device=maps.device)
            some = maps[torch.tensor(images[block], device=maps.device)]
            found.append(self._refine(some, of, chosen[block], scores[block]))
        return Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def _grid(self, maps: Tensor, images: Sequence[int], classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return (pairs, best) numbers of poses of the grid, the best first, and their scores."""
        chosen = torch.empty(len(images), self.best, dtype=torch.long, device=maps.device)
        scores = torch.empty(len(images), self.best, device=maps.device)
        for index in sorted(set(classes)):
            pairs = [pair for pair, of in enumerate(classes) if of == index]
            for start in range(0, len(pairs), _PAIRS):
                block = torch.tensor(pairs[start : start + _PAIRS], device=maps.device)
                some = maps[torch.tensor(images, device=maps.device)[block]]
                scores[block], chosen[block] = self._best_apart(self.grid_scores(some, index))
        return chosen, scores

    def _best_apart(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Choose of scores (pairs, poses) the best, (pairs, best), none near a better one: ascent would take both to one end.

        Where there are no others, one is taken again, with a score of minus infinity.
        """
        flat = self.starts.rotations.flatten(1)
        near = flat @ flat.T > 1 + 2 * math.cos(_APART)
        values, chosen = [], []
        for _ in range(self.best):
            value, which = scores.max(1)
            values.append(value)
            chosen.append(which)
            scores = scores.masked_fill(near[which], -torch.inf)
        return torch.stack(values, 1), torch.stack(chosen, 1)

    @torch.no_grad()
    def grid_scores(self, maps: Tensor, index: int) -> Tensor:
        """Score all poses of the grid for a class: maps (batch, dims, rows, columns) give (batch, poses)."""
        batch, dims, rows, columns = maps.shape
        positions = maps.flatten(2).permute(1, 2, 0)  # the images of one position lie side by side
        table = (self.meshes.features[index] @ positions.reshape(dims, -1)).view(-1, rows * columns, batch)
        table = table - self._clutter(maps).T
        entries, offsets, weights = self._view(index, rows, columns)
        return F.embedding_bag(
            entries, table.view(-1, batch), offsets, mode="sum", per_sample_weights=weights.to(table.dtype)
        ).T

    def _clutter(self, maps: Tensor) -> Tensor:
        """Return what a vertex must surpass at each position: maps (batch, dims, rows, columns) give (batch, positions)."""
        if self.score == "mean":
            return maps.new_zeros(len(maps), maps[0, 0].numel())
        return (self.clutter @ maps.flatten(2)).amax(1)

    def _weights(self, cosines: Tensor, area: Tensor, cameras: Tensor) -> Tensor:
        """Return the shares of the vertices in the score: of the picture's area, or for the mean of the vertices seen.

        Args:
            cosines: (..., V) at which they face the camera.
            area: (...) of the whole surface, object units squared.
            cameras: (..., 3).
        """
        if self.score == "mean":
            seen = (cosines > 0).to(cosines.dtype)
            return seen / seen.sum(-1, keepdim=True).clamp_min(1)
        piece = area * (2 * cameras[..., 0]).exp() / cosines.shape[-1]
        return cosines.clamp_min(0) * piece[..., None]

    def _view(self, index: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the grid's poses of a class look up: entries of the table, where each pose begins, and weights.

        The camera that is assumed depends on no picture, so that this is worked out once.
        """
        key = (index, rows, columns)
        if key not in self._views:
            mesh = (self.meshes.vertices[index], self.meshes.normals[index], self.meshes.area[index])
            points, shares = self._place(*mesh, self.starts.rotations, self.starts.expected[index])
            places, weights = bilinear(points, rows, columns)
            weights = weights * shares[..., None]
            entries = torch.arange(shares.shape[1], device=places.device)[:, None] * (rows * columns) + places
            used = weights != 0
            counts = used.flatten(1).sum(1)
            self._views[key] = (entries[used], counts.cumsum(0) - counts, weights[used])
        return self._views[key]

    def _place(
        self, vertices: Tensor, normals: Tensor, area: Tensor, rotations: Tensor, cameras: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return where vertices are, (..., V, 2) shares of the picture's sides, and their shares in the score, (..., V)."""
        distance = self.starts.distance
        shares = self._weights(facing(vertices, normals, distance * rotations[..., 2, :]), area, cameras)
        points = project(
            vertices,
            rotations,
            scale=cameras[..., 0].exp(),
            principal=cameras[..., 1:] + 0.5,
            distance=distance.expand(cameras.shape[:-1]),
        )
        return points, shares

    def _refine(self, maps: Tensor, classes: Tensor, chosen: Tensor, scores: Tensor) -> Found:
        """Climb by gradient from (pairs, best) poses of the grid; return the best end of each pair."""
        first = self.starts.rotations[chosen]
        expected = self.starts.expected[classes[:, None], chosen]
        if not self.steps:
            return Found(first[:, 0], expected[:, 0], scores[:, 0])
        parts = (self.fine.vertices, self.fine.normals, self.fine.area)
        vertices, normals, area = (part[classes][:, None] for part in parts)
        spread = self.starts.spread[classes][:, None]
        rows, columns = maps.shape[-2:]
        # (pairs, V, positions)
        table = self.fine.features[classes] @ maps.flatten(2) - self._clutter(maps)[:, None]

        def score(turn: Tensor, stray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rotations, cameras = turned(first, turn), expected + spread * stray
            points, shares = self._place(vertices, normals, area, rotations, cameras)
            places, weights = bilinear(points, rows, columns)
            values = sum(_look_up(table, places[..., corner]) * weights[..., corner] for corner in range(4))
            return (values * shares).sum(-1) - _STRAY * stray.square().sum(-1), rotations, cameras

        with torch.enable_grad():
            turn = torch.zeros_like(expected).requires_grad_()
            stray = torch.zeros_like(expected).requires_grad_()
            optimizer = torch.optim.Adam(
                [{"params": [turn], "lr": _ROTATION_STEP}, {"params": [stray], "lr": _CAMERA_STEP}], betas=(0.8, 0.95)
            )
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.03 ** (step / self.steps))
            for _ in range(self.steps):
                optimizer.zero_grad()
                (-score(turn, stray)[0].sum()).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            ends, rotations, cameras = score(turn, stray)
            winner = ends.argmax(1)
            pair = torch.arange(len(ends), device=ends.device)
            return Found(rotations[pair, winner], cameras[pair, winner], ends[pair, winner])


def classify_and_search(search: PoseSearch, maps: Tensor, search_classes: int) -> tuple[Found, list[int], list[float]]:
    """Find the best pose of each image, the class it is one of, and the share of the image's votes that this class has.

    Args:
        maps: (batch, dims, rows, columns).
        search_classes: how many classes, most votes first, are searched.
    """
    batch, count = len(maps), len(search.meshes.features)
    votes = search.votes(maps)
    tried = min(search_classes, count)
    ranked = votes.topk(tried, dim=1).indices
    images = [image for image in range(batch) for _ in range(tried)]
    found = search.search(maps, images, ranked.flatten().tolist())
    winner = found.scores.view(batch, tried).argmax(1)
    pairs = torch.arange(batch, device=maps.device) * tried + winner
    classes = ranked.flatten()[pairs]
    share = votes.gather(1, classes[:, None])[:, 0] / votes.sum(1).clamp_min(1e-9)
    return Found(*(part[pairs] for part in found)), classes.tolist(), share.tolist()


def interpolated(meshes: Meshes, vertices: Tensor, normals: Tensor) -> Meshes:
    """Give other points of the same surfaces features between those of the three vertices nearest on the same side.

    A sum over more points changes less by chance as the mesh turns.

    Args:
        vertices, normals: (classes, n, 3).
    """
    features = []
    for index, known in enumerate(meshes.features):
        away = torch.cdist(vertices[index], meshes.vertices[index])
        away = away.masked_fill(normals[index] @ meshes.normals[index].T < _SAME_SIDE, torch.inf)
        nearest, which = away.topk(min(3, away.shape[1]), largest=False)
        weights = 1 / (nearest.square() + 1e-9)  # 0 for what is on another side
        features.append(F.normalize((known[which] * weights[..., None]).sum(1), dim=-1))
    return Meshes(vertices, normals, meshes.area, torch.stack(features))


def _look_up(table: Tensor, places: Tensor) -> Tensor:
    """Look a table (pairs, V, positions) up at places (pairs, best, V): (pairs, best, V)."""
    return table.gather(2, places.transpose(1, 2)).transpose(1, 2)


def bilinear(points: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the four positions of a map that a point lies between, and their weights, which are 0 outside of the map.

    Args:
        points: (..., 2) shares of width and height; gradients pass through the weights.

    Returns:
        (..., 4) indices of positions, row by row, and (..., 4) weights.
    """
    x, y = points[..., 0] * columns - 0.5, points[..., 1] * rows - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    right_share, low_share = x - left, y - top
    places, weights = [], []
    for down, share_y in ((0, 1 - low_share), (1, low_share)):
        for across, share_x in ((0, 1 - right_share), (1, right_share)):
            column, row = left + across, top + down
            inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            places.append((row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)).long())
            weights.append(share_x * share_y * inside)
    return torch.stack(places, -1), torch.stack(weights, -1)


def turned(rotations: Tensor, turn: Tensor) -> Tensor:
    """Turn rotations (..., 3, 3) further in the camera frame.

    Args:
        turn: (..., 3), the axis, as long as a small angle is in radians (the quaternion (1, turn / 2), normalised).
    """
    quaternion = F.normalize(F.pad(turn / 2, (1, 0), value=1.0), dim=-1)
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2) @ rotations
