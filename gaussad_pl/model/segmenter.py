"""Anomaly maps, and the score of an image from its map and its pooled score.

What the configuration leaves open stays a list of candidates until `gaussad_pl.training.map_choice` keeps one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.distributed import gather
from gaussad_pl.errors import UserError
from gaussad_pl.model.anomaly_maps import MapHead, map_region, map_score
from gaussad_pl.model.border import border_contrast, border_weights, is_plain
from gaussad_pl.model.combination import COMBINATIONS, Combination, combine
from gaussad_pl.model.detection import RARE
from gaussad_pl.model.patches import middle_levels

CLUSTERS = (512, 128)  # fine and broad ones: surfaces of much detail need the first, few or plain images the second


class Segmenter(nn.Module):
    """Turns feature maps into anomaly maps, and combines pooled score and map into the score of an image.

    Args:
        levels: of the backbone.
        roi: region of interest, ``(H, W)`` bool; None for the whole image.
        form: which patches share a Gaussian; "auto" keeps candidates until `gaussad_pl.training.map_choice.choose_map`.
        map_levels: levels (`Level.index`) that the patches are made of; "middle" for those of
            `gaussad_pl.model.patches.middle_levels`, "auto" to try them alone, too.
        combine: what the image score is made of; "auto" leaves it to `choose_map`.
        clusters: number of them in each partition of the form "clusters"; "auto" to try fine and broad ones.
        seed: of the clusters.
        border: "auto" to weight patches near the border less where good images have a plain border (see
            `gaussad_pl.model.border`), "full" for equal weights everywhere.

    Raises:
        UserError: an unknown form, combination or border, or a level that the backbone does not give.
    """

    centre: Tensor  # mean of pooled and map score on held-out good images, (2,)
    spread: Tensor  # their standard deviations, (2,)
    weights: Tensor  # (2,)
    median: Tensor  # of the maps: the median pixel of held-out good images, (); 0 if unknown
    region: Tensor | None  # of interest, (256, 256)
    threshold: Tensor  # of the maps, their contour: `RARE` of the pixels of held-out good images are above, ()

    def __init__(
        self,
        levels: Sequence[Level],
        roi: Tensor | None = None,
        form: str = "auto",
        map_levels: Sequence[int] | Literal["auto", "middle"] = "auto",
        combine: Combination = "auto",
        clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
        border: Literal["auto", "full"] = "auto",
    ) -> None:
        super().__init__()
        if form not in ("auto", *DENSITIES):
            raise UserError(f"model.segmentation.form={form}: expected auto, {', '.join(DENSITIES)}")
        if isinstance(map_levels, str) and map_levels not in ("auto", "middle"):
            raise UserError(f"model.segmentation.map_levels={map_levels}: expected auto, middle or a list of levels")
        if combine not in ("auto", *COMBINATIONS):
            raise UserError(f"model.segmentation.combine={combine}: expected auto, {', '.join(COMBINATIONS)}")
        if not (clusters == "auto" or (isinstance(clusters, int) and clusters > 0)):
            raise UserError(f"model.segmentation.clusters={clusters}: expected auto or a number of at least 1")
        if border not in ("auto", "full"):
            raise UserError(f"model.segmentation.border={border}: expected auto or full")
        sizes = CLUSTERS if clusters == "auto" else (clusters,)
        forms = tuple(DENSITIES) if form == "auto" else (form,)
        places = middle_levels(levels) if isinstance(map_levels, str) else _places(map_levels, levels)
        alone = [[place] for place in places] if map_levels == "auto" and len(places) > 1 else []
        self.heads = nn.ModuleDict()
        for each, chosen in [*((each, places) for each in forms), *((forms[0], place) for place in alone)]:
            has_clusters = DENSITIES[each].has_clusters
            for size in sizes if has_clusters else sizes[:1]:
                head = MapHead(levels, chosen, each, size, seed, roi)
                of = f" of {size}" if has_clusters else ""
                self.heads[f"{each}{of} {'+'.join(map(str, head.levels))}"] = head
        self.combine: Combination = combine
        self.register_buffer("region", None if roi is None else map_region(roi), persistent=False)
        self.share = 1.0 if self.region is None else float(self.region.float().mean())  # of the map that is inspected
        self.border = border
        self._contrast: list[Tensor] = []
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("weights", torch.tensor(COMBINATIONS["both" if combine == "auto" else combine]))
        self.register_buffer("median", torch.tensor(0.0))
        self.register_buffer("threshold", torch.tensor(math.inf))

    @property
    def candidates(self) -> dict[str, MapHead]:
        """Heads that may still be chosen, by name (form and levels)."""
        return dict(self.heads.items())  # type: ignore[arg-type]

    @property
    def head(self) -> MapHead:
        """The head that makes the maps; the first one while several are left."""
        return next(iter(self.candidates.values()))

    @property
    def chosen(self) -> dict[str, Any]:
        """Settings of an equal segmenter, without any open choice."""
        return {
            "form": self.head.form,
            "map_levels": self.head.levels,
            "combine": self.combine,
            "clusters": self.head.clusters,
            "border": self.border,
        }

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of the backbone's feature maps."""
        return self.head(maps)

    def score(self, pooled: Tensor, maps: Tensor) -> Tensor:
        """Scores ``(N,)`` of images, float64, from pooled scores ``(N,)`` and maps ``(N, 256, 256)``."""
        return combine(pooled.double(), self.map_score(maps).double(), self.centre, self.spread, self.weights)

    def map_score(self, maps: Tensor) -> Tensor:
        """Scores ``(N,)`` of maps ``(N, 256, 256)`` within the region of interest."""
        return map_score(maps, self.share)

    def set_units(self, pooled: Tensor, mapped: Tensor) -> None:
        """Set the units of the score by pooled scores ``(N,)`` and scores of the maps ``(N,)`` of good images.

        Scores that are all the same, as those of a single image, have no spread: a tenth of their mean is assumed.
        """
        good = torch.stack([pooled.double(), mapped.double()], dim=1)
        centre, spread = good.mean(0), good.std(0, correction=min(1, len(good) - 1))
        usual = centre.abs() / 10
        self.centre.copy_(centre)
        self.spread.copy_(torch.where(spread > usual / 1000, spread, usual).clamp(min=1e-6))

    def set_contour(self, maps: Tensor) -> None:
        """Set median and contour by the maps ``(N, 256, 256)`` of good images."""
        pixels = maps.flatten() if self.region is None else maps[:, self.region.to(maps.device)].flatten()
        self.median.copy_(pixels.median())
        self.threshold.copy_(pixels.topk(max(1, round(RARE * len(pixels)))).values[-1])

    def observe_border(self, images: Tensor) -> None:
        """Add the border of good images ``(N, 3, H, W)`` uint8 to what `estimate` uses."""
        self._contrast.append(border_contrast(images).cpu())

    def _set_border(self) -> None:
        """Weight patches near the border by what `observe_border` has seen, and drop it; a region says enough."""
        contrast = torch.cat(gather(torch.cat([torch.zeros(0), *self._contrast])))
        self._contrast.clear()
        if self.region is not None:
            return
        plain = self.border == "auto" and is_plain(contrast)
        for head in self.candidates.values():
            head.border.copy_(border_weights(head.shape) if plain else torch.ones(()))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Load a state; those of older versions lack the median and the border, as if they were 0 and 1."""
        if f"{prefix}threshold" in state_dict:  # a part of a state leaves both as they are
            state_dict.setdefault(f"{prefix}median", torch.tensor(0.0))
            for name, head in self.candidates.items():
                state_dict.setdefault(f"{prefix}heads.{name}.border", torch.ones_like(head.border))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def keep(self, name: str) -> None:
        """Drop all candidates but one."""
        self.heads = nn.ModuleDict({name: self.heads[name]})

    def observe(self, maps: Sequence[Tensor]) -> None:
        """Add the feature maps of good images to what `estimate` uses."""
        for head in self.candidates.values():
            head.gaussians.observe(head.patches(maps))

    def estimate(self) -> None:
        """Fit densities of patches and weights at the border to everything observed, and drop the observations."""
        self._set_border()
        for head in self.candidates.values():
            head.gaussians.estimate()


def _places(wanted: Sequence[int], levels: Sequence[Level]) -> list[int]:
    known = [level.index for level in levels]
    if isinstance(wanted, str) or not wanted or not set(wanted) <= set(known):
        raise UserError(
            f"model.segmentation.map_levels={wanted}: expected auto or some of {known}, the backbone's levels"
        )
    return [known.index(index) for index in sorted(set(wanted))]
