"""Splits of images that keep groups whole: pure functions of the groups ``(N,)`` and a seed.

A group is what shows the same part; images on their own are groups of one, and the splits of those are the usual ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from gaussad_pl.data.near_duplicates import in_order

Groups = NDArray[np.int64]


def fold_of(groups: Groups, folds: int, fold: int, seed: int, most: int) -> tuple[list[int], list[int]]:
    """Indices of the images that are used, and of those held out: part ``fold`` of ``folds`` parts of the groups.

    Of a larger part, whole groups that hold at most ``most`` images together are held out and the others used.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    groups = in_order(groups)
    split = KFold(folds, shuffle=True, random_state=seed).split(np.arange(groups.max() + 1))
    held_out = list(split)[fold][1]
    if np.isin(groups, held_out).sum() > most:
        order = np.random.default_rng(seed).choice(held_out, min(most, len(held_out)), replace=False)
        held_out = np.array(_fitting(order.tolist(), sizes(groups), most))
    out = np.isin(groups, held_out)
    return np.flatnonzero(~out).tolist(), np.flatnonzero(out).tolist()


def hold_out(groups: Groups, share: float, seed: int) -> list[int]:
    """Indices of about a ``share`` of the images, at least one and not all, in whole groups drawn at random.

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
    """The number of ``n`` images that is nearest to a ``share`` of them, at least one and not all."""
    return max(1, min(round(share * n), n - 1))


def partition(groups: Groups, parts: int, seed: int) -> list[list[int]]:
    """Indices of the images in each of some parts of about the same size; a group is in one part as a whole.

    Raises:
        ValueError: there are fewer groups than parts.
    """
    names = np.random.default_rng(seed).permutation(groups.max() + 1)
    if len(names) < parts:
        raise ValueError(f"{len(names)} groups in {parts} parts")
    filled: list[list[int]] = [[] for _ in range(parts)]
    for name in names:
        min(filled, key=len).extend(np.flatnonzero(groups == name).tolist())
    return [sorted(part) for part in filled]


def groups_by_name(names: Sequence[str], pattern: re.Pattern[str]) -> Groups | None:
    """Group of each file name, ``(N,)``: the first group of the pattern in it, or its whole match, names the part.

    A name without a match is alone. None where no name has one.

    >>> groups_by_name(["part1_a.png", "other.png", "part1_b.png"], re.compile(r"(part\\d+)_")).tolist()
    [0, 1, 0]
    """
    found = [pattern.search(name) for name in names]
    if not any(found):
        return None
    keys = [(i, "") if match is None else (-1, _part(match)) for i, match in enumerate(found)]
    numbers: dict[tuple[int, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def sizes(groups: Groups) -> dict[int, int]:
    """Number of images of each group."""
    return dict(enumerate(np.bincount(groups).tolist()))


def _part(match: re.Match[str]) -> str:
    first: str | None = match.group(1) if match.re.groups else None
    return match.group() if first is None else first


def _fitting(order: Sequence[int], sizes: Mapping[int, int], most: int) -> list[int]:
    """Groups, in this order, as long as they hold at most ``most`` images together; the smallest where none fits."""
    chosen: list[int] = []
    total = 0
    for name in order:
        if total + sizes[name] <= most:
            chosen.append(name)
            total += sizes[name]
    return chosen or [min(order, key=lambda name: sizes[name])]
