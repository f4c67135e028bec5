"""Near-duplicates: images of the same part, which belong on the same side of every split.

A held-out image scores too low if the Gaussian was estimated from another image of the same part. Selecting on such
images is selecting on training images, and a threshold from them gives more false alarms than intended: for magnetic
tiles, each photographed in five or six lights, a random split gave 30 % instead of 5 %. File names rarely reveal the
part; features do.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

# distances between two images, as fractions of the median distance
DUPLICATE_DISTANCE = 0.65  # two shots of the same part are this close, but hardly any two parts
SAME_PART_DISTANCE = 0.9  # all shots of the same part are this close, but so are similar parts
COMMON = 0.25  # if more images than this fraction have a near-duplicate, each part was photographed several times
BLOCK = 5000  # consecutive images that are clustered together: distances of more do not fit into memory
NEIGHBOURS = 32  # of each image that are searched for near-duplicates in other groups


def near_duplicates(features: Tensor) -> NDArray[np.int64]:
    """Return the group of each image, ``(N,)``, numbered by first appearance; most images form a group of their own.

    Complete linkage is cut at the distance of near-duplicates. If many images have a near-duplicate, it is cut higher,
    as shots of the same part in different light are less similar: four of five images of magnetic tiles have one, but
    only one of fifty screws. It is not always cut higher, because a new part will also find similar parts among the
    training images; without these, calibration scores would be too high. Finally, groups that contain near-duplicates
    of each other are merged, closest first, up to a tenth of the images. Copies, whose distance is zero, are one image:
    they share a group, however many there are.

    Args:
        features: ``(N, D)``, with a meaningful Euclidean distance (whitened).
    """
    copies = in_order(features.float().unique(dim=0, return_inverse=True)[1].cpu().numpy())
    _, first = np.unique(copies, return_index=True)
    return _groups_of_different(features.float()[torch.from_numpy(first)])[copies]


def _groups_of_different(features: Tensor) -> NDArray[np.int64]:
    """Return the group of each image, ``(N,)``, as `near_duplicates` does; no two have the same features."""
    clusters = [_clusters(block) for block in features.split(BLOCK)]
    firsts = np.cumsum([0, *(len(groups) for groups, _ in clusters)])
    groups = np.concatenate([groups + first for (groups, _), first in zip(clusters, firsts[:-1], strict=True)])
    return in_order(_merged(features, groups, distance=clusters[0][1]))


def largest_group(n: int) -> int:
    """Return the maximum size of a group among ``n`` images, so that it is one part rather than one kind of part.

    With 10 images or more, at least 5 groups remain.
    """
    return max(2, min(8, n // 5), n // 20)


def in_order(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber groups 0, 1, ... in the order of their first members.

    >>> in_order(np.array([7, 3, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int64)[inverse]


def _clusters(features: Tensor) -> tuple[NDArray[np.int64], float]:
    """Cluster images ``(N, D)`` by complete linkage; also return the distance below which two are near-duplicates."""
    n = len(features)
    singletons = np.arange(n), 0.0
    distances = torch.pdist(features).cpu().double().numpy()
    median = np.median(distances) if n > 2 else 0
    if not median > 0:
        return singletons
    nearest = squareform(distances) + np.diag(np.full(n, np.inf))
    several_shots = (nearest.min(0) < DUPLICATE_DISTANCE * median).mean() > COMMON
    tree = linkage(distances, "complete")
    for share in np.arange(SAME_PART_DISTANCE if several_shots else DUPLICATE_DISTANCE, 0, -0.05):
        groups = fcluster(tree, share * median, "distance") - 1
        if np.bincount(groups).max() <= largest_group(n):
            return groups.astype(np.int64), float(min(share, DUPLICATE_DISTANCE) * median)
    return singletons


def _merged(features: Tensor, groups: NDArray[np.int64], distance: float) -> NDArray[np.int64]:
    """Merge groups that have images ``(N, D)`` closer to each other than ``distance``, closest pairs first."""
    pairs, distances = [], []
    for first in range(0, len(features), BLOCK // 5):
        rows = features[first : first + BLOCK // 5]
        nearest = torch.cdist(rows, features).topk(min(NEIGHBOURS, len(features)), largest=False)
        row, column = (nearest.values < distance).nonzero(as_tuple=True)
        pairs.append(torch.stack([row + first, nearest.indices[row, column]], dim=1))
        distances.append(nearest.values[row, column])
    order = torch.cat(distances).argsort(stable=True)
    members = {name: np.flatnonzero(groups == name) for name in np.unique(groups)}
    groups, most = groups.copy(), max(largest_group(len(features)), len(features) // 10)
    for i, j in torch.cat(pairs)[order].tolist():
        one, other = groups[i], groups[j]
        if one != other and len(members[one]) + len(members[other]) <= most:
            members[one] = np.concatenate([members[one], members.pop(other)])
            groups[members[one]] = one
    return groups
