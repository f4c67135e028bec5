"""A region of interest: what is outside of it counts for nothing, what is inside is found as before."""

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
from torch import Tensor

from gaussad_pl import export
from gaussad_pl.augment import VICINAL, vicinal_copies
from gaussad_pl.calibration.conformal import Calibration
from gaussad_pl.calibration.recalibration import recalibrate
from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.errors import UserError
from gaussad_pl.exporting.agreement import check
from gaussad_pl.inference.artefact import NAME
from gaussad_pl.inference.detector import Detector
from gaussad_pl.inference.exported import load_detector
from gaussad_pl.model.anomaly_maps import map_score
from gaussad_pl.training.module import GaussianAD

ROI = torch.zeros(64, 64, dtype=torch.bool)
ROI[6:58, 10:44] = True


def pictures(count: int, seed: int, defect: bool = False) -> Tensor:
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(draw_part(rng, defect)[0]) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def spoilt(images: Tensor) -> Tensor:
    """The same images with other things outside of the region."""
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return torch.where(ROI, images, noise)


def module_of(
    good: Tensor, form: str = "union", roi: Tensor | None = ROI, damage_weight: float | None = 0.3
) -> GaussianAD:
    torch.manual_seed(0)
    settings = {"form": form, "map_levels": [1, 2], "combine": "both", "clusters": 3}
    module = GaussianAD(TINY, segmentation=settings, roi=roi, damage_weight=damage_weight).eval()
    changed = vicinal_copies(good, "cutpaste", 0.5, 0, None if roi is None else roi.numpy())
    module.estimate_damage([{"image": good, "copy": changed[0], "mask": changed[1]}])
    module.estimate([{"image": good, "unchanged": torch.ones(len(good), dtype=torch.bool)}], patches=True)
    with torch.no_grad():
        found = module(good)
        assert found.maps is not None
        module.segmenter.set_contour(found.maps)
        module.segmenter.set_units(module.model.scores(found.distances), module.segmenter.map_score(found.maps))
    return module


def detector_of(module: GaussianAD) -> Detector:
    with torch.no_grad():
        found = module(pictures(40, 1))
    return Detector.of(module.model, Calibration.of(found.scores, found.distances, "40 drawn images"), {})


@pytest.fixture(scope="module")
def detector() -> Detector:
    return detector_of(module_of(pictures(24, 0)))


@pytest.mark.parametrize("form", DENSITIES)
def test_a_defect_outside_changes_nothing_and_one_inside_is_found(form: str) -> None:
    one = detector_of(module_of(pictures(24, 0), form))
    good, bad = pictures(8, 2), pictures(8, 2, defect=True)
    plain, other = one.detect(good), one.detect(spoilt(good))
    assert torch.equal(plain.scores, other.scores) and torch.equal(plain.distances, other.distances)
    assert plain.maps is not None and other.maps is not None and torch.equal(plain.maps, other.maps)
    region = torch.from_numpy(one.frame.region((256, 256)).copy())
    assert (plain.maps[:, ~region] == 0).all() and (plain.maps[:, region] > 0).all()
    found = one.detect(bad)
    assert found.scores.min() > plain.scores.max() and found.maps is not None
    places = [divmod(int(each.argmax()), 256) for each in found.maps]
    assert all(80 < y < 180 and 80 < x < 180 for y, x in places)  # where the spot is drawn


def test_an_inside_of_everything_is_no_region_at_all() -> None:
    whole = detector_of(module_of(pictures(24, 0), roi=torch.ones_like(ROI))).detect(pictures(4, 2))
    none = module_of(pictures(24, 0), roi=None)
    none.segmenter.head.border.fill_(1)
    plain = detector_of(none).detect(pictures(4, 2))
    torch.testing.assert_close(whole.distances, plain.distances, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whole.maps, plain.maps, rtol=1e-3, atol=1e-3)


def test_gaussians_and_units_are_estimated_from_the_inside_alone() -> None:
    plain, other = (module_of(images, damage_weight=None) for images in (pictures(24, 0), spoilt(pictures(24, 0))))
    for (name, one), two in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_units_and_contour_see_the_inside_alone(detector: Detector) -> None:
    segmenter = detector.model.segmenter
    assert segmenter is not None and segmenter.share == pytest.approx(float(ROI.float().mean()), abs=0.01)
    maps = torch.zeros(2, 256, 256)
    maps[:, segmenter.region] = torch.rand(2, int(segmenter.region.sum()))  # type: ignore[arg-type]
    inside = maps[:, segmenter.region].unsqueeze(1)  # type: ignore[index]
    torch.testing.assert_close(segmenter.map_score(maps), map_score(inside))
    new, _ = recalibrate(detector.model, pictures(20, 3), move_means=True)
    other, _ = recalibrate(detector.model, spoilt(pictures(20, 3)), move_means=True)
    assert new.segmenter is not None and float(new.segmenter.median) > 0
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_file_of_a_detector_and_its_checkpoint_keep_the_region(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / NAME)
    again = Detector.load(tmp_path / NAME)
    assert np.array_equal(again.frame.region((64, 64)), ROI.numpy())
    assert torch.equal(again.detect(pictures(2, 2)).scores, detector.detect(pictures(2, 2)).scores)


