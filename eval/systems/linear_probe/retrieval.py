"""Retrieval of objects from similar viewpoints: how far apart are the poses of objects whose frozen features are alike.

Each predicted object looks for its nearest neighbours among the training objects of its own category: so nothing is learnt, and
the category cannot be what is found. Features are compared by their cosines, of several blocks by the mean of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.systems.linear_probe.backbone import FeatureSet
from llava_pose.pose.metrics import pose_error

NEIGHBOURS = 5


def neighbour_scores(
    blocks: Mapping[str, Tensor],
    feature_sets: Sequence[FeatureSet],
    angles: np.ndarray,
    categories: Sequence[str],
    *,
    searched: np.ndarray,
    asked: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """Return for each feature set its layers and pooling, and over the objects that have a training object of their category
    (``n``): ``mean_deg``, the mean pose error of the nearest neighbour; ``mean_of_5_deg``, of the nearest five or as many as
    there are; ``random_deg``, of an object of the category drawn by lot. The means are None where there is no such object.

    Args:
        blocks: name -> features (objects, width).
        angles: (objects, 3) in radians.
        categories: of the objects.
        searched, asked: indices of the objects to find, and of those to find neighbours for.
        seed: the seed of the lot.
    """
    names, rng = np.array(categories), np.random.default_rng(seed)
    errors: list[list[np.ndarray]] = [[] for _ in feature_sets]
    of_lot: list[np.ndarray] = []
    for name in np.unique(names[asked]):
        found, queries = searched[names[searched] == name], asked[names[asked] == name]
        if not len(found):
            continue
        true, count = angles[queries], min(NEIGHBOURS, len(found))
        of_lot.append(np.asarray(pose_error(angles[rng.choice(found, len(queries))], true)))
        cosines = {key: _unit(block, queries) @ _unit(block, found).T for key, block in blocks.items()}
        for per_set, feature_set in zip(errors, feature_sets, strict=True):
            likeness = torch.stack([cosines[key] for key in feature_set.blocks]).mean(0)
            nearest = angles[found[likeness.topk(count).indices.cpu().numpy()]]
            of_pairs = np.asarray(pose_error(nearest, np.broadcast_to(true[:, None], nearest.shape)))
            per_set.append(np.stack([of_pairs[:, 0], of_pairs.mean(1)], -1))
    scores = []
    for per_set, feature_set in zip(errors, feature_sets, strict=True):
        pairs = np.concatenate(per_set) if per_set else np.empty((0, 2))
        first, five = (math.degrees(mean) for mean in pairs.mean(0)) if len(pairs) else (None, None)
        lot = math.degrees(np.concatenate(of_lot).mean()) if of_lot else None
        scores.append(
            {
                **{"layers": feature_set.layers, "pooling": feature_set.pooling, "n": len(pairs)},
                **{"mean_deg": first, "mean_of_5_deg": five, "random_deg": lot},
            }
        )
    return scores


def _unit(block: Tensor, rows: np.ndarray) -> Tensor:
    return torch.nn.functional.normalize(block[torch.from_numpy(rows).to(block.device)], dim=1)
