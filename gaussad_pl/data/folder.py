"""The user's own images: a folder of good ones is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaussad_pl.data import checks
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.samples import Samples, scan_folder
from gaussad_pl.errors import UserError


class Folder(ImageDataModule):
    """Images in a folder; see `gaussad_pl.data.samples.scan_folder` for the layouts.

    Args:
        root: folder of good images, or a folder in the layout of MVTec AD.
        bad: folder of bad images, used for testing only.
        masks: folder with the masks of the bad images.
        holdout: fraction of the good images, at least one, kept for the test if all test images are bad.
        settings: see `ImageDataModule`.
    """

    def __init__(self, root: str, bad: str | None, masks: str | None, holdout: float, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 < holdout < 1:
            raise UserError(
                f"data.holdout={holdout}: expected a number between 0 and 1, the fraction of good images to test on"
            )
        self.root = Path(root)
        self.bad = Path(bad) if bad else None
        self.masks = Path(masks) if masks else None
        self.holdout = holdout

    def scan(self) -> Samples:
        found = scan_folder(self.root, self.bad, self.masks)
        checks.name_unused((self.root, self.bad), found, self.masks)
        return found
