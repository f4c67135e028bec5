"""A cache for fine-tuning: the outputs of the frozen stages on recurring images are computed only once."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.folding import folded

LIMIT = 4 * 2**30  # bytes in the cache; batches that do not fit run through the frozen stages each time


class FrozenStages:
    """A backbone cut after its last frozen level, with a cache of the outputs before the cut.

    Attributes:
        rest: the backbone without the modules before the cut; it shares all parameters.
        cut: number of levels before the cut. If the backbone cannot be cut, it is 0 and the cache holds the images: the
            first level trains, or the stages do not form a plain chain (transformers add position embeddings).
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cut, self.rest = 0, backbone
        self._cache: dict[Hashable, tuple[Tensor, list[Tensor]]] = {}
        self._free = LIMIT
        probe = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=backbone.scale.device)
        probe[..., ::7] = 1
        with torch.no_grad():
            calls, maps = _trace(backbone, probe)
            for cut in range(min(backbone.frozen_levels, len(backbone.levels) - 1), 0, -1):
                before = next((calls[: i + 1] for i, (_, out) in enumerate(calls) if out is maps[cut - 1]), [])
                rest = _without(backbone, [module for module, _ in before])
                if before and _reproduces(rest, maps, cut):
                    self.cut, self.rest = cut, rest
                    return

    @cached_property
    def _front(self) -> Backbone:
        front = copy.copy(self.backbone)
        front.indices = self.backbone.indices[: self.cut]
        return folded(front)

    def before(self, images: Tensor) -> list[Tensor]:
        """Return the maps before the cut of ``images`` ``(N, 3, H, W)``, uint8, as ``(N, tiles, C, h, w)``.

        Without a cut, the list is empty.
        """
        if not self.cut:
            return []
        return [level.unflatten(0, (len(images), -1)) for level in self._front.maps(self.backbone.tiles(images))]

    def behind(self, rest: Backbone, images: Tensor, before: Sequence[Tensor]) -> list[Tensor]:
        """Return all maps of ``images``, given those ``before`` the cut; ``rest`` is `rest` or a copy of it."""
        if not self.cut:
            return rest(images)
        tiles = [level.flatten(0, 1) for level in before]
        return rest.join([*tiles, *rest.maps(tiles[-1])[self.cut :]])

    def __contains__(self, key: Hashable) -> bool:
        return key in self._cache

    def maps(self, key: Hashable, images: Tensor) -> list[Tensor]:
        """Return all maps of a batch, and cache that at the cut (or the images) and the pooled features before it."""
        tiles = self.backbone.maps(self.backbone.tiles(images))
        maps = self.backbone.join(tiles)
        stem, features = tiles[self.cut - 1] if self.cut else images, self.backbone.pool(maps[: self.cut])
        size = sum(part.nbytes for part in (stem, *features))
        if key not in self._cache and size <= self._free:
            self._free -= size
            self._cache[key] = (stem, features)
        return maps

    def features(self, key: Hashable) -> list[Tensor]:
        """Return the pooled features of all levels for a cached batch and the current weights: a list of ``(N, C)``."""
        stem, features = self._cache[key]
        maps = self.rest.join(self.rest.maps(stem)[self.cut :]) if self.cut else self.backbone(stem)
        return [*features, *self.backbone.pool(maps)]


def _reproduces(rest: Backbone, maps: Sequence[Tensor], cut: int) -> bool:
    """Return True if the rest, given the last map before the cut, reproduces the maps after it."""
    try:
        result = rest.maps(maps[cut - 1])[cut:]
    except (RuntimeError, AssertionError):  # a module between the stages expects an image
        return False
    return all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(result, maps[cut:], strict=True))


def _trace(backbone: Backbone, x: Tensor) -> tuple[list[tuple[nn.Module, Tensor]], list[Tensor]]:
    """Return the outermost modules called on ``x``, in order and with their outputs, and the feature maps."""
    calls: list[tuple[nn.Module, Tensor]] = []
    depth = 0

    def enter(*_: object) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            calls.append((module, output))

    modules = [module for module in backbone.model.modules() if module is not backbone.model]
    hooks = [m.register_forward_pre_hook(enter) for m in modules] + [m.register_forward_hook(leave) for m in modules]
    try:
        return calls, backbone.maps(x)
    finally:
        for hook in hooks:
            hook.remove()


def _without(backbone: Backbone, skipped: Sequence[nn.Module]) -> Backbone:
    """Return the backbone with some modules replaced by the identity; all parameters are shared."""

    def shallow_copy(module: nn.Module) -> nn.Module:
        if any(module is other for other in skipped):
            return nn.Identity()
        clone = copy.copy(module)
        clone.__dict__["_modules"] = {name: child and shallow_copy(child) for name, child in module._modules.items()}
        return clone

    return shallow_copy(backbone)  # type: ignore[return-value]
