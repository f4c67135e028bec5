"""A trained detector: model, calibration and provenance in one file; it needs no training dependencies.

detector = Detector.load("runs/parts")
for prediction in detector(["a.png", "b.png"], fpr=0.05):
    print(prediction.verdict, prediction.p_value)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gaussad_pl.backbones.folding import folded
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import EXPORTED, NAME, read_artefact, write_artefact
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.model import GaussianModel
from gaussad_pl.model.precision import forbid_tf32
from gaussad_pl.version import __version__


class Detector(BaseDetector):
    """A detector that scores images with PyTorch.

    Attributes:
        model: takes ``(N, 3, height, width)`` uint8; levels that are not needed are removed, see `pruned`.
    """

    def __init__(
        self, model: GaussianModel, calibration: Calibration, provenance: Mapping[str, Any], fit: Fit = "squash"
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.calibration = calibration
        self.provenance = dict(provenance)
        backbone = model.backbone
        roi = None if backbone.roi is None else backbone.roi.cpu().numpy()
        self.frame = Frame(*backbone.tiling.shape, fit, roi)
        self.levels = [level.index for level in model.backbone.levels]
        self.median = 0.0 if model.segmenter is None else float(model.segmenter.median)
        self.limit = math.inf if model.segmenter is None else float(model.segmenter.threshold)

    @classmethod
    def of(
        cls, model: GaussianModel, calibration: Calibration, provenance: Mapping[str, Any], fit: Fit = "squash"
    ) -> Self:
        """Create a detector on the CPU from a copy of a trained model."""
        settings, state = pruned(model)
        needed = calibration.first_levels(len(settings["backbone"]["levels"]))
        return cls(_build(settings, state), needed, provenance, fit)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a detector from its file, from the folder of a run, or from the newest finished run below a folder.

        Nothing is downloaded.

        Args:
            path: a file, a folder, or a pattern such as ``runs/parts/*``; see `find_detector`.
            device: where the model scores images.

        Raises:
            UserError: the file is missing, is damaged, is not a detector, or is incompatible with this version, or
                there is no such device.
        """
        path = find_detector(path)
        if path.suffix == EXPORTED:
            raise UserError(f"{path} is an exported file, for predict and evaluate: give the {NAME} it was made from")
        if path.suffix == ".ckpt":
            raise UserError(f"{path} is a training checkpoint: give the {NAME} in its folder")
        header, tensors = read_artefact(path)
        try:
            scores, distances = (tensors.pop(f"calibration.{name}") for name in ("scores", "distances"))
            calibration = Calibration(scores, distances, **header["calibration"])
            model, provenance = _build(header["model"], tensors), dict(header["provenance"])
            fit = header.get("fit", "squash")  # older versions have no other
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UserError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{path}, written by gaussad_pl {header.get('version')}, is incompatible with this version "
                f"({__version__}) or with its timm ({reason}): train it again"
            ) from error
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device={device} ({str(error).splitlines()[0]}): give device=cpu") from error
        if torch.device(device).type == "cuda":
            forbid_tf32()
        return cls(model, calibration, provenance, fit)

    def save(self, path: str | Path) -> None:
        """Write the detector to a file that `load` reads: tensors and JSON, no code."""
        settings, state = pruned(self.model)
        state["calibration.scores"] = self.calibration.scores
        state["calibration.distances"] = self.calibration.distances
        header = {
            "version": __version__,
            "model": settings,
            "calibration": {"scheme": self.calibration.scheme, "different": self.calibration.different},
            "provenance": self.provenance,
            "fit": self.frame.fit,
        }
        write_artefact(Path(path), header, state)

    @torch.inference_mode()
    def detect(self, pixels: Tensor) -> Detection:
        """Return scores, distances and maps of ``pixels`` ``(N, 3, height, width)`` uint8, on the CPU."""
        return self._folded_model(pixels.to(self.model.backbone.scale.device)).cpu()

    @cached_property
    def _folded_model(self) -> GaussianModel:
        """The model with batch normalisation folded into the convolutions; `save` writes the original model."""
        shallow = copy(self.model)
        shallow._modules = {**self.model._modules, "backbone": folded(self.model.backbone)}
        return shallow


def pruned(model: GaussianModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return settings and state of a model without the levels after the last one that the score or the map needs.

    Later levels are not computed, and their weights are left out. Earlier levels are computed anyway, so their
    distances are kept even if they have no weight in the score: they help to detect drift.
    """
    segmenter, backbone = model.segmenter, model.backbone
    counts = segmenter is None or bool(segmenter.weights[0] != 0)
    needed = model.level_weights.nonzero().flatten().tolist() if counts else []
    last = max([*needed, *(segmenter.head.places if segmenter is not None else [])], default=0)
    levels = [level.index for level in backbone.levels[: last + 1]]
    settings: dict[str, Any] = {
        "backbone": {
            "name": backbone.name,
            "image_size": backbone.image_size,
            "tiles": [backbone.tiling.rows, backbone.tiling.columns],
            "levels": levels,
        },
        "segmentation": None if segmenter is None else segmenter.chosen,
    }
    used = {id(parameter) for parameter in backbone.parameters_of(levels)}
    unused = [f"backbone.{name}" for name, parameter in backbone.named_parameters() if id(parameter) not in used]
    settings["unused"] = unused
    gone = (*unused, *(f"gaussians.{i}." for i in range(last + 1, len(backbone.levels))))
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(gone)}
    state["level_weights"] = model.level_weights[: last + 1]
    # the normalisation of the pixels is stored, as another version of timm may define another one
    return settings, {**state, "backbone.scale": backbone.scale, "backbone.offset": backbone.offset}


def _build(settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> GaussianModel:
    """Build a model from the settings and the state that `pruned` returns."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn and overwritten: keep the caller's random state
        backbone, roi = {**settings["backbone"], "weights": "random"}, state.get("backbone.roi")
        model = GaussianModel(backbone, segmentation=settings["segmentation"], roi=roi)
    state = dict(state)
    model.backbone.scale.copy_(state.pop("backbone.scale"))
    model.backbone.offset.copy_(state.pop("backbone.offset"))
    result = model.load_state_dict(state, strict=False)
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if key not in settings["unused"])]
    if wrong:
        raise UserError(f"{wrong[0]} is missing or unknown")
    return model.eval()
