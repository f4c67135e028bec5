"""Image-level metrics of anomaly scores, from exact counts of images at each threshold.

torchmetrics divides in float32: the AUROCs of two equally good rankings may differ by rounding, which would then decide
which one is chosen, and an F1 of 0 / 0 is NaN. Integer counts keep ties exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaussad_pl.errors import UserError


@dataclass(frozen=True)
class _Counts:
    """Numbers of images at or above each of T thresholds, which are the distinct scores in descending order.

    Attributes:
        thresholds: float64 ``(T,)``.
        hits: anomalous images, int64 ``(T,)``.
        alarms: normal images, int64 ``(T,)``.
    """

    thresholds: Tensor
    hits: Tensor
    alarms: Tensor


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve of ``scores`` ``(N,)`` for ``labels`` ``(N,)`` (1 is anomalous).

    This is the exact share of pairs of an anomalous and a normal image that are in the right order; ties count half.

    Raises:
        UserError: a score is not finite.
        ValueError: shapes do not match, or one class is missing.

    >>> auroc(torch.tensor([1.0, 3.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    counts = _counts(scores, labels)
    hits, alarms = counts.hits, counts.alarms
    new_hits, above = hits.diff(prepend=hits.new_zeros(1)), alarms.roll(1)
    above[0] = 0
    twice = int((new_hits * (2 * alarms[-1] - alarms - above)).sum())  # pairs in order count two, ties one
    return twice / (2 * int(hits[-1]) * int(alarms[-1]))


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the mean precision at the thresholds of the anomalous images; arguments and errors as in `auroc`."""
    counts = _counts(scores, labels)
    precision = counts.hits.double() / (counts.hits + counts.alarms)
    new_hits = counts.hits.diff(prepend=counts.hits.new_zeros(1))
    return float((new_hits * precision).sum() / counts.hits[-1])


def f1_max(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the best F1 over all thresholds, and the highest threshold that reaches it; equal scores are anomalous.

    The threshold is chosen with the labels, so the F1 is an upper bound. Arguments and errors are as in `auroc`.

    >>> f1_max(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]))
    (1.0, 2.0)
    """
    counts = _counts(scores, labels)
    f1 = 2 * counts.hits.double() / (counts.hits + counts.alarms + counts.hits[-1])  # 2 TP / (2 TP + FP + FN)
    best = int(f1.argmax())
    return float(f1[best]), float(counts.thresholds[best])


def roc(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return false and true positive rates ``(T + 1,)`` float64 at all T thresholds, from (0, 0) to (1, 1)."""
    counts = _counts(scores, labels)
    fpr, tpr = (torch.cat([each.new_zeros(1), each]).double() / each[-1] for each in (counts.alarms, counts.hits))
    return fpr, tpr


def image_metrics(scores: Tensor, labels: Tensor, names: Sequence[object] | None = None) -> dict[str, float | None]:
    """Return image AUROC, average precision and F1max; all are None if only one class is present.

    Args:
        scores: ``(N,)``.
        labels: ``(N,)``, 1 is anomalous.
        names: names of the N images for the error message; by default, their numbers.

    Raises:
        UserError: a score is not finite.
    """
    require_finite(scores, names)
    if len(labels.unique()) < 2:
        return {"image_auroc": None, "image_ap": None, "image_f1max": None}
    return {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1max": f1_max(scores, labels)[0],
    }


def require_finite(values: Tensor, names: Sequence[object] | None = None, what: str = "score") -> None:
    """Check the values ``(N, ...)`` of N images: NaN and infinity cannot be ranked.

    Raises:
        UserError: a value is not finite; the message has the name or number of the first such image.
    """
    finite = values.isfinite().reshape(len(values), math.prod(values.shape[1:])).all(1).cpu()
    if not finite.all():
        row = int(finite.long().argmin())
        name = f"image {row}" if names is None else f"{names[row]}"
        first = next(value for value in values[row].reshape(-1).tolist() if not math.isfinite(value))
        raise UserError(
            f"{name}: the {what} is {first}, expected a finite number: try trainer.precision=32-true, a smaller "
            "learning rate or other weights"
        )


def _counts(scores: Tensor, labels: Tensor) -> _Counts:
    """Count ``scores`` ``(N,)`` for ``labels`` ``(N,)`` (0 is normal) at each threshold; scores are not rounded.

    Raises:
        UserError: a score is not finite.
        ValueError: shapes do not match, or one class is missing.
    """
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)}: expected both of shape (N,)")
    scores, bad = scores.detach().cpu(), labels.detach().cpu() != 0
    require_finite(scores)
    if bad.all() or not bad.any():
        raise ValueError("image metrics need both normal and anomalous images")
    thresholds, rank = scores.double().unique(return_inverse=True)
    hits, alarms = (rank[chosen].bincount(minlength=len(thresholds)).flip(0).cumsum(0) for chosen in (bad, ~bad))
    return _Counts(thresholds.flip(0), hits, alarms)
