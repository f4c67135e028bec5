"""The provenance of the numbers of a run."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import version
from typing import Any

from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.inventory import digest, images_sha256, inventory
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.results import checkout
from gaussad_pl.version import __version__

PACKAGES = (
    "torch", "torchvision", "lightning", "timm", "hydra-core", "omegaconf", "torchmetrics",
    "albumentations", "wandb", "scikit-learn", "numpy", "pillow",
)  # fmt: skip


def provenance(config: dict[str, Any], data: ImageDataModule, model: GaussianModel) -> dict[str, Any]:
    """Return the provenance of a result: data, split, weights, versions, commit, command and configuration."""
    backbone = model.backbone
    test = data.test_samples if data.has_test else []
    return {
        "finished": datetime.now().astimezone().isoformat(),
        "dataset": data.name,
        "seed": data.seed,
        "fold": data.fold,
        "folds": data.folds,
        "grouping": data.grouping,
        "good_images_kept_for_test": data.kept_for_test,
        "images_sha256": digest(inventory(data.samples)),
        "images": {
            "train": len(data.split[0]),
            "validation": len(data.split[1]),
            "test_good": sum(not sample.label for sample in test),
            "test_bad": sum(sample.label for sample in test),
        },
        "data_sha256": images_sha256(data.samples),
        "backbone": {
            "name": backbone.name,
            "weights": backbone.source.text,
            "weights_file_sha256": backbone.source.file_sha256,
            "weights_sha256": backbone.weights_sha256,
            "image_size": backbone.image_size,
            "levels": [vars(level) for level in backbone.levels],
        },
        "shrinkage_per_level": [float(gaussian.shrinkage_) for gaussian in model.gaussians],
        "command": shlex.join(sys.orig_argv),
        "git": checkout.commit(),
        "config": config,
        "versions": {
            "python": platform.python_version(),
            "gaussad_pl": __version__,
            **{name: version(name) for name in PACKAGES},
        },
    }
