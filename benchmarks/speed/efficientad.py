"""Speed of exported graphs beside EfficientAD-S, in OpenVINO: anomalib's fastest model, at its own 256 px.

Its weights are random: its speed does not depend on them. anomalib runs in the environment of benchmarks.peers, which
executes this module to write the network as TorchScript.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.exported import BATCHES, compiled, detectors, load
from benchmarks.speed.scoring import images
from benchmarks.speed.timing import Row, interleaved

SIZE = 256
CHANNELS = 384  # of the teacher


def beside_efficientad(python: Path | None, folder: Path, repeats: int) -> list[Row]:
    """Part 6: each exported graph relative to EfficientAD-S, both on one thread; writes files to ``folder``."""
    what, against = "exported graph, openvino", "EfficientAD-S, openvino"
    if python is None or find_spec("openvino") is None:
        return [Row(6, what, None, against, note="needs --peers-python and pip install 'gaussad_pl[export]'")]
    import openvino

    from gaussad_pl.export import onnx_model

    path = folder / "efficientad.pt"
    subprocess.run([python, "-m", "benchmarks.speed.efficientad", path], check=True)
    theirs = compiled(openvino.convert_model(torch.jit.load(path), example_input=torch.zeros(1, 3, SIZE, SIZE)))
    rows = []
    for form, detector in detectors():
        ours = load("openvino", onnx_model(detector))
        for batch in BATCHES:
            x = images(batch, 9).permute(0, 2, 3, 1).contiguous().numpy()
            noise = np.random.default_rng(0).random((batch, 3, SIZE, SIZE), dtype=np.float32)
            times = interleaved({"ours": partial(ours, x), "theirs": partial(theirs, noise)}, repeats)
            what = f"exported graph, openvino, {batch} at a time"
            rows.append(Row(6, what, times["ours"] / times["theirs"], against, 1.0, form=form))
    return rows


class Maps(nn.Module):
    """EfficientAD-S without its choice between training and scoring: the anomaly map of images."""

    def __init__(self) -> None:
        super().__init__()
        from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize

        self.model = EfficientAdModel(CHANNELS, EfficientAdModelSize.S).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the anomaly map ``(N, 1, H, W)`` of images ``(N, 3, H, W)`` from 0 to 1."""
        student, autoencoder = self.model.get_maps(x)
        return (student + autoencoder) / 2


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of anomalib and of the tracer
    torch.jit.trace(Maps().eval(), torch.rand(1, 3, SIZE, SIZE)).save(sys.argv[1])
