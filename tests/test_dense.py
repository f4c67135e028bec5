"""The Gaussians of patches against textbook versions in numpy, one cell and one patch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from scipy.stats import kstest
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.density import cluster as clusters
from gaussad_pl.density import rounding
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.patches import CellGaussians, blend
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.errors import UserError
from gaussad_pl.model.patches import embed, middle_levels

Array = NDArray[Any]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whiteners as they are before they are rounded."""
    monkeypatch.setattr(rounding, "BITS", 50)


def sample(n: int, p: int, d: int, seed: int = 0) -> Tensor:
    """Patches (N, P, D), float64: correlated, each position with a mean and a spread of its own."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, d, generator=rng, dtype=torch.float64) @ torch.randn(d, d, generator=rng, dtype=torch.float64)
    spread = 0.5 + torch.rand(p, 1, generator=rng, dtype=torch.float64)
    return x * spread + 5 * torch.randn(p, d, generator=rng, dtype=torch.float64)


def blobs(n: int, p: int, d: int, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Patches (N, P, D), float64, in well separated groups of features of very different units, and their groups."""
    rng = torch.Generator().manual_seed(seed)
    group = torch.randint(count, (n, p), generator=rng)
    middles = 20 * torch.randn(count, d, generator=rng, dtype=torch.float64)
    x = middles[group] + torch.randn(n, p, d, generator=rng, dtype=torch.float64)
    return x * 10.0 ** torch.linspace(-2, 2, d, dtype=torch.float64), group


def fitted(gaussians: CellGaussians, x: Tensor, sizes: int | Sequence[int] = 4) -> Any:
    gaussians = gaussians.to(x.dtype)
    for part in x.split(sizes):
        gaussians.observe(part)
    gaussians.estimate()
    return gaussians


