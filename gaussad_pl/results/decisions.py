"""Decisions of a detector on test images: its operating points and the contour of its maps, stored and printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.drift import DriftMonitor
from gaussad_pl.calibration.operating_points import FEWEST, operating_points
from gaussad_pl.calibration.threshold import default_line, default_rate, images_needed
from gaussad_pl.model.detection import RARE
from gaussad_pl.results.evaluation import Evaluation

NAMED = 5  # most images that the summary names


def decisions(calibration: Calibration, evaluation: Evaluation, limit: float, tested: bool = True) -> dict[str, Any]:
    """Return the entries ``calibration``, ``operating_points`` and ``contour`` of metrics.json.

    Args:
        calibration: that of the detector.
        evaluation: scores of the test images; they must not have been used for any choice.
        limit: value of the maps at which the contour is drawn.
        tested: False if the evaluated images are those that the detector was made from, so that none of them counts.
    """
    good, bad = ((evaluation.labels == label) & torch.tensor(tested) for label in (0, 1))
    points = operating_points(calibration, evaluation.scores[good], evaluation.scores[bad])
    monitor = DriftMonitor(calibration, evaluation.levels)
    monitor.observe(evaluation.scores[good], evaluation.distances[good])
    drift = monitor.drift()
    return {
        "calibration": {
            "scheme": calibration.scheme,
            "images": len(calibration),
            "images_that_look_different": calibration.different,
            "gamma_misfit_p": calibration.misfit,
            "test_good": int(good.sum()),
            "test_good_moved_away": drift.moved,
            "drift_p_values": drift.p_values,
        },
        "operating_points": {
            f"{fpr:g}": {**asdict(point), "contradicted": point.contradicted} for fpr, point in points.items()
        },
        "contour": None if evaluation.maps is None else contour(inspected(evaluation, good), limit),
    }


def inspected(evaluation: Evaluation, chosen: Tensor) -> Tensor:
    """Return the pixels of the maps of ``chosen`` ``(N,)`` images that show the image, in the region of interest."""
    assert evaluation.maps is not None
    maps = evaluation.maps[chosen]
    return maps.flatten() if evaluation.inside is None else maps[evaluation.inside[chosen]]


def contour(pixels: Tensor, limit: float) -> dict[str, float | None]:
    """Compare the share of pixels beyond the contour with its target.

    There is no test and no interval: the pixels of an image are not independent.

    Args:
        pixels: of the maps of good test images, ``(P,)``.
        limit: value at which the contour is drawn.

    Returns:
        ``threshold``, ``target``, and ``observed``, which is None without images.
    """
    observed = int((pixels > limit).sum()) / len(pixels) if len(pixels) else None
    return {"threshold": limit, "target": RARE, "observed": observed}


def show(console: Console, results: Mapping[str, Any]) -> None:
    """Print the entries that `decisions` returns: a table, and one line for everything that one should know of it."""
    console.print(table(results))
    for line in notes(results):
        console.print(line, highlight=False, soft_wrap=True)


def table(results: Mapping[str, Any]) -> Table:
    """Return the table of operating points, with the contour as the last row."""
    points: Mapping[str, Mapping[str, Any]] = results["operating_points"]
    source = next(iter(points.values()))["good_from"]
    result = Table(title="decisions (intervals: 95 %)", title_justify="left")
    result.add_column("target", justify="right")
    result.add_column("threshold", justify="right")
    result.add_column("rule")
    counted = "good test" if source == "test" else "calibration"
    for column in (f"{counted}\nimages lost", "bad images\nfound", "contradicted"):  # 80 characters wide at most
        result.add_column(column, justify="right")
    for fpr, point in points.items():
        result.add_row(
            f"{100 * float(fpr):g} %",
            "-" if point["threshold"] is None else f"{point['threshold']:.4g}",
            point["rule"],
            _share(point["good_lost"], point["good"], point["good_interval"]),
            _share(point["bad_found"], point["bad"], point["bad_interval"]),
            _verdict(point),
        )
    if found := results["contour"]:
        observed = "-" if found["observed"] is None else f"{100 * found['observed']:.2g} % of\npixels"
        target = f"{100 * found['target']:g} % of\npixels"
        result.add_row(target, f"{found['threshold']:.4g}", "contour", observed, "-", "-")
    return result


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return one line for each limitation of the table: contradicted targets, missing guarantees, missing images."""
    points: Mapping[str, Mapping[str, Any]] = results["operating_points"]
    calibration, n = results["calibration"], results["calibration"]["images"]
    one, lines = next(iter(points.values())), []
    if broken := _rates(fpr for fpr, point in points.items() if point["contradicted"]):
        lines.append(
            f"WARNING: the {one['good']} good test images have significantly more false alarms than a target of "
            f"{broken} allows: they differ from the calibration images, or several of them show the same part"
        )
    if calibration["test_good_moved_away"]:
        moved = ", ".join(calibration["test_good_moved_away"])
        lines.append(f"WARNING: the good test images do not look like the calibration images: {moved} increased")
    if odd := calibration.get("far_out"):
        names = ", ".join(f"{Path(each['path']).name} ({each['score']:.4g})" for each in odd[:NAMED])
        more = f" and {len(odd) - NAMED} more (see metrics.json)" if len(odd) > NAMED else ""
        lines.append(
            f"look at these good images, whose scores are far above all others: {names}{more}. They raise the "
            "thresholds; if they show bad parts, remove them and train again"
        )
    for rule, text in (("gamma", "without a guarantee, from a fitted tail"), ("none", "every image is undecided")):
        for fpr in (fpr for fpr, point in points.items() if point["rule"] == rule):
            needed = images_needed(float(fpr))
            lines.append(
                f"at {100 * float(fpr):g} %, {text}: a guarantee needs {needed} calibration images, there are {n}"
            )
    if n >= images_needed(default := default_rate(n)):
        lines.append(f"by default, predict decides at {default_line(n, default)}")
    if one["good_from"] == "calibration":
        lines.append(
            "not known: the false alarms on new good images, as there are no good test images; the table counts the "
            "calibration images, from which the thresholds come, and has the interval that the calibration implies"
        )
    elif one["good"] < FEWEST:
        lines.append(f"not known: whether the targets hold, which takes {FEWEST} good test images or more")
    if not one["bad"]:
        lines.append("not known: how many bad parts are found, as there are no bad test images")
    return lines


def _rates(rates: Iterable[str]) -> str:
    return ", ".join(f"{100 * float(fpr):g} %" for fpr in rates)


def _share(count: int | None, total: int, interval: tuple[float, float] | None) -> str:
    if count is None or not total:
        return "-"
    limits = "" if interval is None else f"\n{_percent(interval[0])}–{_percent(interval[1])} %"
    return f"{count} of {total}{limits}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if 0 < share < 0.1 else f"{100 * share:.0f}"


def _verdict(point: Mapping[str, Any]) -> str:
    if point["p_value"] is None:
        return "-"
    return f"{'YES' if point['contradicted'] else 'no'}\np = {point['p_value']:.2g}"
