"""A user's own parts: a folder of good images is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.samples import Samples, scan_folder
from gaussad_pl.errors import UserError


class Folder(ImageDataModule):
    """Images in a folder; see `gaussad_pl.data.samples.scan_folder` for the layouts.

    Args:
        root: folder of good images, or one in the layout of MVTec AD.
        bad: folder of bad images, for the test only.
        masks: folder of masks of the bad images.
        holdout: share of the good images, at least one, kept for the test where there are bad images but no good ones.
        settings: see `ImageDataModule`.
    """

    def __init__(self, root: str, bad: str | None, masks: str | None, holdout: float, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 < holdout < 1:
            raise UserError(
                f"data.holdout={holdout} must lie between 0 and 1: it is the share of good images to test on"
            )
        self.root = Path(root)
        self.bad = Path(bad) if bad else None
        self.masks = Path(masks) if masks else None
        self.holdout = holdout

    def scan(self) -> Samples:
        return scan_folder(self.root, self.bad, self.masks)