def textbook(cells: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Mean and inverse covariance of each cell from its observations (n_k, D), as the docstrings say."""
    d = cells[0].shape[1]
    scatters = []
    for x in cells:
        scatter = np.zeros((d, d))
        for row in x:
            scatter += np.outer(row - x.mean(0), row - x.mean(0))
        scatters.append(scatter)
    pooled = sum(scatters) / (sum(len(x) for x in cells) - len(cells))
    prior = 0.9 * pooled + 0.1 * np.trace(pooled) / d * np.eye(d)
    return [
        (x.mean(0), np.linalg.inv((scatter + d * prior) / (len(x) + d)))
        for x, scatter in zip(cells, scatters, strict=True)
    ]


def nearest(x: Array, centres: Array, directions: Array) -> list[int]:
    """Index of the nearest centre of each patch (M, D), in the space of the directions."""
    return [int(np.argmin([np.linalg.norm(row @ directions - centre) for centre in centres])) for row in x]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("n", [2, 4, 30])
def test_gaussians_of_positions_equal_the_textbook_with_fewer_and_more_images_than_features(n: int) -> None:
    x, other = sample(n, 6, 5), sample(3, 6, 5, seed=1)
    actual = fitted(PositionGaussians(6, 5), x)(other)
    reference = textbook([x[:, position].numpy() for position in range(6)])
    expected = [[scipy_mahalanobis(p, *reference[i]) for i, p in enumerate(image)] for image in other.numpy()]
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


@pytest.mark.parametrize("sizes", [[1] * 12, [5, 1, 6], [12]])
def test_gaussians_of_positions_do_not_depend_on_batches_or_order(sizes: list[int]) -> None:
    x, other = sample(12, 4, 6) + 1000, sample(3, 4, 6, seed=1) + 1000
    shuffled = x[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    expected = fitted(PositionGaussians(4, 6), x)(other)
    torch.testing.assert_close(fitted(PositionGaussians(4, 6), shuffled, sizes)(other), expected, rtol=1e-8, atol=1e-8)


def test_float32_patches_give_nearly_the_distances_of_float64() -> None:
    x, other = sample(40, 4, 6) + 100, sample(3, 4, 6, seed=1) + 100
    for single, double in (
        (PositionGaussians(4, 6), PositionGaussians(4, 6)),
        (ClusterGaussians(1, 6, 0), ClusterGaussians(1, 6, 0)),
    ):
        actual = fitted(single, x.float())(other.float())
        torch.testing.assert_close(actual.double(), fitted(double, x)(other), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("exact")
def test_many_positions_are_each_whitened() -> None:
    x = sample(5, 150, 3)  # more than the part that is whitened at once
    actual = fitted(PositionGaussians(150, 3), x)(x[:1])[0]
    reference = textbook([x[:, position].numpy() for position in range(150)])
    expected = [scipy_mahalanobis(patch, *reference[i]) for i, patch in enumerate(x[0].numpy())]
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_a_cell_without_observations_has_the_prior_and_one_with_many_its_own_covariance() -> None:
    pooled = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    own = torch.tensor([[9.0, -3.0], [-3.0, 5.0]], dtype=torch.float64)
    counts = torch.tensor([0.0, 1e9], dtype=torch.float64)
    empty, full = blend(torch.stack([0 * own, own * 1e9]), counts, pooled)
    np.testing.assert_allclose(empty, [[0.9 * 4 + 0.3, 0.9], [0.9, 0.9 * 2 + 0.3]])
    np.testing.assert_allclose(full, own, rtol=1e-7)


def test_one_cluster_is_the_plain_gaussian_of_all_patches() -> None:
    x, other = sample(10, 6, 5), sample(3, 6, 5, seed=1)
    actual = fitted(ClusterGaussians(1, 5, seed=0), x)(other)
    [reference] = textbook([x.flatten(0, 1).numpy()])
    expected = [[scipy_mahalanobis(patch, *reference) for patch in image] for image in other.numpy()]
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_a_patch_belongs_to_the_nearest_centre_among_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "DIRECTIONS", 3)
    x, other = blobs(10, 30, 4)[0], sample(4, 30, 4, seed=1)
    gaussians = fitted(ClusterGaussians(7, 4, seed=0), x)
    standardised = StandardScaler().fit_transform(x.flatten(0, 1).numpy())
    expected = np.abs(PCA(3, svd_solver="full").fit(standardised).components_[::-1])
    found = gaussians.directions.numpy() * x.flatten(0, 1).numpy().std(0, ddof=1)[:, None]
    np.testing.assert_allclose(np.abs(found.T), expected, rtol=1e-6)
    for patches in (x.flatten(0, 1), other.flatten(0, 1)):
        expected = nearest(patches.numpy(), gaussians.centre.numpy(), gaussians.directions.numpy())
        assert gaussians.cells(patches)[:, 0].tolist() == expected
        assert len(set(expected)) > 1


def test_more_patches_than_are_compared_at_once_are_each_put_to_their_nearest_centre() -> None:
    x, _ = blobs(10, 2000, 2)
    gaussians = fitted(ClusterGaussians(4, 2, seed=0), x)
    expected = torch.cdist(x.flatten(0, 1) @ gaussians.directions, gaussians.centre).argmin(1)
    assert torch.equal(gaussians.cells(x.flatten(0, 1))[:, 0], expected)


def test_clusters_find_the_groups_there_are() -> None:
    x, group = blobs(10, 30, 4)
    gaussians = fitted(ClusterGaussians(3, 4, seed=0), x)
    assert adjusted_rand_score(group.flatten(), gaussians.cells(x.flatten(0, 1))[:, 0]) == 1


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("clusters", [3, 8])
def test_gaussians_of_clusters_equal_the_textbook(clusters: int) -> None:
    x, other = blobs(10, 30, 5)[0], blobs(3, 30, 5, seed=0)[0] + 0.1
    gaussians = fitted(ClusterGaussians(clusters, 5, seed=0), x)
    centres, directions = gaussians.centre.numpy(), gaussians.directions.numpy()
    patches = x.flatten(0, 1).numpy()
    cells = np.array(nearest(patches, centres, directions))
    occupied = sorted(set(cells.tolist()))
    reference = dict(zip(occupied, textbook([patches[cells == cell] for cell in occupied]), strict=True))
    unseen = other.flatten(0, 1).numpy()
    pairs = zip(unseen, nearest(unseen, centres, directions), strict=True)
    expected = [scipy_mahalanobis(patch, *reference[cell]) for patch, cell in pairs]
    np.testing.assert_allclose(gaussians(other).flatten(), expected, rtol=1e-7)


def test_the_distance_of_a_patch_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    x, _ = blobs(10, 30, 4)
    gaussians = fitted(ClusterGaussians(5, 4, seed=0), x)
    alone = torch.stack([torch.cat([gaussians(patch[None, None])[0] for patch in image]) for image in x[:2]])
    torch.testing.assert_close(gaussians(x)[:2], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bound", [100_000, 50])
@pytest.mark.parametrize("size", [1, 7, 20])
def test_the_same_seed_gives_the_same_clusters_whatever_the_batches(
    size: int, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "SAMPLE", bound)
    x = sample(20, 12, 4).float()
    one, other = (fitted(ClusterGaussians(5, 4, seed=3), x, sizes) for sizes in (20, size))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_seed_gives_another_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SAMPLE", 50)
    x = sample(20, 12, 4)
    one, other = (fitted(ClusterGaussians(1, 4, seed), x) for seed in (0, 1))
    assert not torch.equal(one.mean, other.mean)


def test_the_sample_is_bounded_and_uniform_over_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SAMPLE", 1000)
    index = torch.arange(40_000, dtype=torch.float64).reshape(400, 100, 1)
    gaussians: Any = ClusterGaussians(1, 1, seed=0).double()
    for batch in index.split([150, 3, 7, 40, 100, 100]):
        gaussians.observe(batch)
        assert [len(part) for part in gaussians._sample] == [1000, 1000]
    kept = gaussians._sample[1].squeeze(1).numpy()
    assert len(set(kept)) == 1000
    assert abs(kept.mean() / 40_000 - 0.5) < 4 / np.sqrt(12 * 1000)  # four standard errors
    assert kstest(kept / 40_000, "uniform").pvalue > 0.01
    gaussians.estimate()
    assert float(gaussians.mean) == pytest.approx(kept.mean())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("count", [2, 5])
def test_fewer_patches_than_clusters_give_as_many_clusters_as_they_can(count: int) -> None:
    x, other = sample(1, count, 3), sample(2, 9, 3, seed=1)
    many = fitted(ClusterGaussians(64, 3, seed=0), x)
    few = fitted(ClusterGaussians(count // 2, 3, seed=0), x)
    for patches in (x, other):
        torch.testing.assert_close(many(patches), few(patches), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.14159, 0.1])
def test_a_feature_that_never_changes_leaves_the_clusters_as_they_are(value: float) -> None:
    x, _ = blobs(20, 20, 4)
    x = x.float()
    wide = torch.cat([x, torch.full_like(x[..., :1], value)], dim=-1)
    narrow, with_constant = fitted(ClusterGaussians(6, 4, seed=0), x), fitted(ClusterGaussians(6, 5, seed=0), wide)
    cells = narrow.cells(x.flatten(0, 1))[:, 0]
    assert len(cells.unique()) > 2
    assert adjusted_rand_score(cells, with_constant.cells(wide.flatten(0, 1))[:, 0]) == 1
    assert with_constant(wide).isfinite().all()


@pytest.mark.parametrize("value", ["zeros", "ones", "random"])
@pytest.mark.parametrize("clusters", [None, 1, 3])
def test_identical_patches_are_a_clear_error(clusters: int | None, value: str) -> None:
    patch = {"zeros": torch.zeros(4), "ones": torch.ones(4), "random": sample(1, 1, 4)[0, 0].float()}[value]
    gaussians = PositionGaussians(6, 4) if clusters is None else ClusterGaussians(clusters, 4, seed=0)
    with pytest.raises(UserError, match="the patches of the training images are all the same: give different images"):
        fitted(gaussians, patch.repeat(7, 6, 1))


@pytest.mark.parametrize("form", ["position", "clusters", "shared"])
def test_gradients_flow_through_the_distances_and_are_zero_at_the_mean(form: str) -> None:
    makers = {"position": PositionGaussians(4, 3), "clusters": ClusterGaussians(3, 3, 0)}
    gaussians = fitted(makers.get(form, ClusterGaussians(1, 3, 0)), sample(10, 4, 3))
    x = sample(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(gaussians, x)
    at_mean = gaussians.mean[torch.arange(4) % len(gaussians.mean)].clone()[None].requires_grad_()
    gaussians(at_mean).sum().backward()
    assert at_mean.grad is not None and at_mean.grad.isfinite().all()
    if form != "clusters":  # a mean may lie nearer to another centre
        assert torch.equal(at_mean.grad, torch.zeros_like(at_mean))


@pytest.mark.parametrize("form", ["position", "clusters"])
def test_a_second_estimate_forgets_the_first(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SAMPLE", 30)
    first, second = sample(9, 4, 3) + 50, sample(11, 4, 3, seed=1)
    used, fresh = (PositionGaussians(4, 3) if form == "position" else ClusterGaussians(3, 3, 0) for _ in range(2))
    fitted(used, first)
    before = {name: value.clone() for name, value in used.state_dict().items()}
    fitted(used, second)
    fitted(fresh, second)
    for name, value in fresh.state_dict().items():
        assert torch.equal(used.state_dict()[name], value), name
        assert not torch.equal(before[name], value), name


def test_levels_are_brought_to_the_finest_grid_and_patches_run_row_by_row() -> None:
    rng = torch.Generator().manual_seed(0)
    coarse, fine = torch.randn(2, 3, 2, 2, generator=rng), torch.randn(2, 5, 4, 4, generator=rng)
    patches = embed([coarse, fine])
    assert patches.shape == (2, 16, 8)
    for row in range(4):
        for column in range(4):
            patch = patches[:, 4 * row + column]
            assert torch.equal(patch[:, 3:], fine[:, :, row, column])
            y, x = (min(max(place / 2 - 0.25, 0), 1) for place in (row, column))  # centres of cells twice as wide
            top = (1 - x) * coarse[:, :, 0, 0] + x * coarse[:, :, 0, 1]
            bottom = (1 - x) * coarse[:, :, 1, 0] + x * coarse[:, :, 1, 1]
            torch.testing.assert_close(patch[:, :3], (1 - y) * top + y * bottom)


def test_a_single_level_is_only_rearranged() -> None:
    level = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4)  # channel, row, column
    assert embed([level])[0].tolist() == [[float(i), float(12 + i)] for i in range(12)]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([112, 112, 56, 28, 14, 14, 7, 7, 7], [3, 5]),  # EfficientNet
        ([112, 56, 28, 14, 7], [2, 3]),  # ResNet
        ([14] * 12, [4, 8]),  # ViT
        ([14, 14], [0, 1]),
        ([28], [0]),
        ([56, 7], [1]),  # nearest to both strides
    ],
)
def test_the_middle_levels_are_the_deepest_at_strides_8_and_16(sides: list[int], expected: list[int]) -> None:
    levels = [Level(index, 3, side, side, 224 // side) for index, side in enumerate(sides)]
    assert middle_levels(levels) == expected


def test_middle_levels_are_places_among_the_chosen_levels() -> None:
    levels = [Level(index, 3, side, side, 224 // side) for index, side in ((2, 56), (5, 28), (7, 14))]
    assert middle_levels(levels) == [1, 2]


def test_the_nearest_gaussian_of_all_partitions_counts() -> None:
    patches = torch.randn(6, 40, 5, generator=torch.Generator().manual_seed(0))
    together = fitted(ClusterGaussians(8, 5, seed=7, partitions=3), patches)
    x = patches.flatten(0, 1)
    naive = torch.full((len(x),), torch.inf)
    for first, last in ((0, 8), (8, 16), (16, 24)):
        nearest = first + torch.cdist(x @ together.directions, together.centre[first:last]).argmin(1)
        for i, cell in enumerate(nearest.tolist()):
            precision = together.whitener[cell].double().T @ together.whitener[cell].double()
            distance = scipy_mahalanobis(x[i].numpy(), together.mean[cell].numpy(), precision.numpy())
            naive[i] = min(naive[i], distance)
    torch.testing.assert_close(together(patches), naive.reshape(6, 40))
    assert not torch.allclose(together.centre[:8], together.centre[8:16])  # each partition has clusters of its own
    again = fitted(ClusterGaussians(8, 5, seed=7, partitions=3), patches)
    assert torch.equal(again(patches), together(patches))


def test_every_partition_holds_all_patches_and_blends_with_its_own_scatter() -> None:
    x = sample(40, 6, 4)
    both = fitted(ClusterGaussians(6, 4, seed=3, partitions=2), x)
    cells = both.cells(x.flatten(0, 1))
    assert ((cells[:, 0] < 6) & (cells[:, 1] >= 6)).all()
    alone = fitted(ClusterGaussians(6, 4, seed=3), x)
    torch.testing.assert_close(both.whitener[:6], alone.whitener)
    torch.testing.assert_close(both.mean[:6], alone.mean)
