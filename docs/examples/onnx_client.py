"""Judge images with an exported detector, with numpy, Pillow and onnxruntime alone.

python onnx_client.py detector.onnx image.png ...

Prints a line for each image: verdict, p-value and path, separated by tabs. The exit code is 1 if an image cannot be
read, 3 if the images are undecided, and 0 otherwise, as of gaussad_pl.predict.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


class Client:
    """An exported detector.

    Attributes:
        height, width: of the images that the graph takes, in pixels.
        fit: how images are fitted to it: "squash", "pad" or "crop".
        threshold: scores above it are bad; None if there were too few calibration images to decide.
        undecided: the reason, if there is no threshold.
    """

    def __init__(self, path: str | Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        header = json.loads(metadata["gaussad_pl"])
        self.height: int = header["height"]
        self.width: int = header["width"]
        self.fit: str = header["fit"]
        self.threshold: float | None = header["threshold"]
        self.undecided: str = header["undecided"]
        self.calibration = np.array(json.loads(metadata["calibration"])["scores"])  # in ascending order

    def judge(self, image: np.ndarray) -> tuple[str, float]:
        """Return verdict and p-value of an RGB image ``(height, width, 3)`` uint8."""
        (score,) = self.session.run(["score"], {"images": image[None]})[0].astype(float)
        larger = len(self.calibration) - np.searchsorted(self.calibration, score)
        p_value = (1 + larger) / (1 + len(self.calibration))
        if self.threshold is None:
            return "undecided", p_value
        return "good" if score <= self.threshold else "bad", p_value


def read(path: str | Path, height: int, width: int, fit: str) -> np.ndarray:
    """Decode an image to RGB ``(height, width, 3)`` uint8 as in training; other ways give other scores."""
    with Image.open(path, formats=FORMATS) as file:
        side = 2 * max(height, width)
        file.draft(None, (side, side))  # a JPEG file is decoded at a fraction of its size
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray(np.rint(np.asarray(image) * np.float32(255 / 65535)).astype(np.uint8))
        if image.mode == "F":
            raise ValueError("floating-point images are for gaussad_pl.predict: convert it to 8 or 16 bits")
        if image.mode == "RGBA":  # dropped before resizing, which would weight the colours with it
            image = Image.merge("RGB", image.split()[:3])
        return fitted(image.convert("RGB"), height, width, fit)


def fitted(image: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    """Squash, pad or crop an image to ``(height, width, 3)``."""
    taken, filled = image.size, (width, height)
    if fit == "pad":
        filled = largest(image.size, within=filled)
    elif fit == "crop":
        taken = largest(filled, within=image.size)
    left, top = (image.width - taken[0]) // 2, (image.height - taken[1]) // 2
    content = image.resize(filled, Image.Resampling.BILINEAR, (left, top, left + taken[0], top + taken[1]))
    across, down = width - filled[0], height - filled[1]
    margins = (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)
    return np.pad(np.asarray(content), margins, "edge")


def largest(proportions: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size (width, height) of these proportions within another one."""
    (width, height), (most_wide, most_high) = proportions, within
    if width * most_high >= height * most_wide:
        return most_wide, max(1, (2 * height * most_wide + width) // (2 * width))
    return max(1, (2 * width * most_high + height) // (2 * height)), most_high


def main(arguments: list[str]) -> int:
    """Judge all images and return the exit code."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    client, code = Client(arguments[0]), 0
    if client.threshold is None:
        print(f"undecided: {client.undecided}", file=sys.stderr)
        code = 3
    for path in arguments[1:]:
        try:
            image = read(path, client.height, client.width, client.fit)
        except Exception as error:  # decoders raise almost anything when given garbage
            print(f"cannot read {path} ({error})", file=sys.stderr)
            code = 1
        else:
            print(*client.judge(image), path, sep="\t")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
