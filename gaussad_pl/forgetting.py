"""Augmented validation: tell held-out good images from augmented copies; when that gets worse, forgetting has begun."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.levels import level_signals
from gaussad_pl.metrics import auroc
from gaussad_pl.module import GaussianAD

SIGNALS = ("auroc", "gap", "log_ratio", "distance")


def worth(record: Mapping[str, float], signal: str) -> float:
    """The signal of an epoch's record, turned so that larger is better."""
    return -record[signal] if signal == "distance" else record[signal]


def signals(normal: Tensor, augmented: Tensor) -> dict[str, float]:
    """How well scores tell good images ``(N,)`` from augmented copies ``(M,)``; larger is better for each.

    Returns:
        auroc: area under the ROC curve; saturates at 1 where the copies are easy to tell.
        gap: difference of the means in units of the pooled standard deviation (Cohen's d); does not saturate.
        log_ratio: difference of the mean logarithms; does not saturate, and blind to a common scale of the scores.
    """
    scores = torch.cat([normal, augmented])
    labels = torch.cat([torch.zeros_like(normal), torch.ones_like(augmented)])
    deviation = ((normal.var(correction=0) + augmented.var(correction=0)) / 2).sqrt()
    tiny = torch.finfo(scores.dtype).tiny
    return {
        "auroc": auroc(scores, labels),
        "gap": float((augmented.mean() - normal.mean()) / deviation.clamp(min=tiny)),
        "log_ratio": float(augmented.clamp(min=tiny).log().mean() - normal.clamp(min=tiny).log().mean()),
    }


def judge(history: Sequence[Mapping[str, float]], signal: str, patience: int, tolerance: float) -> tuple[int, bool]:
    """The best epoch so far, and whether to stop.

    Forgetting has begun when the copies are told worse than ever before: their AUROC is more than ``tolerance`` below
    its best. Such an epoch is no candidate. Of the others the best one has the best signal, the earliest of equals.

    Args:
        history: one record an epoch, the frozen state first.
        signal: one of `SIGNALS`.
        patience: epochs without a new best signal after which to stop.
        tolerance: of the AUROC, in [0, 1].
    """
    best, peak = 0, history[0]["auroc"]
    for epoch, record in enumerate(history):
        peak = max(peak, record["auroc"])
        if record["auroc"] < peak - tolerance:
            return best, True
        if worth(record, signal) > worth(history[best], signal):
            best = epoch
        if epoch - best >= patience:
            return best, True
    return best, False


class ForgettingStop(Callback):
    """Stops fine-tuning at the onset of forgetting and puts the best weights back.

    Each validation scores held-out good images and their augmented copies, which the datamodule made once, so that
    epochs compare; signals are means over augmentations. The frozen state is epoch 0 and a candidate like any other:
    run `trainer.validate` before `trainer.fit`. Source of the idea: Rippel et al. 2021 (arXiv 2108.04116).

    Args:
        signal: what makes an epoch the best one: "distance" (smallest mean score of the held-out good images, which
            sees overfitting but not forgetting) or "log_ratio", "gap", "auroc" (largest; see `signals`).
        patience: see `judge`.
        tolerance: see `judge`; 1 leaves the decision to the signal alone.

    Attributes:
        history: one record an epoch with every signal, the mean distance of good images and the training loss.
        level_signals: AUROC of each level for each augmentation in epoch 0, ``(A, L)``: what the level rule sees.
        best_epoch: the epoch whose weights are put back, 0 for the frozen ones.
    """

    def __init__(self, signal: str = "distance", patience: int = 3, tolerance: float = 0.02) -> None:
        if signal not in SIGNALS:
            raise UserError(f"callbacks.forgetting.signal={signal}: expected one of {', '.join(SIGNALS)}")
        self.signal = signal
        self.patience = patience
        self.tolerance = tolerance
        self.history: list[dict[str, float]] = []
        self.level_signals: Tensor | None = None
        self.best_epoch = 0
        self.best: dict[str, Tensor] | None = None
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.history:
            raise UserError(
                "ForgettingStop needs the frozen state as epoch 0: call trainer.validate before trainer.fit"
            )
        # a run that was killed after its last epoch is not to train another
        trainer.should_stop = judge(self.history, self.signal, self.patience, self.tolerance)[1]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, *args: Any
    ) -> None:
        self._outputs.append((outputs["distances"].cpu(), outputs["group"].cpu()))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, GaussianAD)
        names: list[str] = trainer.datamodule.augmentation_names  # type: ignore[attr-defined]
        distances, groups = (torch.cat(part) for part in zip(*self._outputs, strict=True))
        if not self.history:
            self.level_signals = level_signals(distances, groups, len(names))
            module.choose_levels(self.level_signals)
        scores = module.scores(distances)
        normal = scores[groups == 0]
        found = {name: signals(normal, scores[groups == i]) for i, name in enumerate(names, start=1)}
        record = {f"{key}/{name}": value for name, values in found.items() for key, value in values.items()}
        for key in ("auroc", "gap", "log_ratio"):  # for equal groups the mean AUROC is that of all copies together
            record[key] = math.fsum(values[key] for values in found.values()) / len(found)
        record["distance"] = float(normal.mean())
        if self._losses:
            record["loss"] = float(torch.stack(self._losses).mean())
        self._outputs, self._losses = [], []
        module.log_dict({f"forgetting/{key}": value for key, value in record.items()})
        self._judge(trainer, module, {"epoch": len(self.history), "step": trainer.global_step, **record})

    def _judge(self, trainer: L.Trainer, module: GaussianAD, record: dict[str, float]) -> None:
        """Keep the weights if this epoch is the best so far; stop when forgetting has begun."""
        self.history.append(record)
        self.best_epoch, stop = judge(self.history, self.signal, self.patience, self.tolerance)
        if self.best_epoch == record["epoch"]:
            self.best = module.snapshot()
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, GaussianAD) and self.best is not None
        module.restore(self.best)
        rank_zero_info(
            f"Forgetting: best {self.signal} at epoch {self.best_epoch} of {len(self.history) - 1}; restored"
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("history", "level_signals", "best_epoch", "best")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
