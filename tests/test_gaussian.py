"""The Gaussian against scikit-learn, scipy and textbook versions."""

import pytest
import torch
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from sklearn.covariance import OAS, LedoitWolf
from torch import Tensor

from gaussad_pl.density.gaussian import Gaussian, RunningGaussian, mahalanobis
from gaussad_pl.density.moments import decay, merge, moments, recenter
from gaussad_pl.density.shrinkage import ledoit_wolf, oas, shrink
from gaussad_pl.density.whitening import whitening
from gaussad_pl.errors import UserError

SHAPES = [(40, 7), (7, 40), (2, 5), (50, 1), (33, 32)]


def sample(n: int, d: int, seed: int = 0, offset: float = 3.0) -> Tensor:
    """Correlated, heavy-tailed observations (N, D), far from the origin."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng, dtype=torch.float64) ** 3
    return x @ torch.randn(d, d, generator=rng, dtype=torch.float64) + offset


def textbook_ledoit_wolf(x: Tensor) -> float:
    """Equations 12-14 of Ledoit & Wolf (2004), one outer product at a time."""
    n, d = x.shape
    y = x - x.mean(0)
    S = y.T @ y / n
    mu = S.trace() / d
    d2 = (S - mu * torch.eye(d, dtype=x.dtype)).square().sum() / d
    b2 = sum((torch.outer(row, row) - S).square().sum() / d for row in y) / n**2
    return float(min(b2, d2) / d2) if d2 > 0 else 0.0


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_ledoit_wolf_equals_scikit_learn_for_few_and_many_observations(n: int, d: int) -> None:
    x = sample(n, d)
    reference = LedoitWolf().fit(x.numpy())
    m = moments(x)
    amount = ledoit_wolf(m)
    assert float(amount) == pytest.approx(reference.shrinkage_, abs=1e-10)
    torch.testing.assert_close(m.mean, torch.from_numpy(reference.location_), rtol=1e-10, atol=1e-10)
    covariance = torch.from_numpy(reference.covariance_).reshape(d, d)
    torch.testing.assert_close(shrink(m.covariance, amount), covariance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (33, 32)])
def test_ledoit_wolf_equals_the_textbook(n: int, d: int) -> None:
    x = sample(n, d)
    assert float(ledoit_wolf(moments(x))) == pytest.approx(textbook_ledoit_wolf(x), abs=1e-10)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_oas_equals_scikit_learn(n: int, d: int) -> None:
    x = sample(n, d)
    reference = OAS().fit(x.numpy())
    amount = oas(moments(x))
    assert float(amount) == pytest.approx(reference.shrinkage_, abs=1e-10)
    covariance = torch.from_numpy(reference.covariance_).reshape(d, d)
    torch.testing.assert_close(shrink(moments(x).covariance, amount), covariance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 37), (10, 10, 10, 10), (20, 3, 16, 1)])
@pytest.mark.parametrize("d", [7, 60])
def test_moments_merge_in_any_order_and_split(order: tuple[int, ...], sizes: tuple[int, ...], d: int) -> None:
    x = sample(40, d, offset=100.0)
    parts = x.split(sizes)  # each part has its own pivot: its mean
    merged = moments(parts[order[0]])
    for i in order[1:]:
        merged = merge(merged, moments(parts[i]))
    reference = LedoitWolf().fit(x.numpy())
    amount = ledoit_wolf(merged)
    assert float(merged.count) == 40
    assert float(amount) == pytest.approx(reference.shrinkage_, abs=1e-10)
    torch.testing.assert_close(
        shrink(merged.covariance, amount), torch.from_numpy(reference.covariance_), rtol=1e-10, atol=1e-10
    )


def test_merging_is_a_tree_as_well_as_a_chain() -> None:
    parts = [moments(p) for p in sample(40, 5).split(10)]
    chain = merge(merge(merge(parts[0], parts[1]), parts[2]), parts[3])
    tree = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
    torch.testing.assert_close(chain.covariance, tree.covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ledoit_wolf(chain), ledoit_wolf(tree), rtol=1e-10, atol=1e-12)


def test_shift_equals_moments_about_the_new_pivot() -> None:
    x = sample(30, 6)
    pivot = torch.arange(6, dtype=torch.float64)
    shifted, direct = recenter(moments(x), pivot), moments(x, pivot)
    for name in ("sum", "outer", "cubic", "quartic"):
        torch.testing.assert_close(getattr(shifted, name), getattr(direct, name), rtol=1e-10, atol=1e-8)


def test_forgetting_changes_the_weight_and_nothing_else() -> None:
    m = moments(sample(30, 6), torch.zeros(6))
    less = decay(m, 0.25)
    assert float(less.count) == 22.5
    torch.testing.assert_close(less.mean, m.mean)
    torch.testing.assert_close(less.covariance, m.covariance)


def test_mahalanobis_equals_scipy() -> None:
    x = sample(40, 7)
    m = moments(x)
    inverse = torch.linalg.inv(m.covariance)
    expected = [scipy_mahalanobis(row, m.mean, inverse) for row in x]
    actual = mahalanobis(x, m.mean, whitening(m.covariance))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_a_batch_of_gaussians_equals_one_at_a_time(batch: tuple[int, ...]) -> None:
    count = int(torch.tensor(batch).prod())
    x = torch.stack([sample(12, 5, seed) for seed in range(count)]).reshape(*batch, 12, 5)
    many = Gaussian(5, batch=batch).double()
    many.fit(moments(x))
    distances = many(x).reshape(count, 12)
    for i, one_x in enumerate(x.reshape(count, 12, 5)):
        one = Gaussian(5).double()
        one.fit(moments(one_x))
        torch.testing.assert_close(distances[i], one(one_x), rtol=1e-10, atol=1e-10)


def test_gradients_flow_through_x_and_are_zero_at_the_mean() -> None:
    x = sample(20, 4)
    gaussian = Gaussian(4).double()
    gaussian.fit(moments(x))
    x = x[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(gaussian, x)
    at_mean = gaussian.mean.clone()[None].requires_grad_()
    gaussian(at_mean).sum().backward()
    assert at_mean.grad is not None and torch.equal(at_mean.grad, torch.zeros_like(at_mean))


def test_float32_distances_stay_close_to_float64() -> None:
    x = sample(300, 64)
    exact, fast = Gaussian(64).double(), Gaussian(64)
    exact.fit(moments(x))
    fast.fit(moments(x))
    torch.testing.assert_close(fast(x.float()).double(), exact(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(7, 40), (5, 5), (1, 3)])
def test_no_shrinkage_with_too_few_observations_is_a_clear_error(n: int, d: int) -> None:
    with pytest.raises(UserError, match=f"{d} features from {n} images is singular"):
        Gaussian(d, "none").fit(moments(sample(n, d)))


def test_no_shrinkage_works_with_enough_observations() -> None:
    gaussian = Gaussian(5, "none").double()
    gaussian.fit(moments(sample(50, 5)))
    assert float(gaussian.shrinkage_) == 0


def test_identical_images_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="singular"):
        Gaussian(3).fit(moments(torch.ones(10, 3)))


def test_fixed_shrinkage_is_used_as_given() -> None:
    gaussian = Gaussian(40, 0.25)
    gaussian.fit(moments(sample(7, 40)))
    assert float(gaussian.shrinkage_) == 0.25


@pytest.mark.parametrize("method", [1.5, -0.1, "ledoit"])
def test_unknown_shrinkage_is_a_clear_error(method: float) -> None:
    with pytest.raises(UserError, match="shrinkage="):
        Gaussian(3, method).fit(moments(sample(10, 3)))


def test_running_gaussian_keeps_its_count_and_follows_the_data() -> None:
    running = RunningGaussian(4)
    running.fit(moments(sample(64, 4)))
    for seed in range(60):
        running.update(moments(sample(16, 4, seed, offset=10.0)))
    assert float(running.count) == pytest.approx(64)
    target = moments(torch.cat([sample(16, 4, seed, offset=10.0) for seed in range(60)]))
    assert (running.mean - target.mean).abs().max() < (sample(64, 4).mean(0) - target.mean).abs().max() / 3


def test_state_dict_of_a_fitted_gaussian_loads_into_a_fresh_one() -> None:
    fitted, fresh = RunningGaussian(6), RunningGaussian(6)
    fitted.fit(moments(sample(30, 6)))
    assert not fresh.is_fitted
    fresh.load_state_dict(fitted.state_dict())
    x = sample(9, 6).float()
    assert torch.equal(fresh(x), fitted(x))
    fitted.update(moments(x)), fresh.update(moments(x))
    assert torch.equal(fresh.whitener, fitted.whitener)


def test_diagonal_and_identity_covariances_are_the_textbook_distances() -> None:
    x = sample(50, 6)
    m = moments(x)
    for structure, variances in (("diagonal", m.covariance.diagonal()), ("identity", m.covariance.diagonal().mean())):
        gaussian = Gaussian(6, "none", structure).double()  # type: ignore[arg-type]
        gaussian.fit(m)
        expected = ((x - m.mean) ** 2 / variances).sum(1).sqrt()
        torch.testing.assert_close(gaussian(x), expected, rtol=1e-10, atol=1e-10)


def test_a_diagonal_covariance_needs_no_shrinkage_even_for_few_observations() -> None:
    Gaussian(40, "none", "diagonal").fit(moments(sample(7, 40)))


def test_unknown_covariance_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="covariance=round: expected full, diagonal or identity"):
        Gaussian(3, "none", "round").fit(moments(sample(9, 3)))  # type: ignore[arg-type]
