"""A page to try a detector: drop an image, see verdict, p-value and map. Nothing but Python's own web server.

python -m gaussad_pl.demo ckpt=<run folder, detector.safetensors or .onnx>

  ckpt    folder of a finished run, its detector.safetensors, or what gaussad_pl.export made of it
  fpr     false-alarm rate that the page starts with                          (0.01)
  host    127.0.0.1: this machine alone; 0.0.0.0: all who reach it, unguarded (127.0.0.1)
  port    0 for any that is free                                              (7860)

The page loads nothing from elsewhere, and images are kept nowhere.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from gaussad_pl.cli.interruption import Interrupted
from gaussad_pl.cli.options import command
from gaussad_pl.data.images import FORMATS, resized, upright
from gaussad_pl.errors import UserError
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.overlay import CONTOUR, heat
from gaussad_pl.inference.prediction import BaseDetector, Prediction
from gaussad_pl.web.server import Server

SIDE = 640  # of the picture on the page in pixels, the longer one


@dataclass(frozen=True)
class Options:
    """See the text at the top of this file."""

    ckpt: str
    fpr: float = 0.01
    host: str = "127.0.0.1"
    port: int = 7860


class Demo:
    """Answers what the page asks about one detector.

    Raises:
        UserError: an impossible false-alarm rate.
    """

    def __init__(self, detector: BaseDetector, fpr: float) -> None:
        detector.threshold(fpr)  # an impossible one is told now
        self.detector = detector
        self.fpr = fpr

    def about(self) -> dict[str, Any]:
        """What the page shows before the first image."""
        kept = self.detector.calibration
        return {
            "name": self.detector.provenance.get("dataset", "detector"),
            "scheme": kept.scheme,
            "scores": kept.scores.tolist(),
            **self.threshold(self.fpr),
        }

    def threshold(self, fpr: float) -> dict[str, Any]:
        """The threshold for a false-alarm rate; None where there is none."""
        found = self.detector.threshold(fpr)
        value = found.value if np.isfinite(found.value) else None
        return {"fpr": fpr, "threshold": value, "rule": found.rule, "line": found.line}

    def detect(self, file: BinaryIO, fpr: float) -> dict[str, Any]:
        """What there is to say about the image of a file.

        Raises:
            UserError: it cannot be read.
        """
        threshold = self.detector.threshold(fpr)
        pixels, photo = read(file, self.detector.size)
        (prediction,) = self.detector.predictions(self.detector.detect(pixels[None]), threshold)
        return {
            "score": prediction.score if np.isfinite(prediction.score) else None,
            "p_value": prediction.p_value,
            "verdict": prediction.verdict,
            **self.threshold(fpr),
            "photo": _data(photo),
            "heat": _heat(prediction, self.detector.limit, photo.size),
        }


def read(file: BinaryIO, size: int) -> tuple[torch.Tensor, Image.Image]:
    """The pixels that the detector takes ``(3, size, size)``, and a picture in the proportions of the original.

    Raises:
        UserError: it is no image, or has too many pixels.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft(None, (2 * size, 2 * size))  # as read_image does: predict gives the same score
            whole = upright(image)
            pixels = torch.from_numpy(np.array(resized(whole, (size, size)))).permute(2, 0, 1)
            width, height = (max(1, round(side * SIDE / max(whole.size))) for side in whole.size)
            return pixels, resized(whole, (width, height))
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"The image has too many pixels: at most {most:.0f} million are decoded.") from error
    except Exception as error:  # decoders fed with garbage raise nearly anything
        known = ", ".join(FORMATS)
        raise UserError(
            f"This file cannot be read as an image. Readable are {known}. ({type(error).__name__})"
        ) from error


def _heat(prediction: Prediction, limit: float, size: tuple[int, int]) -> str | None:
    """The map to lay over the picture: the more of an anomaly, the less of the picture is seen."""
    if prediction.map is None:
        return None
    colours, strength, outline = heat(prediction.map, limit, size)
    layer = np.dstack([colours, 255 * (2.4 * strength**2).clip(0, 1)])  # a veil of 0.6 at the limit
    layer[outline] = (*CONTOUR, 255)
    return _data(Image.fromarray(layer.round().astype(np.uint8)))


def _data(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def serve(options: Options) -> None:
    """Answer until Ctrl-C."""
    _return_freed_memory()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # images are large, not bombs, up to twice as many
    server = Server(Demo(load_detector(options.ckpt), options.fpr), options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except Interrupted:
        pass
    finally:
        server.server_close()


def _return_freed_memory() -> None:
    """Give large blocks back to the kernel once they are free.

    glibc keeps those that a thread has used, and each request has its own: with every large image the process would
    grow. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        m_mmap_threshold = -3  # from malloc.h
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**23)  # Pillow takes 16 MB at once


main = command(serve, Options, __doc__)

if __name__ == "__main__":
    main()
