"""Which images show the same part, as `data.group` says, and the split of the images that keeps them together."""

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
    """The rule by which images are groups.

    Args:
        setting: "auto" (near-duplicates), a regular expression searched in the file name (its first group, or the whole
            match, names the part; an image without a match is alone), or None (every image is alone).

    Attributes:
        features: of images, by which near-duplicates are told; until they are given, "auto" is every image alone.

    Raises:
        UserError: no regular expression.
    """

    def __init__(self, setting: str | None) -> None:
        self.setting = setting
        self.pattern = None if setting in (AUTO, None) else _compiled(setting)
        self.features: Features | None = None

    @property
    def by_features(self) -> bool:
        return self.setting == AUTO and self.features is not None

    def groups(self, names: Sequence[str], images: Callable[[], Tensor], batch_size: int) -> Groups:
        """Group of each image, 0, 1, ..., ``(N,)``, the same in all processes.

        Args:
            names: of the files.
            images: gives the images ``(N, 3, H, W)``, uint8, where they are needed.
            batch_size: of images that go through the network together.

        Raises:
            UserError: a pattern that no name matches.
        """
        if self.pattern is not None:
            if (found := groups_by_name(names, self.pattern)) is None:
                raise UserError(
                    f"data.group={self.setting}: no file name matches, such as {names[0]}: mend the pattern"
                )
            return found
        if not self.by_features:
            return np.arange(len(names))
        assert self.features is not None
        decoded = images()  # in every process, so that all stop where an image cannot be read
        # one process decides for all: with another number of threads the last digits of features are others
        return gather(alike(decoded, self.features, batch_size) if rank() == 0 else np.empty(0, np.int64))[0]

    def describe(self, groups: Groups) -> str:
        """One line of words with the number of groups."""
        number, n = int(groups.max()) + 1, len(groups)
        counted = f"{n} good images in {number} group{'s' * (number > 1)}"
        if self.pattern is not None:
            return f"{counted} by data.group={self.setting}"
        if self.by_features:
            return f"{counted} of near-duplicates"
        return f"{n} good images, each by itself"


@dataclass(frozen=True)
class Split:
    """Indices of good images: used for the Gaussian and the loss, held out for the validation, kept for the test."""

    used: list[int]
    held_out: list[int]
    test: list[int]


def split_images(
    name: str, groups: Groups, described: str, share: float | None, folds: int, fold: int, seed: int, most: int
) -> Split:
    """Split images such that no group is on two sides; without any group it is the split of single images.

    Args:
        name: of the dataset, for errors.
        groups: of the images ``(N,)``.
        described: words about the groups, for errors.
        share: of the images for the test, None for none.
        folds: parts of the other images; 0 for no validation.
        fold: which of them is held out.
        seed: of both random choices.
        most: held-out images, at most.

    Raises:
        UserError: too few images or groups.
    """
    test: list[int] = []
    if share is not None:
        try:
            test = hold_out(groups, share, seed)
        except ValueError as error:
            raise UserError(
                f"{name}: {described}, so none can be kept for the test: give good test images of other parts, or set "
                "data.group=null if every image shows another part"
            ) from error
    kept = np.setdiff1d(np.arange(len(groups)), test)
    checks.enough_images(name, len(groups), len(test), folds)
    if not folds:
        return Split(kept.tolist(), [], test)
    number = len(np.unique(groups[kept]))
    if number < folds:
        fewer = f"set folds={number}, or data.group=null" if number > 1 else "set data.group=null"
        besides = f", {len(test)} images kept for the test" if test else ""
        raise UserError(
            f"{name}: {described}{besides}: folds={folds} needs {folds} different parts to train on, there are "
            f"{number}: add images of other parts, {fewer} if every image shows another part"
        )
    used, held_out = fold_of(in_order(groups[kept]), folds, fold, seed, most)
    return Split(kept[used].tolist(), kept[held_out].tolist(), test)


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"data.group={pattern} is no regular expression ({error}): expected auto, null or a pattern that names the "
            r"part in a file name, such as (part\d+)_"
        ) from error
