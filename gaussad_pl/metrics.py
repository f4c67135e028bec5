"""Image-level metrics of anomaly scores: a thin, safe use of torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, BinaryPrecisionRecallCurve, BinaryROC

# torchmetrics applies a sigmoid to scores outside [0, 1], which saturates on distances; None leaves them as they are
_RAW: dict[str, Any] = {"normalization": None}


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of ``scores`` ``(N,)`` for ``labels`` ``(N,)`` (1 is anomalous); ties count half."""
    metric = BinaryAUROC(**_RAW)
    return float(metric(scores.double(), labels.long()))


def f1_max(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Best F1 over all thresholds, and the threshold that reaches it. It looks at the labels: an upper bound."""
    precision, recall, thresholds = BinaryPrecisionRecallCurve(**_RAW)(scores.double(), labels.long())
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


def roc(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates of all thresholds, two tensors ``(T,)`` from (0, 0) to (1, 1)."""
    fpr, tpr, _ = BinaryROC(**_RAW)(scores.double(), labels.long())
    return fpr, tpr


def image_metrics(scores: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Image AUROC, average precision and F1max of ``scores`` ``(N,)``; all None where only one class is present."""
    if len(labels.unique()) < 2:
        return {"image_auroc": None, "image_ap": None, "image_f1max": None}
    average_precision = BinaryAveragePrecision(**_RAW)
    return {
        "image_auroc": auroc(scores, labels),
        "image_ap": float(average_precision(scores.double(), labels.long())),
        "image_f1max": f1_max(scores, labels)[0],
    }
