"""The densities of patches that `model.segmentation.form` can name; "auto" tries all of them, in this order."""

from gaussad_pl.density.cluster import ClusterGaussians, SharedGaussian
from gaussad_pl.density.patches import PatchDensity
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.density.union import UnionGaussians

DENSITIES: dict[str, type[PatchDensity]] = {
    "position": PositionGaussians,
    "clusters": ClusterGaussians,
    "shared": SharedGaussian,
    "union": UnionGaussians,
}
