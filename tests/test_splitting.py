"""Splits partition the images, keep groups whole and depend on the seed alone."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from gaussad_pl.data.near_duplicates import in_order
from gaussad_pl.data.splitting import fold_of, groups_by_name, hold_out, hold_out_count, partition

GROUPS = st.lists(st.integers(0, 12), min_size=2, max_size=60).map(lambda names: in_order(np.array(names)))
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(groups=GROUPS, folds=st.integers(2, 8), seed=SEEDS, most=st.integers(1, 70))
def test_folds_partition_the_images_and_keep_groups_whole(groups, folds, seed, most) -> None:
    number = groups.max() + 1
    if number < folds:
        with pytest.raises(ValueError):
            fold_of(groups, folds, 0, seed, most)
        return
    everything = list(range(len(groups)))
    whole = []
    for fold in range(folds):
        used, held_out = fold_of(groups, folds, fold, seed, len(groups))
        assert used and held_out and sorted(used + held_out) == everything
        assert not set(groups[used]) & set(groups[held_out])
        whole += held_out
        fewer, bounded = fold_of(groups, folds, fold, seed, most)
        assert bounded and set(bounded) <= set(held_out) and sorted(fewer + bounded) == everything
        assert not set(groups[fewer]) & set(groups[bounded])
        assert len(bounded) <= most or len(set(groups[bounded])) == 1
        assert (fewer, bounded) == fold_of(groups, folds, fold, seed, most)
    assert sorted(whole) == everything


@settings(max_examples=100, deadline=None)
@given(groups=GROUPS, share=st.floats(0.01, 0.99), seed=SEEDS)
def test_what_is_held_out_is_whole_groups_and_never_all(groups, share, seed) -> None:
    if groups.max() == 0:
        with pytest.raises(ValueError):
            hold_out(groups, share, seed)
        return
    out = hold_out(groups, share, seed)
    rest = np.setdiff1d(np.arange(len(groups)), out)
    assert 0 < len(out) < len(groups) and not set(groups[out]) & set(groups[rest])
    assert len(out) <= hold_out_count(len(groups), share) or len(set(groups[out])) == 1
    assert out == hold_out(groups, share, seed)


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(("n", "folds"), [(5, 5), (24, 4), (101, 5), (700, 2)])
def test_single_images_are_split_as_ever(n: int, folds: int, seed: int) -> None:
    """The split of version 14bbd6a, in its own words."""
    alone, most = np.arange(n), 100
    for fold in range(folds):
        used, held_out = list(KFold(folds, shuffle=True, random_state=seed).split(alone))[fold]
        if len(held_out) > most:
            held_out = np.sort(np.random.default_rng(seed).choice(held_out, most, replace=False))
            used = np.setdiff1d(alone, held_out)
        assert fold_of(alone, folds, fold, seed, most) == (used.tolist(), held_out.tolist())
    for share in (0.01, 0.2, 0.99):
        count = max(1, min(round(share * n), n - 1))
        assert hold_out(alone, share, seed) == sorted(random.Random(seed).sample(range(n), count))


def test_parts_hold_whole_groups_and_are_of_one_size() -> None:
    groups = in_order(np.random.default_rng(0).integers(30, size=100))
    parts = partition(groups, 4, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(100))
    assert max(map(len, parts)) - min(map(len, parts)) <= np.bincount(groups).max()
    assert all(len({k for k, part in enumerate(parts) if g in groups[part]}) == 1 for g in np.unique(groups))
    with pytest.raises(ValueError, match="groups into 4 parts"):
        partition(np.zeros(5, dtype=int), 4, seed=0)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"(part\d+)_", [0, 0, 1, 2, 3]),
        (r"part\d+", [0, 0, 1, 2, 3]),
        (r"_[ab]", [0, 1, 0, 2, 3]),
        (r"(x)?part\d", [0, 0, 1, 2, 3]),  # its group takes no part in the match: the whole match names the part
        (r"(ring)", [0, 1, 2, 3, 4]),
        (r"bolt", None),
    ],
)
def test_a_pattern_names_the_part(pattern: str, expected: list[int] | None) -> None:
    names = ["part1_a.png", "part1_b.png", "part2_a.png", "other.png", "ring.png"]
    groups = groups_by_name(names, re.compile(pattern))
    assert groups is None if expected is None else groups is not None and groups.tolist() == expected
