"""Training from Python: what ``python -m gaussad_pl.train`` does, as a function.

from gaussad_pl import fit

detector = fit("/my/parts", bad="/my/bad")
for prediction in detector("/my/new/part.png", fpr=0.05):
    print(prediction.verdict, prediction.p_value)
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from gaussad_pl.cli.hydra_command import CONF, is_users, one_line, quiet
from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.pixels import write_images
from gaussad_pl.train import train

Folder: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = np.ndarray | Tensor | Iterable[Image.Image | np.ndarray | Tensor | Folder]


def fit(
    good: Folder | Images,
    *,
    bad: Folder | Images | None = None,
    masks: Folder | None = None,
    backbone: str | None = None,
    image_size: int | None = None,
    fine_tune: bool | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    out: Folder | None = None,
    settings: str | Sequence[str] = (),
) -> Detector:
    """Train on good parts and return the detector.

    Its scores are those of ``python -m gaussad_pl.train data=folder ...`` with the same settings and seed. Arguments
    that are None keep the defaults of the command; the setting behind each argument is in brackets. The false-alarm
    rate is no setting of the training: choose it when you predict, as in ``detector(images, fpr=0.05)``.

    Args:
        good: folder of good parts, in any layout that the command takes (`data.root`); or the images themselves: PIL
            images, arrays ``(H, W)`` or ``(H, W, C)``, tensors ``(C, H, W)``, paths of files, or one array or tensor
            with a batch dimension.
        bad: the same for bad parts, which are used for testing only (`data.bad`).
        masks: folder with the masks of the bad parts (`data.masks`).
        backbone: name of a file in ``conf/backbone``, such as ``"resnet18"`` (`backbone`).
        image_size: side in pixels to which images are resized (`backbone.image_size`).
        fine_tune: False for the frozen network only, which is faster (`fine_tune`).
        epochs: most epochs of fine-tuning (`trainer.max_epochs`).
        seed: of every random choice (`seed`). The random state of the caller does not change.
        device: where to train, and where the detector scores (`trainer.accelerator`). By default the training takes a
            GPU if there is one, and the detector scores on the CPU.
        out: folder for the results of the run: metrics.json, figures, scores of the test images and the detector. By
            default only the detector is kept.
        settings: any other setting or settings, as on the command line: ``["+experiment=paper", "folds=4"]``.

    Raises:
        UserError: a mistake in the arguments or the images, in one line.

    Examples:
        >>> detector = fit(arrays, fine_tune=False)  # doctest: +SKIP
        >>> detector.save("detector.safetensors")  # doctest: +SKIP
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(out or Path(temporary, "run")).expanduser()
        root, bad_root = (_folder(images, Path(temporary, name)) for images, name in ((good, "good"), (bad, "bad")))
        given = {
            "data.root": root,
            "data.bad": bad_root,
            "data.masks": None if masks is None else Path(masks).expanduser(),
            "backbone": backbone,
            "backbone.image_size": image_size,
            "fine_tune": fine_tune,
            "trainer.max_epochs": epochs,
            "seed": seed,
            "trainer.accelerator": {"cuda": "gpu"}.get(device or "", device),
            "hydra.runtime.output_dir": folder,
        }
        overrides = [f"{key}={_quoted(value)}" for key, value in given.items() if value is not None]
        with _caller_undisturbed(), _mistakes_in_one_line():
            more = [settings] if isinstance(settings, str) else settings
            with _composed(["data=folder", "logger=csv", *overrides, *more]) as config:
                train(config, folder)
            return Detector.load(folder / NAME, device or "cpu")


def _folder(images: Folder | Images | None, new: Path) -> Path | None:
    """Return the path of a folder, or of a new one with the images."""
    if images is None:
        return None
    if isinstance(images, (str, os.PathLike)):
        return Path(images).expanduser()
    write_images(images, new)
    if not any(new.iterdir()):
        raise UserError(f"{new.name}=[]: there is no image in it: give images, or the path of a folder")
    return new


def _quoted(value: object) -> str:
    r"""Write a value as on a command line of Hydra, where backslashes escape if a quote or the end follows them.

    Raises:
        UserError: it has ``${``, which the configuration would take for the name of a setting.

    >>> print(_quoted("it's"), _quoted(r"C:\parts"), _quoted(np.int64(3)))
    'it\'s' 'C:\parts' 3
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    text = str(value)
    if "${" in text:
        raise UserError(f"{text}: ${{ would stand for a setting: rename the folder, or give a link to it")
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


@contextmanager
def _composed(overrides: list[str]) -> Iterator[DictConfig]:
    """Compose the configuration of the command; its interpolations of Hydra's own settings work inside the block."""
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, None
    hydra.set_config(config)
    with open_dict(config):
        del config["hydra"]
    try:
        yield config
    finally:
        hydra.cfg = before


@contextmanager
def _caller_undisturbed() -> Iterator[None]:
    """Restore the random state, and the warnings that the training silences."""
    with isolate_rng(), warnings.catch_warnings():
        quiet()
        yield


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    """Raise a user's mistake as the line with which the command ends."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if not is_users(error):
            raise
        raise UserError(one_line(error)) from error
