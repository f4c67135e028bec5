"""Remembered outputs of the stages that stay as pretrained: the same features as from the images, weights shared."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY
from torch import Tensor

from gaussad_pl.backbones import frozen_stages as frozen
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.frozen_stages import FrozenStages

IMAGES = torch.randint(256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def backbone(name: str = TINY["name"], train: list[int] | None = None, **settings: object) -> Backbone:  # type: ignore[assignment]
    torch.manual_seed(0)
    model = Backbone(**{**TINY, "name": name, **settings})  # type: ignore[arg-type]
    trained = {id(p) for p in model.parameters_of([-2, -1] if train is None else train)} if train != [] else set()
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in trained
    return model


@torch.no_grad()
def change_trained(model: Backbone) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "test_resnet.r160_in1k", "test_convnext.r160_in1k"])
def test_remembered_images_give_the_features_of_the_changed_weights(name: str) -> None:
    model = backbone(name)
    stages = FrozenStages(model)
    assert 0 < stages.cut < len(model.levels)
    with torch.no_grad():
        stages.maps("a", IMAGES)
        before = model.pooled(IMAGES)
        change_trained(model)
        expected, actual = model.pooled(IMAGES), stages.features("a")
    assert_same(actual, expected)
    assert not torch.allclose(actual[-1], before[-1])
    assert torch.equal(actual[0], before[0])


@pytest.mark.parametrize("levels", [[1, 3, -1], [0, -1]])
def test_a_choice_of_levels_is_cut_as_well(levels: list[int]) -> None:
    model = backbone(levels=levels)
    stages = FrozenStages(model)
    assert stages.cut
    with torch.no_grad():
        stages.maps(0, IMAGES)
        change_trained(model)
        assert_same(stages.features(0), model.pooled(IMAGES))


@pytest.mark.parametrize("name", [TINY["name"], "test_vit.r160_in1k"])  # transformers are not cut wrongly
def test_the_images_are_remembered_where_nothing_can_be_cut(name: str) -> None:
    size = 160 if "vit" in name else 64
    images = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    every = list(range(len(backbone(name, image_size=size).levels)))
    model = backbone(name, None if "vit" in name else every, image_size=size)
    stages = FrozenStages(model)
    assert stages.cut == 0
    with torch.no_grad():
        stages.maps(0, images)
        change_trained(model)
        assert_same(stages.features(0), model.pooled(images))


def test_what_does_not_fit_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "LIMIT", 1000)
    model = backbone()
    stages = FrozenStages(model)
    stages.maps(0, IMAGES)
    assert 0 not in stages


def test_the_backbone_itself_stays_as_it_is() -> None:
    model = backbone()
    names = [name for name, _ in model.named_modules()]
    expected = model.pooled(IMAGES)
    stages = FrozenStages(model)
    assert stages.cut and [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(a, b) for a, b in zip(model.pooled(IMAGES), expected, strict=True))
    assert not any(module._forward_hooks for module in model.modules())
