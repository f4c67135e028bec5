"""Exact pixel-level metrics of anomaly maps: AUROC, average precision, F1max and AUPRO, all from one ranking.

Every distinct score is a threshold: pixels with equal scores are counted together, and curves are linear between
thresholds. A curve bends only at the scores of anomalous pixels, so it suffices to count normal pixels at these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc
from torch import Tensor

from gaussad_pl.errors import UserError

Array = NDArray[Any]
LIMIT = 0.3  # the false positive rate up to which AUPRO is usually integrated
# 8-connected within an image, not connected between images
_NEIGHBOURS = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


@dataclass(frozen=True)
class _Curve:
    """Counts at or above each of T thresholds, which are the distinct scores of anomalous pixels in descending order.

    Attributes:
        hits: number of anomalous pixels, int64 ``(T,)``.
        overlap: share of a region that they cover, averaged over all regions, float64 ``(T,)``.
        alarms: number of normal pixels, int64 ``(T,)``.
        alarms_above: number of normal pixels strictly above the threshold, int64 ``(T,)``.
        normal: number of all normal pixels.
        regions: number of regions.
    """

    hits: Array
    overlap: Array
    alarms: Array
    alarms_above: Array
    normal: int
    regions: int


def aupro(maps: Tensor, masks: Tensor, limit: float = LIMIT) -> float:
    """Return the area under the per-region overlap curve up to the false positive rate ``limit``, divided by ``limit``.

    ``maps`` and boolean ``masks`` are ``(N, H, W)``. Regions are 8-connected and have equal weights, whatever their
    size; all other pixels are normal. Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.

    Raises:
        UserError: a score is not finite.
        ValueError: shapes or types do not match, ``limit`` is not in (0, 1], or no pixel or every pixel is anomalous.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"limit={limit}: expected a false positive rate in (0, 1]")
    scores, anomalous = _arrays(maps, masks)
    curve = _curve(scores, anomalous, ~anomalous)
    if not curve.regions or not curve.normal:
        raise ValueError("AUPRO needs both anomalous and normal pixels")
    return _area(curve, curve.overlap, limit)


def pixel_metrics(maps: Tensor, masks: Tensor, labels: Tensor, inside: Tensor | None = None) -> dict[str, Any]:
    """Return pixel AUROC, average precision, F1max and AUPRO; all are None without pixels of both classes.

    ``maps`` and boolean ``masks`` are ``(N, H, W)``, ``labels`` ``(N,)`` (1 is anomalous). Only the pixels ``inside``,
    ``(N, H, W)`` bool, count: margins are easily told to be normal, and would flatter. The metrics depend on the
    resolution, which is returned as ``pixel_size`` [H, W], next to the number of ``regions``. Anomalous images with an
    empty mask are left out, and counted as ``masks_missing``.

    Raises:
        UserError: a score is not finite, or the mask of a good image is not empty.
        ValueError: shapes or types do not match.
    """
    scores, anomalous = _arrays(maps, masks)
    if labels.shape != masks.shape[:1]:
        raise ValueError(f"labels {tuple(labels.shape)}, masks {tuple(masks.shape)}: expected one label for each mask")
    bad, marked = labels.cpu().numpy() != 0, anomalous.any((1, 2))
    if (marked & ~bad).any():
        raise UserError(f"image {(marked & ~bad).argmax()} is good, but its mask is not empty: correct either")
    missing = bad & ~marked
    normal = ~anomalous & ~missing[:, None, None]
    if inside is not None:
        counted = _arrays(maps, inside)[1]
        anomalous, normal = anomalous & counted, normal & counted
    curve = _curve(scores, anomalous, normal)
    return {
        **_metrics(curve),
        "pixel_size": list(scores.shape[1:]),
        "regions": curve.regions,
        "masks_missing": int(missing.sum()),
    }


def _arrays(maps: Tensor, masks: Tensor) -> tuple[Array, Array]:
    """Check maps and masks and convert them to arrays; scores are not rounded, half precision becomes float32."""
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(f"maps {tuple(maps.shape)}, masks {tuple(masks.shape)}: expected both of shape (N, H, W)")
    if not maps.is_floating_point() or masks.dtype != torch.bool:
        raise ValueError(f"maps of {maps.dtype}, masks of {masks.dtype}: expected floating point and torch.bool")
    scores = (maps if maps.dtype == torch.float64 else maps.float()).detach().cpu().numpy()
    finite = np.isfinite(scores).all((1, 2))
    if not finite.all():
        raise UserError(f"the anomaly map of image {finite.argmin()} has scores that are not finite: check the model")
    return scores, masks.cpu().numpy()


def _curve(scores: Array, anomalous: Array, normal: Array) -> _Curve:
    """Count the pixels that two disjoint masks ``(N, H, W)`` select from ``scores`` ``(N, H, W)``."""
    # for 160 maps of 256 x 256, scikit-learn takes 2.3 to 3.3 s per metric, this 0.3 s for all of them; torchmetrics
    # is not faster, rounds rates to float32 and does not support weights of regions
    shares, regions = _region_shares(anomalous)
    thresholds, rank, count = np.unique(scores[anomalous], return_inverse=True, return_counts=True)
    overlap = np.bincount(rank, weights=shares)[::-1].cumsum()
    background = np.sort(scores[normal])
    return _Curve(
        hits=count[::-1].cumsum(),
        overlap=overlap / overlap[-1:],  # the last value is the number of regions, up to rounding
        alarms=len(background) - np.searchsorted(background, thresholds[::-1], side="left"),
        alarms_above=len(background) - np.searchsorted(background, thresholds[::-1], side="right"),
        normal=len(background),
        regions=regions,
    )


def _region_shares(masks: Array) -> tuple[Array, int]:
    """Return 1 / (size of its region) for each true pixel of ``masks`` ``(N, H, W)``, and the number of regions."""
    labels, regions = ndimage.label(masks, _NEIGHBOURS)
    region = labels[masks]
    return 1 / np.bincount(region)[region], regions


def _metrics(curve: _Curve) -> dict[str, float | None]:
    """Return the four metrics of a curve; all are None if one class of pixels is missing."""
    if not curve.regions or not curve.normal:
        return dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"))
    recall, flagged = curve.hits / curve.hits[-1], curve.hits + curve.alarms
    return {
        "pixel_auroc": _area(curve, recall, 1.0),
        "pixel_ap": float((np.diff(recall, prepend=0) * curve.hits / flagged).sum()),
        "pixel_f1max": float((2 * curve.hits / (flagged + curve.hits[-1])).max()),
        "aupro": _area(curve, curve.overlap, LIMIT),
    }


def _area(curve: _Curve, rates: Array, limit: float) -> float:
    """Return the area under ``rates`` ``(T,)`` over false positive rates from 0 to ``limit``, divided by ``limit``."""
    alarms = np.stack([curve.alarms_above, curve.alarms], axis=1).ravel()
    x = np.concatenate([[0], alarms / curve.normal, [1]])
    y = np.concatenate([[0], np.stack([np.append(0, rates[:-1]), rates], axis=1).ravel(), [1]])
    stop = np.searchsorted(x, limit, side="right")
    return float(auc(np.append(x[:stop], limit), np.append(y[:stop], np.interp(limit, x, y)))) / limit
