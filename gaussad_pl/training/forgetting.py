"""Augmented validation: tell held-out good images from augmented copies; when that gets worse, forgetting has begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gaussad_pl.distributed import all_reduce_sum, gather_rows, world
from gaussad_pl.errors import NumericalError, UserError
from gaussad_pl.progress import note
from gaussad_pl.training.levels import level_signals
from gaussad_pl.training.module import GaussianAD
from gaussad_pl.training.signals import judge, signal_record


class ForgettingStop(Callback):
    """Stops fine-tuning at the onset of forgetting and puts the best weights back.

    Each validation scores held-out good images and their augmented copies, which the datamodule made once, so that
    epochs compare. The frozen state is epoch 0 and a candidate like any other: run `trainer.validate` before
    `trainer.fit`. Source of the idea: Rippel et al. 2021 (arXiv 2108.04116).

    Args:
        signal: signal by which the best epoch is chosen: one of `gaussad_pl.training.signals`, as a mean over
            augmentations ("paired") or for one of them ("paired/elastic"); or "distance", the mean score of the
            held-out good images (smaller is better), which sees overfitting but not forgetting.
        patience: see `gaussad_pl.training.signals.judge`.

    Attributes:
        history: one record an epoch with every signal, the mean distance of good images and the training loss.
        level_signals: AUROC of each level for each augmentation in epoch 0, ``(A, L)``: what the level rule sees.
        best_epoch: the epoch whose weights are put back, 0 for the frozen ones.
        collapse: why training ended before its time, if its numbers collapsed; else empty.
    """

    def __init__(self, signal: str = "paired/elastic", patience: int = 3) -> None:
        self.signal = signal
        self.patience = patience
        self.history: list[dict[str, float]] = []
        self.level_signals: Tensor | None = None
        self.best_epoch = 0
        self.best: dict[str, Tensor] | None = None
        self.collapse = ""
        self._outputs: list[dict[str, Tensor]] = []
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.history:
            raise UserError(
                "ForgettingStop needs the frozen state as epoch 0: call trainer.validate before trainer.fit"
            )
        # a run that was killed after its last epoch is not to train another
        trainer.should_stop = judge(self.history, self.signal, self.patience)[1]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int, *args: Any
    ) -> None:
        self._outputs.append({name: column.cpu() for name, column in outputs.items()})

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, GaussianAD)
        names: list[str] = trainer.datamodule.augmentation_names  # type: ignore[attr-defined]
        found = {name: gather_rows(torch.cat([part[name] for part in self._outputs])) for name in self._outputs[0]}
        distances, groups = found["distances"], found["group"]
        if not torch.isfinite(distances).all():
            raise NumericalError(f"the distances of held-out images at step {trainer.global_step} are not finite")
        if not self.history:
            self.level_signals = level_signals(distances, groups, len(names))
            module.choose_levels(self.level_signals)
        scores = found.get("patches", module.model.scores(distances))  # of what is trained
        unseen: list[str] = trainer.datamodule.unseen_augmentations  # type: ignore[attr-defined]
        record = signal_record(scores, groups, names, unseen)
        if self._losses:
            record["loss"] = float(all_reduce_sum(torch.stack(self._losses).mean()) / world())
        self._outputs, self._losses = [], []
        module.log_dict(logged(record), sync_dist=True)
        self._judge(trainer, module, {"epoch": len(self.history), "step": trainer.global_step, **record})

    def _judge(self, trainer: L.Trainer, module: GaussianAD, record: dict[str, float]) -> None:
        """Keep the weights if this epoch is the best so far; stop when forgetting has begun."""
        self.history.append(record)
        self.best_epoch, stop = judge(self.history, self.signal, self.patience)
        if self.best_epoch == record["epoch"]:
            self.best = module.snapshot()
        trainer.should_stop = trainer.should_stop or stop
        if record["epoch"]:
            note(f"Fine-tuning: epoch {record['epoch']} of at most {trainer.max_epochs} done")

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the best state back, also where a resumed run has no epoch left to train (no other hook is called)."""
        assert isinstance(module, GaussianAD)
        self.restore_best(module)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Put the best state back where training has collapsed: the run goes on with it."""
        if isinstance(exception, NumericalError) and self.best is not None and trainer.state.fn == TrainerFn.FITTING:
            assert isinstance(module, GaussianAD)
            self.collapse = f"training ended after step {trainer.global_step}: {exception}"
            self.restore_best(module)

    def restore_best(self, module: GaussianAD) -> None:
        """Give the module the weights and the pooled Gaussians of the best epoch."""
        assert self.best is not None
        module.restore(self.best)
        rank_zero_info(
            f"Forgetting: best {self.signal} at epoch {self.best_epoch} of {len(self.history) - 1}; restored"
        )

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("history", "level_signals", "best_epoch", "best")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def logged(record: Mapping[str, float]) -> dict[str, float]:
    """Return the signals of a record under the names by which loggers know them."""
    return {f"forgetting/{key}": value for key, value in record.items() if key not in ("epoch", "step")}
