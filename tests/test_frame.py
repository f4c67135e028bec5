"""Images keep their proportions where they are to, and masks, maps, files and caches go with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from test_datamodules import mvtec
from test_predict import ckpt, run  # noqa: F401  # a fixture

from gaussad_pl.data.frame import Fit, Frame
from gaussad_pl.data.images import read_image, read_mask
from gaussad_pl.data.loading import load_images
from gaussad_pl.data.samples import Sample
from gaussad_pl.inference.artefact import NAME, read_artefact, write_artefact
from gaussad_pl.inference.detector import Detector
from gaussad_pl.results.evaluation import Evaluation

FITS: tuple[Fit, ...] = ("squash", "pad", "crop")
SIZES = [(60, 20), (20, 60), (33, 32), (1, 50), (16, 16)]


def disc(width: int, height: int) -> Image.Image:
    """A white disc in the middle of a black image."""
    y, x = np.indices((height, width)) + 0.5
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 2.5) ** 2
    return Image.fromarray(np.uint8(255) * inside)


@pytest.mark.parametrize("fit", FITS[1:])
@pytest.mark.parametrize("size", [(160, 80), (80, 160)])
def test_a_disc_stays_round_unless_it_is_squashed(fit: Fit, size: tuple[int, int]) -> None:
    def extent(how: Fit) -> tuple[int, int]:
        inside = Frame(64, 64, how).pixels(disc(*size))[..., 0] > 127
        return int(inside.any(0).sum()), int(inside.any(1).sum())

    wide, high = extent(fit)
    assert abs(wide - high) <= 1 and wide == pytest.approx({"pad": 0.8 * 32, "crop": 0.8 * 64}[fit], abs=2)
    assert max(extent("squash")) > 1.8 * min(extent("squash"))


def test_padding_repeats_the_edge_and_draws_no_line() -> None:
    image = Image.fromarray(np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 10, axis=0))  # dark to bright
    pixels = Frame(20, 20, "pad").pixels(image)
    assert (pixels == pixels[10]).all() and pixels[0, 0, 0] == 0 and pixels[0, -1, 0] == 190


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_masks_and_maps_lie_where_the_image_does(fit: Fit, size: tuple[int, int], tmp_path: Path) -> None:
    frame, image = Frame(48, 64, fit), disc(*size)
    image.save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png", frame, 256)
    small = np.asarray(Image.fromarray(frame.pixels(image)[..., 0]).resize((256, 256), Image.Resampling.BILINEAR))
    assert (mask != (small > 127))[(small < 25) | (small > 230)].mean() < 0.05  # the pixels show the edge as grey
    values = frame.restored(small.astype(np.float32), size)
    assert values.shape == size[::-1]
    (left, top, right, bottom), _ = frame.boxes(size)
    seen = np.zeros(size[::-1], dtype=bool)
    seen[top:bottom, left:right] = True
    assert (values[~seen] == 0).all()
    assert np.abs(values - np.asarray(image, dtype=np.float32))[seen].mean() < 60


def test_a_mask_of_what_is_cut_off_is_empty_and_padding_is_no_defect(tmp_path: Path) -> None:
    values = np.zeros((20, 60), dtype=np.uint8)
    values[:, :15] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    assert not read_mask(tmp_path / "a.png", Frame(8, 8, "crop"), 256).any()
    padded = read_mask(tmp_path / "a.png", Frame(8, 8, "pad"), 256)
    assert 0.2 < padded.any(0).mean() < 0.3 and not padded[:64].any() and not padded[-64:].any()


def test_a_small_mask_does_not_vanish(tmp_path: Path) -> None:
    for y, x in ((100, 501), (399, 599), (0, 0)):
        values = np.zeros((400, 600), dtype=np.uint8)
        values[y, x] = 255
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.argwhere(read_mask(tmp_path / "a.png", Frame(8, 8), 16)).tolist() == [[y * 16 // 400, x * 16 // 600]]


def test_pixels_that_padding_adds_are_in_no_metric(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    samples = [Sample(tmp_path / "a.png", "spot", tmp_path / "mask.png")]
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 20:28, 8:16] = True
    one = Evaluation(samples, torch.zeros(1, 1), torch.zeros(1), [0], masks.float(), masks, Frame(32, 32, "pad"))
    assert one.inside is not None and one.inside[0, 16:48].all() and one.inside.sum() == 64 * 32
    assert one.defect_areas == pytest.approx([8 * 8 / (64 * 32)])
    for fit in ("squash", "crop"):
        assert replace(one, frame=Frame(32, 32, fit)).inside is None


def test_caches_do_not_mix_fits(tmp_path: Path) -> None:
    disc(60, 20).save(tmp_path / "a.png")
    for _ in range(2):
        for fit in FITS:
            frame = Frame(16, 16, fit)
            (found,) = load_images([tmp_path / "a.png"], frame, tmp_path / "cache", "")
            np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), read_image(tmp_path / "a.png", frame))


@pytest.mark.parametrize("fit", FITS)
def test_training_takes_images_and_masks_as_the_setting_says(fit: Fit, parts: Path, tmp_path: Path) -> None:
    for path in (parts / "screw").rglob("*.png"):
        (tmp_path / path.relative_to(parts)).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.resize((64, 32)).save(tmp_path / path.relative_to(parts))
    data = mvtec(tmp_path, fit=fit)
    data.check()
    good, bad = data.samples.train[0], data.samples.test[-1]
    np.testing.assert_array_equal(data.good_images[0].permute(1, 2, 0).numpy(), read_image(good.path, data.frame))
    assert bad.mask is not None and data.frame == Frame(32, 32, fit)
    np.testing.assert_array_equal(data.test_masks[-1].numpy(), read_mask(bad.mask, data.frame, 256))


def test_a_detector_keeps_its_fit_and_one_of_before_squashes(ckpt: Path, tmp_path: Path) -> None:  # noqa: F811
    one = Detector.load(ckpt)
    assert one.frame == Frame(TINY["image_size"], TINY["image_size"], "squash")
    Detector(one.model, one.calibration, {}, "crop").save(tmp_path / NAME)
    again = Detector.load(tmp_path / NAME)
    assert again.frame.fit == "crop"
    part = disc(128, 64)
    assert again(part)[0].score == one(part.crop((32, 0, 96, 64)))[0].score != one(part)[0].score
    header, tensors = read_artefact(tmp_path / NAME)
    del header["fit"]
    write_artefact(tmp_path / NAME, header, tensors)
    assert Detector.load(tmp_path / NAME).frame.fit == "squash"


def test_predict_draws_the_map_where_the_image_was_taken(ckpt: Path, tmp_path: Path) -> None:  # noqa: F811
    one = Detector.load(ckpt)
    one.model.segmenter.threshold.fill_(1e-6)  # type: ignore[union-attr]  # every pixel of the map is above
    folder = tmp_path / "crop"
    folder.mkdir()
    Detector(one.model, one.calibration, {}, "crop").save(folder / NAME)
    disc(192, 64).save(tmp_path / "a.png")
    run(f"ckpt={folder}", f"source={tmp_path / 'a.png'}", f"out={tmp_path / 'out'}", "overlays=true")
    (picture,) = (tmp_path / "out" / "overlays").iterdir()
    plain, mapped = np.split(np.asarray(Image.open(picture))[44:172], [386], axis=1)
    changed = (plain[:, :384] != mapped[:, 2:386]).any(2)
    assert changed[:, 128:256].mean() > 0.9 and not changed[:, :127].any() and not changed[:, 257:].any()
