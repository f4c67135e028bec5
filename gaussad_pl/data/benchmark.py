"""Base class of the public datasets of many categories, which can be downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.download import download, extract


class Benchmark(ImageDataModule):
    """One category of a public dataset.

    Args:
        root: folder that contains the categories.
        category: name of the category.
        download: download the dataset if it is missing.
        url: address of the archive.
        sha256: expected digest of the archive, in hexadecimal.
        settings: see `ImageDataModule`.

    Attributes:
        marker: pattern of a path below the root that exists if and only if the dataset does.
    """

    marker: str

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
            if not any(self.root.glob(self.marker)):
                extract(download(self.url, self.root / Path(self.url).name, self.sha256), self.root)
