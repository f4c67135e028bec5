"""The coreset of PatchCore, found in less time than anomalib's own search takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fast_coreset(sampler: Any) -> list[int]:
    """Replace ``KCenterGreedy.select_coreset_idxs``, with the same random draws and the same result."""
    features = sampler.model.fit(sampler.embedding).transform(sampler.embedding)
    first = int(torch.randint(high=len(features), size=(1,)))
    return farthest_first(features, first, sampler.coreset_size)


def farthest_first(features: Tensor, first: int, count: int, active: int = 2048) -> list[int]:
    """Return the ``count`` points that k-center-greedy picks among ``features`` ``(N, D)``, starting with ``first``.

    The distance of a point to its nearest pick can only decrease. Points whose last known distance is below the
    current maximum therefore need no update: only the ``active`` farthest points are updated with every pick, until
    their maximum falls below the distances of the others. Points that become active are then updated with all picks
    they missed: a matrix product finds the nearest picks, up to rounding errors, and the distances to these are
    computed exactly as in anomalib.
    """
    centred = features - features.mean(0)
    norms = centred.square().sum(1)
    rounding = 4 * torch.finfo(features.dtype).eps * features.shape[1] * float(norms.max())
    nearest = torch.linalg.norm(features - features[first], dim=1)
    picks, seen = [first], torch.ones(len(features), dtype=torch.long)  # seen: number of picks included in `nearest`
    while len(picks) < count:
        limit = nearest.topk(min(active, len(nearest)), sorted=False).values.min()
        chosen = (nearest >= limit).nonzero().squeeze(1)  # in order of index: anomalib breaks ties by the first
        for rows in chosen[seen[chosen].argsort()].split(512):
            new = torch.tensor(picks[int(seen[rows].min()) :], dtype=torch.long)
            if len(new):
                squared = torch.addmm(norms[new], centred[rows], centred[new].T, alpha=-2)
                row, column = (squared <= squared.amin(1, keepdim=True) + rounding).nonzero(as_tuple=True)
                distances = torch.linalg.norm(features[rows[row]] - features[new[column]], dim=1)
                nearest.scatter_reduce_(0, rows[row], distances, "amin")
        points, distances = features[chosen], nearest[chosen]
        while len(picks) < count:
            farthest, best = distances.max(dim=0)
            if farthest < limit:
                break
            picks.append(int(chosen[best]))
            distances = torch.minimum(distances, torch.linalg.norm(points - points[best], dim=1))
        nearest[chosen], seen[chosen] = distances, len(picks)
    return picks
