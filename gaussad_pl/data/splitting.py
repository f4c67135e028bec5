"""Splits that keep groups of images together: pure functions of the groups ``(N,)`` and a seed.

A group is a set of images of the same part. If every image is its own group, these are the usual splits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gaussad_pl.data.near_duplicates import in_order

Groups = NDArray[np.int64]


def fold_of(groups: Groups, folds: int, fold: int, seed: int, most: int) -> tuple[list[int], list[int]]:
    """Split off one of ``folds`` folds of the groups; returns the indices of the used and of the held-out images.

    Of a fold with more than ``most`` images, random groups with at most ``most`` images in total are held out, and the
    others are used.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    from sklearn.model_selection import KFold  # here: recalibration is to do without scikit-learn

    groups = in_order(groups)
    split = KFold(folds, shuffle=True, random_state=seed).split(np.arange(groups.max() + 1))
    held_out = list(split)[fold][1]
    if np.isin(groups, held_out).sum() > most:
        order = np.random.default_rng(seed).choice(held_out, min(most, len(held_out)), replace=False)
        held_out = np.array(_fitting(order.tolist(), sizes(groups), most))
    out = np.isin(groups, held_out)
    return np.flatnonzero(~out).tolist(), np.flatnonzero(out).tolist()


def hold_out(groups: Groups, share: float, seed: int) -> list[int]:
    """Draw random groups with about a ``share`` of the images, at least one but not all; returns their indices.

    Raises:
        ValueError: there is only one group.
    """
    number = int(groups.max()) + 1
    if number < 2:
        raise ValueError(f"{number} group cannot be split")
    count = hold_out_count(len(groups), share)
    order = random.Random(seed).sample(range(number), min(count, number - 1))
    return np.flatnonzero(np.isin(groups, _fitting(order, sizes(groups), count))).tolist()


def hold_out_count(n: int, share: float) -> int:
    """Return the number of images closest to a ``share`` of ``n``, at least one but not all.

    >>> hold_out_count(24, 0.2), hold_out_count(2, 0.9)
    (5, 1)
    """
    return max(1, min(round(share * n), n - 1))


def partition(groups: Groups, parts: int, seed: int) -> list[list[int]]:
    """Partition the images into ``parts`` of about the same size without splitting groups; returns their indices.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    names = np.random.default_rng(seed).permutation(groups.max() + 1)
    if len(names) < parts:
        raise ValueError(f"cannot divide {len(names)} groups into {parts} parts")
    filled: list[list[int]] = [[] for _ in range(parts)]
    for name in names:
        min(filled, key=len).extend(np.flatnonzero(groups == name).tolist())
    return [sorted(part) for part in filled]


def groups_by_name(names: Sequence[str], pattern: re.Pattern[str]) -> Groups | None:
    """Group file names, ``(N,)``, by the pattern's first group, or else by its whole match.

    A name without a match forms its own group. Returns None if no name matches.

    >>> groups_by_name(["part1_a.png", "other.png", "part1_b.png"], re.compile(r"(part\\d+)_")).tolist()
    [0, 1, 0]
    """
    matches = [pattern.search(name) for name in names]
    if not any(matches):
        return None
    keys = [(i, "") if match is None else (-1, _part(match)) for i, match in enumerate(matches)]
    numbers: dict[tuple[int, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def sizes(groups: Groups) -> dict[int, int]:
    """Return the number of images in each group."""
    return dict(enumerate(np.bincount(groups).tolist()))


def _part(match: re.Match[str]) -> str:
    first: str | None = match.group(1) if match.re.groups else None
    return match.group() if first is None else first


def _fitting(order: Sequence[int], sizes: Mapping[int, int], most: int) -> list[int]:
    """Select groups in this order while they have at most ``most`` images in total; the smallest one if none fits."""
    selected: list[int] = []
    total = 0
    for name in order:
        if total + sizes[name] <= most:
            selected.append(name)
            total += sizes[name]
    return selected or [min(order, key=lambda name: sizes[name])]
