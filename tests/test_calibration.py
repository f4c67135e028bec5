"""P-values and thresholds against naive counting and scipy, and in simulations: they promise what they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration, conformal_threshold, p_values, rate_range
from gaussad_pl.calibration.drift import DriftMonitor, few_below, moved_away
from gaussad_pl.calibration.folds import folds_for
from gaussad_pl.calibration.gamma import Gamma, fit_gamma, misfit
from gaussad_pl.errors import UserError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def calibration(scores: Tensor, levels: int = 2) -> Calibration:
    return Calibration.of(scores, normal(len(scores), levels, seed=9).abs(), "test")


# ---------------------------------------------------------------------------------------------- p-values and thresholds


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_equal_naive_counting(ties: bool) -> None:
    known, new = normal(50), normal(30, seed=1)
    if ties:
        known, new = known.round(decimals=1), new.round(decimals=1)
    expected = [(1 + sum(float(c) >= float(s) for c in known)) / 51 for s in new]
    assert p_values(new, known.sort().values).tolist() == expected
    assert p_values(torch.tensor([-99.0, 99.0]), known.sort().values).tolist() == [1, 1 / 51]


@pytest.mark.parametrize("fpr", [0.01, 0.02, 0.05, 0.1, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("n", [1, 19, 20, 99, 100])
def test_a_score_is_above_the_threshold_exactly_where_its_p_value_is_at_most_the_rate(fpr: float, n: int) -> None:
    known = normal(n).sort().values
    threshold = conformal_threshold(known, fpr)
    new = torch.cat([normal(200, seed=1), known])
    assert torch.equal(new > threshold, p_values(new, known) <= fpr + 1e-12)
    assert (threshold == math.inf) == (n < 1 / fpr - 1 - 1e-9)


def test_p_values_of_exchangeable_images_are_uniform_and_the_threshold_keeps_its_rate() -> None:
    rng = np.random.default_rng(0)
    n, draws = 59, 4000
    found = []
    for _ in range(draws):
        scores = torch.from_numpy(rng.gamma(2, size=n + 1))  # any distribution
        known = scores[:-1].sort().values
        found.append(float(p_values(scores[-1:], known)))
    counts = np.bincount(np.rint(np.array(found) * (n + 1)).astype(int), minlength=n + 2)[1:]
    assert counts.sum() == draws and stats.chisquare(counts).pvalue > 0.001
    for fpr in (0.05, 0.1, 0.2):
        assert np.mean(np.array(found) <= fpr) == pytest.approx(math.floor(fpr * 60 + 1e-9) / 60, abs=0.02)


def test_the_range_of_the_rate_is_that_of_the_beta_distribution_and_of_simulations() -> None:
    for n, fpr in ((99, 0.01), (256, 0.05), (606, 0.2)):
        k = math.floor(fpr * (n + 1) + 1e-9)
        assert rate_range(n, fpr) == pytest.approx(stats.beta(k, n + 1 - k).ppf([0.05, 0.95]), rel=1e-9)
    known = np.random.default_rng(0).uniform(size=(2000, 99))
    rates = [1 - conformal_threshold(torch.from_numpy(np.sort(row)), 0.1) for row in known]
    low, high = rate_range(99, 0.1)
    assert np.mean([low <= rate <= high for rate in rates]) == pytest.approx(0.9, abs=0.03)
    assert np.mean(rates) == pytest.approx(0.1, abs=0.003)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, 5, math.nan])
def test_an_impossible_rate_is_a_clear_error(fpr: float) -> None:
    with pytest.raises(UserError, match="expected a false-alarm rate between 0 and 1"):
        calibration(normal(20)).threshold(fpr)


@pytest.mark.parametrize("n", [5, 16, 64, 300])
def test_a_smaller_rate_never_has_a_smaller_threshold(n: int) -> None:
    for seed in range(20):
        known = calibration(torch.from_numpy(np.random.default_rng(seed).standard_t(3, size=n)))
        found = [known.threshold(fpr).value for fpr in (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)]
        assert found == sorted(found, reverse=True)


def test_too_few_images_say_so_and_what_a_gamma_gives() -> None:
    few = calibration(normal(64).square())
    assert few.threshold(0.05).rule == "conformal"
    found = few.threshold(0.01)
    assert found.rule == "gamma" and few.gamma is not None
    assert found.value == max(few.gamma.quantile(0.01), float(few.scores.max()))
    value = torch.tensor(few.gamma.quantile(0.01), dtype=torch.float64)
    assert float(few.gamma.above(value)) == pytest.approx(0.01, rel=1e-9)
    for part in ("needs 99 calibration images", "there are 64", "can guarantee is 0.015", "gamma"):
        assert part in found.line
    assert "\n" not in found.line


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.zeros(30), torch.arange(5.0)])
def test_without_anything_to_go_by_nothing_is_called_bad(scores: Tensor) -> None:
    found = calibration(scores).threshold(0.01)
    assert found.rule == "none" and found.value == math.inf and found.reason == found.line
    assert {found.verdict(score) for score in (-math.inf, 0.0, math.inf, math.nan)} == {"undecided"}


def test_an_undecided_threshold_says_what_is_missing_and_what_helps() -> None:
    seven, three = (calibration(torch.arange(float(n))) for n in (7, 3))
    reason = seven.threshold(0.01).reason
    assert reason.startswith("fpr=0.01 needs 99 calibration images, but the detector has 7: give fpr=0.2 or train")
    assert seven.threshold(0.2).reason == "" and seven.threshold(0.2).verdict(3.0) == "good"
    assert three.threshold().reason.endswith(
        "needs 4 calibration images, but the detector has 3: train with more good images"
    )


@pytest.mark.parametrize(
    ("n", "expected"), [(9, 0.2), (18, 0.2), (19, 0.1), (38, 0.1), (39, 0.05), (198, 0.05), (199, 0.01), (2000, 0.01)]
)
def test_the_default_rate_is_the_smallest_that_rests_on_more_than_one_image_and_is_said(
    n: int, expected: float
) -> None:
    known = calibration(normal(n))
    found = known.threshold()
    assert (found.fpr, found.rule, found.value) == (expected, "conformal", known.threshold(expected).value)
    assert found.value < known.scores.max()
    assert f"fpr={expected:g}, the smallest of 0.01, 0.05, 0.1, 0.2 whose threshold is not the largest of" in found.line
    assert ("0.01 needs 199" in found.line) == (n < 199) and ("0.05 needs 39" in found.line) == (n < 39)
    assert "the smallest of" not in known.threshold(expected).line


def test_one_image_more_never_makes_the_default_rest_on_the_largest_score_alone() -> None:
    assert all(calibration(torch.arange(float(n))).threshold().value < n - 1 for n in range(9, 300))


def test_a_handful_of_images_has_the_largest_rate_and_is_told_why() -> None:
    found = calibration(torch.arange(7.0)).threshold()
    assert (found.fpr, found.value) == (0.2, 6.0)
    assert "the largest of 0.01, 0.05, 0.1, 0.2: the threshold is the largest of 7 calibration scores" in found.line


@pytest.mark.parametrize("n", range(4))
def test_without_a_guaranteed_rate_the_default_is_undecided(n: int) -> None:
    found = calibration(normal(n)).threshold()
    assert (found.rule, found.fpr, found.verdict(0.0)) == ("none", 0.2, "undecided")


def test_images_of_one_part_make_the_range_wider() -> None:
    scores, distances = normal(200), normal(200, 1)
    alone, twins = (Calibration.of(scores, distances, "", different) for different in (200, 50))
    assert alone.threshold(0.05).value == twins.threshold(0.05).value
    assert rate_range(50, 0.05)[1] > rate_range(200, 0.05)[1]
    assert f"{rate_range(50, 0.05)[1]:.2g}" in twins.threshold(0.05).line
    assert "a probability of at most 0.05;" in alone.threshold(0.05).line
    assert "near 0.05, which is not guaranteed" in twins.threshold(0.05).line
    assert "with 50 different parts" in twins.threshold(0.05).line


# ----------------------------------------------------------------------------------------------------------- the gamma


def test_the_gamma_equals_scipy() -> None:
    ours, theirs = Gamma(3.3, 2.0, -7.0), stats.gamma(3.3, loc=-7, scale=2)
    x = torch.linspace(-9, 60, 50, dtype=torch.float64)
    np.testing.assert_allclose(ours.below(x), theirs.cdf(x.numpy()), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(ours.above(x), theirs.sf(x.numpy()), rtol=1e-10)
    for tail in (0.5, 0.01, 1e-6):
        assert ours.quantile(tail) == pytest.approx(theirs.isf(tail), rel=1e-10)


def test_fitted_moments_are_those_of_the_observations() -> None:
    x = normal(300).square() - 4  # negative ones, too
    fitted = fit_gamma(x)
    theirs = stats.gamma(fitted.shape, loc=fitted.shift, scale=fitted.scale)
    mean, variance, skewness = theirs.stats("mvs")
    assert mean == pytest.approx(float(x.mean())) and variance == pytest.approx(float(x.var(correction=0)))
    assert skewness == pytest.approx(stats.skew(x.numpy()))
    symmetric = fit_gamma(torch.cat([normal(50), -normal(50)]))
    assert symmetric.quantile(0.01) == pytest.approx(2.33 * float(normal(50).square().mean().sqrt()), rel=0.05)


def test_a_fit_is_contradicted_by_what_is_no_gamma_and_seldom_by_what_is() -> None:
    rng = np.random.default_rng(1)
    good = [torch.from_numpy(rng.gamma(4, size=100)) for _ in range(40)]
    assert np.mean([misfit(x, fit_gamma(x)) < 0.05 for x in good]) <= 0.15
    two_heaps = torch.cat([normal(50), normal(50, seed=1) + 8])
    assert misfit(two_heaps, fit_gamma(two_heaps)) < 0.01
    assert "THE FIT IS REJECTED" in calibration(two_heaps).threshold(0.001).line


# ----------------------------------------------------------------------------------------------------------- the drift


def drift_of(scores: Tensor, known: Tensor, batch: int = 7) -> list[str]:
    """Return the parts that have moved where score and the one level are the same thing."""
    monitor = DriftMonitor(Calibration.of(known, known[:, None], ""), [3])
    for part in scores.split(batch):
        monitor.observe(part, part[:, None])
    return monitor.drift().moved


@pytest.mark.parametrize("bad", [0.0, 0.2, 0.45])
def test_bad_parts_alone_are_no_drift(bad: float) -> None:
    alarms = 0
    for seed in range(100):
        known, good = normal(200, seed=2 * seed), normal(300, seed=2 * seed + 1)
        good[: int(bad * 300)] += 6
        alarms += bool(drift_of(good, known))
    assert alarms <= 1


@pytest.mark.parametrize("images", [40, 1000])
def test_images_that_all_moved_away_are_drift(images: int) -> None:
    known, new = normal(200), normal(images, seed=1)
    assert drift_of(new + 3, known) == ["score", "level 3"]  # none of them near
    assert drift_of(new - 3, known) == []  # nearer: images of the training
    if images == 1000:
        assert drift_of(new + 1.2, known) == ["score", "level 3"]
        new[:300] = 9  # bad parts among them hide nothing
        assert drift_of(new + 1.2, known) == ["score", "level 3"]


def test_the_monitor_streams() -> None:
    known, new = normal(100), normal(333, seed=1) + 0.5
    found = []
    for batch in (1, 10, 333):
        monitor = DriftMonitor(Calibration.of(known, known[:, None], ""), [3])
        for part in new.split(batch):
            monitor.observe(part, part[:, None])
        found.append(monitor.drift())
        assert monitor.counts.numel() == 2 * 101
    assert found[0] == found[1] == found[2] and found[0].images == 333


def test_a_handful_of_images_outside_the_calibration_is_drift() -> None:
    assert drift_of(normal(5) + 9, normal(60)) == ["score", "level 3"]
    assert drift_of(torch.cat([normal(3) + 9, normal(2)]), normal(60)) == []  # bad parts, and good ones
    assert drift_of(normal(10) + 9, normal(15)) == ["score", "level 3"]  # few calibration images, too
    assert drift_of(normal(4) + 9, normal(60)) == []
    assert drift_of(normal(50) + 9, normal(4)) == []
    assert drift_of(torch.zeros(0), normal(100)) == []


def test_a_level_without_weight_in_the_score_moves_by_itself() -> None:
    known, new = normal(60), normal(8, seed=1)
    monitor = DriftMonitor(Calibration.of(known, torch.stack([known, known], dim=1), ""), [3, 4])
    monitor.observe(new, torch.stack([new, new + 9], dim=1))
    found = monitor.drift()
    assert found.moved == ["level 4"] and "scores alone could also be explained" in found.line


@pytest.mark.parametrize("images", [5, 9, 20])
@pytest.mark.parametrize("bad", [0.0, 0.4])
def test_few_images_raise_no_false_alarm(images: int, bad: float) -> None:
    alarms = 0
    for seed in range(50):
        known, new = normal(40, seed=2 * seed), normal(images, seed=2 * seed + 1)
        new[: int(bad * images)] += 9
        alarms += bool(drift_of(new, known, batch=images))
    assert alarms <= 2  # LEVEL is 0.01: more than two of 50 have a probability of 1.4 %


def test_few_below_equals_scipy() -> None:
    for count, images, rank, n in ((0, 20, 100, 200), (5, 20, 50, 99), (90, 200, 100, 200)):
        expected = stats.betabinom(images, rank, n + 1 - rank).cdf(count)
        assert few_below(count, images, rank, n) == pytest.approx(expected, rel=1e-8)
    assert few_below(20, 20, 5, 10) == 1


def test_the_same_distribution_has_not_moved() -> None:
    p, size = moved_away(torch.ones(101, dtype=torch.int64))
    assert p > 0.5 and size < 0.03


def test_few_images_are_calibrated_with_more_folds() -> None:
    assert [folds_for(n) for n in (20, 99, 100, 500)] == [10, 10, 4, 4]
