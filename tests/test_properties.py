"""Laws that hold for all inputs: moments, conformal p-values and thresholds, distributions, metrics.

Hypothesis draws the inputs, always the same ones, so that nothing fails by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from test_pixel_metrics import METRICS, textbook
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration, conformal_threshold, p_values, rate_range
from gaussad_pl.calibration.drift import few_below
from gaussad_pl.calibration.gamma import Gamma
from gaussad_pl.density.moments import Moments, decay, merge, moments, recenter
from gaussad_pl.density.shrinkage import ledoit_wolf
from gaussad_pl.errors import UserError
from gaussad_pl.metrics.image import image_metrics
from gaussad_pl.metrics.pixel import pixel_metrics


def examples(count: int) -> Callable[..., object]:
    return settings(deadline=None, max_examples=count, derandomize=True, database=None)


# ------------------------------------------------------------------------------------------------------------- moments


@st.composite
def batches(draw: st.DrawFn) -> list[Tensor]:
    """Observations of D features in batches ``(n, D)`` of any sizes: few or many, heavy-tailed, far from the origin."""
    n, d = draw(st.integers(2, 40)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_t(5, (n, d)) @ rng.normal(size=(d, d)) * draw(st.sampled_from([1e-3, 1.0, 1e3]))
    x += draw(st.sampled_from([0.0, 1.0, -50.0])) * x.std()
    cuts = draw(st.sets(st.integers(1, n - 1), max_size=6))
    return [torch.from_numpy(part) for part in np.split(x, sorted(cuts))]


def same(a: Moments, b: Moments) -> None:
    """Equal mean, covariance and shrinkage, up to rounding in units of the spread."""
    spread = float(a.covariance.diagonal().max().sqrt())
    reach = spread + float(a.mean.abs().max())
    assert float(a.count) == float(b.count)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-11 * reach)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=0, atol=1e-10 * spread**2)
    assert float(ledoit_wolf(a)) == pytest.approx(float(ledoit_wolf(b)), abs=1e-8)


def merged(parts: list[Tensor]) -> Moments:
    total = moments(parts[0])
    for part in parts[1:]:
        total = merge(total, moments(part))
    return total


@given(batches())
@examples(60)
def test_moments_of_any_batches_are_those_of_numpy_and_scikit_learn(parts: list[Tensor]) -> None:
    x = torch.cat(parts).numpy()
    found, reference = merged(parts), LedoitWolf().fit(x)
    spread = x.std(0).max()
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-10, atol=1e-10 * spread)
    np.testing.assert_allclose(found.covariance, np.cov(x.T, bias=True).reshape(x.shape[1], -1), atol=1e-10 * spread**2)
    assert float(ledoit_wolf(found)) == pytest.approx(reference.shrinkage_, abs=1e-8)


@given(batches(), st.randoms(use_true_random=False))
@examples(40)
def test_merging_is_commutative_and_associative(parts: list[Tensor], random: object) -> None:
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    same(merged(parts), merged(shuffled))
    if len(parts) > 2:
        a, b, *rest = map(moments, parts)
        c = rest[0]
        same(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(batches(), st.floats(-3, 3), st.sampled_from([0.5, 2.0, 1000.0]))
@examples(40)
def test_moments_follow_shifts_and_scales_of_the_observations(parts: list[Tensor], step: float, scale: float) -> None:
    x = torch.cat(parts)
    offset = step * x.std(0, correction=0)
    original, moved, scaled = moments(x), moments(x + offset), moments(scale * x)
    torch.testing.assert_close(moved.mean, original.mean + offset)
    torch.testing.assert_close(scaled.mean, scale * original.mean)
    spread = original.covariance.diagonal().max()
    torch.testing.assert_close(moved.covariance / spread, original.covariance / spread, rtol=0, atol=1e-9)
    torch.testing.assert_close(scaled.covariance / spread, scale**2 * original.covariance / spread)
    for other in (moved, scaled):
        assert float(ledoit_wolf(other)) == pytest.approx(float(ledoit_wolf(original)), abs=1e-8)


@given(batches(), st.floats(-10, 10), st.floats(0, 0.99))
@examples(40)
def test_another_pivot_and_less_weight_change_neither_mean_nor_covariance(
    parts: list[Tensor], step: float, share: float
) -> None:
    found = merged(parts)
    pivot = found.mean + step * found.covariance.diagonal().sqrt()
    same(found, recenter(found, pivot))
    same(found, recenter(recenter(found, pivot), found.pivot))
    lighter = decay(found, share)
    assert float(lighter.count) == pytest.approx((1 - share) * float(found.count))
    torch.testing.assert_close(lighter.mean, found.mean)
    spread = found.covariance.diagonal().max()
    torch.testing.assert_close(lighter.covariance / spread, found.covariance / spread, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------- conformal calibration

exchangeable = st.lists(st.one_of(st.integers(0, 3), st.floats(-1e6, 1e6)), min_size=2, max_size=25)


@given(exchangeable)
@examples(150)
def test_over_every_choice_of_the_new_image_p_values_are_valid_with_and_without_ties(values: list[float]) -> None:
    """P(p <= a) over which of n + 1 exchangeable scores is the new one, by counting: no sampling, no tolerance."""
    scores = torch.tensor(values, dtype=torch.float64)
    total = len(scores)
    held_out = [torch.cat([scores[:i], scores[i + 1 :]]).sort().values for i in range(total)]
    found = [round(float(p_values(scores[i : i + 1], held_out[i])) * total) for i in range(total)]  # p (n + 1)
    for level in range(total + 1):
        at_most = sum(p <= level for p in found)
        assert at_most <= level
        if len(set(values)) == total:
            assert at_most == level
    for fpr in (0.01, 0.05, 0.1, 0.29, 0.5, 0.9):
        alarms = sum(values[i] > conformal_threshold(held_out[i], fpr) for i in range(total))
        assert Fraction(alarms, total) <= Fraction(str(fpr))


@given(
    st.lists(st.one_of(st.integers(-2, 2), st.floats(-1e3, 1e3)), max_size=60),
    st.lists(st.floats(1e-9, 1, exclude_max=True), min_size=2, max_size=6),
)
@examples(60)
def test_thresholds_never_rise_with_the_rate(values: list[float], rates: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    calibration = Calibration.of(scores, scores[:, None], "")
    found = [calibration.threshold(fpr).value for fpr in sorted([*rates, math.nextafter(1, 0)])]
    assert found == sorted(found, reverse=True) and not any(map(math.isnan, found))
    guaranteed = [conformal_threshold(calibration.scores, fpr) for fpr in sorted(rates)]
    assert guaranteed == sorted(guaranteed, reverse=True)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.integers(0, 19), st.sampled_from([math.nan, math.inf])
)
@examples(30)
def test_calibration_refuses_scores_that_are_not_finite(values: list[float], place: int, broken: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    place %= len(values)
    fine, scores[place] = scores.clone(), broken
    for arguments in ((scores, fine[:, None]), (fine, scores[:, None])):
        with pytest.raises(UserError, match=f"^calibration image {place}: the "):
            Calibration.of(*arguments, "")


def test_scores_too_close_or_too_large_for_a_gamma_give_no_nan() -> None:
    for unit in (1e-320, 1e-200, 1e-160, 1e160, 1e300):
        scores = unit * torch.arange(12, dtype=torch.float64)
        threshold = Calibration.of(scores, torch.zeros(12, 1), "").threshold(0.01)
        assert threshold.value > scores[-1] or threshold.rule == "none", unit
        assert not math.isnan(threshold.value)


# -------------------------------------------------------------------------------------------------------- distributions
# written by hand, as a detector scores, finds thresholds and watches for drift without scipy


@given(st.integers(1, 3000), st.floats(1e-4, 1, exclude_max=True), st.floats(0.5, 0.999))
@examples(80)
def test_the_range_of_the_rate_is_that_of_scipy(n: int, fpr: float, coverage: float) -> None:
    k = max(1, min(n, math.floor(fpr * (n + 1) + 1e-9)))
    expected = stats.beta(k, n + 1 - k).ppf([(1 - coverage) / 2, (1 + coverage) / 2])
    assert rate_range(n, fpr, coverage) == pytest.approx(expected, rel=1e-8)


@given(st.data())
@examples(80)
def test_the_beta_binomial_is_that_of_scipy(data: st.DataObject) -> None:
    n, images = data.draw(st.integers(1, 2000)), data.draw(st.integers(1, 5000))
    rank, count = data.draw(st.integers(1, n)), data.draw(st.integers(0, images))
    expected = stats.betabinom(images, rank, n + 1 - rank).cdf(count)
    assert few_below(count, images, rank, n) == pytest.approx(expected, rel=1e-7, abs=1e-200)


@given(st.floats(-3.4, 2.6), st.floats(-12, -0.05), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
@examples(80)
def test_the_quantile_of_the_gamma_is_that_of_scipy(shape: float, tail: float, scale: float, shift: float) -> None:
    expected = stats.gamma(10**shape).isf(10**tail)
    assert Gamma(10**shape, 1.0, 0.0).quantile(10**tail) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert Gamma(10**shape, scale, shift).quantile(10**tail) == pytest.approx(
        shift + scale * expected, abs=1e-9 * (abs(shift) + scale * expected + 1)
    )


# ------------------------------------------------------------------------------------------------------------- metrics

ranked = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 4), st.floats(-1e9, 1e9, allow_subnormal=False))),
    min_size=1, max_size=40,
)  # fmt: skip


@given(ranked)
@examples(200)
def test_image_metrics_are_those_of_scikit_learn(images: list[tuple[bool, float]]) -> None:
    labels = np.array([label for label, _ in images])
    scores = np.array([score for _, score in images], dtype=np.float64)
    found = image_metrics(torch.from_numpy(scores), torch.from_numpy(labels).long())
    if labels.all() or not labels.any():
        assert set(found.values()) == {None}
        return
    precision, recall, _ = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nanmax(2 * precision * recall / (precision + recall))
    expected = [roc_auc_score(labels, scores), average_precision_score(labels, scores), f1]
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(-1e300, 1e300))
@examples(30)
def test_constant_scores_say_nothing(good: int, bad: int, score: float) -> None:
    labels = torch.tensor([0] * good + [1] * bad)
    found = image_metrics(torch.full((good + bad,), score, dtype=torch.float64), labels)
    assert found["image_auroc"] == 0.5 and found["image_ap"] == pytest.approx(bad / (good + bad))
    assert found["image_f1max"] == pytest.approx(2 * bad / (2 * bad + good))


@given(ranked, st.integers(0, 39), st.sampled_from([math.nan, math.inf, -math.inf]))
@examples(40)
def test_image_metrics_refuse_scores_without_a_rank(
    images: list[tuple[bool, float]], place: int, broken: float
) -> None:
    place %= len(images)
    scores = torch.tensor([score for _, score in images], dtype=torch.float64)
    scores[place] = broken
    with pytest.raises(UserError, match=f"^image {place}: the score is {broken}"):
        image_metrics(scores, torch.tensor([label for label, _ in images]))


@st.composite
def drawn_maps(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Maps and masks of up to three tiny images: with ties, empty and full masks."""
    shape = tuple(draw(st.integers(1, most)) for most in (3, 4, 4))
    count = math.prod(shape)
    values = draw(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1e-10, 7.0]), min_size=count, max_size=count))
    marked = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).reshape(shape), torch.tensor(marked).reshape(shape)


