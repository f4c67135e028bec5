"""Fold batch normalisation into the preceding convolutions: the same features, about 20 % faster on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gaussad_pl.backbones.backbone import Backbone

TOLERANCE = 1e-3  # relative to the largest feature: well above rounding errors, well below a wrong fold


@torch.no_grad()
def folded(backbone: Backbone) -> Backbone:
    """Return a copy with batch normalisations folded into the preceding convolutions, for inference only.

    A normalisation that does not directly follow a convolution is kept. If folding would change the features, the
    backbone itself is returned.
    """
    result = copy.deepcopy(backbone)
    for convolution, norm in _conv_norm_pairs(result):
        fused = fuse_conv_bn_eval(result.model.get_submodule(convolution), result.model.get_submodule(norm))
        activation = _activation(result.model.get_submodule(norm))
        _replace(result.model, convolution, fused)
        _replace(result.model, norm, activation)
    probe = _probe(backbone)
    with torch.autocast(probe.device.type, enabled=False):  # half precision rounds by more than the tolerance
        same = all(
            torch.allclose(a, b, rtol=0, atol=TOLERANCE * float(b.abs().max()))
            for a, b in zip(result.maps(probe), backbone.maps(probe), strict=True)
        )
    return result if same else backbone


@contextmanager
def folding(model: nn.Module) -> Iterator[None]:
    """Let ``model.backbone`` be folded inside the block, which must leave its weights as they are."""
    plain: Backbone = model.backbone  # type: ignore[assignment]
    model.backbone = quick = folded(plain)
    try:
        yield
    finally:
        model.backbone = plain.to(quick.scale.device)


def _conv_norm_pairs(backbone: Backbone) -> list[tuple[str, str]]:
    """Return the names of each convolution and of the batch normalisation that directly follows it."""
    produced: dict[int, tuple[str, Tensor]] = {}  # keeps the tensor alive, as its id could be reused otherwise
    pairs = []

    def watch(name: str, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        def before_norm(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in produced:
                pairs.append((produced[id(inputs[0])][0], name))

        def after_convolution(_: nn.Module, __: object, output: Tensor) -> None:
            produced[id(output)] = (name, output)

        if isinstance(module, nn.Conv2d):
            return [module.register_forward_hook(after_convolution)]
        return [module.register_forward_pre_hook(before_norm)] if isinstance(module, nn.BatchNorm2d) else []

    hooks = [hook for name, module in backbone.model.named_modules() for hook in watch(name, module)]
    backbone.maps(_probe(backbone))
    for hook in hooks:
        hook.remove()
    return pairs


def _activation(norm: nn.Module) -> nn.Module:
    """Return the rest of a folded batch normalisation: timm's contain dropout and an activation."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _probe(backbone: Backbone) -> Tensor:
    random = torch.Generator().manual_seed(0)
    size = (1, 3, backbone.image_size, backbone.image_size)
    return torch.randn(size, generator=random).to(backbone.scale.device, memory_format=torch.channels_last)
