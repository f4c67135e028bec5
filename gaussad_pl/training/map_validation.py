"""The augmented validation of anomaly maps: held-out good images, and copies of them whose damage is known."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gaussad_pl.distributed import gather_rows
from gaussad_pl.metrics.image import auroc
from gaussad_pl.metrics.pixel import aupro
from gaussad_pl.model.anomaly_maps import SIZE, smooth
from gaussad_pl.model.model import GaussianModel

IMAGES = 100  # of each group, whose maps are compared, at most: maps are large


class MapValidationCollector:
    """Collects what the choice of the map needs while the augmented validation runs.

    Processes may `shard` the images. At most 100 images of each group are kept, the same ones in every group.
    """

    def __init__(self, model: GaussianModel) -> None:
        self.model = model
        self._columns: dict[str, list[Tensor]] = defaultdict(list)
        self._grids: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, batch: Mapping[str, Tensor], maps: Sequence[Tensor] | None, distances: Tensor) -> None:
        """Add a batch with ``group``, ``mask`` and ``source``, its maps, if any, and distances ``(N, levels)``."""
        for name, column in (
            ("groups", batch["group"]),
            ("masks", batch["mask"]),
            ("sources", batch["source"]),
            ("distances", distances),
        ):
            self._columns[name].append(column.cpu())
        if maps is None or self.model.segmenter is None:
            return
        for name, head in self.model.segmenter.candidates.items():
            self._grids[name].append(head.grid(maps).cpu())

    def validation(self, maps: Mapping[str, Tensor] | None = None) -> MapValidation:
        """Return everything collected, scored with the current weights of the levels.

        Args:
            maps: those of an earlier validation, in place of collected ones.
        """
        groups, masks, sources, distances = (gather_rows(torch.cat(parts)) for parts in self._columns.values())
        count = int((groups == 0).sum())
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:IMAGES].sort().values
        rows = torch.cat([(groups == group).nonzero().squeeze(1)[drawn] for group in groups.unique()])
        if maps is None:
            heads = self.model.segmenter.candidates if self.model.segmenter is not None else {}
            grids = {name: gather_rows(torch.cat(self._grids[name]))[rows] for name in heads}
            maps = UpsampledMaps(grids, {name: head.gain for name, head in heads.items()})
        pooled = self.model.scores(distances[rows].to(self.model.level_weights.device).double()).cpu()
        return MapValidation(groups[rows], masks[rows], pooled, maps, sources[drawn])


class UpsampledMaps(Mapping[str, Tensor]):
    """Anomaly maps ``(V, 256, 256)`` by name, upsampled on access: all of them at once would take gigabytes."""

    def __init__(self, grids: Mapping[str, Tensor], gains: Mapping[str, Tensor | None]) -> None:
        self.grids = grids
        self.gains = gains

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat([smooth(part, self.gains[name]) for part in self.grids[name].split(64)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.grids)

    def __len__(self) -> int:
        return len(self.grids)


class MapValidation:
    """Scores of the augmented validation: held-out good images (group 0) and their copies by augmentation a (group a).

    Args:
        groups: ``(V,)``.
        masks: what the augmentations changed, ``(V, H, W)`` bool.
        pooled: pooled scores, ``(V,)``.
        maps: anomaly maps by each candidate, ``(V, 256, 256)``.
        sources: number of the held-out image that each of the n images of a group shows, ``(n,)``; None if all differ.
    """

    def __init__(
        self,
        groups: Tensor,
        masks: Tensor,
        pooled: Tensor,
        maps: Mapping[str, Tensor],
        sources: Tensor | None = None,
    ) -> None:
        self.groups = groups
        self.masks = F.interpolate(masks[:, None].byte(), size=(SIZE, SIZE))[:, 0].bool()
        self.pooled = pooled
        self.maps = maps
        self.sources = torch.arange(int((groups == 0).sum())) if sources is None else sources

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
