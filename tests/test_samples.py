"""Layouts of folders become lists of paths; only names matter here, so the images are empty files."""

import random
from pathlib import Path

import pytest

from gaussad_pl.data.samples import Sample, Samples, scan_folder, scan_mvtec, unused_images
from gaussad_pl.errors import UserError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(samples: list[Sample]) -> list[str]:
    return [f"{sample.path.parent.name}/{sample.path.name}" for sample in samples]


def scan(root: Path, bad: Path | None = None, masks: Path | None = None) -> Samples:
    return scan_folder(root, bad, masks)


def error_of(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return make(
        tmp_path / "screw",
        *("train/good/000.png", "train/good/001.png"),
        *("test/good/000.png", "test/scratch/000.png", "test/scratch/001.png", "test/bent/000.png"),
        *("ground_truth/scratch/000_mask.png", "ground_truth/bent/000.png"),
    )


def test_mvtec_layout_gives_kinds_labels_and_masks(category):
    samples = scan_mvtec(category)
    assert names(samples.train) == ["good/000.png", "good/001.png"]
    assert names(samples.test) == ["bent/000.png", "good/000.png", "scratch/000.png", "scratch/001.png"]
    assert [sample.label for sample in samples.test] == [1, 0, 1, 1]
    masks = [category / "ground_truth/bent/000.png", None, category / "ground_truth/scratch/000_mask.png", None]
    assert [sample.mask for sample in samples.test] == masks


def test_mvtec_layout_needs_no_test_folder(tmp_path):
    assert scan_mvtec(make(tmp_path, "train/good/0.png")).test == []


def test_root_of_several_categories_is_answered_with_their_names(category):
    make(category.parent, "pill/train/good/000.png")
    message = error_of(scan_mvtec, category.parent)
    assert "pill, screw" in message and "data.category" in message


def test_misspelt_category_is_answered_with_the_names_there_are(category):
    message = error_of(scan_mvtec, category.parent / "scrwe")
    assert "scrwe" in message and "contains the categories screw" in message


def test_root_that_is_a_category_itself_is_answered_with_its_parent(category):
    assert f"{category} is a category itself" in error_of(scan_mvtec, category / "screw")


def test_missing_folder_is_named(tmp_path):
    message = error_of(scan_mvtec, tmp_path / "nowhere" / "screw")
    assert str(tmp_path / "nowhere" / "screw") in message and "no such folder" in message


def test_empty_training_folder_is_answered_with_what_it_holds(tmp_path):
    folder = make(tmp_path, *(f"train/good/{i}.gif" for i in range(30)))
    message = error_of(scan_mvtec, folder)
    assert str(folder / "train" / "good") in message and "0.gif" in message and "10 more" in message


def test_folder_in_mvtec_layout_is_read_like_mvtec(category):
    assert scan(category) == scan_mvtec(category)


def test_flat_folder_is_all_good_and_nothing_is_held_out(tmp_path):
    samples = scan(make(tmp_path, "b.png", "a.jpg"))
    assert [sample.path.name for sample in samples.train] == ["a.jpg", "b.png"]
    assert samples.test == []


def test_only_images_count_whatever_the_case_of_their_extension(tmp_path):
    make(tmp_path, "a.PNG", "b.JpG", "c.TIFF", "d.webp", "e.jpeg", "f.bmp", "g.tif")
    make(tmp_path, "Thumbs.db", ".DS_Store", "._a.png", ".hidden/x.png", "notes.txt", "folder.png/x.txt")
    assert "".join(sample.path.stem for sample in scan(tmp_path).train) == "abcdefg"


def test_sub_folders_beside_good_are_kinds_of_defects(tmp_path):
    make(tmp_path, *(f"good/{i}.png" for i in range(8)), "dent/0.png", "hole/0.png", "empty/notes.txt")
    make(tmp_path, "ground_truth/dent/0_mask.png", "masks/hole/0.png", ".cache/0.png")
    samples = scan(tmp_path)
    assert {sample.kind for sample in samples.test} == {"dent", "hole"}
    masks = {sample.kind: sample.mask for sample in samples.test}
    assert masks == {
        "dent": tmp_path / "ground_truth/dent/0_mask.png",
        "hole": tmp_path / "masks/hole/0.png",
    }


def test_images_that_are_neither_samples_nor_masks_are_known(tmp_path):
    make(tmp_path, "good/0.png", "good/day1/1.png", "dent/2.png", "dent/monday/3.png", "notes.txt", ".cache/4.png")
    make(tmp_path, "ground_truth/dent/2_mask.png", "labels/5.png", "6.png")
    unused = unused_images([tmp_path], scan(tmp_path, masks=None), tmp_path / "labels")
    assert unused == [tmp_path / "6.png", tmp_path / "dent/monday/3.png", tmp_path / "good/day1/1.png"]


def test_images_below_a_folder_of_bad_images_that_are_not_used_are_known_once(tmp_path):
    make(tmp_path, "good/0.png", "ng/1.png", "ng/dent/2.png", "ng/dent/monday/3.png", "ng/masks/dent/2_mask.png")
    bad = tmp_path / "ng"
    for root in (tmp_path / "good", tmp_path):
        assert unused_images([root, bad], scan(root, bad), None) == [bad / "dent/monday/3.png"]


def test_results_beside_good_images_are_no_kind_of_defect(tmp_path):
    make(tmp_path, "good/0.png", "dent/1.png", "dent/metrics.json", "ng/bent/2.png")
    for folder in (tmp_path, tmp_path / "ng"):
        make(
            folder, "evaluation/metrics.json", "evaluation/scores.csv", "evaluation/roc.png", "evaluation/runs/map.png"
        )
        make(folder, "predictions/predictions.jsonl", "predictions/overlay.png")
    assert names(scan(tmp_path).test) == ["dent/1.png"]
    both = scan(tmp_path, tmp_path / "ng")
    assert names(both.test) == ["dent/1.png", "bent/2.png"]
    assert unused_images([tmp_path, tmp_path / "ng"], both, None) == []


def test_bad_folder_may_be_flat_or_have_a_sub_folder_per_kind(tmp_path):
    good = make(tmp_path / "ok", *(f"{i}.png" for i in range(4)))
    bad = make(tmp_path / "ng", "0.png", "dent/1.png", "hole/1.png")
    samples = scan(good, bad)
    assert [(s.kind, s.path.stem) for s in samples.test if s.label] == [("bad", "0"), ("dent", "1"), ("hole", "1")]


def test_bad_folder_inside_root_is_not_counted_twice(tmp_path):
    make(tmp_path, "good/0.png", "good/1.png", "ng/2.png", "labels/2.png")
    samples = scan(tmp_path, tmp_path / "ng", tmp_path / "labels")
    bad = [sample for sample in samples.test if sample.label]
    assert bad == [Sample(tmp_path / "ng/2.png", "bad", tmp_path / "labels/2.png")]


def test_good_test_images_of_the_user_are_not_added_to(tmp_path):
    good = make(tmp_path / "ok", *(f"{i}.png" for i in range(4)))
    bad = make(tmp_path / "test", "good/9.png", "dent/0.png")
    samples = scan(good, bad)
    assert len(samples.train) == 4 and names(samples.test) == ["dent/0.png", "good/9.png"]


def test_order_of_the_directory_listing_does_not_matter(category, monkeypatch):
    expected = scan_mvtec(category)
    listing = Path.iterdir

    def shuffled(folder: Path):
        paths = list(listing(folder))
        random.shuffle(paths)
        return iter(paths)

    monkeypatch.setattr(Path, "iterdir", shuffled)
    for _ in range(5):
        assert scan_mvtec(category) == expected


@pytest.mark.parametrize("mask", ["0_mask.png", "0.PNG", "dent/0.png", "dent/0_mask.bmp", "ng/dent/0_mask.tif"])
def test_mask_is_found_mirrored_by_kind_or_flat(tmp_path, mask):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "dent/0.png")
    masks = make(tmp_path / "m", mask)
    assert scan(good, bad, masks).test[-1].mask == masks / mask


