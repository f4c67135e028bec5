"""The drawn demo data: what a user and the data module rely on."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gaussad_pl.data import draw
from gaussad_pl.errors import UserError

CATEGORY = "tile"  # the quickest to draw
KINDS = {name: module.KINDS for name, module in draw._MODULES.items()}
DRAW_ONCE = functools.cache(draw.draw)
EVERY_KIND = [(category, kind) for category, kinds in KINDS.items() for kind in kinds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "TRAIN_GOOD", 8)
        patch.setattr(draw, "TEST_GOOD", 5)
        patch.setattr(draw, "TEST_DEFECTIVE", 4)
        written = draw.write_demo(tmp_path_factory.mktemp("demo"), CATEGORY)
    yield written


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images, each drawn once, for tests about files rather than pictures."""
    monkeypatch.setattr(draw, "draw", DRAW_ONCE)
    for name in ("TRAIN_GOOD", "TEST_GOOD", "TEST_DEFECTIVE"):
        monkeypatch.setattr(draw, name, 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_is_that_of_mvtec_ad(folder: Path) -> None:
    assert folder.name == CATEGORY
    assert sorted(path.name for path in (folder / "train" / "good").iterdir()) == [f"{i:03d}.png" for i in range(8)]
    assert sorted(path.name for path in (folder / "test" / "good").iterdir()) == [f"{i:03d}.png" for i in range(5)]
    assert {path.name for path in (folder / "test").iterdir()} == {"good", *KINDS[CATEGORY]}
    assert {path.name for path in (folder / "ground_truth").iterdir()} == set(KINDS[CATEGORY])
    for kind in KINDS[CATEGORY]:
        images = sorted(path.stem for path in (folder / "test" / kind).glob("*.png"))
        masks = sorted(path.stem for path in (folder / "ground_truth" / kind).glob("*.png"))
        assert images == ["000", "001", "002", "003"]
        assert masks == [f"{stem}_mask" for stem in images]


def test_files_hold_rgb_images_and_binary_masks_of_the_same_size(folder: Path) -> None:
    for mask_path in (folder / "ground_truth").rglob("*.png"):
        mask = np.asarray(Image.open(mask_path))
        image = Image.open(folder / "test" / mask_path.parent.name / mask_path.name.replace("_mask", ""))
        assert image.mode == "RGB"
        assert mask.dtype == np.uint8
        assert mask.shape == (image.height, image.width)
        assert set(np.unique(mask)) == {0, 255}


def test_no_image_occurs_twice(folder: Path) -> None:
    images = [path.read_bytes() for part in ("train", "test") for path in (folder / part).rglob("*.png")]
    assert len(set(images)) == len(images)


def test_drawn_images_are_those_on_disk_and_nothing_global_matters(folder: Path) -> None:
    np.random.seed(7)  # noqa: NPY002
    for kind in ("good", *KINDS[CATEGORY]):
        drawing = draw.draw(CATEGORY, "test", kind, 3)
        np.testing.assert_array_equal(drawing.image, np.asarray(Image.open(folder / "test" / kind / "003.png")))


@pytest.mark.parametrize("category", draw.CATEGORIES)
def test_same_seed_same_pixels_other_seed_other_pixels(category: str) -> None:
    first, again = (draw.draw(category, "train", "good", 0, seed=1).image for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.uint8
    assert first.shape == (256, 256, 3)
    for other in (draw.draw(category, "train", "good", 0, seed=2), draw.draw(category, "train", "good", 1, seed=1)):
        assert (first != other.image).mean() > 0.5


@pytest.mark.parametrize(("category", "kind"), EVERY_KIND)
def test_the_defect_lies_inside_its_mask_and_nowhere_else(category: str, kind: str) -> None:
    for index in range(2):
        image, mask, clean = draw.draw(category, "test", kind, index)
        change = np.abs(image.astype(int) - clean.astype(int)).max(axis=-1)
        assert 0.0003 < mask.mean() < 0.3
        assert change[~mask].max() <= 8  # the faint end of shadows and stains; a defect is far stronger
        assert (change[~mask] > 3).mean() < 0.02
        assert change[mask].max() > 20
        assert change[mask].mean() > 4


def test_good_images_are_free_of_defects() -> None:
    image, mask, clean = draw.draw(CATEGORY, "test", "good", 0)
    assert not mask.any()
    np.testing.assert_array_equal(image, clean)


def test_complete_folder_is_left_untouched(small: None, tmp_path: Path) -> None:
    folder = draw.write_demo(tmp_path, CATEGORY)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert draw.write_demo(tmp_path, CATEGORY) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_incomplete_folder_is_drawn_again(small: None, tmp_path: Path) -> None:
    folder = draw.write_demo(tmp_path, CATEGORY)
    before = contents(folder)
    (folder / "test" / "good" / "000.png").unlink()
    draw.write_demo(tmp_path, CATEGORY)
    assert contents(folder) == before


def test_folder_of_another_version_or_seed_is_drawn_again(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw.write_demo(tmp_path, CATEGORY)
    first = (folder / "train" / "good" / "000.png").read_bytes()
    draw.write_demo(tmp_path, CATEGORY, seed=1)
    assert (folder / "train" / "good" / "000.png").read_bytes() != first
    monkeypatch.setattr(draw, "VERSION", draw.VERSION + 1)
    draw.write_demo(tmp_path, CATEGORY, seed=1)
    assert json.loads((folder / draw.MARKER).read_text())["version"] == draw.VERSION
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]


def test_interrupted_write_leaves_no_category(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = draw.draw, []

    def interrupted(*args: object) -> draw.Drawing:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(draw, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw.write_demo(tmp_path, CATEGORY)
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_a_killed_write_does_no_harm(small: None, tmp_path: Path) -> None:
    (tmp_path / f".{CATEGORY}-leftover" / "train" / "good").mkdir(parents=True)
    assert (draw.write_demo(tmp_path, CATEGORY) / draw.MARKER).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("outdated", [False, True])
def test_writers_at_the_same_time_end_with_one_complete_folder(small: None, tmp_path: Path, outdated: bool) -> None:
    start, errors = threading.Barrier(4), []
    if outdated:
        draw.write_demo(tmp_path / "shared", CATEGORY, seed=5)

    def write() -> None:
        start.wait()
        try:
            draw.write_demo(tmp_path / "shared", CATEGORY)
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [CATEGORY]
    assert contents(tmp_path / "shared" / CATEGORY) == contents(draw.write_demo(tmp_path / "alone", CATEGORY))


def test_target_that_appears_meanwhile_is_kept(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = draw._write_category

    def overtaken(folder: Path, *args: object) -> None:
        original(folder, *args)  # type: ignore[arg-type]
        original(tmp_path / CATEGORY, *args)  # type: ignore[arg-type]
        (tmp_path / CATEGORY / "theirs").touch()

    monkeypatch.setattr(draw, "_write_category", overtaken)
    folder = draw.write_demo(tmp_path, CATEGORY)
    assert (folder / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]


def test_real_data_is_never_replaced(tmp_path: Path) -> None:
    image = tmp_path / CATEGORY / "train" / "good" / "000.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"a real photograph")
    with pytest.raises(UserError, match="not demo data"):
        draw.write_demo(tmp_path, CATEGORY)
    assert image.read_bytes() == b"a real photograph"


def test_unknown_category_names_the_ones_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'zipper'.*grid, hazelnut, screw, tile"):
        draw.write_demo(tmp_path, "zipper")


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the demo data"):
        draw.write_demo(tmp_path / "file" / "demo", CATEGORY)
