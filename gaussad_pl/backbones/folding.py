"""Batch normalisation folded into the convolutions before it: the same features, a fifth sooner on a CPU."""

from __future__ import annotations

import copy

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gaussad_pl.backbones.backbone import Backbone

TOLERANCE = 1e-3  # of the features, relative to their largest; rounding is far below, a wrong fold far above


@torch.no_grad()
def folded(backbone: Backbone) -> Backbone:
    """A copy whose batch normalisations are part of the convolutions before them: for scoring alone.

    Where a normalisation does not directly follow a convolution, or the features would not stay the same, it is left.
    """
    twin = copy.deepcopy(backbone)
    for convolution, norm in _pairs(twin):
        fused = fuse_conv_bn_eval(twin.model.get_submodule(convolution), twin.model.get_submodule(norm))
        after = _activation(twin.model.get_submodule(norm))
        _replace(twin.model, convolution, fused)
        _replace(twin.model, norm, after)
    probe = _probe(backbone)
    same = all(
        torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(b.abs().max()))
        for a, b in zip(twin.maps(probe), backbone.maps(probe), strict=True)
    )
    return twin if same else backbone


def _pairs(backbone: Backbone) -> list[tuple[str, str]]:
    """Names of the convolutions whose output goes into a batch normalisation, with the names of these."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor, too: its identity is free again when it is gone
    pairs = []

    def watch(name: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        def left(_: nn.Module, __: object, output: Tensor) -> None:
            made[id(output)] = (name, output)

        if isinstance(module, nn.Conv2d):
            return [module.register_forward_hook(left)]
        return [module.register_forward_pre_hook(entered)] if isinstance(module, nn.BatchNorm2d) else []

    hooks = [hook for name, module in backbone.model.named_modules() for hook in watch(name, module)]
    backbone.maps(_probe(backbone))
    for hook in hooks:
        hook.remove()
    return pairs


def _activation(norm: nn.Module) -> nn.Module:
    """What is left of a batch normalisation; timm's have an activation in them."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _probe(backbone: Backbone) -> Tensor:
    random = torch.Generator().manual_seed(0)
    size = (1, 3, backbone.image_size, backbone.image_size)
    return torch.randn(size, generator=random).to(backbone.scale.device, memory_format=torch.channels_last)
