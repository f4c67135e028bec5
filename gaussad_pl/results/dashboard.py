"""The W&B page of a run: numbers in the summary, curves, and a table of the images that are worth looking at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from matplotlib import colormaps
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from gaussad_pl.metrics.image import auroc, roc
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.results.gallery import worth_looking_at

POINTS = 1000  # of a curve, at most
BINS = 30
SIDE = 160  # of the images in the table, in pixels
COLUMNS = ("why", "kind", "score", "image", "map", "mask", "path")


_DATA_DIR = os.environ.get("WANDB_DATA_DIR")


class DashboardLogger(WandbLogger):
    """Lightning's, such that an offline run has all that `wandb sync` needs in its folder.

    What tables hold would wait in the home directory, which other machines do not see and cleaners empty.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        os.environ["WANDB_DATA_DIR"] = _DATA_DIR or str(Path(settings["save_dir"], "wandb").absolute())
        self._wandb_init.pop("anonymous", None)  # W&B no longer knows it, and says so


def show(
    run: wandb.Run,
    numbers: Mapping[str, float],
    results: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    images: Dataset[dict[str, Tensor]],
    figures: Sequence[Path],
) -> None:
    """Fill the page at the end of a run.

    Args:
        run: of W&B.
        numbers: for the summary, what tables of runs compare.
        results: as in metrics.json.
        evaluations: of the states of the model, the final one last.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        figures: pictures of the run.
    """
    final = list(evaluations.values())[-1]
    page: dict[str, Any] = {path.stem: wandb.Image(str(path)) for path in figures}
    page["test/histogram"] = histogram(final.scores, final.labels)
    page["test/examples"] = examples(final, images)
    if final.has_both_classes:
        page["test/roc"] = roc_curves({name: each.scores for name, each in evaluations.items()}, final.labels)
    if "forgetting" in results:  # whole, also where the run was killed and resumed as another W&B run
        page["forgetting/curve"] = forgetting_curve(results["forgetting"])
    run.log(page)
    run.summary.update(dict(numbers))


def roc_curves(scores: Mapping[str, Tensor], labels: Tensor) -> Any:
    """ROC curve of each named set of scores ``(N,)``, as a chart over a table."""
    curves = [[_thin(axis) for axis in roc(values, labels)] for values in scores.values()]
    names = [f"{name}, AUROC {100 * auroc(values, labels):.1f} %" for name, values in scores.items()]
    xs, ys = zip(*curves, strict=True)
    return wandb.plot.line_series(xs, ys, names, "ROC of the test images", "false positive rate")


def histogram(scores: Tensor, labels: Tensor) -> Any:
    """Number of good and of bad images by their score, on common bins, as a chart over a table."""
    edges = np.histogram_bin_edges(scores.numpy(), BINS)
    counts = [np.histogram(scores[labels == label].numpy(), edges)[0].tolist() for label in (0, 1)]
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    return wandb.plot.line_series(centres, counts, ["good", "bad"], "Test images by score", "anomaly score")


def forgetting_curve(forgetting: Mapping[str, Any]) -> Any:
    """The signals that say when forgetting begins, over the epochs, as a chart over a table."""
    history, names = forgetting["history"], list(dict.fromkeys([forgetting["signal"], "auroc"]))
    ys = [[record[name] for record in history] for name in names]
    title = f"Forgetting: epoch {forgetting['epoch_chosen']} has the best {forgetting['signal']}"
    return wandb.plot.line_series([record["epoch"] for record in history], ys, names, title, "epoch")


def examples(evaluation: Evaluation, images: Dataset[dict[str, Tensor]]) -> wandb.Table:
    """The worst misses and false alarms and a sample of each kind of defect: a few images, maps and masks, small."""
    rows = [(why, index) for why, chosen in worth_looking_at(evaluation).items() for index in chosen]
    maps = None if evaluation.maps is None else evaluation.maps[[index for _, index in rows]]
    coloured = [None] * len(rows) if maps is None else colormaps["inferno"]((maps / maps.max()).numpy())
    table = wandb.Table(columns=list(COLUMNS))
    for (why, index), anomaly_map in zip(rows, coloured, strict=True):
        sample = evaluation.samples[index]
        shown = images[index]["image"].permute(1, 2, 0).numpy() / 255
        mask = evaluation.masks[index].numpy().astype(float)
        pictures = [_small(each) for each in (shown, anomaly_map, mask if mask.any() else None)]
        table.add_data(why, sample.kind, float(evaluation.scores[index]), *pictures, sample.path.as_posix())
    return table


def _small(pixels: np.ndarray | None) -> wandb.Image | None:
    """A picture ``(H, W)`` or ``(H, W, 3 or 4)`` from 0 to 1."""
    if pixels is None:
        return None
    planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels)[..., :3])).permute(2, 0, 1)[None].float()
    small = F.interpolate(planes, size=(SIDE, SIDE), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    return wandb.Image((small * 255).round().clamp(0, 255).byte().numpy().squeeze(), file_type="jpg")


def _thin(curve: Tensor) -> list[float]:
    """Points of a curve ``(T,)``, evenly left out where there are too many; the ends stay."""
    places = torch.linspace(0, len(curve) - 1, min(POINTS, len(curve))).round().long()
    return curve[places].tolist()
