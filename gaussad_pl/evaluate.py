"""Evaluate a detector on a folder of labelled images: metrics, operating points, pictures.

python -m gaussad_pl.evaluate ckpt=<folder of runs, or a file of a detector> data=<folder>

  ckpt   folder of a run, its detector.safetensors, or a file written by gaussad_pl.export; a folder of runs or a
         pattern like 'runs/parts/*' stands for the run in it that finished last
  data   folder in one of the layouts that training accepts: images of good parts; good/ beside one folder per kind
         of defect; or that of MVTec AD, of which test/ is evaluated
  bad    folder of bad images, if they are elsewhere; without data, they alone are evaluated
  masks  folder with the masks of the bad images, if they are elsewhere
  out    new folder for metrics.json, scores.csv and the pictures, outside of the others  (evaluation)

Good or bad images alone are enough: the summary then says what remains unknown. Training images make a detector look
better than it is.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__, "matplotlib", "sklearn")  # before the imports below, which take seconds

import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import StackDataset

from gaussad_pl.cli.options import command
from gaussad_pl.data import checks
from gaussad_pl.data.inventory import digest, inventory
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.samples import Sample, Samples, Settings, is_mvtec, scan_bad, scan_folder
from gaussad_pl.errors import UserError
from gaussad_pl.files import unwritable, write_json
from gaussad_pl.fingerprints import file_sha256
from gaussad_pl.inference.artefact import EXPORTED
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.prediction import BATCH, BaseDetector
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.model.detection import Detection
from gaussad_pl.progress import tracked
from gaussad_pl.results import decisions, figures, pictures
from gaussad_pl.results.evaluation import Evaluation, table
from gaussad_pl.version import __version__


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    data: str = ""
    bad: str = ""
    masks: str = ""
    out: str = "evaluation"


def evaluate(options: Options) -> None:
    """Score all images, write the results and print a summary.

    Raises:
        UserError: the detector, an image or a mask cannot be read, there are no images, or ``out`` already exists or is
            inside a folder of images.
    """
    out = Path(options.out)
    for name, folder in (("data", options.data), ("bad", options.bad), ("masks", options.masks)):
        if folder and out.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(
                f"out={out} is inside {name}={folder}, so its pictures would be among the images: give another out="
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} already exists: give another out=, or remove it")
    path = find_detector(options.ckpt)
    on_gpu = torch.cuda.is_available() and path.suffix != EXPORTED
    detector = load_detector(path, "cuda" if on_gpu else "cpu")
    samples = labelled(options)
    checks.readable([sample.path for sample in samples])
    masks = checks.stacked_masks(checks.read_masks(samples, detector.frame))
    names = [sample.path for sample in samples]
    images = load_images(names, detector.frame, None, f"Decoding {len(names)} images")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    found = detect(detector, images)
    evaluation = Evaluation(samples, found.distances, found.scores, detector.levels, found.maps, masks, detector.frame)
    evaluation.write_scores(out / "scores.csv")
    results = {
        "dataset": Path(options.data or options.bad).resolve().name,
        "evaluation": evaluation.metrics(),
        **decisions.decisions(detector.calibration, evaluation, detector.limit),
        "good_images_trained_on": sum(not samples[i].label for i in detector.trained_on(images)),
        "good_images_recalibrated_on": sum(not samples[i].label for i in detector.recalibrated_on(images)),
        "images_sha256": digest(inventory(Samples([], samples))),
        "detector": {"file": str(path), "sha256": file_sha256(path), "provenance": detector.provenance},
        "finished": datetime.now().astimezone().isoformat(),
        "command": shlex.join(sys.orig_argv),
        "versions": {"python": platform.python_version(), "gaussad_pl": __version__, "torch": torch.__version__},
    }
    write_json(out / "metrics.json", results)
    dataset: Any = StackDataset(image=images)  # type: ignore[arg-type]
    scale = pictures.heat_scale(evaluation, detector.median, detector.limit)
    figures.save(pictures.draw({"detector": evaluation}, dataset, scale, detector.calibration), out)
    show(results, out)


def labelled(options: Options) -> list[Sample]:
    """Find the images to evaluate; warn of those that are not found because they lie too deep.

    Raises:
        UserError: there are none, no folder is given, or the folder has none of the layouts.
    """
    root, bad, masks = (Path(name) if name else None for name in (options.data, options.bad, options.masks))
    named = Settings("data", "bad", "masks")
    if root is None:
        if bad is None:
            raise UserError(
                "data is missing: give data=... or, for bad images alone, bad=...; --help shows all settings"
            )
        found = Samples([], scan_bad(bad, masks, named))
        checks.name_unused((bad,), found, masks)
        return found.test
    found = scan_folder(root, bad, masks, named)
    checks.name_unused((root, bad), found, masks)
    if not is_mvtec(root):
        return [*found.train, *found.test]
    if not found.test:
        raise UserError(
            f"data={root} has no test images: expected folders in {root / 'test'}, 'good' and one for each kind of "
            f"defect; to evaluate the images of training, give data={root / 'train' / 'good'}"
        )
    return found.test


def detect(detector: BaseDetector, images: Tensor) -> Detection:
    """Score images ``(N, 3, height, width)`` uint8."""
    batches = (images[first : first + BATCH] for first in tracked(range(0, len(images), BATCH), "Scoring"))
    return Detection.join([detector.detect(batch) for batch in batches])


def show(results: dict[str, Any], out: Path) -> None:
    """Print the tables of metrics and of decisions."""
    console = Console(markup=False, emoji=False)  # a folder may be called [a]
    if results["evaluation"]["image_auroc"] is not None:
        console.print(table(results["dataset"], [("detector", results["evaluation"])]))
    decisions.show(console, results)
    of = results["calibration"]["test_good"]
    for done in ("trained", "recalibrated"):
        if count := results[f"good_images_{done}_on"]:
            line = f"WARNING: the detector was {done} on {count} of these {of} good images: it loses more of new ones"
            console.print(line, highlight=False, soft_wrap=True)
    console.print(f"detector: {results['detector']['file']}", soft_wrap=True)
    console.print(f"results: {out}", soft_wrap=True)


main = command(evaluate, Options, __doc__)

if __name__ == "__main__":
    main()
