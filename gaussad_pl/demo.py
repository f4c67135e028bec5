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
import json
import threading
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
from PIL import Image, ImageOps

from gaussad_pl.cli.interruption import Interrupted
from gaussad_pl.cli.options import command
from gaussad_pl.data.images import FORMATS, square
from gaussad_pl.errors import UserError
from gaussad_pl.inference.detector import Finder, Finding
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.overlay import CONTOUR, heat

PAGE = Path(__file__).with_name("demo.html")
LARGEST = 64 * 2**20  # bytes of an upload
SIDE = 640  # of the picture on the page in pixels, the longer one
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"


@dataclass(frozen=True)
class Options:
    """See the text at the top of this file."""

    ckpt: str
    fpr: float = 0.01
    host: str = "127.0.0.1"
    port: int = 7860


class Demo(ThreadingHTTPServer):
    """Serves the page for one detector.

    Raises:
        UserError: the address cannot be had.
    """

    daemon_threads = True

    def __init__(self, detector: Finder, fpr: float, host: str, port: int) -> None:
        detector.threshold(fpr)  # an impossible one is told now
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"host={host} port={port}: cannot listen there ({error}): give another port=") from error
        self.detector = detector
        self.fpr = fpr
        self.turn = threading.Lock()  # one image at a time: each is scored on all cores

    def about(self) -> dict[str, Any]:
        """What the page shows before the first image."""
        kept = self.detector.calibration
        return {
            "name": self.detector.provenance.get("dataset", "detector"),
            "scheme": kept.scheme,
            "scores": kept.scores.tolist(),
            "largest": LARGEST,
            **self.threshold(self.fpr),
        }

    def threshold(self, fpr: float) -> dict[str, Any]:
        """The threshold for a false-alarm rate; None where there is none."""
        found = self.detector.threshold(fpr)
        value = found.value if np.isfinite(found.value) else None
        return {"fpr": fpr, "threshold": value, "rule": found.rule, "line": found.line}

    def detect(self, file: bytes, fpr: float) -> dict[str, Any]:
        """What there is to say about the image of a file.

        Raises:
            UserError: it cannot be read.
        """
        pixels, photo = read(file, self.detector.size)
        with self.turn:
            (finding,) = self.detector.findings(self.detector.detect(pixels[None]), self.detector.threshold(fpr))
        pictures = {"photo": _data(photo), "heat": _heat(finding, self.detector.limit, photo.size)}
        return {
            "score": finding.score if np.isfinite(finding.score) else None,
            "p_value": finding.p_value,
            "verdict": finding.verdict,
            **self.threshold(fpr),
            **pictures,
        }


def read(file: bytes, size: int) -> tuple[torch.Tensor, Image.Image]:
    """The pixels that the detector takes ``(3, size, size)``, and a picture in the proportions of the original.

    Raises:
        UserError: it is no image.
    """
    try:
        with Image.open(BytesIO(file), formats=FORMATS) as image:
            image.draft(None, (2 * size, 2 * size))  # as read_image does: predict gives the same score
            pixels = torch.from_numpy(square(image, size).copy()).permute(2, 0, 1)
            width, height = ImageOps.exif_transpose(image).size
            scale = SIDE / max(width, height)
            photo = Image.fromarray(square(image, SIDE)).resize(
                (max(1, round(width * scale)), max(1, round(height * scale)))
            )
    except Exception as error:  # decoders fed with garbage raise nearly anything
        known = ", ".join(FORMATS)
        raise UserError(
            f"This file cannot be read as an image. Readable are {known}. ({type(error).__name__})"
        ) from error
    return pixels, photo


def _heat(finding: Finding, limit: float, size: tuple[int, int]) -> str | None:
    """The map to lay over the picture: the more of an anomaly, the less of the picture is seen."""
    if finding.map is None:
        return None
    colours, strength, outline = heat(finding.map, limit, size)
    layer = np.dstack([colours, 255 * (2.4 * strength**2).clip(0, 1)])  # a veil of 0.6 at the limit
    layer[outline] = (*CONTOUR, 255)
    return _data(Image.fromarray(layer.round().astype(np.uint8)))


def _data(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Handler(BaseHTTPRequestHandler):
    server: Demo
    timeout = 30  # seconds, or a silent client would keep its thread for ever

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
        elif url.path == "/about":
            self._json(HTTPStatus.OK, self.server.about())
        elif url.path == "/threshold":
            self._answer(lambda: self.server.threshold(self._fpr()))
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "There is nothing here."})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        self.close_connection = True  # what is not read here is not to be taken for the next request
        if urlsplit(self.path).path != "/detect":
            self._json(HTTPStatus.NOT_FOUND, {"error": "There is nothing here."})
        elif not length.isdecimal():
            self._json(HTTPStatus.LENGTH_REQUIRED, {"error": "The length of the file is missing."})
        elif int(length) > LARGEST:
            message = f"The file is larger than {LARGEST // 2**20} MB."
            self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": message})
        elif int(length) == 0:
            self._json(HTTPStatus.BAD_REQUEST, {"error": "The file is empty."})
        else:
            self._answer(lambda: self.server.detect(self.rfile.read(int(length)), self._fpr()))

    def _fpr(self) -> float:
        given = parse_qs(urlsplit(self.path).query).get("fpr", [str(self.server.fpr)])[0]
        try:
            return float(given)
        except ValueError as error:
            raise UserError(f"fpr={given}: expected a number between 0 and 1") from error

    def _answer(self, work: Any) -> None:
        try:
            content = work()
        except UserError as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            self._json(HTTPStatus.OK, content)

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in {**headers, "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal shows the address."""


def serve(options: Options) -> None:
    """Answer until Ctrl-C."""
    server = Demo(load_detector(options.ckpt), options.fpr, options.host, options.port)
    print(f"http://{options.host}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except Interrupted:
        pass
    finally:
        server.server_close()


main = command(serve, Options, __doc__)

if __name__ == "__main__":
    main()
