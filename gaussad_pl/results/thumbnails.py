"""Small pictures of every test image, and what is decided about it at each rate, for the gallery of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.files import unwritable, write_json
from gaussad_pl.inference.heat import OUTLINE, HeatScale, border
from gaussad_pl.inference.overlay import under_map
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.results.gallery import picture

FOLDER, RECORD = "gallery", "images.json"
SIDE = 160  # longer side of a picture in pixels
GAP = 4  # between a picture and the same under its map
RATES = tuple(percent / 100 for percent in range(1, 21))  # false-alarm rates of the slider
QUALITY = 75  # of WebP


def save(
    folder: Path,
    evaluation: Evaluation,
    images: Dataset[dict[str, Tensor]],
    scale: HeatScale | None,
    calibration: Calibration,
) -> None:
    """Write the subfolder `FOLDER` of a run: a picture of each test image, and the record of all of them.

    Args:
        folder: of the run.
        evaluation: of N test images.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        scale: of all maps; None without maps.
        calibration: that of the model.

    Raises:
        UserError: a file cannot be written.
    """
    target = folder / FOLDER
    try:
        target.mkdir(exist_ok=True)
        for index in range(len(evaluation.samples)):
            panels = [picture(evaluation, images, index, SIDE)]
            values, mask = evaluation.restored(index, panels[0].size)
            if scale is not None and values is not None:
                panels.append(outlined(under_map(panels[0], values, scale), mask))
            beside(panels).save(target / f"{index:04}.webp", quality=QUALITY)
    except OSError as error:
        raise unwritable(target, error) from error
    write_json(target / RECORD, record(evaluation, scale, calibration))  # marks completion


def outlined(image: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """Return an image with the border of a mask ``(height, width)`` of its size drawn on it."""
    pixels = np.array(image)
    pixels[border(mask)] = OUTLINE
    return Image.fromarray(pixels)


def beside(panels: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one size side by side."""
    width, height = panels[0].size
    row = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for number, panel in enumerate(panels):
        row.paste(panel, (number * (width + GAP), 0))
    return row


def record(evaluation: Evaluation, scale: HeatScale | None, calibration: Calibration) -> dict[str, Any]:
    """Return the content of `RECORD`: the scale of the maps, the thresholds by rate, and the images in their order.

    A threshold is None where every image is undecided.
    """
    thresholds = [calibration.threshold(rate) for rate in RATES]
    columns = (evaluation.samples, evaluation.scores.tolist(), calibration.p_values(evaluation.scores).tolist())
    return {
        "scale": None if scale is None else [scale.zero, scale.threshold, scale.top],
        "thresholds": [
            {"rate": each.fpr, "value": None if each.reason else each.value, "rule": each.rule} for each in thresholds
        ],
        "images": [
            {"path": sample.path.as_posix(), "kind": sample.kind, "label": sample.label, "score": score, "p_value": p}
            for sample, score, p in zip(*columns, strict=True)
        ],
    }
