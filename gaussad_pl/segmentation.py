"""Anomaly maps: which Gaussians of patches make them, and how map and pooled distances make the score of an image.

Both are chosen on held-out good images and augmented copies of them, whose masks are known: no defect takes part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbone import Level
from gaussad_pl.data.images import MASK_SIZE
from gaussad_pl.dense import (
    FORMS,
    ClusterGaussians,
    Clusterings,
    PatchGaussians,
    PositionGaussians,
    embed,
    middle_levels,
)
from gaussad_pl.errors import UserError
from gaussad_pl.metrics import auroc
from gaussad_pl.pixel_metrics import aupro

SIZE = MASK_SIZE  # side of the anomaly maps in pixels
BLUR = SIZE / 64  # standard deviation of the Gaussian blur of the maps in pixels
FEATURES = 256  # of a patch, at most: hundreds of covariances of wide ones would not fit into memory
CLUSTERINGS = 3  # whose distances the form "clusters" averages
TOP = 0.01  # share of the map whose mean is the map's image score
MARGIN = 0.02  # of AUROC by which pooled score or map alone must beat both: the noise of some 60 held-out images
RARE = 0.001  # share of the pixels of held-out good images beyond the threshold of the maps

Form = Literal["auto", "position", "clusters", "shared"]
Combination = Literal["auto", "pooled", "map", "both"]
COMBINATIONS: dict[Combination, tuple[float, float]] = {"pooled": (1, 0), "map": (0, 1), "both": (1, 1)}


class Validation:
    """Scores of the augmented validation: held-out good images (group 0) and their copies by augmentation a (group a).

    Args:
        groups: ``(V,)``.
        masks: what the augmentations changed, ``(V, H, W)`` bool.
        pooled: pooled scores, ``(V,)``.
        maps: anomaly maps by each form, ``(V, 256, 256)``.
    """

    def __init__(self, groups: Tensor, masks: Tensor, pooled: Tensor, maps: Mapping[str, Tensor]) -> None:
        self.groups = groups
        self.masks = F.interpolate(masks[:, None].byte(), size=(SIZE, SIZE))[:, 0].bool()
        self.pooled = pooled
        self.maps = maps

    def image_auroc(self, scores: Tensor) -> float:
        """AUROC of good images against copies, mean over augmentations."""
        return self._mean([auroc(scores[chosen], self.groups[chosen] > 0) for chosen in self._pairs()])

    def signals(self, scores: Tensor, maps: Tensor) -> dict[str, float]:
        """Image AUROC of ``scores`` ``(V,)`` and AUPRO of ``maps``, means over augmentations."""
        marked = [chosen for chosen in self._pairs() if self.masks[chosen].any()]
        return {
            "image_auroc": self.image_auroc(scores),
            "aupro": self._mean([aupro(maps[chosen], self.masks[chosen]) for chosen in marked]),
        }

    def _pairs(self) -> list[Tensor]:
        return [(self.groups == 0) | (self.groups == i) for i in range(1, int(self.groups.max()) + 1)]

    def _mean(self, values: Sequence[float]) -> float:
        return math.fsum(values) / max(len(values), 1)


class Segmenter(nn.Module):
    """Turns feature maps into anomaly maps, and pooled score and map into the score of an image.

    Args:
        levels: of the backbone.
        image_size: side of the images in pixels.
        form: partition of the patches; "auto" keeps all until `choose`.
        combine: what the image score is made of; "auto" leaves it to `choose`.
        clusters: number of Gaussians in each clustering of the form "clusters".
        seed: of the clusters.
    """

    centre: Tensor  # mean of pooled and map score on held-out good images, (2,)
    spread: Tensor  # their standard deviations, (2,)
    weights: Tensor  # (2,)
    threshold: Tensor  # of the maps: one pixel in a thousand of held-out good images is above, ()

    def __init__(
        self,
        levels: Sequence[Level],
        image_size: int,
        form: Form = "auto",
        combine: Combination = "auto",
        clusters: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if form not in ("auto", *FORMS):
            raise UserError(f"model.segmentation.form={form}: expected auto, {', '.join(FORMS)}")
        if combine not in ("auto", *COMBINATIONS):
            raise UserError(f"model.segmentation.combine={combine}: expected auto, {', '.join(COMBINATIONS)}")
        self.places = middle_levels(levels, image_size)
        self.side = max(levels[i].side for i in self.places)
        width = sum(levels[i].channels for i in self.places)
        features = min(width, FEATURES)
        self.projection: Tensor | None
        self.register_buffer("projection", None)
        if width > FEATURES:
            random = torch.Generator().manual_seed(seed)
            self.projection = torch.linalg.qr(torch.randn(width, features, generator=random)).Q
        makers = {
            "position": lambda: PositionGaussians(self.side**2, features),
            "clusters": lambda: Clusterings(CLUSTERINGS, clusters, features, seed),
            "shared": lambda: ClusterGaussians(1, features, seed),
        }
        self.forms = nn.ModuleDict({name: makers[name]() for name in (FORMS if form == "auto" else [form])})
        self.combine: Combination = combine
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("weights", torch.tensor(COMBINATIONS["both" if combine == "auto" else combine]))
        self.register_buffer("threshold", torch.tensor(math.inf))

    @property
    def form(self) -> str:
        """The form that makes the maps."""
        return next(iter(self.forms))

    @property
    def gaussians(self) -> PatchGaussians:
        """The Gaussians that make the maps."""
        return self._gaussians()[0]

    def patches(self, maps: Sequence[Tensor]) -> Tensor:
        """Patches ``(N, P, D)`` of the backbone's feature maps; wide ones projected at random to D = 256 directions."""
        patches = embed([maps[i] for i in self.places])
        return patches if self.projection is None else patches @ self.projection

    def forward(self, patches: Tensor, form: str | None = None) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of patches ``(N, P, D)``: smoothed Mahalanobis distances."""
        gaussians = self.forms[form or self.form]
        return smooth(gaussians(patches).unflatten(1, (self.side, self.side)))

    def score(self, pooled: Tensor, maps: Tensor) -> Tensor:
        """Scores ``(N,)`` of images: the weighted sum of pooled ``(N,)`` and map score, in units of good images."""
        parts = torch.stack([pooled.double(), map_score(maps).double()], dim=1)
        return ((parts - self.centre) / self.spread) @ self.weights.double()

    def observe(self, patches: Tensor) -> None:
        for gaussians in self._gaussians():
            gaussians.observe(patches)

    def estimate(self) -> None:
        for gaussians in self._gaussians():
            gaussians.estimate()

    def choose(self, validation: Validation) -> dict[str, Any]:
        """Keep the form and the combination that tell good images and pixels from augmented ones best.

        A form's worth is its image AUROC plus its AUPRO, a combination's its image AUROC, as means over augmentations.
        Pooled score and map see different defects, so both count unless one alone is clearly better.

        Returns:
            What was chosen, and the signals it was chosen by.
        """
        found = {name: validation.signals(map_score(maps), maps) for name, maps in validation.maps.items()}
        best = max(found, key=lambda name: found[name]["image_auroc"] + found[name]["aupro"])
        self.forms = nn.ModuleDict({best: self.forms[best]})
        parts = torch.stack([validation.pooled, map_score(validation.maps[best])], dim=1).double()
        normal = validation.groups == 0
        pixels = validation.maps[best][normal].flatten()
        self.threshold.copy_(pixels.topk(max(1, round(RARE * len(pixels)))).values[-1])
        good = parts[normal]
        self.centre.copy_(good.mean(0))
        self.spread.copy_(good.std(0).clamp(min=1e-6) if len(good) > 1 else torch.ones(2))
        scaled = ((parts - self.centre.cpu()) / self.spread.cpu()).double()
        combined = {name: validation.image_auroc(scaled @ scaled.new_tensor(w)) for name, w in COMBINATIONS.items()}
        if self.combine == "auto":
            best_alone = max(COMBINATIONS, key=lambda name: combined[name])
            self.combine = best_alone if combined[best_alone] > combined["both"] + MARGIN else "both"
        self.weights.copy_(torch.tensor(COMBINATIONS[self.combine]))
        return {
            "form": best,
            "forms": found,
            "combine": self.combine,
            "combinations": combined,
            "worth": combined[self.combine] + found[best]["aupro"],
            "selection": "form and combination chosen on held-out good images and augmented copies of them",
        }

    def _gaussians(self) -> list[PatchGaussians]:
        return list(self.forms.values())  # type: ignore[arg-type]


def smooth(grid: Tensor) -> Tensor:
    """Distances on a grid ``(N, h, w)`` as maps ``(N, 256, 256)``: bilinear, then a Gaussian blur."""
    maps = F.interpolate(grid[:, None], size=(SIZE, SIZE), mode="bilinear")
    reach = math.ceil(3 * BLUR)
    offsets = torch.arange(-reach, reach + 1, device=grid.device, dtype=grid.dtype)
    kernel = torch.exp(-((offsets / BLUR) ** 2) / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def map_score(maps: Tensor) -> Tensor:
    """Mean of the highest percent of each map ``(N, H, W)``: ``(N,)``."""
    flat = maps.flatten(1)
    return flat.topk(max(1, round(TOP * flat.shape[1]))).values.mean(1)
