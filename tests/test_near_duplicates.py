"""Shots of one part are found by their features, and other parts are left alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_calibration import normal
from torch import Tensor

from gaussad_pl.data import near_duplicates as module
from gaussad_pl.data.near_duplicates import DUPLICATE_DISTANCE, largest_group, near_duplicates
from gaussad_pl.data.part_features import estimated, middle, whitened


def shots_of(parts: int, shots: int, noise: float = 0.3) -> Tensor:
    """Features ``(parts * shots, 100)``: the shots of a part follow each other."""
    return normal(parts, 100).repeat_interleave(shots, dim=0) + noise * normal(parts * shots, 100, seed=1)


@pytest.mark.parametrize(("parts", "shots"), [(60, 3), (20, 4), (10, 4), (5, 4)])
def test_shots_of_one_part_are_one_group(parts: int, shots: int) -> None:
    groups = near_duplicates(shots_of(parts, shots)).reshape(parts, shots)
    assert (groups == groups[:, :1]).all() and len(np.unique(groups)) >= parts / 2  # the more similar parts join


@pytest.mark.parametrize("dimensions", [30, 400])
def test_parts_that_are_merely_similar_are_alone(dimensions: int) -> None:
    assert len(np.unique(near_duplicates(normal(180, dimensions)))) > 150


def test_two_kinds_of_part_are_not_two_groups() -> None:
    kinds = normal(80, 30) + 20 * (torch.arange(80) % 2)[:, None]
    assert np.bincount(near_duplicates(kinds)).max() <= 8


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_alone(count: int) -> None:
    assert near_duplicates(torch.eye(4)[:count]).tolist() == list(range(count))


@pytest.mark.parametrize("others", [0, 1, 6, 200])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_copies_are_one_group_and_change_no_other(count: int, others: int) -> None:
    """Even if they are so many that the median distance is zero, or more than the largest group may have."""
    different = normal(1 + others, 30)
    alone, groups = near_duplicates(different), near_duplicates(torch.cat([different, different[:1].repeat(count, 1)]))
    assert groups.tolist() == [*alone.tolist(), *[0] * count]


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    """Each is near the next, the first and the last are not: complete linkage alone would cut the chain."""
    features = normal(120, 60)
    step = normal(1, 60, seed=5)[0] * 0.45
    for i in range(1, 5):
        features[i] = features[0] + i * step
    distances = torch.cdist(features, features)
    limit = DUPLICATE_DISTANCE * float(torch.pdist(features).median())
    assert all(distances[i, j] < limit for i, j in pairwise(range(5))) and distances[0, 4] > limit
    groups = near_duplicates(features)
    assert len(set(groups[:5].tolist())) == 1 and len(np.unique(groups)) == 116


def test_near_duplicates_in_two_blocks_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 50)
    features = shots_of(60, 2).reshape(60, 2, 100).transpose(0, 1).reshape(120, 100)  # first and second shots
    groups = near_duplicates(features).reshape(2, 60)
    assert (groups[0] == groups[1]).all() and len(np.unique(groups)) == 60


def test_at_least_five_groups_remain_of_ten_images_or_more() -> None:
    for n in range(10, 400):
        assert -(-n // largest_group(n)) >= 5


def test_levels_count_the_same_and_one_that_never_changes_says_nothing() -> None:
    levels = [normal(40, 5).float(), 100 * normal(40, 80, seed=1).float(), torch.ones(40, 3)]
    found = whitened(levels, estimated(levels))
    parts = found.split([5, 80, 3], dim=1)
    assert [float(part.square().sum(1).mean()) for part in parts] == pytest.approx([1, 1, 0], abs=0.3)
    assert [middle(list(range(n))) for n in (1, 5, 9)] == [[0], [1, 2, 3], [3, 4, 5, 6]]
