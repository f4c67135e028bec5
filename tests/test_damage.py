"""Damage-weighted Gaussians, and the union of densities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from scipy.stats import multivariate_normal
from test_datamodules import mvtec

from gaussad_pl.density import damage as damage_module
from gaussad_pl.density.cluster import ClusterGaussians
from gaussad_pl.density.damage import Damage, DamageMoment, covered, damage_factor, damage_whitening
from gaussad_pl.density.gaussian import mahalanobis
from gaussad_pl.density.position import PositionGaussians
from gaussad_pl.density.union import UnionGaussians, soft_minimum
from gaussad_pl.density.whitening import whitening
from gaussad_pl.training import experiment
from gaussad_pl.training.module import GaussianAD

D = 6
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(200, D, generator=RANDOM, dtype=torch.float64) @ torch.randn(D, D, generator=RANDOM).double()
S = torch.cov(X.T)
CHANGE = torch.randn(80, D, generator=RANDOM, dtype=torch.float64) @ torch.randn(D, D, generator=RANDOM).double()
MOMENT = CHANGE.T @ CHANGE / len(CHANGE)


def whitened(covariance: torch.Tensor, damage: Damage, common: torch.Tensor = S) -> torch.Tensor:
    return damage_whitening(covariance, damage_factor(damage, common), damage.weight)


@pytest.mark.parametrize("k", [0.1, 1.0, 10.0])
def test_the_distance_is_the_log_likelihood_ratio_of_good_and_damaged(
    k: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage_module, "FLOOR", 0.0)
    x = X - X.mean(0)
    distances = mahalanobis(x, torch.zeros(D, dtype=torch.float64), whitened(S, Damage(MOMENT, k)))
    good = multivariate_normal(np.zeros(D), S.numpy()).logpdf(x.numpy())
    damaged = multivariate_normal(np.zeros(D), (S + k * MOMENT).numpy()).logpdf(x.numpy())
    constant = np.linalg.slogdet((S + k * MOMENT).numpy())[1] - np.linalg.slogdet(S.numpy())[1]
    np.testing.assert_allclose(distances.square().numpy(), 2 * (damaged - good) + constant, rtol=1e-8, atol=1e-8)


def test_a_large_weight_gives_the_mahalanobis_distance() -> None:
    zero = torch.zeros(D, dtype=torch.float64)
    plain = mahalanobis(X, zero, whitening(S))
    torch.testing.assert_close(mahalanobis(X, zero, whitened(S, Damage(MOMENT, 1e9))), plain, rtol=1e-5, atol=0)


def test_a_whitener_has_a_row_for_each_direction_of_damage_and_ignores_where_none_shows() -> None:
    one = torch.zeros(D, D, dtype=torch.float64)
    one[0, 0] = 1
    whiteners = whitened(torch.stack([torch.eye(D).double(), S]), Damage(one, 1.0), torch.eye(D).double())
    assert whiteners.isfinite().all()
    distances = torch.linalg.vector_norm(whiteners[0], dim=0)  # of a unit step along each feature
    assert float(distances[0]) == pytest.approx(0.5**0.5, rel=1e-3)  # k l / (1 + k l) = 1 / 2
    assert distances[1:].max() < 0.05  # no damage shows there


def test_damage_of_fewer_directions_than_features_needs_no_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage_module, "FLOOR", 0.0)
    low = CHANGE[:, :3] @ torch.randn(3, D, generator=RANDOM).double()
    damage, zero = Damage(low.T @ low / len(low), 2.0), torch.zeros(D, dtype=torch.float64)
    dense = mahalanobis(X, zero, whitened(S, damage))
    monkeypatch.setattr(damage_module, "RANK", 3)
    rows = whitened(S, damage, 2 * S + torch.eye(D).double())  # whatever covariance is common
    assert rows.shape == (3, D)
    torch.testing.assert_close(mahalanobis(X, zero, rows), dense, rtol=1e-6, atol=1e-6)


def test_the_largest_directions_of_damage_nearly_make_up_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = torch.diag(0.3 ** torch.arange(D).double()) @ torch.linalg.qr(MOMENT).Q
    x, zero = X - X.mean(0), torch.zeros(D, dtype=torch.float64)
    damage = Damage(torch.linalg.cholesky(S) @ scales @ scales.T @ torch.linalg.cholesky(S).T, 1.0)
    dense = mahalanobis(x, zero, whitened(S, damage))
    errors = []
    for rank in (2, 4, D):
        monkeypatch.setattr(damage_module, "RANK", rank)
        found = mahalanobis(x, zero, whitened(S, damage))
        assert (found <= dense * (1 + 1e-9)).all()  # no direction is counted twice
        errors.append(float((dense - found).mean() / dense.mean()))
    assert errors[0] > errors[1] > errors[2] and errors[1] < 0.1 and errors[2] < 1e-9


def test_the_moment_of_damage_is_that_of_all_batches_together() -> None:
    moment = DamageMoment(D)
    for part in CHANGE.split(13):
        moment.update(part)
    torch.testing.assert_close(moment.moment(), MOMENT)


def test_patches_belong_to_the_damage_when_half_covered_or_the_most_covered_of_the_image() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2, :2], masks[0, 2, 2] = True, True  # one whole patch, a quarter of another
    masks[1, 5, 5] = True  # less than half of any
    assert covered(masks, (4, 4)).nonzero().tolist() == [[0, 0], [1, 10]]


def test_the_soft_minimum_is_near_the_smaller_and_symmetric() -> None:
    a, b = torch.tensor([3.0, 4.0, 1e-9, 0.0]), torch.tensor([4.0, 3.0, 5.0, 0.0])
    found = soft_minimum(a, b)
    assert found[:2].tolist() == pytest.approx([2.4, 2.4]) and found[2] == pytest.approx(1e-9)
    assert found[3] == 0 and math.isfinite(float(found.sum()))


def test_the_union_joins_the_distances_of_both_densities_and_weighs_both() -> None:
    patches = torch.randn(12, 9, 5, generator=torch.Generator().manual_seed(1))
    union = UnionGaussians.build(torch.zeros(9, 2), features=5, clusters=2, seed=0)
    union.damage = Damage(torch.eye(5).double(), 1.0)
    assert union.position.damage is union.cluster.damage is union.damage
    union.observe(patches)
    union.estimate()
    torch.testing.assert_close(union(patches), soft_minimum(union.position(patches), union.cluster(patches)))
    torch.testing.assert_close(union.for_onnx()(patches), union(patches), rtol=1e-4, atol=1e-4)


def test_patches_keep_their_clusters_when_their_features_move_a_little() -> None:
    random = torch.Generator().manual_seed(2)
    patches = torch.randn(40, 9, 5, generator=random)
    moved = patches + 0.01 * torch.randn(40, 9, 5, generator=random)
    density = ClusterGaussians(6, 5, seed=0)
    density.observe(patches)
    density.estimate()
    before = density.cells(patches.flatten(0, 1))
    density.observe(moved)
    density.estimate()
    assert (density.cells(moved.flatten(0, 1)) == before).double().mean() > 0.95
    fresh, other = ClusterGaussians(6, 5, seed=0), moved[:30]  # other images are clustered anew
    for each in (density, fresh):
        each.observe(other)
        each.estimate()
    assert torch.equal(density.centre, fresh.centre)


def test_whiteners_estimated_in_a_validation_can_be_estimated_again_outside_of_it() -> None:
    random = torch.Generator().manual_seed(0)
    patches = torch.randn(6, 4, 200, generator=random)  # more features than damage has directions
    density = PositionGaussians(4, 200)
    density.damage = Damage(torch.eye(200, dtype=torch.float64), 0.3)
    with torch.inference_mode():
        density.observe(patches)
        density.estimate()
    first = density.whitener.clone()
    density.observe(patches)
    density.estimate()
    assert torch.equal(density.whitener, first) and density.whitener.shape[1] < 200


def test_damage_is_estimated_once_for_the_same_weights_and_again_for_others(parts: Path) -> None:
    data = mvtec(parts, image_size=64)
    torch.manual_seed(0)
    module = GaussianAD(TINY, segmentation={"form": "shared", "map_levels": "middle"}, damage_weight=0.3).eval()
    head = module.segmenter.head.gaussians
    module.estimate_everything(data)
    first = head.damage
    module.estimate_everything(data, data.every_image)
    assert first is not None and head.damage is first
    module.load_weights({name: 0.9 * weight for name, weight in module.trained_weights().items()})
    module.estimate_everything(data)
    assert head.damage is not first and not torch.allclose(head.damage.moment, first.moment)


def test_a_rejected_fine_tuning_leaves_the_damage_of_the_frozen_network(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mvtec(parts, image_size=64)
    module = GaussianAD(TINY, segmentation={"form": "shared", "map_levels": "middle"}, damage_weight=0.3).eval()
    module.estimate_everything(data)
    head = module.segmenter.head.gaussians
    assert head.damage is not None
    frozen = head.damage.moment

    def reject(*_: object) -> bool:
        module.load_weights({name: 0.9 * weight for name, weight in module.trained_weights().items()})
        module.estimate_again(data)
        assert head.damage is not None and not torch.equal(head.damage.moment, frozen)
        return False

    monkeypatch.setattr(experiment, "accept", reject)
    for name in ("judge", "fine_tune_module"):
        monkeypatch.setattr(experiment, name, lambda *_: None)
    monkeypatch.setattr(experiment, "fine_tuning_results", lambda *_: {})
    nothing: Any = None
    experiment.tuned_state(nothing, module, data, nothing, None, parts, experiment.Outcome())
    assert torch.equal(head.damage.moment, frozen)  # calibration estimates the densities again, weighted by it
