"""The acceptance of a fine-tuned network: a paired comparison with the frozen one, and its uncertainty.

The networks compared are the tuned one and the mean of its weights and the frozen ones (WiSE-FT: Wortsman et al.,
"Robust fine-tuning of zero-shot models", CVPR 2022), which forgets less. Each is judged by the scores that training has
changed, on held-out good images and on copies of them by augmentations that the loss has never used: those that it was
trained on always get better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.metrics.image import auroc
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.training.map_validation import MapValidation

SHARES = (1.0, 0.5)  # of the tuned weights in the networks that are compared, in the order of preference
DOUBT = 0.1  # probability of a gain below which a network is not used: few held-out images cannot confirm a small gain
DRAWS = 1000  # of the bootstrap
STEP = 4  # every fourth pixel of a map is enough to rank pixels


@dataclass(frozen=True)
class Judgement:
    """A network's separation of n held-out good images from G groups of copies of them.

    Attributes:
        order: 1 where the copy (second index) scores above the good image (first), 1/2 for a tie, ``(G, n, n)``.
        pixels: AUROC of damaged pixels within each copy, ``(G, n)``; NaN where there is no map or no mask.
    """

    order: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Gain:
    """The gain of a network over the frozen one, image AUROC plus pixel AUROC within copies.

    Attributes:
        share: of the tuned weights in the network.
        mean: in units of AUROC.
        probability: that it is above 0, over draws of held-out images; of one image, that is 0 or 1.
        images: number of held-out images.
    """

    share: float
    mean: float
    probability: float
    images: int

    @property
    def is_doubtful(self) -> bool:
        """True if the network is probably no better than the frozen one."""
        return self.probability < DOUBT


def judge_network(
    model: GaussianModel, validation: MapValidation, unseen: Sequence[int], pooled_alone: bool = False
) -> Judgement:
    """Judge a network by the augmented validation.

    Args:
        model: with the units and the threshold of ``validation``, see `gaussad_pl.training.map_choice.choose_map`.
        validation: scored by ``model``.
        unseen: groups of copies by augmentations that the loss has not used.
        pooled_alone: the map has not changed: beside it a gain of the pooled score would drown.
    """
    maps, scores = None, validation.pooled
    if model.segmenter is not None and not pooled_alone:
        maps = next(iter(validation.maps.values()))
        scores = model.segmenter.score(validation.pooled, maps)
    scores = scores.cpu()
    good = scores[validation.groups == 0]
    order, pixels = [], []
    for group in unseen:
        rows = (validation.groups == group).nonzero().squeeze(1)
        copies = scores[rows]
        order.append((copies > good[:, None]).double() + (copies == good[:, None]).double() / 2)
        pixels.append(torch.tensor([_pixel_auroc(maps, validation.masks, row) for row in rows.tolist()]))
    return Judgement(torch.stack(order), torch.stack(pixels).double())


def gain(frozen: Judgement, tuned: Judgement, sources: Tensor, share: float, seed: int = 0) -> Gain:
    """Compare two networks on the same images, with a bootstrap over held-out images.

    Args:
        frozen, tuned: judgements of n images in the same order.
        sources: number of the held-out image that each of the n shows, ``(n,)``: copies of one are drawn together.
        share: see `Gain`.
        seed: of the draws.
    """
    _, sources = sources.unique(return_inverse=True)
    count = int(sources.max()) + 1
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (DRAWS, count), generator=random)
    weights = torch.zeros(DRAWS, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(DRAWS, count).double())
    weights = torch.cat([torch.ones(1, count, dtype=torch.float64), weights])[:, sources]  # the first row: all, once
    order = (tuned.order - frozen.order).mean(0)
    images = torch.einsum("bi,ij,bj->b", weights, order, weights) / weights.sum(1).square()
    pixels = tuned.pixels - frozen.pixels
    known = ~pixels.isnan()
    groups = [(row[k], weights[:, k]) for row, k in zip(pixels, known, strict=True) if k.any()]
    means = [w @ values / w.sum(1).clamp(min=1e-12) for values, w in groups]
    total = images + (torch.stack(means).mean(0) if means else 0)
    return Gain(share, float(total[0]), float((total[1:] > 0).double().mean()), count)


def _pixel_auroc(maps: Tensor | None, masks: Tensor, row: int) -> float:
    if maps is None:
        return float("nan")
    inside = masks[row, ::STEP, ::STEP].flatten()
    if inside.all() or not inside.any():
        return float("nan")
    return auroc(maps[row, ::STEP, ::STEP].flatten(), inside)
