"""MVTec AD (Bergmann et al., CVPR 2019): 15 categories in the official layout."""

from __future__ import annotations

from gaussad_pl.data.benchmark import Benchmark
from gaussad_pl.data.samples import Samples, scan_mvtec


class MVTec(Benchmark):
    """One category of MVTec AD, or of any dataset in its layout; see `gaussad_pl.data.benchmark.Benchmark`."""

    marker = "*/train/good"

    def scan(self) -> Samples:
        return scan_mvtec(self.root / self.category)
