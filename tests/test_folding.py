"""Folded batch normalisation: the same features from fewer layers."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY
from torch import nn

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.folding import folded, folding

IMAGES = torch.randint(256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def backbone(name: str) -> Backbone:
    """With running statistics and weights of its batch normalisations that matter."""
    torch.manual_seed(0)
    model = Backbone(**{**TINY, "name": name})  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "test_resnet.r160_in1k"])
def test_folding_keeps_the_features_and_leaves_no_normalisation(name: str) -> None:
    model = backbone(name)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    twin = folded(model)
    assert count > 5 and not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == count
    with torch.no_grad():
        for actual, expected in zip(twin(IMAGES), model(IMAGES), strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * scale)


def test_folding_succeeds_inside_of_mixed_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        twin = folded(backbone("test_efficientnet.r160_in1k"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())


def test_a_backbone_without_batch_normalisation_stays_as_it_is() -> None:
    model = backbone("test_convnext.r160_in1k")
    with torch.no_grad():
        for actual, expected in zip(folded(model)(IMAGES), model(IMAGES), strict=True):
            assert torch.equal(actual, expected)


def test_a_normalisation_whose_input_is_used_elsewhere_is_not_folded_wrongly() -> None:
    model = backbone("test_resnet.r160_in1k")
    stem = model.model.conv1  # convolution, normalisation, ...

    class Twice(nn.Module):
        """The sum of a normalised map and the map itself."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + x

    assert isinstance(stem[1], nn.BatchNorm2d)
    stem[1] = Twice(stem[1])
    with torch.no_grad():
        for actual, expected in zip(folded(model)(IMAGES), model(IMAGES), strict=True):
            torch.testing.assert_close(actual, expected)


def test_a_model_is_folded_inside_of_the_block_only_even_if_the_block_fails() -> None:
    model = nn.Module()
    model.backbone = plain = backbone("test_efficientnet.r160_in1k")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError), folding(model):
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        model.to("meta")  # as Lightning moves a model between devices
        raise RuntimeError
    assert model.backbone is plain and {p.device.type for p in model.parameters()} == {"meta"}
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in state.items()}
