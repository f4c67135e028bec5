"""The built-in demo data: a small benchmark drawn in code, in the layout of MVTec AD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.draw import write_demo
from gaussad_pl.data.samples import Samples, scan_mvtec


class Demo(ImageDataModule):
    """One category of the demo data, drawn into `root` on first use.

    Args:
        root: folder for the drawn categories.
        category: see `gaussad_pl.data.draw.CATEGORIES`.
        settings: see `ImageDataModule`.
    """

    def __init__(self, root: str, category: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.category = category

    def prepare_data(self) -> None:
        write_demo(self.root, self.category)

    def scan(self) -> Samples:
        return scan_mvtec(self.root / self.category)
