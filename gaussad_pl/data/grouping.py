"""Groups of images that show the same part, as set by `data.group`, and the split that keeps them together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gaussad_pl.data import checks
from gaussad_pl.data.near_duplicates import in_order
from gaussad_pl.data.part_features import Features, alike
from gaussad_pl.data.splitting import Groups, fold_of, groups_by_name, hold_out
from gaussad_pl.distributed import gather, rank
from gaussad_pl.errors import UserError

AUTO = "auto"


class Grouping:
    """The rule that assigns images to groups.

    Args:
        setting: "auto" (near-duplicates), a regular expression searched for in the file name (its first group, or else
            the whole match, identifies the part; an image without a match forms its own group), or None (every image
            forms its own group).

    Attributes:
        features: features by which near-duplicates are found. While None, "auto" puts every image into its own group.

    Raises:
        UserError: the setting is not a valid regular expression.
    """

    def __init__(self, setting: str | None) -> None:
        self.setting = setting
        self.pattern = None if setting in (AUTO, None) else _compiled(setting)
        self.features: Features | None = None

    @property
    def by_features(self) -> bool:
        """True if near-duplicates are grouped."""
        return self.setting == AUTO and self.features is not None

    def groups(self, names: Sequence[str], images: Callable[[], Tensor], batch_size: int) -> Groups:
        """Return the group of each image, 0, 1, ..., ``(N,)``, the same in all processes.

        Args:
            names: file names.
            images: returns the images, uint8 ``(N, 3, H, W)``; called only if they are needed.
            batch_size: number of images per forward pass.

        Raises:
            UserError: no name matches the pattern.
        """
        if self.pattern is not None:
            if (groups := groups_by_name(names, self.pattern)) is None:
                raise UserError(
                    f"data.group={self.setting}: matches no file name, such as {names[0]}: correct the pattern"
                )
            return groups
        if not self.by_features:
            return np.arange(len(names))
        assert self.features is not None
        decoded = images()  # in every process, so that all of them stop if an image cannot be read
        # one process decides for all: rounding errors in the features depend on the number of threads
        return gather(alike(decoded, self.features, batch_size) if rank() == 0 else np.empty(0, np.int64))[0]

    def describe(self, groups: Groups) -> str:
        """Describe the groups in one line, with their number."""
        number, n = int(groups.max()) + 1, len(groups)
        counted = f"{n} good images in {number} group{'s' * (number > 1)}"
        if self.pattern is not None:
            return f"{counted} by data.group={self.setting}"
        if number < n:
            return f"{counted} of near-duplicates"
        return f"{n} good images, each in its own group"


@dataclass(frozen=True)
class Split:
    """Indices of good images: used for the Gaussian and the loss, held out for validation, kept for the test."""

    used: list[int]
    held_out: list[int]
    test: list[int]


def split_images(
    name: str, groups: Groups, described: str, share: float | None, folds: int, fold: int, seed: int, most: int
) -> Split:
    """Split the images without splitting any group.

    Args:
        name: name of the dataset, for error messages.
        groups: group of each image, ``(N,)``.
        described: description of the groups, for error messages.
        share: fraction of the images kept for the test; None for none.
        folds: number of folds of the other images; 0 for no validation.
        fold: the fold that is held out.
        seed: random seed of both splits.
        most: maximum number of held-out images.

    Raises:
        UserError: there are too few images or groups.
    """
    test: list[int] = []
    if share is not None:
        try:
            test = hold_out(groups, share, seed)
        except ValueError as error:
            raise UserError(
                f"{name}: {described}, so none can be kept for the test: add good test images of other parts, or set "
                "data.group=null if every image shows a different part"
            ) from error
    kept = np.setdiff1d(np.arange(len(groups)), test)
    checks.enough_images(name, len(groups), len(test), folds)
    if not folds:
        return Split(kept.tolist(), [], test)
    number = len(np.unique(groups[kept]))
    if number < folds:
        remedy = f"set folds={number}, or data.group=null" if number > 1 else "set data.group=null"
        besides = f", {len(test)} images kept for the test" if test else ""
        raise UserError(
            f"{name}: {described}{besides}: folds={folds} needs {folds} different parts to train on, there are "
            f"{number}: add images of other parts, {remedy} if every image shows a different part"
        )
    used, held_out = fold_of(in_order(groups[kept]), folds, fold, seed, most)
    return Split(kept[used].tolist(), kept[held_out].tolist(), test)


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"data.group={pattern} is not a regular expression ({error}): expected auto, null or a pattern that "
            r"identifies the part in a file name, such as (part\d+)_"
        ) from error
