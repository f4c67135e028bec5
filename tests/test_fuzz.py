"""Flipped bits in every file that is read: one line that names the file, or the same answer as before.

Where a format has no checksum (JPEG, and numbers in YAML and JSON that a run wrote), another value cannot be told from
the right one; there nothing but the errors is demanded: one line, or none.
"""

# ruff: noqa: F811  # a fixture of another file has the name of the arguments that it is

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from made_runs import make_run
from omegaconf import OmegaConf
from test_predict import ckpt, drawn, run  # noqa: F401  # ckpt is a fixture

from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.data.loading import load_images
from gaussad_pl.errors import UserError
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.inference.prediction import BaseDetector
from gaussad_pl.reporting.content import compose
from gaussad_pl.reporting.runs import gather
from gaussad_pl.reporting.study import arrange
from gaussad_pl.results import run_folder
from gaussad_pl.training.checkpoints import AtomicCheckpointIO, damage
from gaussad_pl.training.module import GaussianAD

COUNT = 40  # damaged copies of a file


def damaged(path: Path, count: int = COUNT, seed: int = 0) -> Iterator[Path]:
    """The file with a flipped bit, over and over; a third of them near either end, where the structure is."""
    whole, rng = path.read_bytes(), np.random.default_rng(seed)
    near = min(300, len(whole))
    for number in range(count):
        low, high = ((0, len(whole)), (0, near), (len(whole) - near, len(whole)))[number % 3]
        content = bytearray(whole)
        content[rng.integers(low, high)] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        yield path
    path.write_bytes(whole)


def one_line_or_same(path: Path, answer: Callable[[], Any], count: int = COUNT) -> None:
    """Demand the answer of the whole file, or one line that names it, and at least one of the latter."""
    expected, refused = answer(), 0
    for _ in damaged(path, count):
        try:
            found = answer()
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error)
            refused += 1
        else:
            assert found == expected
    assert refused and answer() == expected


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ckpt") / "model.ckpt"
    torch.manual_seed(0)
    module = GaussianAD(TINY)
    content = {
        GaussianAD.CHECKPOINT_HYPER_PARAMS_KEY: {"backbone": TINY},
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": "2",
    }
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def everything(detector: BaseDetector) -> list[Any]:
    pixels = torch.zeros(1, 3, detector.frame.height, detector.frame.width, dtype=torch.uint8)
    found, kept = detector.detect(pixels), detector.calibration
    return [
        *(found.scores.tolist(), found.distances.tolist(), kept.scores.tolist(), kept.distances.tolist()),
        *(kept.scheme, kept.different, detector.median, detector.limit, detector.levels, detector.provenance),
    ]


def test_detector(ckpt: Path) -> None:
    one_line_or_same(ckpt / NAME, lambda: everything(Detector.load(ckpt)))


@pytest.mark.slow
def test_exported_detector(ckpt: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `export` is not installed")
    from gaussad_pl.export import onnx_model

    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_model(Detector.load(ckpt)))
    one_line_or_same(path, lambda: everything(load_detector(path)))


def test_checkpoint_to_score_with(checkpoint: Path) -> None:
    def state() -> list[bytes]:
        return [value.numpy().tobytes() for value in GaussianAD.load(checkpoint).state_dict().values()]

    one_line_or_same(checkpoint, state)


def test_checkpoint_to_resume_from(checkpoint: Path) -> None:
    def state() -> list[bytes]:
        if reason := damage(checkpoint):
            raise UserError(f"{checkpoint}: {reason}")
        return [value.numpy().tobytes() for value in torch.load(checkpoint, weights_only=True)["state_dict"].values()]

    one_line_or_same(checkpoint, state)


def test_settings_and_images_of_a_run_folder(tmp_path: Path) -> None:
    config = OmegaConf.create({"resume": True, "seed": 0, "model": {"lr": 0.01, "levels": [1, 2]}, "name": "a ü"})
    images = {"/data/a.png": 100, "/data/ü.png": 2000}
    run_folder.open_folder(tmp_path, config)
    run_folder.same_images(tmp_path, images)
    one_line_or_same(tmp_path / "config.yaml", lambda: run_folder.open_folder(tmp_path, config), 200)

    def compared() -> None:
        try:
            run_folder.same_images(tmp_path, images)
        except UserError as error:
            raise UserError(f"images.json: {error}") from error

    one_line_or_same(tmp_path / "images.json", compared, 200)


@pytest.mark.parametrize("content", ["[]", "null", "3", '{"a": []}', '"text"'])
def test_images_of_a_run_folder_of_the_wrong_form(content: str, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text(content)
    with pytest.raises(UserError, match="damaged|other images"):
        run_folder.same_images(tmp_path, {"/data/a.png": 100})


def test_image_cache(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, drawn(3, 0), strict=True):
        image.save(path)
    expected = load_images(paths, Frame(16, 16), tmp_path / "cache", "").clone()
    (file,) = (tmp_path / "cache").iterdir()
    for _ in damaged(file):
        assert torch.equal(load_images(paths, Frame(16, 16), tmp_path / "cache", ""), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_png(mode: str, tmp_path: Path) -> None:
    drawn(1, 0)[0].resize((16, 16)).convert(mode).save(tmp_path / "a.png")
    one_line_or_same(tmp_path / "a.png", lambda: read_image(tmp_path / "a.png", Frame(8, 8)).tolist(), 150)


@pytest.mark.filterwarnings("ignore")  # of damaged TIFF files
@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "tif"])
def test_image_without_checksums(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    drawn(1, 0)[0].save(path)
    for _ in damaged(path, 150):
        try:
            assert read_image(path, Frame(8, 8)).shape == (8, 8, 3)
        except UserError as error:
            assert "\n" not in str(error) and path.name in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions.csv", "predictions.json"])
def test_rows_of_a_prediction_that_is_resumed(name: str, ckpt: Path, tmp_path: Path) -> None:
    for i, image in enumerate(drawn(4, 2)):
        image.save(tmp_path / f"{i}.png")
    out = tmp_path / "out"
    arguments = [f"ckpt={ckpt}", f"source={tmp_path}/[0-3].png", f"out={out}", "fpr=0.1"]
    assert run(*arguments) == 0
    expected = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "predictions.json"}
    refused = 0
    for _ in damaged(out / name):
        code = run(*arguments, "resume=true")
        if code == 0:
            assert all((out / other).read_bytes() == content for other, content in expected.items())
        else:
            assert str(code).startswith("error: ") and "\n" not in str(code) and str(out) in str(code)
            refused += 1
    assert refused > COUNT / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "scores.csv", ".hydra/hydra.yaml"])
def test_files_that_the_report_reads(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No number in them has a checksum, so the demand is a report without an error."""
    caplog.set_level(logging.CRITICAL)
    folder = make_run(tmp_path / "run", finetuned=0.95)
    make_run(tmp_path / "other", seed=1)
    for _ in damaged(folder / name, 60):
        runs, unfinished = gather(tmp_path)
        if runs or unfinished:
            compose(tmp_path, arrange(runs, unfinished))
