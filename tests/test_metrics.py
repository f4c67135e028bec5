"""Image metrics against scikit-learn, on scores far outside [0, 1] as distances are."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from gaussad_pl.metrics import auroc, f1_max, image_metrics, roc


def scores_and_labels(seed: int, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.rand(200, generator=rng) < 0.4
    scores = 150 + 20 * torch.randn(200, generator=rng) + 15 * labels
    return (scores.round(decimals=-1) if ties else scores), labels.long()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_image_metrics_equal_scikit_learn(seed: int, ties: bool) -> None:
    scores, labels = scores_and_labels(seed, ties)
    found = image_metrics(scores, labels)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall)
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found["image_f1max"] == pytest.approx(f1.max(), abs=1e-6)


def test_roc_equals_scikit_learn() -> None:
    scores, labels = scores_and_labels(0, ties=True)
    fpr, tpr = roc(scores, labels)
    expected_fpr, expected_tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    torch.testing.assert_close(fpr.double(), torch.from_numpy(expected_fpr), atol=1e-6, rtol=0)
    torch.testing.assert_close(tpr.double(), torch.from_numpy(expected_tpr), atol=1e-6, rtol=0)


def test_the_threshold_of_f1_max_reaches_it() -> None:
    scores, labels = scores_and_labels(0, ties=True)
    best, threshold = f1_max(scores, labels)
    predicted = scores >= threshold
    true = int((predicted & (labels == 1)).sum())
    assert best == pytest.approx(2 * true / (int(predicted.sum()) + int(labels.sum())), abs=1e-6)


def test_perfect_reversed_and_useless_scores() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert auroc(torch.tensor([1.0, 2.0, 30.0, 40.0]), labels) == 1
    assert auroc(torch.tensor([40.0, 30.0, 2.0, 1.0]), labels) == 0
    assert auroc(torch.full((4,), 99.0), labels) == 0.5


def test_one_class_alone_has_no_metrics() -> None:
    assert set(image_metrics(torch.rand(5), torch.zeros(5)).values()) == {None}
