"""A density of patches is one file: the class, its counterpart in ONNX, and its line in the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
import torch
from test_train import arguments as train_arguments
from test_train import metrics, run
from torch import Tensor, nn

from gaussad_pl import export, predict
from gaussad_pl.density.gaussian import mahalanobis
from gaussad_pl.density.onnx import GaussianInOnnx
from gaussad_pl.density.patches import CellGaussians
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.inference.detector import Detector

pytestmark = pytest.mark.slow


class Quadrants(CellGaussians):
    """One Gaussian for each quadrant of the grid of patches."""

    def __init__(self, places: Tensor, features: int) -> None:
        super().__init__(4, features)
        row, column = (places > places.float().mean(0)).long().T
        self.members = [(2 * row + column == i).nonzero().squeeze(1) for i in range(4)]
        self.order = torch.cat(self.members).argsort()
        self._seen: list[Tensor] = []

    @classmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        return cls(places, features)

    def observe(self, patches: Tensor) -> None:
        self._seen.append(patches.double())

    def estimate(self) -> None:
        parts = [part.flatten(0, 1) for part in self.split(torch.cat(self._seen))]
        mean = torch.stack([part.mean(0) for part in parts])
        scatter = torch.stack([(part - m).T @ (part - m) for part, m in zip(parts, mean, strict=True)])
        self._fit(mean, scatter, torch.tensor([len(part) for part in parts]))
        self._seen = []

    def split(self, patches: Tensor) -> list[Tensor]:
        """The patches ``(N, P, D)`` of each quadrant."""
        return [patches[:, members] for members in self.members]

    def join(self, distances: list[Tensor]) -> Tensor:
        """Distances ``(N, P)`` from those of each quadrant."""
        return torch.cat(distances, 1)[:, self.order]

    def forward(self, patches: Tensor) -> Tensor:
        quadrants = enumerate(self.split(patches))
        return self.join([mahalanobis(part, self.mean[i], self.whitener[i]) for i, part in quadrants])

    def for_onnx(self) -> nn.Module:
        return QuadrantsInOnnx(self)


class QuadrantsInOnnx(nn.Module):
    def __init__(self, density: Quadrants) -> None:
        super().__init__()
        self.density = density
        self.each = nn.ModuleList(map(GaussianInOnnx, density.mean, density.whitener))

    def forward(self, patches: Tensor) -> Tensor:
        return self.density.join([g(part) for g, part in zip(self.each, self.density.split(patches), strict=True)])


def test_a_density_in_one_file_trains_predicts_and_exports(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DENSITIES, "quadrant", Quadrants)
    folder, source = tmp_path / "run", parts / "screw" / "test"
    run(monkeypatch, *train_arguments(parts, folder, "model.segmentation.form=quadrant", "fine_tune=false"))
    assert metrics(folder)["segmentation"]["form"] == "quadrant"
    assert isinstance(Detector.load(folder).model.segmenter.head.gaussians, Quadrants)  # type: ignore[union-attr]
    with pytest.raises(SystemExit) as stop:
        predict.main([f"ckpt={folder}", f"source={source}", f"out={tmp_path / 'torch'}"])
    assert stop.value.code == 0
    pytest.importorskip("onnxruntime")
    export.main([f"ckpt={folder}", f"source={source}", "images=6"])
    assert "verdicts the same" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        predict.main([f"ckpt={folder / 'detector.onnx'}", f"source={source}", f"out={tmp_path / 'onnx'}"])
    verdicts = [
        [line.split(",")[3] for line in (tmp_path / way / "predictions.csv").read_text().splitlines()]
        for way in ("torch", "onnx")
    ]
    assert verdicts[0] == verdicts[1] and len(verdicts[0]) == 13
