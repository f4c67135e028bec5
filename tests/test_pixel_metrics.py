"""Pixel metrics against a textbook version, one threshold and one region at a time, and against scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor

from gaussad_pl.errors import UserError
from gaussad_pl.metrics.pixel import aupro, pixel_metrics

METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")


def example(seed: int, levels: int | None = None, n: int = 6, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Maps far outside [0, 1], masks with scattered regions of all sizes, labels; few ``levels`` make many ties."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3 != 0
    noise = torch.rand(n, size, size, generator=rng)
    masks = (noise < 0.15) & labels[:, None, None]
    masks[1, -3:, -4:] = True
    maps = 150 + 20 * torch.randn(n, size, size, generator=rng) + 15 * masks
    if levels:
        maps = (maps * levels / 200).round() * 200 / levels
    return maps, masks, labels.long()


def flood(mask: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The region around ``start``: all pixels that a king of chess can reach without leaving ``mask``."""
    region, border = np.zeros_like(mask), [start]
    while border:
        y, x = border.pop()
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not region[y, x]:
            region[y, x] = True
            border += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return region


def textbook_regions(masks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Number of the image and pixels of each region."""
    regions = []
    for i, mask in enumerate(masks):
        rest = mask.copy()
        while rest.any():
            y, x = np.argwhere(rest)[0]
            regions.append((i, flood(mask, (int(y), int(x)))))
            rest &= ~regions[-1][1]
    return regions


def textbook_aupro(maps: Tensor, masks: Tensor, limit: float = 0.3) -> float:
    scores, truth = maps.double().numpy(), masks.numpy()
    regions = textbook_regions(truth)
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        above = scores >= threshold
        fpr.append(above[~truth].mean())
        pro.append(np.mean([above[i][region].mean() for i, region in regions]))
        if fpr[-1] > limit:  # cut the last piece
            share = (limit - fpr[-2]) / (fpr[-1] - fpr[-2])
            pro[-1] = pro[-2] + share * (pro[-1] - pro[-2])
            fpr[-1] = limit
            break
    return float(trapezoid(pro, fpr)) / limit


def textbook(maps: Tensor, masks: Tensor) -> dict[str, float]:
    scores, truth = maps.numpy().ravel(), masks.numpy().ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "pixel_auroc": roc_auc_score(truth, scores),
        "pixel_ap": average_precision_score(truth, scores),
        "pixel_f1max": f1.max(),
        "aupro": textbook_aupro(maps, masks),
    }


def metrics_alone(maps: Tensor, masks: Tensor, labels: Tensor) -> dict[str, float | None]:
    found = pixel_metrics(maps, masks, labels)
    return {name: found[name] for name in METRICS}


@pytest.mark.parametrize("levels", [None, 40, 5, 2])
@pytest.mark.parametrize("seed", range(4))
def test_all_metrics_equal_textbook_and_scikit_learn(seed: int, levels: int | None) -> None:
    maps, masks, labels = example(seed, levels)
    assert metrics_alone(maps, masks, labels) == pytest.approx(textbook(maps, masks), abs=1e-12)


@pytest.mark.parametrize("limit", [0.001, 0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("levels", [None, 5])
def test_aupro_equals_textbook_at_any_limit(limit: float, levels: int | None) -> None:
    maps, masks, _ = example(7, levels)
    assert aupro(maps, masks, limit) == pytest.approx(textbook_aupro(maps, masks, limit), abs=1e-12)


def test_the_limit_between_two_thresholds_is_interpolated() -> None:
    # 4 normal pixels, 1 anomalous: the curve is (0, 0), (0.25, 0), (0.75, 1), (1, 1), up to 0.5 a triangle
    maps = torch.tensor([[[9.0, 5.0, 5.0, 5.0, 1.0]]])
    masks = torch.tensor([[[False, True, False, False, False]]])
    assert aupro(maps, masks, 0.25) == 0
    assert aupro(maps, masks, 0.5) == pytest.approx(0.25 * 0.5 / 2 / 0.5)
    assert aupro(maps, masks, 0.75) == pytest.approx(0.5 / 2 / 0.75)
    assert aupro(maps, masks, 1.0) == pytest.approx(0.5 / 2 + 0.25)


def test_small_and_large_regions_weigh_the_same() -> None:
    # of 2 regions the one of 1 pixel is found at once, the one of 9 pixels after all normal pixels
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 4:7, 4:7] = True
    maps = torch.ones(1, 8, 8).masked_fill(masks, 0)
    maps[0, 0, 0] = 2
    assert aupro(maps, masks) == pytest.approx(0.5)
    assert pixel_metrics(maps, masks, torch.ones(1))["pixel_auroc"] == pytest.approx(0.1)


def test_a_constant_map_draws_the_diagonal() -> None:
    _, masks, labels = example(0)
    found = pixel_metrics(torch.full(masks.shape, 99.0), masks, labels)
    share = float(masks.double().mean())
    assert found["aupro"] == pytest.approx(0.15)
    assert found["pixel_auroc"] == pytest.approx(0.5)
    assert found["pixel_ap"] == pytest.approx(share)
    assert found["pixel_f1max"] == pytest.approx(2 * share / (1 + share))


def test_perfect_and_reversed_maps() -> None:
    _, masks, labels = example(0)
    assert metrics_alone(masks.float(), masks, labels) == dict.fromkeys(METRICS, 1.0)
    reversed_maps = metrics_alone(-masks.float(), masks, labels)
    assert reversed_maps["pixel_auroc"] == reversed_maps["aupro"] == 0


@pytest.mark.parametrize(("label", "mask"), [(0, False), (1, True), (1, False)])
def test_without_pixels_of_both_kinds_there_are_no_metrics(label: int, mask: bool) -> None:
    maps, masks = torch.rand(3, 4, 5), torch.full((3, 4, 5), mask)
    found = pixel_metrics(maps, masks, torch.full((3,), label))
    missing = 3 if label and not mask else 0
    none: dict[str, object] = dict.fromkeys(METRICS)
    assert found == none | {"pixel_size": [4, 5], "regions": 3 if mask else 0, "masks_missing": missing}
    with pytest.raises(ValueError, match="both anomalous and normal"):
        aupro(maps, masks)


def test_no_image_at_all_has_no_metrics() -> None:
    found = pixel_metrics(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0))
    assert {found[name] for name in METRICS} == {None}


def test_an_entirely_anomalous_image_is_one_region_beside_normal_images() -> None:
    maps, masks, labels = example(3)
    masks[1] = True
    assert metrics_alone(maps, masks, labels) == pytest.approx(textbook(maps, masks), abs=1e-12)
    assert pixel_metrics(maps, masks, labels)["regions"] == len(textbook_regions(masks.numpy()))


def test_regions_join_at_corners_but_neither_across_borders_nor_images() -> None:
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 0] = True  # a zigzag at the left border, one region
    masks[0, 3:5, 5] = True  # right border: a region of its own, next in memory to the left one of the row below
    masks[0, 4:6, 0] = True
    masks[1, 0, 0] = masks[1, 5, 5] = True  # same place as in image 0, opposite corners
    masks[2, 0, :] = True
    maps = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = pixel_metrics(maps, masks, torch.ones(3))
    assert found["regions"] == 6
    assert found["aupro"] == pytest.approx(textbook_aupro(maps, masks), abs=1e-12)


def test_margins_outside_of_the_images_do_not_count() -> None:
    maps, masks, labels = example(0)
    wide = [torch.nn.functional.pad(each, (3, 5, 2, 7)) for each in (maps, masks, torch.ones_like(masks))]
    found = pixel_metrics(*wide[:2], labels, wide[2])
    expected = pixel_metrics(maps, masks, labels)
    assert {name: found[name] for name in METRICS} == pytest.approx({name: expected[name] for name in METRICS})
    assert pixel_metrics(*wide[:2], labels)["aupro"] > expected["aupro"]  # easy pixels flatter


def test_a_bad_image_without_mask_is_left_out_and_counted() -> None:
    maps, masks, labels = example(0)
    masks[[2, 4]] = False
    maps[[2, 4]] += 1000  # as normal pixels they would spoil everything
    kept = [0, 1, 3, 5]
    found = pixel_metrics(maps, masks, labels)
    assert found["masks_missing"] == 2
    assert found | {"masks_missing": 0} == pixel_metrics(maps[kept], masks[kept], labels[kept])
    assert {name: found[name] for name in METRICS} == pytest.approx(textbook(maps[kept], masks[kept]), abs=1e-12)


def test_only_the_order_of_scores_matters() -> None:
    maps, masks, labels = example(1, levels=40)
    expected = metrics_alone(maps, masks, labels)
    doubles = maps.double()
    for same_order in (maps / 1024 - 7, doubles**3, (doubles / 100).exp(), -1 / doubles):
        assert metrics_alone(same_order, masks, labels) == expected


def test_the_order_of_images_does_not_matter() -> None:
    maps, masks, labels = example(2)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    expected = metrics_alone(maps, masks, labels)
    assert metrics_alone(maps[order], masks[order], labels[order]) == pytest.approx(expected, abs=1e-12)


def test_large_maps_in_float32_and_float64_give_the_same_and_equal_scikit_learn() -> None:
    maps, masks, labels = example(0, n=20, size=128)
    expected = metrics_alone(maps.double(), masks, labels)
    truth, scores = masks.numpy().ravel(), maps.numpy().ravel()
    assert metrics_alone(maps, masks, labels) == expected
    assert expected["pixel_auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert expected["pixel_ap"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_floats_are_told_apart(dtype: torch.dtype) -> None:
    low = torch.tensor(150.0, dtype=dtype)
    high = torch.nextafter(low, torch.tensor(200.0, dtype=dtype))
    masks = torch.eye(6, dtype=torch.bool)[None]
    assert aupro(torch.where(masks, high, low), masks) == 1
    assert aupro(torch.where(masks, low, high), masks) == 0


def test_zeros_of_either_sign_tie() -> None:
    masks = torch.eye(6, dtype=torch.bool)[None]
    assert aupro(torch.where(masks, 0.0, -0.0), masks) == pytest.approx(0.15)
    assert aupro(torch.where(masks, -0.0, 0.0), masks) == pytest.approx(0.15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_ties(dtype: torch.dtype) -> None:
    maps, masks, labels = example(0)
    half = maps.to(dtype)
    assert metrics_alone(half, masks, labels) == pytest.approx(textbook(half.float(), masks), abs=1e-12)


def test_inputs_are_left_as_they_are_and_may_need_gradients() -> None:
    maps, masks, labels = example(0)
    before = maps.clone(), masks.clone(), labels.clone()
    pixel_metrics(maps.requires_grad_(), masks, labels)
    assert all(torch.equal(now, then) for now, then in zip((maps, masks, labels), before, strict=True))


def test_the_result_is_ready_for_json() -> None:
    found = pixel_metrics(*example(0))
    assert json.loads(json.dumps(found)) == found
    assert found["pixel_size"] == [12, 12]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    maps, masks, labels = example(0)
    maps[4, 3, 2] = value
    for compute in (lambda: aupro(maps, masks), lambda: pixel_metrics(maps, masks, labels)):
        with pytest.raises(UserError, match="^the anomaly map of image 4 .*not finite.*$"):
            compute()


def test_a_good_image_with_a_mask_is_refused() -> None:
    maps, masks, labels = example(0)
    masks[3, 0, 0] = True
    with pytest.raises(UserError, match="^image 3 is good, but its mask is not empty.*$"):
        pixel_metrics(maps, masks, labels)


def test_what_does_not_fit_is_refused() -> None:
    maps, masks, labels = example(0)
    with pytest.raises(ValueError, match="both of shape"):
        pixel_metrics(maps[:, 1:], masks, labels)
    with pytest.raises(ValueError, match="both of shape"):
        aupro(maps[0], masks[0])
    with pytest.raises(ValueError, match="one label for each mask"):
        pixel_metrics(maps, masks, labels[1:])
    with pytest.raises(ValueError, match="floating point"):
        aupro(maps, masks.to(torch.uint8))
    with pytest.raises(ValueError, match="floating point"):
        aupro(maps.long(), masks)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, float("nan")])
def test_limits_outside_of_0_to_1_are_refused(limit: float) -> None:
    maps, masks, _ = example(0)
    with pytest.raises(ValueError, match="limit="):
        aupro(maps, masks, limit)
