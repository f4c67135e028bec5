"""The choice of levels, and the objectives that use their weights."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from gaussad_pl.errors import UserError
from gaussad_pl.training import levels, objectives

SIGNALS = torch.tensor([[0.4, 0.6, 0.9, 0.8], [0.5, 0.7, 0.7, 0.6]])  # two augmentations, four levels


def test_level_signals_are_the_auroc_of_each_level_and_augmentation() -> None:
    rng = torch.Generator().manual_seed(0)
    groups = torch.arange(3).repeat_interleave(20)
    distances = 50 + torch.randn(60, 4, generator=rng) + groups[:, None] * torch.tensor([0.0, 0.5, 1.0, -1.0])
    found = levels.level_signals(distances, groups, 2)
    assert found.shape == (2, 4)
    for augmentation in (1, 2):
        for level in range(4):
            chosen = (groups == 0) | (groups == augmentation)
            expected = roc_auc_score(groups[chosen] > 0, distances[chosen, level])
            assert float(found[augmentation - 1, level]) == pytest.approx(expected, abs=1e-6)


def test_top_k_takes_the_best_mean_signals() -> None:
    assert levels.top_k(SIGNALS, 1).tolist() == [0, 0, 1, 0]
    assert levels.top_k(SIGNALS, 2).tolist() == [0, 0, 1, 1]
    assert levels.top_k(SIGNALS, 4).tolist() == levels.all_levels(SIGNALS).tolist() == [1, 1, 1, 1]


def test_excess_weighs_by_what_exceeds_chance() -> None:
    assert levels.excess(SIGNALS).tolist() == pytest.approx([0, 0.5, 1, 2 / 3])
    assert levels.excess(torch.full((2, 3), 0.4)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("k", [0, 5])
def test_more_levels_than_there_are_is_a_clear_error(k: int) -> None:
    with pytest.raises(UserError, match=f"model.level_rule.k={k}: expected a number from 1 to 4"):
        levels.top_k(SIGNALS, k)


def test_objectives_equal_their_definitions() -> None:
    distances, weights = torch.tensor([[1.0, 2.0, 5.0], [3.0, 0.0, 1.0]]), torch.tensor([1.0, 0.5, 0.0])
    assert float(objectives.mahalanobis(distances, weights)) == ((1 + 1) + 3) / 2
    assert float(objectives.squared(distances, weights)) == ((1 + 2) + 9) / 2