def test_mask_of_a_flat_bad_folder_may_lie_in_a_folder_named_bad(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "0.png")
    masks = make(tmp_path / "m", "bad/0_mask.png")
    assert scan(good, bad, masks).test[-1].mask == masks / "bad/0_mask.png"


def test_most_specific_mask_wins(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "dent/0.png", "hole/0.png")
    masks = make(tmp_path / "m", "0.png", "dent/0.png", "dent/0_mask.png")
    found = [sample.mask for sample in scan(good, bad, masks).test if sample.label]
    assert found == [masks / "dent/0_mask.png", masks / "0.png"]


def test_mask_that_fits_two_images_is_refused(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "dent/0.png", "hole/0.png")
    message = error_of(scan, good, bad, make(tmp_path / "m", "0.png"))
    assert str(bad / "dent/0.png") in message and str(bad / "hole/0.png") in message


def test_images_are_not_their_own_masks(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "0.png")
    assert "image itself" in error_of(scan, good, bad, bad)


def test_masks_that_fit_no_image_are_refused(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png", "1.png"), make(tmp_path / "ng", "0.png")
    masks = make(tmp_path / "m", "other.png")
    assert str(masks / "bad" / "0_mask.png") in error_of(scan, good, bad, masks)


def test_training_images_cannot_be_bad_ones_too(tmp_path):
    make(tmp_path, "good/0.png", "good/1.png", "dent/0.png")
    assert "bad images only" in error_of(scan, tmp_path, tmp_path)
    assert "bad images only" in error_of(scan, tmp_path / "good", tmp_path)


def test_folder_without_images_is_answered_with_what_it_holds(tmp_path):
    assert "Good, notes.txt" in error_of(scan, make(tmp_path, "Good/0.png", "notes.txt"))


def test_bad_folder_without_images_is_refused(tmp_path):
    good, bad = make(tmp_path / "ok", "0.png"), make(tmp_path / "ng", "notes.txt")
    assert "data.bad" in error_of(scan, good, bad)


@pytest.mark.parametrize("argument", ["root", "bad", "masks"])
def test_missing_folder_is_named_with_its_setting(tmp_path, argument):
    folders = {"root": make(tmp_path / "ok", "0.png"), "bad": None, "masks": None, argument: tmp_path / "nowhere"}
    assert f"data.{argument}={tmp_path / 'nowhere'}" in error_of(scan, *folders.values())
