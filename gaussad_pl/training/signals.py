"""Forgetting signals: how well the scores of a model tell good images from augmented copies of them.

A new signal is one function here, decorated with `signal`, and its name in `callbacks.forgetting.signal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.metrics import image

Signal = Callable[[Tensor, Tensor], float]
SIGNALS: dict[str, Signal] = {}
DISTANCE = "distance"  # mean score of the held-out good images: sees overfitting, not forgetting; smaller is better


def signal(function: Signal) -> Signal:
    """Register a function of the scores of good images ``(N,)`` and of a copy of each ``(N,)``; larger is better."""
    SIGNALS[function.__name__] = function
    return function


@signal
def paired(normal: Tensor, augmented: Tensor) -> float:
    """Mean logarithm of a copy's score over its original's, in units of its standard deviation (Cohen's d_z).

    What makes one image score higher than another cancels, so faint changes count.
    """
    ratios = _log_ratios(normal, augmented)
    return float(ratios.mean() / ratios.std(correction=0).clamp(min=torch.finfo(ratios.dtype).tiny))


@signal
def log_ratio(normal: Tensor, augmented: Tensor) -> float:
    """Difference of the mean logarithms; does not saturate, and ignores a common scale of the scores."""
    return float(_log_ratios(normal, augmented).mean())


@signal
def gap(normal: Tensor, augmented: Tensor) -> float:
    """Difference of the means in units of the pooled standard deviation (Cohen's d); does not saturate."""
    deviation = ((normal.var(correction=0) + augmented.var(correction=0)) / 2).sqrt()
    return float((augmented.mean() - normal.mean()) / deviation.clamp(min=torch.finfo(deviation.dtype).tiny))


@signal
def auroc(normal: Tensor, augmented: Tensor) -> float:
    """Area under the ROC curve; saturates at 1 where the copies are easy to tell."""
    labels = torch.cat([torch.zeros_like(normal), torch.ones_like(augmented)])
    return image.auroc(torch.cat([normal, augmented]), labels)


def signal_record(
    scores: Tensor, groups: Tensor, names: Sequence[str], counted: Sequence[str] | None = None
) -> dict[str, float]:
    """All signals of one epoch: for each augmentation (``paired/elastic``), and their means (``paired``).

    Args:
        scores: of held-out good images and their copies, ``(V,)``.
        groups: 0 for good images, a for the copies by the a-th augmentation, ``(V,)``.
        names: of the augmentations.
        counted: those of them that the means are over, None for all.
    """
    normal = scores[groups == 0]
    copies = {name: scores[groups == group] for group, name in enumerate(names, start=1)}
    record: dict[str, float] = {}
    for key, function in SIGNALS.items():
        values = {name: function(normal, augmented) for name, augmented in copies.items()}
        record |= {f"{key}/{name}": value for name, value in values.items()}
        mean = [values[name] for name in (names if counted is None else counted)]
        record[key] = math.fsum(mean) / len(mean)
    return {**record, DISTANCE: float(normal.mean())}


def oriented(record: Mapping[str, float], name: str) -> float:
    """The signal of an epoch's record, with its sign such that larger is better.

    Raises:
        UserError: no such signal, or the validation has no such augmentation.
    """
    if name not in record:
        known = ", ".join(key for key in record if key.split("/")[0] in (*SIGNALS, DISTANCE))
        raise UserError(f"callbacks.forgetting.signal={name}: expected one of {known}")
    return -record[name] if name == DISTANCE else record[name]


def judge(history: Sequence[Mapping[str, float]], name: str, patience: int) -> tuple[int, bool]:
    """The epoch with the best signal so far, the earliest of equals, and whether to stop: forgetting has begun.

    Args:
        history: one record an epoch, the frozen state first.
        name: of the signal, a key of the records.
        patience: epochs without a new best signal after which to stop.
    """
    best = 0
    for epoch, record in enumerate(history):
        if oriented(record, name) > oriented(history[best], name):
            best = epoch
        if epoch - best >= patience:
            return best, True
    return best, False


def _log_ratios(normal: Tensor, augmented: Tensor) -> Tensor:
    tiny = torch.finfo(normal.dtype).tiny
    return augmented.clamp(min=tiny).log() - normal.clamp(min=tiny).log()