@given(drawn_maps(), st.sampled_from([1.0, 1e6]))
@examples(120)
def test_pixel_metrics_are_those_of_the_textbook(drawn: tuple[Tensor, Tensor], scale: float) -> None:
    maps, masks = scale * drawn[0], drawn[1]
    labels = masks.any((1, 2)).long()
    found = pixel_metrics(maps, masks, labels)
    if masks.all() or not masks.any():
        assert {found[name] for name in METRICS} == {None}
        return
    assert {name: found[name] for name in METRICS} == pytest.approx(textbook(maps, masks), abs=1e-12)


@given(drawn_maps(), st.sampled_from([math.nan, math.inf]), st.integers(0, 47))
@examples(30)
def test_pixel_metrics_refuse_scores_without_a_rank(drawn: tuple[Tensor, Tensor], broken: float, place: int) -> None:
    maps, masks = drawn
    place %= maps.numel()
    maps.view(-1)[place] = broken
    with pytest.raises(UserError, match=f"anomaly map of image {place // maps[0].numel()} has scores that are not"):
        pixel_metrics(maps, masks, masks.any((1, 2)).long())


@given(drawn_maps())
@examples(40)
def test_an_anomalous_image_without_a_mask_counts_for_nothing(drawn: tuple[Tensor, Tensor]) -> None:
    maps, masks = drawn
    assume(masks.any() and not masks.all())
    labels = masks.any((1, 2)).long()
    more = pixel_metrics(
        torch.cat([maps, maps[:1]]), torch.cat([masks, 0 * masks[:1]]).bool(), torch.cat([labels, labels[:1] * 0 + 1])
    )
    assert more == {**pixel_metrics(maps, masks, labels), "masks_missing": 1}
