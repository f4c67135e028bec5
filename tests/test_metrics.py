"""Image metrics against scikit-learn, on scores far outside [0, 1] as distances are."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from gaussad_pl.errors import UserError
from gaussad_pl.metrics import image as metrics
from gaussad_pl.metrics.image import auroc, average_precision, f1_max, image_metrics, roc


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
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found["image_f1max"] == pytest.approx(np.nanmax(f1), abs=1e-12)


def test_roc_equals_scikit_learn() -> None:
    scores, labels = scores_and_labels(0, ties=True)
    fpr, tpr = roc(scores, labels)
    expected_fpr, expected_tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    torch.testing.assert_close(fpr, torch.from_numpy(expected_fpr), atol=1e-12, rtol=0)
    torch.testing.assert_close(tpr, torch.from_numpy(expected_tpr), atol=1e-12, rtol=0)


def test_the_threshold_of_f1_max_reaches_it() -> None:
    scores, labels = scores_and_labels(0, ties=True)
    best, threshold = f1_max(scores, labels)
    predicted = scores >= threshold
    true = int((predicted & (labels == 1)).sum())
    assert best == 2 * true / (int(predicted.sum()) + int(labels.sum()))


def test_f1_max_where_the_highest_score_is_that_of_a_good_image() -> None:
    scores, labels = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([0, 1, 1, 0])
    assert f1_max(scores, labels) == (0.8, 2.0)
    assert image_metrics(scores, labels)["image_f1max"] == 0.8
    assert f1_max(torch.tensor([2.0, 1.0]), torch.tensor([0, 1])) == (2 / 3, 1.0)


def test_of_equally_good_thresholds_the_highest_is_given() -> None:
    best, threshold = f1_max(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 0, 1]))
    assert best == 2 / 3 and threshold == 4.0


def test_perfect_reversed_and_useless_scores() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert auroc(torch.tensor([1.0, 2.0, 30.0, 40.0]), labels) == 1
    assert auroc(torch.tensor([40.0, 30.0, 2.0, 1.0]), labels) == 0
    assert auroc(torch.full((4,), 99.0), labels) == 0.5


def test_equally_good_rankings_have_the_very_same_auroc() -> None:
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(50):  # 20 of 21 pairs are in order, now here and now there
        labels = np.array([0] * 7 + [1] * 3)
        swapped = rng.integers(1, 7)
        order = np.r_[np.arange(swapped), 7, np.arange(swapped, 7), 8, 9]
        right = sum(order.tolist().index(b) > order.tolist().index(g) for b in (7, 8, 9) for g in range(7))
        scores = torch.empty(10, dtype=torch.float64)
        scores[torch.from_numpy(order)] = torch.from_numpy(np.sort(rng.normal(size=10)))
        found.add((right, auroc(scores, torch.from_numpy(labels))))
    assert len({right for right, _ in found}) == len(found) and all(value == right / 21 for right, value in found)


def test_scores_are_not_rounded_to_float32() -> None:
    scores, labels = 150 + 1e-10 * torch.arange(6, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    assert image_metrics(scores, labels) == {"image_auroc": 1, "image_ap": 1, "image_f1max": 1}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 0]])
def test_a_score_that_is_not_finite_is_named_and_never_ranked(broken: float, labels: list[int]) -> None:
    scores, classes = torch.tensor([1.0, broken, 2.0]), torch.tensor(labels)
    with pytest.raises(UserError, match=f"^image 1: the score is {broken}") as error:
        image_metrics(scores, classes)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^/b.png: the score is"):
        image_metrics(scores, classes, [Path(f"/{name}.png") for name in "abc"])
    for metric in (auroc, average_precision, f1_max, roc):
        with pytest.raises(UserError, match="image 1"):
            metric(scores, torch.tensor([0, 0, 1]))


def test_one_class_alone_has_no_metrics() -> None:
    assert set(image_metrics(torch.rand(5), torch.zeros(5)).values()) == {None}
    assert set(image_metrics(torch.rand(0), torch.zeros(0)).values()) == {None}
    with pytest.raises(ValueError, match="both normal and anomalous"):
        auroc(torch.rand(5), torch.ones(5))
    with pytest.raises(ValueError, match="expected both of shape"):
        auroc(torch.rand(5), torch.ones(4))


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(metrics).failed == 0
