"""A detector that `gaussad_pl.export` wrote, in ONNX Runtime: the same predictions, without PyTorch's model or timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.errors import UserError
from gaussad_pl.inference import seal
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.inference.seal import is_sealed
from gaussad_pl.model.detection import Detection

FORMAT = 1  # raise it when files of this version cannot be read by older ones
SUFFIX = ".onnx"
KEYS = ("gaussad_pl", "calibration", "provenance")  # of the metadata: JSON each
INPUT = "images"


def load_detector(path: str | Path, device: str | torch.device = "cpu") -> BaseDetector:
    """A detector from the file of a run, its folder, or an exported file, which ends in .onnx."""
    return (ExportedDetector if Path(path).suffix == SUFFIX else Detector).load(path, device)


class ExportedDetector(BaseDetector):
    """Scores images by an exported file; `gaussad_pl.inference.detector.Detector` says what it offers."""

    def __init__(self, session: Any, metadata: Mapping[str, str]) -> None:
        """From a session of ONNX Runtime and the metadata of its model.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: metadata that gaussad_pl.export did not write.
        """
        header, kept, provenance = (json.loads(metadata[key]) for key in KEYS)
        self.size = int(header["size"])
        self.levels = [int(level) for level in header["levels"]]
        scores = torch.tensor(kept["scores"], dtype=torch.float64)
        distances = torch.tensor(kept["distances"], dtype=torch.float32).reshape(len(scores), len(self.levels))
        if not bool(scores.isfinite().all() and distances.isfinite().all() and (scores.diff() >= 0).all()):
            raise ValueError("the calibration scores are not finite and ascending")
        self.calibration = Calibration(scores, distances, str(kept["scheme"]), int(kept["different"]))
        self.provenance = dict(provenance)
        self.limit = float("inf") if header["limit"] is None else float(header["limit"])
        (images,) = session.get_inputs()
        if images.name != INPUT or images.shape[1:] != [self.size, self.size, 3]:
            raise ValueError(f"the graph takes {images.name} {images.shape}")
        self._session = session

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """From an exported file.

        Raises:
            UserError: no such file, a damaged or foreign one, one of a newer version, or no ONNX Runtime.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: write it with python -m gaussad_pl.export ckpt=<run folder>")
        whole = is_sealed(path)  # before ONNX Runtime sees it, which may crash on a damaged one
        session = open_session(path, torch.device(device))
        metadata = session.get_modelmeta().custom_metadata_map
        if not set(KEYS) <= set(metadata):
            raise UserError(f"{path} is an ONNX file, but no detector: give one that gaussad_pl.export wrote")
        if seal.KEY in metadata and not whole:
            raise UserError(f"{path} was changed after its export, so nothing vouches for it: export it again")
        try:
            header = json.loads(metadata[KEYS[0]])
            if header["format"] > FORMAT:
                raise UserError(
                    f"{path} was written by a newer gaussad_pl ({header['versions']['gaussad_pl']}, format "
                    f"{header['format']}, this one reads {FORMAT}): update with pip install --upgrade gaussad_pl"
                )
            return cls(session, metadata)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            reason = " ".join(repr(error).split())[:200]
            raise UserError(
                f"{path} is no detector that this gaussad_pl can read ({reason}): export it again"
            ) from error

    def detect(self, pixels: Tensor) -> Detection:
        """Scores, distances and maps of ``pixels`` ``(N, 3, size, size)`` uint8."""
        images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
        score, _, distances, *maps = (torch.from_numpy(found) for found in self._session.run(None, {INPUT: images}))
        return Detection(distances, score.double(), maps[0] if maps else None)


def open_session(model: Path | bytes, device: torch.device = torch.device("cpu")) -> Any:  # noqa: B008  # a constant
    """ONNX Runtime on a file or the bytes of one, with as many threads as PyTorch may use.

    Raises:
        UserError: no model, or there is no ONNX Runtime (for this device).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "there is no ONNX Runtime here: pip install onnxruntime, or give detector.safetensors"
        ) from error
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(
                "device=cuda: this ONNX Runtime has no GPU: pip install onnxruntime-gpu, or give device=cpu"
            )
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers)
    except Exception as error:  # its exceptions have no common base but this
        name = "the model" if isinstance(model, bytes) else model
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name} is damaged or no ONNX model ({reason}): export it again") from error
