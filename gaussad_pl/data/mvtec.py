"""MVTec AD (Bergmann et al., CVPR 2019): 15 categories in the official layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.download import download, extract
from gaussad_pl.data.samples import Samples, scan_mvtec


class MVTec(ImageDataModule):
    """One category of MVTec AD, or of any dataset in its layout.

    Args:
        root: folder that contains the categories.
        category: name of the category.
        download: download the dataset if the root contains no category.
        url: address of the archive.
        sha256: expected digest of the archive, in hexadecimal.
        settings: see `ImageDataModule`.
    """

    def __init__(self, root: str, category: str, download: bool, url: str, sha256: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = Path(root)
        self.category = category
        self.download = download
        self.url = url
        self.sha256 = sha256

    def prepare_data(self) -> None:
        if not self.download:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".download.lock"):  # the other jobs of a sweep wait for the download
            if not any(self.root.glob("*/train/good")):
                extract(download(self.url, self.root / Path(self.url).name, self.sha256), self.root)

    def scan(self) -> Samples:
        return scan_mvtec(self.root / self.category)
