"""Images that show the same part again: they belong on one side of every split.

A calibration image whose twin is among the images that a Gaussian is estimated from scores too low, and the threshold
that comes of it gives more false alarms than wished. On magnetic tiles, photographed in five or six lights each, a
random split gave 30 % instead of 5 %. File names seldom tell, features do.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

# distances between two images, as shares of their median
TWINS = 0.65  # so near are two shots of one part, and hardly any two parts
CLOSE = 0.9  # so near are any two shots of one part at most, and the more similar parts
COMMON = 0.25  # share of images with a twin, from which on a set is taken to consist of several shots of each part
LARGEST = 20  # a group holds at most this fraction 1 / LARGEST of the images: it is to be a part, not a kind of part
BLOCK = 5000  # images that are compared with each other, in their order: the distances of more do not fit into memory


def look_alikes(features: Tensor) -> NDArray[np.int64]:
    """The group of each image: 0, 1, ..., ``(N,)``; most images of different parts are alone.

    Complete linkage, cut where the two most different images of a group are as near as twins. Where many images have a
    twin, it is cut higher, for shots of one part in other light are less alike: on magnetic tiles three of four images
    have one, on screws one of fifty. Not always higher: parts that are merely similar are what a new part will find
    among the training images, too, and without them the calibration scores would be too high.

    Args:
        features: in which Euclidean distance means something (whitened), ``(N, D)``.
    """
    groups: list[NDArray[np.int64]] = []
    for block in features.float().split(BLOCK):
        found = _groups(block)
        groups.append(found + (groups[-1].max() + 1 if groups else 0))
    return np.concatenate(groups)


def _groups(features: Tensor) -> NDArray[np.int64]:
    n = len(features)
    alone = np.arange(n)
    distances = torch.pdist(features).cpu().double().numpy()
    median = np.median(distances) if n > 2 else 0
    if not median > 0:
        return alone
    nearest = squareform(distances) + np.diag(np.full(n, np.inf))
    come_in_several = (nearest.min(0) < TWINS * median).mean() > COMMON
    tree, most = linkage(distances, "complete"), max(2, n // LARGEST)
    for share in np.arange(CLOSE if come_in_several else TWINS, 0, -0.05):
        found = fcluster(tree, share * median, "distance") - 1
        if np.bincount(found).max() <= most:
            return found.astype(np.int64)
    return alone


def partition(groups: NDArray[np.int64], parts: int, seed: int) -> list[list[int]]:
    """Indices of the images in each of some parts of about the same size; a group is in one part as a whole.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    names = np.random.default_rng(seed).permutation(groups.max() + 1)
    if len(names) < parts:
        raise ValueError(f"{len(names)} groups in {parts} parts")
    filled: list[list[int]] = [[] for _ in range(parts)]
    for name in names:
        min(filled, key=len).extend(np.flatnonzero(groups == name).tolist())
    return [sorted(part) for part in filled]
