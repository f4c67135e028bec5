"""What fine-tuning leaves alone: the same images, and what the frozen stages make of them, are computed once."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from gaussad_pl.backbones.backbone import Backbone, pool

LIMIT = 4 * 2**30  # bytes that are remembered; the stages run again for what does not fit


class FrozenStages:
    """A backbone cut behind the last level before which nothing trains, and a memory of what comes before the cut.

    Attributes:
        rest: the backbone without the modules before the cut, of shared parameters.
        cut: number of levels before the cut; 0, and images are remembered, where the backbone cannot be cut because its
            first level trains or because its stages are no mere chain (transformers add the positions in between).
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cut, self.rest = 0, backbone
        self._front = backbone
        self._memory: dict[Hashable, tuple[Tensor, list[Tensor]]] = {}
        self._free = LIMIT
        probe = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=backbone.scale.device)
        probe[..., ::7] = 1
        with torch.no_grad():
            calls, maps = _trace(backbone, probe)
            for cut in range(_frozen_levels(backbone), 0, -1):
                before = next((calls[: i + 1] for i, (_, out) in enumerate(calls) if out is maps[cut - 1]), [])
                rest = _without(backbone, [module for module, _ in before])
                if before and _continues(rest, maps, cut):
                    self.cut, self.rest = cut, rest
                    self._front = copy.copy(backbone)
                    self._front.indices = backbone.indices[:cut]
                    return

    def before(self, images: Tensor) -> list[Tensor]:
        """The maps before the cut of ``images`` ``(N, 3, H, W)``, uint8; none without a cut."""
        return self._front(images) if self.cut else []

    def behind(self, rest: Backbone, images: Tensor, before: Sequence[Tensor]) -> list[Tensor]:
        """All maps of ``images`` whose maps ``before`` the cut are known; ``rest`` is `rest` or a copy of it."""
        return [*before, *rest.maps(before[-1])[self.cut :]] if self.cut else rest(images)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory

    def remember(self, key: Hashable, images: Tensor, maps: Sequence[Tensor]) -> None:
        """Keep what comes before the cut of a batch of images and their feature maps."""
        if key in self._memory:
            return
        stem, features = maps[self.cut - 1] if self.cut else images, pool(maps[: self.cut])
        size = sum(part.nbytes for part in (stem, *features))
        if size <= self._free:
            self._free -= size
            self._memory[key] = (stem, features)

    def features(self, key: Hashable) -> list[Tensor]:
        """Pooled features of all levels of a remembered batch, for the present weights: a list of ``(N, C)``."""
        stem, features = self._memory[key]
        maps = self.rest.maps(stem)[self.cut :] if self.cut else self.backbone(stem)
        return [*features, *pool(maps)]


def _frozen_levels(backbone: Backbone) -> int:
    """Number of levels, from the shallowest on, that no trained parameter takes part in; the last is never counted."""
    count = len(backbone.levels) - 1
    for i, level in enumerate(backbone.levels[:-1]):
        if any(parameter.requires_grad for parameter in backbone.parameters_of([level.index])):
            count = i
            break
    return count


def _continues(rest: Backbone, maps: Sequence[Tensor], cut: int) -> bool:
    """Whether the rest makes the maps behind the cut out of the last one before it."""
    try:
        found = rest.maps(maps[cut - 1])[cut:]
    except (RuntimeError, AssertionError):  # something between the stages expects an image
        return False
    return all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, maps[cut:], strict=True))


def _trace(backbone: Backbone, x: Tensor) -> tuple[list[tuple[nn.Module, Tensor]], list[Tensor]]:
    """The outermost modules that ran on ``x``, in their order, each with its output; and the feature maps."""
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
    """The same backbone, sharing all parameters, with some modules replaced by the identity."""

    def copied(module: nn.Module) -> nn.Module:
        if any(module is other for other in skipped):
            return nn.Identity()
        twin = copy.copy(module)
        twin.__dict__["_modules"] = {name: child and copied(child) for name, child in module._modules.items()}
        return twin

    return copied(backbone)  # type: ignore[return-value]
