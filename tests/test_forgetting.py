"""The forgetting signal and the callback that stops by it."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from sklearn.metrics import roc_auc_score

from gaussad_pl.errors import UserError
from gaussad_pl.training.forgetting import ForgettingStop
from gaussad_pl.training.signals import SIGNALS, judge

NORMAL = 50 + 5 * torch.randn(80, generator=torch.Generator().manual_seed(0)).double()
NOISE = torch.randn(80, generator=torch.Generator().manual_seed(1)).double()


def signals(normal: torch.Tensor, augmented: torch.Tensor) -> dict[str, float]:
    return {name: function(normal, augmented) for name, function in SIGNALS.items()}


def test_signals_equal_their_definitions() -> None:
    augmented = 53 + 6 * NOISE
    found = signals(NORMAL, augmented)
    labels = [0] * 80 + [1] * 80
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, torch.cat([NORMAL, augmented])), abs=1e-6)
    pooled = math.sqrt((NORMAL.var(correction=0) + augmented.var(correction=0)) / 2)
    assert found["gap"] == pytest.approx(float(augmented.mean() - NORMAL.mean()) / pooled)
    ratios = (augmented / NORMAL).log()
    assert found["paired"] == pytest.approx(float(ratios.mean()) / math.sqrt(float(ratios.var(correction=0))))
    assert found["log_ratio"] == pytest.approx(float(augmented.log().mean() - NORMAL.log().mean()))


@pytest.mark.parametrize("name", ["paired", "gap", "log_ratio"])
def test_the_default_signals_do_not_saturate_where_auroc_does(name: str) -> None:
    near, far = signals(NORMAL, 100 + 5 * NOISE), signals(NORMAL, 200 + 5 * NOISE)
    assert near["auroc"] == far["auroc"] == 1
    assert far[name] > near[name]


def test_log_ratio_is_blind_to_a_common_scale() -> None:
    assert signals(NORMAL, NORMAL + 3)["log_ratio"] == pytest.approx(signals(9 * NORMAL, 9 * (NORMAL + 3))["log_ratio"])


def test_identical_scores_give_no_signal_and_no_error() -> None:
    same = torch.full((5,), 2.0)
    assert signals(same, same) == {"paired": 0.0, "auroc": 0.5, "gap": 0.0, "log_ratio": 0.0}


class FakeModule:
    """Stands in for the model: its snapshot is the number of the epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def snapshot(self) -> dict[str, torch.Tensor]:
        return {"epoch": torch.tensor(self.epoch)}


class FakeTrainer:
    should_stop = False
    max_epochs = 9


def feed(values: list[float], patience: int = 2) -> tuple[ForgettingStop, int]:
    """Feed signal values of epochs 0, 1, ... until the callback stops; also the number of epochs it saw."""
    callback, module, trainer = ForgettingStop("gap", patience), FakeModule(), FakeTrainer()
    for epoch, value in enumerate(values):
        module.epoch = epoch
        callback._judge(trainer, module, {"epoch": epoch, "gap": value})  # type: ignore[arg-type]
        if trainer.should_stop:
            return callback, epoch
    return callback, len(values) - 1


@pytest.mark.parametrize(
    ("values", "best", "last"),
    [
        ([1.0, 1.2, 1.5, 1.4, 1.3, 9.9], 2, 4),  # turns after epoch 2; what lies beyond the patience is not seen
        ([1.0, 1.2, 1.1, 1.3, 1.2, 1.4], 5, 5),  # a dip shorter than the patience does not stop
        ([1.0, 0.9, 0.8, 0.7], 0, 2),  # the frozen network is a candidate like any other
        ([1.0, 1.0, 1.0], 0, 2),  # no gain is not a gain: the earlier epoch stays
    ],
)
def test_it_stops_after_patience_and_keeps_the_best_epoch(values: list[float], best: int, last: int) -> None:
    callback, stopped = feed(values)
    assert (callback.best_epoch, stopped) == (best, last)
    assert callback.best is not None and int(callback.best["epoch"]) == best


def test_a_smaller_distance_is_better() -> None:
    callback, trainer = ForgettingStop("distance", 2), FakeTrainer()
    for epoch, value in enumerate([9.0, 8.0, 8.5, 8.2]):
        callback._judge(trainer, FakeModule(), {"epoch": epoch, "distance": value})  # type: ignore[arg-type]
    assert callback.best_epoch == 1 and trainer.should_stop


def test_its_state_survives_a_checkpoint() -> None:
    callback, _ = feed([1.0, 1.2, 1.1])
    restored = ForgettingStop("gap", 2)
    restored.load_state_dict(callback.state_dict())
    assert restored.history == callback.history and restored.best_epoch == 1
    trainer: Any = FakeTrainer()
    restored._judge(trainer, FakeModule(), {"epoch": 3, "gap": 1.0})  # type: ignore[arg-type]
    assert trainer.should_stop


def test_a_run_killed_after_its_last_epoch_trains_no_further() -> None:
    callback, _ = feed([1.0, 0.9, 0.8])
    trainer: Any = FakeTrainer()
    callback.on_train_start(trainer, L.LightningModule())
    assert trainer.should_stop


def test_fit_without_the_frozen_state_as_epoch_zero_is_a_clear_error() -> None:
    trainer: Any = FakeTrainer()
    with pytest.raises(UserError, match=r"call trainer.validate before trainer.fit"):
        ForgettingStop().on_train_start(trainer, L.LightningModule())


@pytest.mark.parametrize("signal", ["loss", "paired/confetti"])
def test_unknown_signal_is_a_clear_error(signal: str) -> None:
    record = {"loss": 1.0, "paired": 1.0, "paired/elastic": 1.0, "distance": 9.0}
    if signal == "loss":
        record.pop("loss")
    with pytest.raises(UserError, match=f"signal={signal}: expected one of paired, paired/elastic, distance"):
        judge([record], signal, patience=2)


def test_pairs_see_what_a_spread_of_originals_hides() -> None:
    spread = torch.linspace(1, 100, 80).double()
    found = signals(spread, spread * (1.01 + 0.002 * NOISE))
    assert found["paired"] > 3 and found["gap"] < 0.1
