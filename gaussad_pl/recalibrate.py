"""Make a new detector from an old one and some good images of today, if the images have drifted.

python -m gaussad_pl.recalibrate ckpt=<folder of runs or detector.safetensors> good=<folder>

  ckpt       folder of a run, or its detector.safetensors; a folder of runs or a pattern like 'runs/parts/*' stands for
             the run in it that finished last
  good       images of good parts, not used in training: an image, a folder (with subfolders), a pattern or a .txt with
             one path per line
  out        new folder for detector.safetensors, or a name that ends in .safetensors  (recalibrated)
  gaussians  true: move the means of the Gaussians to the new images, too              (false)

The new calibration scores, and with them all thresholds and p-values, are those of the new images; so are the units of
the score and the contour of the maps. The rest stays. With gaussians=true, the mean of each level follows a shift of
the new images as far as chance does not explain it, and all patches move together. Covariances never change: the file
does not hold what is needed to merge them with those of the new images.

The old file remains as it is. At least 4 images are needed; the smallest rate that n images guarantee is 1 / (n + 1).
Images that cannot be read are named and left out; the exit code is then 1.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaussad_pl.calibration.recalibration import BATCH, recalibrate
from gaussad_pl.calibration.threshold import RATES, images_needed
from gaussad_pl.cli.options import command
from gaussad_pl.data import checks
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.loading import decoded
from gaussad_pl.data.samples import GOOD, is_mvtec
from gaussad_pl.errors import UserError
from gaussad_pl.files import unwritable
from gaussad_pl.fingerprints import file_sha256, image_digest, tensors_sha256
from gaussad_pl.inference.artefact import EXPORTED, NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.runs import find_detector, next_command
from gaussad_pl.inference.sources import count_images, image_paths
from gaussad_pl.version import __version__

UNREADABLE = 1  # exit code, as that of gaussad_pl.predict


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    good: str
    out: str = "recalibrated"
    gaussians: bool = False


def run(options: Options) -> int:
    """Write the new detector, print a summary and return the exit code.

    Raises:
        UserError: the detector cannot be read or is an exported one, the images are too few, or ``out`` exists.
    """
    out = Path(options.out) if Path(options.out).suffix == Path(NAME).suffix else Path(options.out) / NAME
    if out.exists():
        raise UserError(f"{out} already exists: give another out=, or remove it")
    ckpt = find_detector(options.ckpt)
    if ckpt.suffix == EXPORTED:
        raise UserError(
            f"ckpt={options.ckpt} is an exported file, which cannot be changed: give the {NAME} it was exported from, "
            "and export the new detector"
        )
    old = Detector.load(ckpt, "cuda" if torch.cuda.is_available() else "cpu")
    images, left_out = good_images(options.good, old.frame)
    if seen := old.trained_on(images):
        raise UserError(
            f"good={options.good}: the detector was trained on {len(seen)} of these {len(images)} images, which score "
            "lower than new ones: give good images that it has not seen"
        )
    model, calibration = recalibrate(old.model, images, options.gaussians)
    units = ["units of the score", "contour of the maps"] if model.segmenter is not None else []
    changed = ["calibration", *units, *(["means of the Gaussians"] if options.gaussians else [])]
    change: dict[str, Any] = {
        "detector_sha256": file_sha256(ckpt),
        "images": len(images),
        "images_left_out": len(left_out),
        "images_sha256": tensors_sha256({"images": images}),
        "good_images": [image_digest(image) for image in images],
        "changed": changed,
        "finished": datetime.now().astimezone().isoformat(),
        "command": shlex.join(sys.orig_argv),
        "version": __version__,
    }
    earlier = old.provenance.get("recalibrations", [])
    new = Detector(model, calibration, {**old.provenance, "recalibrations": [*earlier, change]}, old.frame.fit)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    new.save(out)
    print(*[f"left out: {reason}" for reason in left_out], f"old detector: {ckpt}", sep="\n")
    print(f"new detector: {out} (changed: {', '.join(changed)})")
    print(f"calibration: {calibration.scheme}")
    print(new.threshold().line)
    print(f"next: {next_command(out.parent if out.name == NAME else out)}")
    return UNREADABLE if left_out else 0


def good_images(good: str, frame: Frame) -> tuple[Tensor, list[str]]:
    """Read the images of a source, ``(N, 3, height, width)`` uint8, and return the errors of those that cannot be read.

    Copies are a warning.

    Raises:
        UserError: there is no such source, it has a folder of its own for good images, fewer images can be read than
            the largest of the usual rates needs, or all of them are identical.
    """
    folder = Path(good).expanduser()
    if is_mvtec(folder) or (folder / GOOD).is_dir():
        raise UserError(f"good={good} has other images beside good ones: give a folder of good images alone")
    found = count_images(good, "good")
    results = list(decoded(image_paths(good, "good"), frame, ahead=2 * BATCH))
    paths, images = [], []
    for path, image in results:
        if isinstance(image, Tensor):
            paths.append(path)
            images.append(image)
    errors = [str(image) for _, image in results if not isinstance(image, Tensor)]
    if len(images) < images_needed(max(RATES)):
        needs = ", ".join(f"{images_needed(fpr)} for a rate of {100 * fpr:g} %" for fpr in reversed(RATES))
        unreadable = f", of which {len(errors)} cannot be read ({errors[0]})" if errors else ""
        raise UserError(f"good={good} has {found} images{unreadable}, too few: the calibration needs {needs}")
    stacked = torch.stack(images)
    checks.not_all_the_same(stacked, paths)
    checks.name_copies(paths, [image_digest(image) for image in images])
    return stacked, errors


main = command(run, Options, __doc__)

if __name__ == "__main__":
    main()
