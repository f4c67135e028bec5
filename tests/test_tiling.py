"""Large images in tiles: one image with one larger map, on one set of Gaussians."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, draw_part
from PIL import Image
from test_datamodules import mvtec
from test_train import arguments, metrics, run
from torch import Tensor, nn

from gaussad_pl import export
from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.backbones.frozen_stages import FrozenStages
from gaussad_pl.backbones.tiling import Tiling
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.data.frame import Frame
from gaussad_pl.errors import UserError
from gaussad_pl.exporting.agreement import check
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.training.module import GaussianAD

TILINGS = [Tiling(2, 2, 64), Tiling(1, 3, 64), Tiling(3, 2, 224), Tiling(2, 2, 240), Tiling(1, 1, 64)]


def large(count: int, seed: int, defect: bool = False, shape: tuple[int, int] = (96, 160)) -> Tensor:
    """Drawn parts of a tiling of 2 x 4 tiles of 64 px."""
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(draw_part(rng, defect)[0].resize(shape[::-1])) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_of_the_image_itself_join_to_the_image(tiling: Tiling) -> None:
    images = torch.rand(2, 3, *tiling.shape)
    tiles = tiling.split(images)
    assert tiles.shape == (2 * tiling.rows * tiling.columns, 3, tiling.size, tiling.size)
    assert torch.equal(tiling.join(tiles), images)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("reduction", [2, 8, 32])
def test_cells_of_tiles_join_to_the_cells_of_the_image(tiling: Tiling, reduction: int) -> None:
    images = torch.rand(2, 3, *tiling.shape)
    joined = tiling.join(nn.functional.avg_pool2d(tiling.split(images), reduction))
    assert joined.shape[2:] == tiling.cells(tiling.size // reduction)
    if tiling.size % 32 == 0:  # otherwise the grids of neighbours are shifted by less than a cell
        torch.testing.assert_close(joined, nn.functional.avg_pool2d(images, reduction))


def test_the_middle_of_a_tile_decides_where_tiles_overlap() -> None:
    tiling = Tiling(1, 2, 64)
    numbers = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert tiling.join(numbers)[0, 0, 0].tolist() == [0] * 6 + [1] * 6


def test_features_are_those_of_a_network_that_sees_the_image_at_once() -> None:
    torch.manual_seed(0)
    whole, tiled = Backbone(**{**TINY, "image_size": 192}), Backbone(**{**TINY, "image_size": 128}, tiles=(2, 2))
    tiled.load_state_dict(whole.state_dict())
    assert tiled.tiling.shape == (224, 224)
    images = torch.nn.functional.interpolate(large(2, 0, shape=(64, 64)).float(), (224, 224)).byte()
    levels = list(zip(tiled(images), Backbone(**{**TINY, "image_size": 224}).levels, strict=True))
    assert all(found.shape[2:] == (level.height, level.width) for found, level in levels)
    with torch.no_grad():
        expected, found = whole(images)[1], tiled(images)[1]  # a shallow level: the edges of tiles reach a few cells
    assert float((found - expected).abs().median()) < 1e-5 * float(expected.abs().max())
    assert [(level.height, level.width) for level in tiled.levels] == [each.shape[2:] for each in tiled(images)]


def test_stages_that_are_frozen_are_remembered_by_tile() -> None:
    torch.manual_seed(0)
    model, images = Backbone(**TINY, tiles=(2, 4)), large(3, 0)
    trained = {id(p) for p in model.parameters_of([-2, -1])}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in trained
    stages = FrozenStages(model)
    assert stages.cut
    with torch.no_grad():
        for found, level in zip(stages.maps("a", images), model(images), strict=True):
            torch.testing.assert_close(found, level)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        before = stages.before(images)
        for expected, kept, behind in zip(
            model(images), stages.features("a"), stages.behind(stages.rest, images[:2], [b[:2] for b in before]),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(kept, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(behind, expected[:2], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    settings = {"form": "union", "map_levels": [1, 2], "combine": "both", "clusters": 3}
    roi = torch.ones(96, 160, dtype=torch.bool)
    roi[:, :10] = False
    module = GaussianAD({**TINY, "tiles": (2, 4)}, segmentation=settings, roi=roi).eval()
    module.estimate([{"image": large(24, 0), "unchanged": torch.ones(24, dtype=torch.bool)}], patches=True)
    with torch.no_grad():
        found = module(large(40, 1))
    return Detector.of(module.model, Calibration.of(found.scores, found.distances, "40 drawn images"), {})


def test_a_detector_of_tiles_finds_defects_where_they_are_and_keeps_its_tiles(
    detector: Detector, tmp_path: Path
) -> None:
    assert detector.frame == Frame(96, 160)
    good, bad = detector.detect(large(6, 2)), detector.detect(large(6, 2, defect=True))
    assert bad.scores.min() > good.scores.max() and bad.maps is not None and bad.maps.shape == (6, 256, 256)
    for each in bad.maps:
        y, x = divmod(int(each.argmax()), 256)
        assert 80 < y < 180 and 80 < x < 180
    detector.save(tmp_path / NAME)
    again = Detector.load(tmp_path / NAME)
    assert again.frame == detector.frame
    assert torch.equal(again.detect(large(6, 2)).scores, good.scores)
    assert again(large(1, 2)[0])[0].score == pytest.approx(float(good.scores[0]), abs=1e-4)


@pytest.mark.skipif(any(find_spec(name) is None for name in export.PACKAGES), reason="needs the extra `export`")
def test_the_exported_graph_has_the_tiles_inside(detector: Detector, tmp_path: Path) -> None:
    model, images = export.onnx_model(detector), large(12, 2, defect=True)
    assert "verdicts the same" in check(model, detector, images)[0]
    (tmp_path / "detector.onnx").write_bytes(model)
    exported = load_detector(tmp_path / "detector.onnx")
    assert exported.frame == detector.frame
    assert exported(images[0])[0].score == pytest.approx(float(detector.detect(images[:1]).scores), abs=1e-3)


def test_images_are_loaded_at_the_size_of_all_tiles(parts: Path) -> None:
    data = mvtec(parts, image_size=32, tiles="2x1")
    data.check()
    assert data.good_images.shape == (24, 3, 48, 32) and data.test_masks.shape[1:] == (256, 256)


def test_tiles_that_enlarge_every_image_are_one_clear_line(parts: Path) -> None:
    with pytest.raises(UserError) as caught:
        mvtec(parts, image_size=32, tiles="4x4").check()
    text = str(caught.value)
    assert text.startswith("data.tiles need images of 80 x 80 pixels, the largest, ") and "has only 64 x 64" in text
    assert str(parts) in text and "\n" not in text


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ranking", "mahalanobis"])
def test_a_run_on_tiles_trains_and_tests(
    objective: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for path in (parts / "screw").rglob("*.png"):
        (tmp_path / "root" / path.relative_to(parts)).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((96, 96)).save(tmp_path / "root" / path.relative_to(parts))
    run(monkeypatch, *arguments(tmp_path / "root", folder, "data.tiles=2", f"objective={objective}"))
    found = metrics(folder)
    assert found["frozen"]["image_auroc"] > 0.9 and found["frozen"]["aupro"] > 0.5
    assert found["forgetting"]["history"][-1]["epoch"] >= 1
    detector = Detector.load(folder)
    assert detector.frame == Frame(96, 96)
    torch.testing.assert_close(
        GaussianAD.load(folder / "model.ckpt")(large(2, 2, shape=(96, 96))).distances,
        detector.detect(large(2, 2, shape=(96, 96))).distances,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
