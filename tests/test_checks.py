"""Plain mistakes in the data are one line, before anything is decoded or computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_datamodules import SETTINGS, mvtec

from gaussad_pl.data import checks, good_images
from gaussad_pl.data.folder import Folder
from gaussad_pl.data.images import image_size
from gaussad_pl.errors import UserError


@pytest.fixture
def root(parts: Path, tmp_path: Path) -> Path:
    """A copy of the parts to be spoilt."""
    shutil.copytree(parts, tmp_path / "mvtec")
    return tmp_path / "mvtec"


def line(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """Return the message of `check`, without decoding an image."""
    monkeypatch.setattr(good_images, "load_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError) as caught:
        mvtec(root, **changes).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_image_that_is_also_a_good_one_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    mvtec(root).setup("fit")
    assert not caplog.text
    shutil.copy(root / "screw/train/good/003.png", root / "screw/test/spot/other.png")
    mvtec(root).setup("fit")
    assert "1 bad images are also among the good ones:" in caplog.text
    assert "spot/other.png has the pixels of " in caplog.text and "train/good/003.png" in caplog.text


def test_copies_among_the_good_images_are_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = root / "screw/train/good"
    shutil.copy(good / "003.png", good / "copy.png")
    mvtec(root).setup("fit")
    assert (
        f"1 of 25 good images are copies of others (for example, {good / 'copy.png'} of {good / '003.png'})"
        in caplog.text
    )


@pytest.mark.parametrize("bits", [12, 16])
def test_files_of_16_bits_that_hold_12_are_a_warning(
    bits: int, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (root / "screw/train/good").iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey << bits - 8).save(path)
    mvtec(root).setup("fit")
    assert ("hold 12 or fewer, scale their values to 16 bits first" in caplog.text) == (bits == 12)


def test_sound_data_pass_and_masks_are_decoded_once(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    read_mask = checks.read_mask
    monkeypatch.setattr(checks, "read_mask", lambda *of: read.append(of[0]) or read_mask(*of))
    data = mvtec(parts)
    data.check()
    assert len(read) == 6 and data.test_masks.flatten(1).any(1).tolist() == [bool(s.label) for s in data.test_samples]
    assert len(read) == 6


@pytest.mark.parametrize("turned", [False, True])
def test_masks_of_another_shape_are_named(turned: bool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = root / "screw/ground_truth/spot"
    for name in ("002_mask.png", "004_mask.png"):
        Image.new("L", (32, 64) if turned else (64, 32), 255).save(masks / name)
    found = line(root, monkeypatch)
    assert f"mask {masks / '002_mask.png'} has {'32 x 64' if turned else '64 x 32'} pixels, its image" in found
    assert "64 x 64 (2 of 6 masks): draw masks on the original images" in found


@pytest.mark.parametrize("scale", [0.5, 2, 0.34])
def test_masks_of_another_size_but_the_same_shape_are_fine(scale: float, root: Path) -> None:
    side = round(64 * scale)
    Image.new("L", (side, side), 255).save(root / "screw/ground_truth/spot/002_mask.png")
    mvtec(root).check()


def test_a_turned_photograph_has_the_shape_it_is_shown_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.new("RGB", (40, 20))
    for name in ("a.jpg", "b.png", "c.webp", "d.tif"):
        image.save(tmp_path / name, exif=exif)
        assert image_size(tmp_path / name) == image_size(tmp_path / name, whole=True) == (20, 40), name
        image.save(tmp_path / f"plain-{name}")
        assert image_size(tmp_path / f"plain-{name}") == image_size(tmp_path / name, whole=True)[::-1] == (40, 20), name


def test_unreadable_masks_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = root / "screw/ground_truth/spot"
    (masks / "001_mask.png").write_bytes((masks / "001_mask.png").read_bytes()[:60])  # a header and no pixels
    (masks / "003_mask.png").write_bytes((masks / "003_mask.png").read_bytes()[:60])
    assert "001_mask.png" in (found := line(root, monkeypatch)) and "(2 of 6 masks cannot be read)" in found
    (masks / "000_mask.png").write_bytes(b"no image")
    assert "000_mask.png" in line(root, monkeypatch)


def test_a_mask_of_strange_values_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(root / "screw/ground_truth/spot/000_mask.png")
    assert "has values up to 3" in line(root, monkeypatch)


@pytest.mark.parametrize("folder", ["test/spot", "test/good", "train/good"])
def test_unreadable_images_are_named(folder: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "screw" / folder / "002.png").write_bytes(b"")
    (root / "screw" / folder / "005.png").write_bytes(b"no image")
    found = line(root, monkeypatch)
    assert f"{folder}/002.png is empty" in found and "(2 of 36 images cannot be read)" in found


def test_a_test_image_that_breaks_off_is_found_in_setup(root: Path) -> None:
    file = root / "screw/test/spot/003.png"
    file.write_bytes(file.read_bytes()[:-3000])
    data = mvtec(root)
    data.check()  # its header is sound
    with pytest.raises(UserError, match=r"003.png .*1 of 12 images cannot be read"):
        data.setup("validate")


def test_masks_that_fit_no_image_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = root / "screw/ground_truth"
    (truth / "spot").rename(truth / "sopt")
    found = line(root, monkeypatch)
    assert f"{truth} contains no mask of any bad image: expected names like {truth / 'spot' / '005_mask.png'}" in found
    assert "found sopt" in found


def test_given_masks_that_fit_no_image_are_named_though_others_do(root: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    Image.new("L", (64, 64)).save(tmp_path / "drawn" / "other.png")
    data = Folder(str(root / "screw"), None, str(tmp_path / "drawn"), 0.2, **SETTINGS)
    with pytest.raises(UserError, match=r"data.masks=.*drawn contains no mask of any bad image"):
        data.check()


def test_a_kind_without_masks_and_a_set_without_any_are_fine(root: Path) -> None:
    shutil.copytree(root / "screw/test/spot", root / "screw/test/dent")
    mvtec(root).check()
    shutil.rmtree(root / "screw/ground_truth")
    mvtec(root).check()


@pytest.mark.parametrize(
    ("count", "folds", "message"),
    [
        (0, 5, "no images in"),
        (1, 5, "1 good training images found, at least 5 are needed with folds=5: add images"),
        (2, 5, "2 good training images found, at least 5 are needed"),
        (2, 2, "2 good training images found, at least 4 are needed with folds=2"),
        (2, 0, "2 good training images found, at least 3 are needed with folds=0"),
        (4, 5, "at least 5 are needed with folds=5: add images, or set folds=4"),
    ],
)
def test_too_few_training_images_are_named(
    count: int, folds: int, message: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((root / "screw/train/good").iterdir())[count:]:
        path.unlink()
    assert message in line(root, monkeypatch, folds=folds)


def test_images_that_are_all_the_same_are_named(root: Path) -> None:
    files = sorted((root / "screw/train/good").iterdir())
    for path in files[1:]:
        shutil.copy(files[0], path)
    data = mvtec(root)
    with pytest.raises(UserError, match=f"all 24 good images are identical, such as {files[0]}"):
        data.train_dataloader()
    shutil.copy(root / "screw/test/good/000.png", files[-1])
    assert len(mvtec(root).good_images) == 24


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_an_impossible_seed_is_named(seed: int, parts: Path) -> None:
    with pytest.raises(UserError, match=f"seed={seed}: expected a number from 0"):
        mvtec(parts, seed=seed)
