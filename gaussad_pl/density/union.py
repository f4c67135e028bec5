"""The union of the densities by position and by cluster: good is what either of them knows.

A patch of a part that is always in the same place is best known by its position, one of a part that turns or of a
texture by its cluster. Which of them is right differs from set to set and from patch to patch, so neither is chosen.
"""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor, nn

from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.damage import Damage
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.density.position import PositionGaussians


class UnionGaussians(PatchDensity):
    """Distances d with 1 / d^2 = 1 / p^2 + 1 / c^2, a soft minimum of those by position p and by cluster c."""

    has_clusters: ClassVar[bool] = True

    def __init__(self, places: Tensor, features: int, clusters: int, seed: int) -> None:
        super().__init__()
        self.position = PositionGaussians.build(places, features, clusters, seed)
        self.cluster = ClusterGaussians(clusters, features, seed)

    @classmethod
    def build(cls, places: Tensor, features: int, clusters: int, seed: int) -> Self:
        return cls(places, features, clusters, seed)

    @property
    def damage(self) -> Damage | None:
        """The damage that both densities weigh their distances by."""
        return self.position.damage

    @damage.setter
    def damage(self, damage: Damage | None) -> None:
        self.position.damage = self.cluster.damage = damage

    def observe(self, patches: Tensor) -> None:
        self.position.observe(patches)
        self.cluster.observe(patches)

    def estimate(self) -> None:
        self.position.estimate()
        self.cluster.estimate()

    def forward(self, patches: Tensor) -> Tensor:
        return soft_minimum(self.position(patches), self.cluster(patches))

    def deviations(self, patches: Tensor) -> Tensor:
        return self.position.deviations(patches)  # a shift may change the cluster of a patch, but not its position

    def shift(self, by: Tensor) -> None:
        self.position.shift(by)
        self.cluster.shift(by)

    def for_onnx(self) -> nn.Module:
        return _UnionInOnnx(self.position.for_onnx(), self.cluster.for_onnx())


class _UnionInOnnx(nn.Module):
    def __init__(self, position: nn.Module, cluster: nn.Module) -> None:
        super().__init__()
        self.position = position
        self.cluster = cluster

    def forward(self, patches: Tensor) -> Tensor:
        return soft_minimum(self.position(patches), self.cluster(patches))


def soft_minimum(a: Tensor, b: Tensor) -> Tensor:
    """The d with 1 / d^2 = 1 / a^2 + 1 / b^2 of distances of one shape; 0 where both are 0."""
    return a * b / (a.square() + b.square()).clamp(min=1e-12).sqrt()
