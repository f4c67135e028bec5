"""Galleries of notable test images: the image, and the image under its anomaly map with the true mask outlined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.threshold import Threshold, default_rate
from gaussad_pl.data.images import fitted, read_picture
from gaussad_pl.data.samples import Sample
from gaussad_pl.errors import UserError
from gaussad_pl.inference.heat import CONTOUR, OUTLINE, HeatScale
from gaussad_pl.results import figures
from gaussad_pl.results.evaluation import Evaluation

ROWS = 6  # maximum number of misses and of false alarms shown
RATE = 0.05  # target false-alarm rate of the threshold in pictures, if there are images enough
SIDE = 420  # longer side of a picture in pixels
WIDTH, HEIGHT = 3.4, 2.7  # of a picture in inches, at most
NARROWEST = 6.2  # of a gallery in inches: its title must fit
LONGEST = 56  # characters of a file name
EDGE = withStroke(linewidth=2.4, foreground="#00000080")  # keeps outlines visible on bright images


@dataclass(frozen=True)
class Group:
    """Test images that belong in one gallery.

    Attributes:
        title: of the gallery; says which images these are, and of how many.
        rows: indices of the test images.
    """

    title: str
    rows: list[int]


def galleries(
    evaluation: Evaluation, images: Dataset[dict[str, Tensor]], scale: HeatScale, calibration: Calibration
) -> dict[str, Figure]:
    """Draw one gallery for each group of `notable`.

    Args:
        evaluation: of N test images, with maps.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        scale: of the maps in all galleries.
        calibration: that of the model, for verdicts and p-values.
    """
    groups = notable(evaluation, picture_threshold(calibration))
    return {name: overlays(evaluation, images, group, scale, calibration) for name, group in groups.items()}


def picture_threshold(calibration: Calibration) -> Threshold:
    """Return the threshold that decides in pictures what a miss is: for `RATE`, or the default rate if it is larger."""
    return calibration.threshold(max(RATE, default_rate(len(calibration))))


def notable(evaluation: Evaluation, threshold: Threshold) -> dict[str, Group]:
    """Return the worst misses, the worst false alarms and a median-scored image per kind of defect.

    Without misses, the bad images with the lowest scores take their place, and likewise for false alarms; the title
    says so.

    Args:
        evaluation: of N test images.
        threshold: of the scores, see `picture_threshold`.
    """
    order = evaluation.scores.argsort().tolist()
    bad = [i for i in order if evaluation.labels[i]]
    good = [i for i in reversed(order) if not evaluation.labels[i]]
    verdicts = [threshold.verdict(score) for score in evaluation.scores.tolist()]
    missed = sum(verdicts[i] == "good" for i in bad)
    alarms = sum(verdicts[i] == "bad" for i in good)
    kinds = sorted({evaluation.samples[i].kind for i in bad})
    by_kind = [[i for i in bad if evaluation.samples[i].kind == kind] for kind in kinds]
    middle = [same[len(same) // 2] for same in by_kind]
    groups = {
        "misses": _group(bad, missed, "misses", ("bad", "below", "lowest"), threshold),
        "false_alarms": _group(good, alarms, "false alarms", ("good", "above", "highest"), threshold),
        "defects": Group("Each kind of defect: the part with its median score", middle),
    }
    return {name: group for name, group in groups.items() if group.rows}


def _group(rows: list[int], wrong: int, name: str, words: tuple[str, str, str], threshold: Threshold) -> Group:
    """Return the group of the ``wrong`` first of ``rows``, or of the nearest to being wrong if there are none."""
    kind, side, end = words
    shown = rows[: min(wrong, ROWS) or ROWS]
    these = (
        f"the {len(shown)} {kind} parts with the {end} scores" if len(shown) > 1 else f"the {kind} part nearest to it"
    )
    rate = f"{100 * threshold.fpr:g} % false alarms"
    at = f"the threshold for {rate}"
    if threshold.reason:
        return Group(f"No threshold: too few calibration images for {rate}.\nShown: {these}", shown)
    if not wrong:
        return Group(f"No {kind} part is {side} {at}.\nShown: {these}", shown)
    title = f"{name.capitalize()}: {wrong} of {len(rows)} {kind} parts are {side} {at}"
    return Group(title + (f"\nShown: {these}" if wrong > len(shown) else ""), shown)


def overlays(
    evaluation: Evaluation,
    images: Dataset[dict[str, Tensor]],
    group: Group,
    scale: HeatScale,
    calibration: Calibration,
) -> Figure:
    """Draw one row per test image of a group, each in its own proportions, above a common colour bar."""
    assert evaluation.maps is not None
    threshold = picture_threshold(calibration)
    p_values = calibration.p_values(evaluation.scores).tolist()
    pictures = [picture(evaluation, images, index, SIDE) for index in group.rows]
    heights = [min(HEIGHT, WIDTH * image.height / image.width) for image in pictures]
    widest = max(min(WIDTH, HEIGHT * image.width / image.height) for image in pictures)
    figure = Figure(
        figsize=(max(2 * widest + 0.4, NARROWEST), sum(heights) + 0.3 * len(heights) + 1.6), layout="constrained"
    )
    figure.suptitle(group.title, fontsize=10)
    grid = figure.add_gridspec(len(heights) + 1, 2, height_ratios=[*heights, 0.16])
    for line, (index, image) in enumerate(zip(group.rows, pictures, strict=True)):
        left, right = (figure.add_subplot(grid[line, column]) for column in (0, 1))
        values, mask = evaluation.restored(index, image.size)
        assert values is not None
        left.imshow(image)
        right.imshow(scale.blended(np.asarray(image), values))
        _outline(right, values > scale.threshold, CONTOUR)
        _outline(right, mask, OUTLINE)
        for panel in (left, right):
            panel.set_axis_off()
        left.set_title(_name(evaluation.samples[index]), fontsize=8, parse_math=False)
        score = float(evaluation.scores[index])
        verdict = threshold.verdict(score)
        colour = {"bad": figures.BAD, "good": figures.GOOD, "undecided": figures.NEUTRAL}[verdict]
        right.set_title(f"{verdict}   p = {p_values[index]:.3g}   score {score:.2f}", fontsize=8, color=colour)
    _bar(figure.add_subplot(grid[-1, :]), scale)
    marked = bool(evaluation.masks[group.rows].any())
    names = {"true mask": OUTLINE} if marked else {}
    names |= {"map above its threshold": CONTOUR} if math.isfinite(scale.threshold) else {}
    lines = [
        Line2D([], [], color=tuple(np.divide(colour, 255)), label=name, linewidth=2, path_effects=[EDGE])
        for name, colour in names.items()
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def picture(evaluation: Evaluation, images: Dataset[dict[str, Tensor]], index: int, side: int) -> Image.Image:
    """Return a test image in its own proportions, its longer side ``side`` pixels; as fitted if its file has gone."""
    try:
        return read_picture(evaluation.samples[index].path, side)
    except UserError:
        pixels = Image.fromarray(images[index]["image"].permute(1, 2, 0).numpy())
        return fitted(pixels, side)


def _outline(panel: Axes, inside: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    """Draw the border of a region ``(H, W)``, also where it is the border of the image."""
    if inside.any():
        height, width = inside.shape
        padded = np.pad(inside, 1).astype(float)
        drawn = panel.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            padded,
            [0.5],
            colors=[np.divide(colour, 255)],
            linewidths=1.2,
        )
        drawn.set_path_effects([EDGE])


def _bar(axes: Axes, scale: HeatScale) -> None:
    """Draw the colour bar, as opaque as the maps, with its ends and the threshold marked."""
    values = np.linspace(scale.zero, scale.top, 512)[None]
    axes.imshow(scale.rgba(values), extent=(scale.zero, scale.top, 0, 1), aspect="auto")
    ticks = [scale.zero, scale.top]
    if math.isfinite(scale.threshold):
        axes.axvline(scale.threshold, color="black", linewidth=1.5)
        ticks.insert(1, scale.threshold)
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], fontsize=8)
    axes.set_yticks([])
    axes.set_xlabel(scale.legend, fontsize=8)


def _name(sample: Sample) -> str:
    """Return kind and file name; it may hold invalid UTF-8, and a long one keeps its end, where the number is."""
    name = f"{sample.kind}/{sample.path.name}".encode("utf-8", "replace").decode()
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 2]}…{name[1 - LONGEST // 2 :]}"
