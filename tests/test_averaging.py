"""Averaged weights: what validates, is chosen and scores."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from conftest import TINY
from torch import nn

from gaussad_pl.errors import UserError
from gaussad_pl.training.averaging import AverageWeights
from gaussad_pl.training.module import GaussianAD

TRAINER: Any = None


@pytest.fixture
def model() -> GaussianAD:
    return GaussianAD({**TINY, "weights": "random"}, train_levels=[-1])


def trained(model: L.LightningModule) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def step(model: GaussianAD, callback: AverageWeights) -> None:
    with torch.no_grad():
        for parameter in trained(model):
            parameter += torch.randn(parameter.shape)
    callback.on_train_batch_end(TRAINER, model)


def test_validation_sees_the_moving_average_and_training_goes_on_without_it(model: GaussianAD) -> None:
    callback = AverageWeights(decay=0.7)
    callback.on_validation_start(TRAINER, model)  # epoch 0: nothing to average yet
    callback.on_validation_end(TRAINER, model)
    callback.on_train_start(TRAINER, model)
    naive = [p.detach().clone() for p in trained(model)]
    frozen = [p.detach().clone() for p in model.parameters() if not p.requires_grad]
    for _ in range(3):
        step(model, callback)
        naive = [0.7 * a + 0.3 * p.detach() for a, p in zip(naive, trained(model), strict=True)]
    last = [p.detach().clone() for p in trained(model)]
    model.stale = False
    callback.on_validation_start(TRAINER, model)
    assert model.stale  # the Gaussians must be estimated again
    for parameter, average in zip(trained(model), naive, strict=True):
        torch.testing.assert_close(parameter.detach(), average)
    callback.on_validation_end(TRAINER, model)
    for parameter, before in zip(trained(model), last, strict=True):
        assert torch.equal(parameter, before)
    for parameter, before in zip([p for p in model.parameters() if not p.requires_grad], frozen, strict=True):
        assert torch.equal(parameter, before)


def test_no_decay_averages_nothing(model: GaussianAD) -> None:
    callback = AverageWeights(decay=0.0)
    callback.on_train_start(TRAINER, model)
    step(model, callback)
    for parameter, average in zip(trained(model), callback.average, strict=True):
        torch.testing.assert_close(parameter.detach(), average)


def test_the_average_survives_a_checkpoint(model: GaussianAD) -> None:
    callback = AverageWeights(decay=0.9)
    callback.on_train_start(TRAINER, model)
    step(model, callback)
    resumed = AverageWeights(decay=0.9)
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_start(TRAINER, model)
    for a, b in zip(callback.average, resumed.average, strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_a_clear_error(decay: float) -> None:
    with pytest.raises(UserError, match=f"averaging.decay={decay}: expected a number from 0 to below 1"):
        AverageWeights(decay)
