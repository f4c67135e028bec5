"""Images that show the same part again: they belong on one side of every split.

A held-out image whose twin is among the images that a Gaussian is estimated from scores too low: what is chosen on it
is chosen on training images, and a threshold that comes of it gives more false alarms than wished. On magnetic tiles,
photographed in five or six lights each, a random split gave 30 % instead of 5 %. File names seldom tell, features do.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

# distances between two images, as shares of their median
DUPLICATE_DISTANCE = 0.65  # so near are two shots of one part, and hardly any two parts
SAME_PART_DISTANCE = 0.9  # so near are any two shots of one part at most, and the more similar parts
COMMON = 0.25  # share of images with a near-duplicate from which on a set consists of several shots of each part
BLOCK = 5000  # images that are clustered together, in their order: the distances of more do not fit into memory
NEIGHBOURS = 32  # of each image that are looked at for near-duplicates in other groups


def near_duplicates(features: Tensor) -> NDArray[np.int64]:
    """Group of each image, 0, 1, ... in the order of their first images, ``(N,)``; most different parts are alone.

    Complete linkage, cut where the two most different images of a group are as near as duplicates. Where many images
    have a duplicate, it is cut higher, for shots of one part in other light are less alike: on magnetic tiles four of
    five images have one, on screws one of fifty. Not always higher: parts that are merely similar are what a new part
    will find among the training images, too, and without them calibration scores would be too high. At last, groups
    with an image each that are near-duplicates are united, the nearest first, up to a tenth of the images.

    Args:
        features: in which Euclidean distance means something (whitened), ``(N, D)``.
    """
    features = features.float()
    clusters = [_clusters(block) for block in features.split(BLOCK)]
    firsts = np.cumsum([0, *(len(groups) for groups, _ in clusters)])
    groups = np.concatenate([groups + first for (groups, _), first in zip(clusters, firsts[:-1], strict=True)])
    return in_order(_united(features, groups, distance=clusters[0][1]))


def largest_group(n: int) -> int:
    """Images that a group holds at most: it is to be a part, not a kind of part. Of 10 images on, 5 groups remain."""
    return max(2, min(8, n // 5), n // 20)


def in_order(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same groups, numbered 0, 1, ... in the order of their first members.

    >>> in_order(np.array([7, 3, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int64)[inverse]


def _clusters(features: Tensor) -> tuple[NDArray[np.int64], float]:
    """Groups by complete linkage, and the distance below which two images ``(N, D)`` are near-duplicates."""
    n = len(features)
    alone = np.arange(n), 0.0
    distances = torch.pdist(features).cpu().double().numpy()
    median = np.median(distances) if n > 2 else 0
    if not median > 0:
        return alone
    nearest = squareform(distances) + np.diag(np.full(n, np.inf))
    come_in_several = (nearest.min(0) < DUPLICATE_DISTANCE * median).mean() > COMMON
    tree = linkage(distances, "complete")
    for share in np.arange(SAME_PART_DISTANCE if come_in_several else DUPLICATE_DISTANCE, 0, -0.05):
        found = fcluster(tree, share * median, "distance") - 1
        if np.bincount(found).max() <= largest_group(n):
            return found.astype(np.int64), float(min(share, DUPLICATE_DISTANCE) * median)
    return alone


def _united(features: Tensor, groups: NDArray[np.int64], distance: float) -> NDArray[np.int64]:
    """The groups, those with images ``(N, D)`` nearer to each other than ``distance`` joined, nearest pairs first."""
    pairs, distances = [], []
    for first in range(0, len(features), BLOCK // 5):
        rows = features[first : first + BLOCK // 5]
        near = torch.cdist(rows, features).topk(min(NEIGHBOURS, len(features)), largest=False)
        row, column = (near.values < distance).nonzero(as_tuple=True)
        pairs.append(torch.stack([row + first, near.indices[row, column]], dim=1))
        distances.append(near.values[row, column])
    order = torch.cat(distances).argsort(stable=True)
    members = {name: np.flatnonzero(groups == name) for name in np.unique(groups)}
    groups, most = groups.copy(), max(largest_group(len(features)), len(features) // 10)
    for i, j in torch.cat(pairs)[order].tolist():
        one, other = groups[i], groups[j]
        if one != other and len(members[one]) + len(members[other]) <= most:
            members[one] = np.concatenate([members[one], members.pop(other)])
            groups[members[one]] = one
    return groups
