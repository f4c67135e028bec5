"""Operating points: counts, exact intervals, and a test of the target that knows how uncertain a calibration is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration, conformal_threshold
from gaussad_pl.calibration.operating_points import (
    LEVEL,
    OperatingPoint,
    excess_p_value,
    operating_points,
    share_interval,
)

NONE = torch.zeros(0, dtype=torch.float64)


def calibration(scores: Tensor, different: int | None = None) -> Calibration:
    return Calibration.of(scores, torch.zeros(len(scores), 1), "test", different)


def ramp(n: int, different: int | None = None) -> Calibration:
    """Scores 1, 2, ... n: the threshold of rank k is n + 1 - k."""
    return calibration(torch.arange(1.0, n + 1), different)


def point(known: Calibration, good: Tensor, bad: Tensor, fpr: float = 0.05) -> OperatingPoint:
    return operating_points(known, good, bad, [fpr])[fpr]


def test_good_and_bad_images_above_the_threshold_are_counted_at_each_rate() -> None:
    good, bad = torch.tensor([50.0, 92.0, 97.5, 60.0, 1.0, 2.0]), torch.tensor([96.5, 200.0, 10.0, 98.5])
    found = operating_points(ramp(199), good + 100, bad + 100)  # thresholds 198, 190, 180 and 160
    assert tuple(found) == (0.01, 0.05, 0.1, 0.2)
    assert [each.threshold for each in found.values()] == [198, 190, 180, 160]
    assert [each.good_lost for each in found.values()] == [0, 2, 2, 2] and {each.good for each in found.values()} == {6}
    assert [each.bad_found for each in found.values()] == [2, 3, 3, 3] and {each.bad for each in found.values()} == {4}
    assert {(each.rule, each.good_from) for each in found.values()} == {("conformal", "test")}
    assert found[0.05].good_interval == share_interval(2, 6) and found[0.05].bad_interval == share_interval(3, 4)


@pytest.mark.parametrize(("count", "total"), [(0, 6), (1, 41), (20, 41), (119, 119)])
def test_the_interval_ends_where_the_count_would_be_a_surprise(count: int, total: int) -> None:
    low, high = share_interval(count, total)
    assert low <= count / total <= high
    if count:
        assert stats.binom(total, low).sf(count - 1) == pytest.approx(0.025)
    if count < total:
        assert stats.binom(total, high).cdf(count) == pytest.approx(0.025)
    assert (low == 0) == (count == 0) and (high == 1) == (count == total)


@pytest.mark.parametrize(("n", "images", "fpr"), [(19, 20, 0.05), (59, 40, 0.1), (199, 100, 0.01)])
def test_false_alarms_of_exchangeable_images_have_the_stated_distribution(n: int, images: int, fpr: float) -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(4000):
        scores = torch.from_numpy(rng.gamma(2, size=n + images))  # any distribution
        threshold = conformal_threshold(scores[:n].sort().values, fpr)
        alarms.append(int((scores[n:] > threshold).sum()))
    counts = np.bincount(alarms, minlength=images + 1)
    for least in (1, 2, 4, 8):
        p = excess_p_value(least, images, n, fpr)
        assert counts[least:].sum() / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000) + 1e-9)


def test_a_promise_that_is_kept_is_rarely_contradicted_where_a_plain_binomial_test_often_errs() -> None:
    rng = np.random.default_rng(1)
    ours, plain = [], []
    for _ in range(1000):
        scores = torch.from_numpy(rng.normal(size=59 + 200))
        found = point(calibration(scores[:59]), scores[59:], NONE, 0.1)
        ours.append(found.contradicted)
        plain.append(stats.binomtest(found.good_lost, 200, 0.1, alternative="greater").pvalue < LEVEL)
    assert np.mean(ours) <= LEVEL + 3 * math.sqrt(LEVEL / 1000)
    assert np.mean(plain) > 3 * LEVEL


def test_images_that_have_changed_contradict_the_target() -> None:
    moved = torch.from_numpy(np.random.default_rng(2).normal(5, size=40))
    known = torch.from_numpy(np.random.default_rng(3).normal(size=99))
    assert all(each.contradicted is True for each in operating_points(calibration(known), moved, NONE).values())


def test_fewer_different_calibration_images_take_more_to_be_contradicted() -> None:
    good = torch.cat([torch.full((6,), 500.0), torch.zeros(34)])
    many, few = (point(ramp(400, different), good, NONE, 0.05) for different in (400, 20))
    assert many.good_lost == few.good_lost == 6
    assert many.p_value is not None and few.p_value is not None
    assert many.contradicted is True and few.contradicted is False and many.p_value < few.p_value


def test_the_target_is_tested_from_five_good_test_images_on() -> None:
    above = torch.full((5,), 500.0)
    assert point(ramp(99), above, NONE).contradicted is True
    few = point(ramp(99), above[:4], NONE)
    assert few.contradicted is None and few.p_value is None and few.good_interval == share_interval(4, 4)


def test_without_good_test_images_the_calibration_says_what_it_promises() -> None:
    found = point(ramp(99), NONE, torch.tensor([96.0, 1.0]))
    assert (found.good_from, found.good_lost, found.good) == ("calibration", 4, 99)
    assert found.good_interval == pytest.approx(stats.beta(5, 95).ppf([0.025, 0.975]))
    assert found.p_value is None and found.bad_found == 1
    tail = point(ramp(30), NONE, NONE, 0.01)
    assert tail.rule == "gamma" and tail.good_lost == 0
    assert tail.good_interval == (0.0, pytest.approx(stats.beta(1, 30).ppf(0.975)))


def test_without_bad_images_nothing_is_said_of_them() -> None:
    found = point(ramp(99), torch.arange(10.0), NONE)
    assert (found.bad_found, found.bad, found.bad_interval) == (0, 0, None)


def test_without_a_threshold_there_is_nothing_to_test() -> None:
    found = point(ramp(7), torch.full((9,), 500.0), torch.full((9,), 500.0), 0.05)
    assert found.rule == "none" and found.threshold is None
    assert (found.good_lost, found.good, found.bad_found, found.bad) == (None, 9, None, 9)
    assert found.good_interval is found.bad_interval is found.p_value is found.contradicted is None