@pytest.mark.skipif(any(find_spec(name) is None for name in export.PACKAGES), reason="needs the extra `export`")
@pytest.mark.parametrize("form", ["union", "shared"])
def test_the_exported_graph_agrees_and_keeps_the_region(form: str, tmp_path: Path) -> None:
    one = detector_of(module_of(pictures(24, 0), form))
    model, images = export.onnx_model(one), pictures(12, 2, defect=True)
    assert "verdicts the same" in check(model, one, images)[0]
    (tmp_path / "detector.onnx").write_bytes(model)
    exported = load_detector(tmp_path / "detector.onnx")
    assert np.array_equal(exported.frame.region((64, 64)), ROI.numpy())
    assert torch.equal(exported.detect(images).scores, exported.detect(spoilt(images)).scores)


@pytest.mark.parametrize("name", VICINAL)
def test_copies_are_damaged_inside_alone(name: str) -> None:
    images, small = pictures(12, 0), np.zeros((64, 64), dtype=bool)
    small[40:56, 8:24] = True  # a sixteenth of the image
    copies, masks = vicinal_copies(images, name, 0.5, 0, small)
    assert masks.flatten(1).any(1).all() and not masks[:, ~torch.from_numpy(small)].any()
    assert torch.equal(copies[..., ~torch.from_numpy(small)], images[..., ~torch.from_numpy(small)])
    assert (copies != images).flatten(1).any(1).float().mean() > 0.8  # the faintest ones may round to nothing


def roi_file(path: Path, size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (10, 6, 44, 58)) -> Path:
    mask = Image.new("L", size)
    mask.paste(1, box)  # nonzero is enough
    mask.save(path)
    return path


def test_data_are_damaged_and_tested_inside_alone(parts: Path, tmp_path: Path) -> None:
    data = mvtec(parts, image_size=64, roi=str(roi_file(tmp_path / "roi.png", box=(0, 0, 34, 64))))
    data.check()
    region = data.region
    assert region is not None and region.float().mean() == pytest.approx(34 / 64)
    assert not data.test_masks[:, :, 137:].any() and data.test_masks[-1].any()
    for row in data.validation:
        assert not (row["mask"] & ~region).any()
    for batch in data.damage_dataloader():
        assert torch.equal(batch["image"][..., ~region], batch["copy"][..., ~region])


@pytest.mark.parametrize(
    ("size", "box", "fit", "expected"),
    [
        (
            (64, 32),
            (0, 0, 9, 9),
            "squash",
            "has 64 x 32 pixels, its image .* 64 x 64 .*36 of 36 images.*: draw it on one",
        ),
        ((64, 64), (0, 0, 0, 0), "squash", "is all black: paint white what is to be inspected"),
    ],
)
def test_a_region_that_is_empty_or_of_another_shape_is_one_clear_line(
    size: tuple[int, int], box: tuple[int, int, int, int], fit: Fit, expected: str, parts: Path, tmp_path: Path
) -> None:
    path = roi_file(tmp_path / "roi.png", size, box)
    with pytest.raises(UserError, match=f"data.roi={path} {expected}") as caught:
        data = mvtec(parts, roi=str(path), fit=fit)
        data.check()
        _ = data.frame
    assert "\n" not in str(caught.value)


def test_a_region_that_a_crop_cuts_off_or_that_cannot_be_read_is_one_clear_line(parts: Path, tmp_path: Path) -> None:
    path = roi_file(tmp_path / "roi.png", (64, 32), (0, 0, 9, 9))
    with pytest.raises(UserError, match=f"data.roi={path} lies entirely in what data.fit=crop cuts off"):
        _ = mvtec(parts, roi=str(path), fit="crop").frame
    path.write_text("text")
    with pytest.raises(UserError, match=f"cannot read {path}"):
        mvtec(parts, roi=str(path)).check()


@pytest.mark.slow
def test_a_run_with_a_region_trains_tests_and_is_evaluated_with_it(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roi, folder = roi_file(tmp_path / "roi.png"), tmp_path / "run"
    run(monkeypatch, *arguments(parts, folder, "data=mvtec", f"data.roi={roi}"))
    one = Detector.load(folder)
    assert np.array_equal(one.frame.region((64, 64)), ROI.numpy()) and metrics(folder)["frozen"]["image_auroc"] > 0.9
    good = pictures(4, 2)
    assert torch.equal(one.detect(good).scores, one.detect(spoilt(good)).scores)
    assert str(roi) in (folder / "images.json").read_text()  # a resumed run needs the same one
    loaded = GaussianAD.load(folder / "model.ckpt")
    torch.testing.assert_close(loaded(good).scores, one.detect(good).scores, rtol=1e-4, atol=1e-4)
    assert one.frame == Frame(64, 64)
