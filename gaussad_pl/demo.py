"""Try a detector in the browser: drop images, see their verdicts and maps.

python -m gaussad_pl.demo ckpt=<folder of runs, detector.safetensors or .onnx>

  ckpt    folder of a run, its detector.safetensors, or a file written by gaussad_pl.export; a folder of runs or a
          pattern like 'runs/parts/*' stands for the run in it that finished last
  fpr     initial target false-alarm rate; auto: the smallest from 0.01 to 0.2 that the number of calibration
          images supports                                                     (auto)
  host    127.0.0.1: this machine only; 0.0.0.0: all addresses, no access control  (127.0.0.1)
  port    0: any free port                                                    (7860)

The server is Python's own. The page loads nothing from other sites, and images are not stored.
"""

from __future__ import annotations

from gaussad_pl.cli.start import start

if __name__ == "__main__":
    start(__doc__)  # before the imports below, which take seconds

import base64
import contextlib
import ctypes
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from PIL import Image

from gaussad_pl.calibration.threshold import RATES
from gaussad_pl.cli.interruption import Interrupted
from gaussad_pl.cli.options import command
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import FORMATS, draft, fitted, upright
from gaussad_pl.errors import UserError
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.heat import CONTOUR, HeatScale, border
from gaussad_pl.inference.prediction import BaseDetector, Prediction
from gaussad_pl.inference.runs import find_detector
from gaussad_pl.web.server import Server

SIDE = 640  # longer side of the picture on the page, in pixels
THUMBNAIL = 96  # the same of the one in its table


@dataclass(frozen=True)
class Options:
    """Settings of the command; see the module docstring."""

    ckpt: str
    fpr: float | None = None
    host: str = "127.0.0.1"
    port: int = 7860


class Demo:
    """Answers the requests of the page about one detector.

    The page has no rule of its own for a verdict: it gets the verdict on each image at each of the rates.

    Attributes:
        initial: threshold at the rate that the page starts with.
        thresholds: at all the rates that the page offers, in their order.

    Raises:
        UserError: the false-alarm rate is not between 0 and 1.
    """

    def __init__(self, detector: BaseDetector, fpr: float | None) -> None:
        self.detector = detector
        self.initial = detector.threshold(fpr)  # an invalid rate fails at the start
        known = {rate: detector.threshold(rate) for rate in RATES} | {self.initial.fpr: self.initial}
        self.thresholds = [known[rate] for rate in sorted(known)]

    def about(self) -> dict[str, Any]:
        """Return what the page shows before the first image; an infinite threshold is None."""
        calibration = self.detector.calibration
        return {
            "name": self.detector.provenance.get("dataset", "detector"),
            "scheme": calibration.scheme,
            "scores": calibration.scores.tolist(),
            "levels": self.detector.levels,
            "scale": self.scale(),
            "rates": [
                {"fpr": each.fpr, "threshold": _finite(each.value), "line": each.line, "undecided": each.reason}
                for each in self.thresholds
            ],
            "initial": self.thresholds.index(self.initial),
        }

    def scale(self) -> dict[str, Any] | None:
        """Return the colour scale of all maps and a picture of its bar; None if there is no threshold of the map."""
        detector = self.detector
        if not np.isfinite(detector.limit):
            return None
        scale = HeatScale.of(detector.median, detector.limit, np.zeros(1, np.float32))
        values = np.linspace(scale.zero, scale.top, SIDE)[None]
        bar = Image.fromarray(scale.blended(np.full((1, SIDE, 3), 255, np.uint8), values))
        return {"bar": _data(bar), "legend": scale.legend, "ticks": [scale.zero, scale.threshold, scale.top]}

    def detect(self, file: BinaryIO) -> dict[str, Any]:
        """Score the image in a file, and return its prediction and the pictures for the page.

        Raises:
            UserError: the image cannot be read.
        """
        pixels, photo = read(file, self.detector.frame)
        (prediction,) = self.detector.predictions(self.detector.detect(pixels[None]), self.initial)
        return {
            "score": _finite(prediction.score),
            "p_value": prediction.p_value,
            "verdicts": [threshold.verdict(prediction.score) for threshold in self.thresholds],
            "distances": {level: _finite(distance) for level, distance in prediction.distances.items()},
            "thumbnail": _data(fitted(photo, THUMBNAIL), "JPEG"),
            "photo": _data(photo, "JPEG"),
            "heat": _heat(prediction, self.detector, photo.size),
        }


def _finite(value: float) -> float | None:
    """Return a number as JSON has it; None if it is infinite or NaN."""
    return value if np.isfinite(value) else None


def read(file: BinaryIO, frame: Frame) -> tuple[torch.Tensor, Image.Image]:
    """Read the pixels for the detector ``(3, height, width)`` uint8, and a picture with the original aspect ratio.

    Raises:
        UserError: the file is not an image, or has too many pixels.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            draft(image, frame)  # as in read_image, for the same score as predict
            whole = upright(image)
            pixels = torch.from_numpy(frame.pixels(whole).copy()).permute(2, 0, 1)
            return pixels, fitted(whole, SIDE)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"The image has too many pixels: at most {most:.0f} million are accepted.") from error
    except Exception as error:  # decoders may raise anything on invalid data
        known = ", ".join(FORMATS)
        raise UserError(
            f"This file cannot be read as an image. Supported formats: {known}. ({type(error).__name__})"
        ) from error


def _heat(prediction: Prediction, detector: BaseDetector, size: tuple[int, int]) -> str | None:
    """Render the map as a layer on the picture, transparent where it is far below the threshold."""
    if prediction.map is None:
        return None
    scale = HeatScale.of(detector.median, detector.limit, prediction.map)
    values = detector.frame.restored(prediction.map, size)
    layer = 255 * scale.rgba(values)
    layer[border(values > scale.threshold)] = (*CONTOUR, 255)
    return _data(Image.fromarray(layer.round().astype(np.uint8)))


def _data(image: Image.Image, kind: Literal["PNG", "JPEG"] = "PNG") -> str:
    buffer = BytesIO()
    image.save(buffer, kind, compress_level=1, quality=90)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def serve(options: Options) -> None:
    """Serve the page until Ctrl-C."""
    _return_freed_memory()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are fine, up to Pillow's hard limit
    ckpt = find_detector(options.ckpt)
    demo = Demo(load_detector(ckpt), options.fpr)
    server = Server(demo, options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{server.server_port}  (Ctrl-C to stop)")
    print(f"detector: {ckpt}\n{demo.initial.line}", flush=True)
    try:
        server.serve_forever()
    except Interrupted:
        pass
    finally:
        server.server_close()


def _return_freed_memory() -> None:
    """Return large blocks to the kernel once they are freed.

    By default, glibc keeps the blocks that a thread has used. As each request has its own thread, the process would
    grow with each large image. Without glibc, this function does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        m_mmap_threshold = -3  # from malloc.h
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**23)  # Pillow allocates 16 MB at once


main = command(serve, Options, __doc__)

if __name__ == "__main__":
    main()
