"""Averaged weights: validate, choose and score with the mean of the last steps, which forgets later than the last."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gaussad_pl.errors import UserError
from gaussad_pl.training.module import GaussianAD


class AverageWeights(Callback):
    """Keeps an exponential moving average of the trained weights and puts it in their place for each validation.

    Unlike Lightning's EMAWeightAveraging it leaves the Gaussians alone, which are estimated for the averaged weights
    and cannot be averaged themselves, and the final checkpoint, whose weights `ForgettingStop` chooses.

    Args:
        decay: share of the average that a step keeps, in [0, 1); 0 is the last step itself.
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.averaging.decay={decay}: expected a number from 0 to below 1")
        self.average: list[Tensor] = []
        self._update = get_ema_multi_avg_fn(decay)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        weights = _trained(module)
        start = self.average or weights  # a resumed run goes on with its average
        self.average = [a.detach().to(w.device, copy=True) for a, w in zip(start, weights, strict=True)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._update(self.average, [weight.detach() for weight in _trained(module)], 0)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._swap(module)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._swap(module)

    def _swap(self, module: L.LightningModule) -> None:
        """Exchange weights and average; before training there is none."""
        assert isinstance(module, GaussianAD)
        if not self.average:
            return
        for weight, average in zip(_trained(module), self.average, strict=True):
            weight.data, average.data = average.data, weight.data
        module.stale = True

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]


def _trained(module: L.LightningModule) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
