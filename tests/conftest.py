"""Small images and models that need no network; real images where GAUSSAD_TEST_DATA points to them."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import BACKBONES, make_run
from PIL import Image, ImageDraw

with suppress(ImportError):  # OpenVINO imports it; it would close pytest's captured stderr when Hydra sets up logging
    from absl.logging import get_absl_handler

    get_absl_handler().python_handler.stream = sys.__stderr__

# the smallest model of timm: 0.36 million parameters
TINY = {"name": "test_efficientnet.r160_in1k", "weights": "random", "levels": None, "image_size": 64}


def draw_part(rng: np.random.Generator, defect: bool) -> tuple[Image.Image, Image.Image]:
    """A grey disc on a noisy ground (64 x 64), with a dark spot if defective, and the mask of the spot."""
    pixels = rng.normal(120, 12, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    image, mask = Image.fromarray(pixels), Image.new("L", (64, 64))
    x, y = rng.integers(-4, 5, 2)
    ImageDraw.Draw(image).ellipse((14 + x, 14 + y, 50 + x, 50 + y), fill=(190, 190, 195))
    if defect:
        spot = (28 + x, 24 + y, 40 + x, 36 + y)
        ImageDraw.Draw(image).rectangle(spot, fill=(40, 30, 30))
        ImageDraw.Draw(mask).rectangle(spot, fill=255)
    return image, mask


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in the layout of MVTec AD with one category, `screw`: 24 good images, 6 good and 6 bad ones to test."""
    root = tmp_path_factory.mktemp("mvtec_ad")
    rng = np.random.default_rng(0)
    plan = [("train/good", 24, False), ("test/good", 6, False), ("test/spot", 6, True)]
    for folder, count, defect in plan:
        (root / "screw" / folder).mkdir(parents=True)
        for i in range(count):
            image, mask = draw_part(rng, defect)
            image.save(root / "screw" / folder / f"{i:03}.png")
            if defect:
                (root / "screw" / "ground_truth" / "spot").mkdir(parents=True, exist_ok=True)
                mask.save(root / "screw" / "ground_truth" / "spot" / f"{i:03}_mask.png")
    return root


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images with mvtec_ad/screw and magnetic_tile/tile."""
    folder = os.environ.get("GAUSSAD_TEST_DATA")
    if not folder:
        pytest.skip("GAUSSAD_TEST_DATA is not set: no real images here")
    return Path(folder)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, two backbones, two seeds; in one of them fine-tuning was not used."""
    top = tmp_path_factory.mktemp("runs")
    for i, category in enumerate(("screw", "tile")):
        for j, backbone in enumerate(BACKBONES):
            for seed in (0, 1):
                frozen = 0.8 + 0.05 * i + 0.02 * j + 0.01 * seed
                gain = 0.0 if (i, j, seed) == (0, 0, 0) else 0.01 + 0.0011 * (4 * i + 2 * j + seed)
                make_run(top / f"{category}-{backbone}-{seed}", category, seed, 0, frozen, frozen + gain, backbone)
    return top


@pytest.fixture
def sweep(finished_runs: Path, tmp_path: Path) -> Path:
    """The runs, for one test to change."""
    return shutil.copytree(finished_runs, tmp_path / "sweep")
