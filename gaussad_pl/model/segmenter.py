"""Which Gaussians of patches make the anomaly maps, and how map and pooled distances make the score of an image.

Both are chosen on held-out good images and augmented copies of them, whose masks are known: no defect takes part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.density.patches import middle_levels
from gaussad_pl.errors import UserError
from gaussad_pl.model.anomaly_maps import FORMS, MapHead, map_score

if TYPE_CHECKING:  # scoring is to do without the metrics, which choosing takes
    from gaussad_pl.training.map_validation import Validation

MARGIN = 0.02  # in AUROC and AUPRO, by which less must beat more: the noise of some 60 held-out images
CLUSTERS = (512, 128)  # fine and broad ones: surfaces of much detail need the first, few or plain images the second
RARE = 0.001  # share of the pixels of held-out good images beyond the threshold of the maps

Form = Literal["auto", "position", "clusters", "shared"]
Combination = Literal["auto", "pooled", "map", "both"]
COMBINATIONS: dict[Combination, tuple[float, float]] = {"pooled": (1, 0), "map": (0, 1), "both": (1, 1)}


class Segmenter(nn.Module):
    """Turns feature maps into anomaly maps, and pooled score and map into the score of an image.

    Args:
        levels: of the backbone.
        image_size: side of the images in pixels.
        form: partition of the patches; "auto" keeps candidates until `choose`.
        map_levels: levels (`Level.index`) that the patches are made of; "middle" for those of
            `gaussad_pl.density.patches.middle_levels`, "auto" to try them alone, too.
        combine: what the image score is made of; "auto" leaves it to `choose`.
        clusters: number of them in each partition of the form "clusters"; "auto" to try fine and broad ones.
        seed: of the clusters.

    Raises:
        UserError: an unknown form or combination, or a level that the backbone does not give.
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
        map_levels: Sequence[int] | Literal["auto", "middle"] = "auto",
        combine: Combination = "auto",
        clusters: int | Literal["auto"] = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if form not in ("auto", *FORMS):
            raise UserError(f"model.segmentation.form={form}: expected auto, {', '.join(FORMS)}")
        if isinstance(map_levels, str) and map_levels not in ("auto", "middle"):
            raise UserError(f"model.segmentation.map_levels={map_levels}: expected auto, middle or a list of levels")
        if combine not in ("auto", *COMBINATIONS):
            raise UserError(f"model.segmentation.combine={combine}: expected auto, {', '.join(COMBINATIONS)}")
        if not (clusters == "auto" or (isinstance(clusters, int) and clusters > 0)):
            raise UserError(f"model.segmentation.clusters={clusters}: expected auto or a number of at least 1")
        sizes = CLUSTERS if clusters == "auto" else (clusters,)
        forms = FORMS if form == "auto" else (form,)
        places = middle_levels(levels, image_size) if isinstance(map_levels, str) else _places(map_levels, levels)
        alone = [[place] for place in places] if map_levels == "auto" and len(places) > 1 else []
        self.heads = nn.ModuleDict()
        for each, chosen in [*((each, places) for each in forms), *((forms[0], place) for place in alone)]:
            for size in sizes if each == "clusters" else sizes[:1]:
                head = MapHead(levels, chosen, each, size, seed)
                of = f" of {size}" if each == "clusters" else ""
                self.heads[f"{each}{of} {'+'.join(map(str, head.levels))}"] = head
        self.combine: Combination = combine
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("weights", torch.tensor(COMBINATIONS["both" if combine == "auto" else combine]))
        self.register_buffer("threshold", torch.tensor(math.inf))

    @property
    def candidates(self) -> dict[str, MapHead]:
        """What is left to choose from, by name: form and levels."""
        return dict(self.heads.items())  # type: ignore[arg-type]

    @property
    def head(self) -> MapHead:
        """What makes the maps."""
        return next(iter(self.candidates.values()))

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that make a segmenter like this one, with nothing left open."""
        return {
            "form": self.head.form,
            "map_levels": self.head.levels,
            "combine": self.combine,
            "clusters": self.head.clusters,
        }

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Anomaly maps ``(N, 256, 256)`` of the backbone's feature maps."""
        return self.head(maps)

    def score(self, pooled: Tensor, maps: Tensor) -> Tensor:
        """Scores ``(N,)`` of images: the weighted sum of pooled ``(N,)`` and map score, in units of good images."""
        parts = torch.stack([pooled.double(), map_score(maps).double()], dim=1)
        return ((parts - self.centre) / self.spread) @ self.weights.double()

    def observe(self, maps: Sequence[Tensor]) -> None:
        """Take in the feature maps of good images."""
        for head in self.candidates.values():
            head.gaussians.observe(head.patches(maps))

    def estimate(self) -> None:
        """Estimate the Gaussians of patches from all that was observed, and forget it."""
        for head in self.candidates.values():
            head.gaussians.estimate()

    def choose(self, validation: Validation) -> dict[str, Any]:
        """Keep the candidate and the combination that tell good images and pixels from augmented ones best.

        A candidate's worth is its image AUROC plus its AUPRO, a combination's its image AUROC, as means over
        augmentations. What is seen by one level and not by the other, or by the map and not by pooled features, is
        not known beforehand, so both count unless one alone is clearly better. So do fine clusters against broad ones.

        Returns:
            What was chosen, and the signals it was chosen by.
        """
        best, found = self._choose_head(validation)
        self.heads = nn.ModuleDict({best: self.heads[best]})
        maps = validation.maps[best]
        parts = torch.stack([validation.pooled, map_score(maps)], dim=1).double()
        normal = validation.groups == 0
        pixels = maps[normal].flatten()
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
            **self.chosen,
            "candidates": found,
            "combinations": combined,
            "worth": combined[self.combine] + found[best]["aupro"],
            "selection": "form, levels and combination chosen on held-out good images and augmented copies of them",
        }

    def _choose_head(self, validation: Validation) -> tuple[str, Mapping[str, dict[str, float]]]:
        """The name of the best candidate, and the signals of all."""
        found = {}
        for name in self.candidates:
            maps = validation.maps[name]
            found[name] = validation.signals(map_score(maps), maps)
        heads = self.candidates.values()
        levels, clusters = max(len(head.levels) for head in heads), max(head.clusters for head in heads)

        def worth(name: str) -> float:
            head = self.candidates[name]
            doubts = (len(head.levels) < levels) + (head.clusters < clusters)
            return found[name]["image_auroc"] + found[name]["aupro"] - doubts * 2 * MARGIN

        return max(found, key=worth), found


def _places(wanted: Sequence[int], levels: Sequence[Level]) -> list[int]:
    known = [level.index for level in levels]
    if isinstance(wanted, str) or not wanted or not set(wanted) <= set(known):
        raise UserError(
            f"model.segmentation.map_levels={wanted}: expected auto or some of {known}, the backbone's levels"
        )
    return [known.index(index) for index in sorted(set(wanted))]
