"""Any timm model as a feature extractor with levels: feature maps from shallow to deep."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaussad_pl.backbones.tiling import Tiling
from gaussad_pl.backbones.weights import exact_tag, load_pretrained
from gaussad_pl.errors import UserError
from gaussad_pl.fingerprints import tensors_sha256


@dataclass(frozen=True)
class Level:
    """One feature map of the backbone.

    Attributes:
        index: position among all feature maps of the network, starting from the shallowest.
        channels: number of channels, C.
        height, width: in cells.
        reduction: side of a tile divided by the side of its map, as in timm's feature info.
    """

    index: int
    channels: int
    height: int
    width: int
    reduction: int


class Backbone(nn.Module):
    """A pretrained timm model that turns uint8 images into the feature maps of its levels.

    Levels are the outputs of timm's `forward_intermediates`, including every stage if the model supports it, and the
    final convolution if it changes the number of channels: 9 for EfficientNet (stem, 7 stages, head), 5 for ResNet, one
    per block for transformers.

    Args:
        name: timm model name; with its tag (``tf_efficientnet_b4.aa_in1k``) it always refers to the same weights.
        weights: "auto", "bundled", "hub", "random" or a file; see `gaussad_pl.backbones.weights.load_pretrained`.
        levels: indices of the levels to use; None for all.
        image_size: side of the square input of the network in pixels.
        tiles: rows and columns of tiles of this size that an image consists of; see `gaussad_pl.backbones.tiling`.
        roi: region of interest, ``(H, W)`` bool; pixels outside of it are blanked, and do not count in pooled features.

    Attributes:
        name: timm model name with its tag.
        source: where the weights came from.
        weights_sha256: digest of the weights as loaded, before any fine-tuning; None for random weights.
        levels: description of each feature map, in order.

    Raises:
        UserError: the model is unknown, its weights are unavailable, or a level does not exist.
    """

    model: Any  # timm's models share `forward_intermediates`, but no base class that declares it
    scale: Tensor
    offset: Tensor
    roi: Tensor | None

    def __init__(
        self,
        name: str,
        weights: str = "auto",
        levels: Sequence[int] | None = None,
        image_size: int = 224,
        tiles: Sequence[int] = (1, 1),
        roi: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name = exact_tag(name)
        self.image_size = image_size
        rows, columns = tiles
        self.tiling = Tiling(rows, columns, image_size)
        self.model, self.source = load_pretrained(self.name, weights, image_size)
        random = self.source.text == "random"
        self.weights_sha256 = None if random else tensors_sha256(self.model.state_dict())
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(f"backbone.name={name}: this timm model has no intermediate features: choose another one")
        config = self.model.pretrained_cfg
        mean, std = torch.tensor(config["mean"]).reshape(3, 1, 1), torch.tensor(config["std"]).reshape(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        self.register_buffer("roi", roi)
        self.eval()
        self.model.to(memory_format=torch.channels_last)  # nearly twice as fast on CPUs
        self._options = {"extra_blocks": True} if _accepts_extra_blocks(self.model) else {}
        self._count, self._has_head, all_levels = self._probe()
        self.indices = _level_indices(levels, len(all_levels), self.name)
        self.levels = [all_levels[i] for i in self.indices]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps of the selected levels, a list of ``(N, C, h, w)``, for uint8 images ``(N, 3, H, W)``."""
        return self.join(self.maps(self.tiles(images)))

    def tiles(self, images: Tensor) -> Tensor:
        """Return normalised tiles of uint8 images ``(N, 3, H, W)``, blank outside of the region of interest."""
        x = torch.addcmul(self.offset, images, self.scale)
        if self.roi is not None:
            x *= self.roi
        return self.tiling.split(x).contiguous(memory_format=torch.channels_last)

    def join(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Join the feature maps of tiles to those of images."""
        return [self.tiling.join(level) for level in maps]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps of normalised tiles ``(T, 3, size, size)``."""
        middle = [i for i in self.indices if i < self._count]
        wants_head = len(middle) < len(self.indices)
        final, maps = self.model.forward_intermediates(
            x, indices=middle or [self._count - 1], stop_early=not wants_head, **self._options
        )
        maps = maps if middle else []
        return [*maps, final] if wants_head else maps

    def pooled(self, images: Tensor) -> list[Tensor]:
        """Return the globally average-pooled features of the selected levels: a list of ``(N, C)``."""
        return self.pool(self(images))

    def pool(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Average each feature map ``(N, C, h, w)`` over the region of interest: a list of ``(N, C)``."""
        return pool(maps, self.roi)

    @property
    def frozen_levels(self) -> int:
        """Number of levels, from the shallowest, before the first parameter that is trained."""
        trained = [self._first_use[name] for name, p in self.named_parameters() if p.requires_grad]
        return sum(index < min(trained, default=math.inf) for index in self.indices)

    def parameters_of(self, levels: Sequence[int]) -> list[nn.Parameter]:
        """Return the parameters that are first used in one of these levels (indices as in the constructor).

        A parameter belongs to the first level whose output has a gradient with respect to it. Differentiating makes
        this work for any architecture.
        """
        selected = _level_indices(levels, self._count + self._has_head, self.name)
        return [p for name, p in self.named_parameters() if self._first_use[name] in selected]

    @cached_property
    def _first_use(self) -> dict[str, float]:
        """Index of the first level that each parameter takes part in, infinity for none, by its name."""
        trainable = {p: p.requires_grad for p in self.model.parameters()}
        self.model.requires_grad_(True)
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=self.scale.device)
        with torch.enable_grad():
            final, maps = self.model.forward_intermediates(image, **self._options)
            used: dict[nn.Parameter, float] = dict.fromkeys(trainable, math.inf)
            rest = list(trainable)
            for index, output in enumerate([*maps, final] if self._has_head else maps):
                gradients = torch.autograd.grad(output.sum(), rest, retain_graph=True, allow_unused=True)
                reached = {p for p, gradient in zip(rest, gradients, strict=True) if gradient is not None}
                used.update(dict.fromkeys(reached, index))
                rest = [p for p in rest if p not in reached]
        for parameter, flag in trainable.items():
            parameter.requires_grad = flag
        return {name: used[parameter] for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def _probe(self) -> tuple[int, bool, list[Level]]:
        """Run one black image through the model to find its levels, so that no counts or widths are hard-coded."""
        image = torch.zeros(1, 3, self.image_size, self.image_size)
        try:
            final, maps = self.model.forward_intermediates(image, **self._options)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"backbone.image_size={self.image_size}: {self.name} does not accept images of this size ({error})"
            ) from error
        # same grid, different width: a separate convolution rather than a reshape or norm of the last map
        has_head = final.shape[2:] == maps[-1].shape[2:] and final.shape[1] != maps[-1].shape[1]
        outputs = [*maps, final] if has_head else maps
        levels = [
            Level(i, o.shape[1], *self.tiling.cells(o.shape[-1]), round(self.image_size / o.shape[-1]))
            for i, o in enumerate(outputs)
        ]
        return len(maps), has_head, levels


def pool(maps: Sequence[Tensor], roi: Tensor | None = None) -> list[Tensor]:
    """Average each feature map ``(N, C, h, w)`` over its cells, or over a region ``(H, W)``: a list of ``(N, C)``.

    >>> [features.shape for features in pool([torch.zeros(2, 16, 8, 8), torch.zeros(2, 32, 4, 4)])]
    [torch.Size([2, 16]), torch.Size([2, 32])]
    """
    if roi is None:
        return [feature_map.mean((-2, -1)) for feature_map in maps]
    return [(level * cell_weights(roi, (level.shape[2], level.shape[3]))).sum((-2, -1)) for level in maps]


def cell_weights(roi: Tensor, shape: tuple[int, int]) -> Tensor:
    """Weights of the cells of a feature map in its average over a region ``(H, W)``, of the given shape, sum 1."""
    covered = F.adaptive_avg_pool2d(roi[None].float(), shape)[0]
    return covered / covered.sum()


def _accepts_extra_blocks(model: Any) -> bool:
    return "extra_blocks" in inspect.signature(model.forward_intermediates).parameters


def _level_indices(levels: Sequence[int] | None, count: int, name: str) -> list[int]:
    """Return the sorted, non-negative indices of the selected levels; all of them for None."""
    if levels is None:
        return list(range(count))
    indices = sorted({i + count if i < 0 else i for i in levels})
    if not indices or indices[0] < 0 or indices[-1] >= count:
        raise UserError(f"levels={list(levels)}: {name} has levels 0 to {count - 1}")
    return indices
