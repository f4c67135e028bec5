"""W&B page of a run: summary metrics, curves, and a table of the test images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.errors import UserError
from gaussad_pl.inference.heat import HeatScale
from gaussad_pl.inference.overlay import under_map
from gaussad_pl.metrics.image import auroc, roc
from gaussad_pl.results.dashboard_summary import origin, summary, tags
from gaussad_pl.results.evaluation import Evaluation
from gaussad_pl.results.gallery import picture, picture_threshold

POINTS = 1000  # maximum per curve
BINS = 30
SIDE = 160  # longer side of the images in the table, in pixels
COLUMNS = ("path", "kind", "verdict", "score", "p_value", "image", "map", "mask")

_DATA_DIR = os.environ.get("WANDB_DATA_DIR")


class DashboardLogger(WandbLogger):
    """W&B logger of Lightning that keeps everything `wandb sync` needs inside the run folder.

    By default W&B stages the contents of tables in the home directory, which other machines cannot see and which
    clean-up jobs may empty.

    Args:
        detector: keep the detector of the run as an artifact, too.
        settings: of `WandbLogger`.
    """

    def __init__(self, *, detector: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.detector = detector
        os.environ["WANDB_DATA_DIR"] = _DATA_DIR or str(Path(settings["save_dir"], "wandb").absolute())
        self._wandb_init.pop("anonymous", None)  # deprecated in W&B, which warns about it


def begin(logger: WandbLogger, settings: Mapping[str, Any]) -> None:
    """Begin a run by logging its settings.

    Raises:
        UserError: W&B has no key, cannot be reached, or has a setting that it does not know.
    """
    try:
        logger.log_hyperparams(dict(settings))
    except (wandb.Error, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"logger=wandb: {reason}: log in with wandb login, or set WANDB_MODE=offline") from error


def finish(completed: bool) -> None:
    """End the run, or the next job of a sweep would write into it."""
    wandb.finish(exit_code=0 if completed else 1)


def show(
    run: wandb.Run,
    numbers: Mapping[str, float],
    results: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    table: wandb.Table,
    figures: Sequence[Path],
) -> None:
    """Log the results of a finished run to its W&B page.

    Args:
        run: the W&B run.
        numbers: metrics for the summary, by which W&B compares runs.
        results: contents of metrics.json.
        evaluations: one per state of the model, the final state last.
        table: from `image_table`.
        figures: paths of the figures in the run folder.
    """
    final = list(evaluations.values())[-1]
    page: dict[str, Any] = {path.stem: wandb.Image(str(path)) for path in figures}
    page["test/histogram"] = histogram(final.scores, final.labels)
    page["test/images"] = table
    if final.has_both_classes:
        page["test/roc"] = roc_curves({name: each.scores for name, each in evaluations.items()}, final.labels)
    if "forgetting" in results:  # the whole curve, even if the run was killed and resumed as another W&B run
        page["forgetting/curve"] = forgetting_curve(results["forgetting"])
    run.log(page)
    run.config.update(origin(results))
    run.tags = (*(run.tags or ()), *tags(results))
    run.summary.update({**numbers, **summary(results)})


def keep_detector(run: wandb.Run, path: Path, results: Mapping[str, Any]) -> None:
    """Log a detector file as an artifact of its run.

    Args:
        run: the W&B run.
        path: of detector.safetensors.
        results: contents of metrics.json.
    """
    artifact = wandb.Artifact(f"detector-{run.id}", type="model", metadata=origin(results))
    artifact.add_file(str(path))
    run.log_artifact(artifact)


def roc_curves(scores: Mapping[str, Tensor], labels: Tensor) -> Any:
    """Return a W&B chart with the ROC curve of each named set of scores ``(N,)``."""
    curves = [[_thin(axis) for axis in roc(values, labels)] for values in scores.values()]
    names = [f"{name}, AUROC {100 * auroc(values, labels):.1f} %" for name, values in scores.items()]
    xs, ys = zip(*curves, strict=True)
    return wandb.plot.line_series(xs, ys, names, "ROC of the test images", "false positive rate")


def histogram(scores: Tensor, labels: Tensor) -> Any:
    """Return a W&B chart of the scores ``(N,)`` of good and bad images, counted in common bins."""
    edges = np.histogram_bin_edges(scores.numpy(), BINS)
    counts = [np.histogram(scores[labels == label].numpy(), edges)[0].tolist() for label in (0, 1)]
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    return wandb.plot.line_series(centres, counts, ["good", "bad"], "Test images by score", "anomaly score")


def forgetting_curve(forgetting: Mapping[str, Any]) -> Any:
    """Return a W&B chart of the forgetting signals over the epochs."""
    history, names = forgetting["history"], list(dict.fromkeys([forgetting["signal"], "auroc"]))
    ys = [[record[name] for record in history] for name in names]
    title = f"Forgetting: epoch {forgetting['epoch_chosen']} has the best {forgetting['signal']}"
    return wandb.plot.line_series([record["epoch"] for record in history], ys, names, title, "epoch")


def image_table(
    evaluation: Evaluation, images: Dataset[dict[str, Tensor]], scale: HeatScale | None, calibration: Calibration
) -> wandb.Table:
    """Return a table of all test images, with pictures of their maps and masks where there are any.

    Args:
        evaluation: of N test images.
        images: the test set; the item ``image`` is ``(3, H, W)`` uint8.
        scale: of the maps; None without maps.
        calibration: that of the model, for p-values, and for verdicts as in `picture_threshold`.
    """
    threshold, p_values = picture_threshold(calibration), calibration.p_values(evaluation.scores).tolist()
    table = wandb.Table(columns=list(COLUMNS))
    for index, (sample, score) in enumerate(zip(evaluation.samples, evaluation.scores.tolist(), strict=True)):
        image = picture(evaluation, images, index, SIDE)
        values, mask = evaluation.restored(index, image.size)
        pictures: list[Image.Image | None] = [image, None, None]
        if scale is not None and values is not None:
            pictures[1] = under_map(image, values, scale)
        if mask.any():
            pictures[2] = Image.fromarray(mask)
        shown = [each and wandb.Image(each.convert("RGB"), file_type="jpg") for each in pictures]
        row = (sample.path.as_posix(), sample.kind, threshold.verdict(score), score, p_values[index])
        table.add_data(*row, *shown)
    return table


def _thin(curve: Tensor) -> list[float]:
    """Return at most `POINTS` evenly spaced points of a curve ``(T,)``, including both ends."""
    indices = torch.linspace(0, len(curve) - 1, min(POINTS, len(curve))).round().long()
    return curve[indices].tolist()
