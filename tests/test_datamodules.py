"""Folds, batches and the augmented validation."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaussad_pl.data import base, good_images
from gaussad_pl.data.batches import DrawSampler, view_seed
from gaussad_pl.data.folder import Folder
from gaussad_pl.data.frame import Frame
from gaussad_pl.data.images import read_image
from gaussad_pl.data.mvtec import MVTec
from gaussad_pl.errors import UserError

SETTINGS: dict[str, Any] = {
    "name": "parts",
    "image_size": 32,
    "folds": 4,
    "fold": 0,
    "seed": 0,
    "augmentations": {"cutpaste": 0.5, "scar": 0.5},
    "nuisance": {},
    "light_copies": 1,
    "moved_copies": 1,
    "batch_size": 5,
    "eval_batch_size": 8,
    "steps_per_epoch": 6,
    "cache": None,
}
NO_DOWNLOAD: dict[str, Any] = {"download": False, "url": "", "sha256": ""}


def mvtec(root: Path, **changes: Any) -> MVTec:
    return MVTec(str(root), "screw", **NO_DOWNLOAD, **{**SETTINGS, **changes})


@pytest.mark.parametrize("folder", ["good", "spot", "masks"])
def test_a_folder_that_cannot_be_read_is_not_left_out(
    folder: str, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in (("good", "train/good"), ("spot", "test/spot"), ("masks/spot", "ground_truth/spot")):
        shutil.copytree(parts / "screw" / source, tmp_path / name)

    def denying(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def listing(path: Any) -> Any:
            if Path(path) == tmp_path / folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return plain(path)

        return listing

    monkeypatch.setattr(os, "listdir", denying(os.listdir))
    monkeypatch.setattr(os, "scandir", denying(os.scandir))
    data = Folder(str(tmp_path), None, None, 0.2, **SETTINGS)
    with pytest.raises(UserError, match=f"cannot read .*{folder} .Permission denied"):
        _ = data.samples


def test_folds_are_disjoint_and_cover_all_training_images(parts: Path) -> None:
    held_out = [mvtec(parts, fold=fold).split[1] for fold in range(4)]
    assert sorted(i for fold in held_out for i in fold) == list(range(24))
    for fold in range(4):
        used, out = mvtec(parts, fold=fold).split
        assert not set(used) & set(out) and len(used) + len(out) == 24


def test_a_large_fold_gives_only_some_of_its_images_to_the_validation(parts: Path, monkeypatch) -> None:
    whole = mvtec(parts).split[1]
    monkeypatch.setattr(good_images, "HELD_OUT", 4)
    used, held_out = mvtec(parts).split
    assert len(held_out) == 4 and set(held_out) < set(whole) and sorted(used + held_out) == list(range(24))
    assert held_out == mvtec(parts).split[1]


def test_the_seed_decides_the_folds(parts: Path) -> None:
    assert mvtec(parts).split == mvtec(parts).split
    assert mvtec(parts).split != mvtec(parts, seed=1).split


def test_without_folds_every_image_is_in_the_gaussian(parts: Path) -> None:
    data = mvtec(parts, folds=0)
    assert data.split == (list(range(24)), [])
    assert sum(len(batch["image"]) for batch in data.reference_dataloader()) == 72
    with pytest.raises(UserError, match="set folds=5"):
        data.val_dataloader()


def test_validation_is_held_out_images_and_their_copies_always_the_same(parts: Path) -> None:
    one, other = (next(iter(mvtec(parts, eval_batch_size=200).val_dataloader())) for _ in range(2))
    assert torch.equal(one["image"], other["image"])
    assert one["group"].tolist() == [0] * 60 + [1] * 60 + [2] * 60  # ten copies of each, as there are but six
    assert one["source"].tolist() == [*range(6)] * 30
    normal, cutpaste, scar = one["image"].split(60)
    assert torch.equal(normal[:6], normal[6:12]) and not torch.equal(cutpaste[:6], cutpaste[6:12])
    assert not torch.equal(normal, cutpaste) and not torch.equal(cutpaste, scar)
    train = torch.cat([batch["image"] for batch in mvtec(parts).reference_dataloader()])
    assert not any((train == image).all((1, 2, 3)).any() for image in normal)


def test_every_test_image_comes_once_in_order_with_its_label(parts: Path) -> None:
    data = mvtec(parts)
    batches = list(data.test_dataloader())
    images = torch.cat([batch["image"] for batch in batches])
    for image, sample in zip(images, data.test_samples, strict=True):
        assert torch.equal(image, torch.tensor(read_image(sample.path, Frame(32, 32))).permute(2, 0, 1))
    labels = torch.cat([batch["label"] for batch in batches]).tolist()
    assert labels == [sample.label for sample in data.test_samples] and sum(labels) == 6


def test_the_mask_marks_the_defect(parts: Path) -> None:
    data = mvtec(parts)
    marked = data.test_masks.double().mean((1, 2)).tolist()
    areas = {sample.kind: area for sample, area in zip(data.test_samples, marked, strict=True)}
    assert areas["good"] == 0
    assert areas["spot"] == pytest.approx(13 * 13 / 64**2, rel=0.2)


def test_batches_depend_on_seed_and_epoch_alone(parts: Path) -> None:
    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(torch.seed())  # the global state must not matter
        loader = mvtec(parts, seed=seed).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([batch["image"] for batch in loader])

    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(3), epoch(4))
    assert not torch.equal(epoch(3), epoch(3, seed=1))


def test_draws_go_through_all_images_before_any_comes_again() -> None:
    indices = [index for index, _, _ in DrawSampler(range(7), 1, 21, 0)]
    for start in (0, 7, 14):
        assert sorted(indices[start : start + 7]) == list(range(7))


def test_all_views_are_drawn_alike() -> None:
    views = [view for _, view, _ in DrawSampler(range(50), 3, 6000, 0)]
    for view in range(3):
        assert views.count(view) / 6000 == pytest.approx(1 / 3, abs=0.03)


def test_the_gaussian_sees_each_image_and_its_copies_always_the_same(parts: Path) -> None:
    one, other = (torch.cat([b["image"] for b in mvtec(parts).reference_dataloader()]) for _ in range(2))
    assert torch.equal(one, other)
    plain, light, moved = one.float()[0::3], one.float()[1::3], one.float()[2::3]
    data = mvtec(parts)
    assert torch.equal(plain, data.good_images[data.split[0]].float())
    assert 0 < float((light - plain).abs().mean()) < float((moved - plain).abs().mean())


def test_the_copies_in_the_gaussian_depend_on_the_seed_and_not_on_the_fold(parts: Path) -> None:
    def views(seed: int, fold: int) -> dict[int, torch.Tensor]:
        data = mvtec(parts, seed=seed, fold=fold)
        images = torch.cat([batch["image"] for batch in data.reference_dataloader(range(24))])
        return dict(enumerate(images.float().unflatten(0, (24, 3))))

    one, again, other = views(0, 0), views(0, 1), views(1, 0)
    for index, (plain, light, moved) in one.items():
        assert torch.equal(torch.stack([plain, light, moved]), again[index])
        assert torch.equal(plain, other[index][0])
        assert not torch.equal(light, other[index][1]) and not torch.equal(moved, other[index][2])


def test_views_of_two_images_are_changed_independently(parts: Path) -> None:
    """With neighbouring seeds one seed's view is another seed's view of the next image."""
    seeds = {view_seed(seed, view, index) for seed in range(5) for view in range(4) for index in range(200)}
    assert len(seeds) == 5 * 4 * 200 and max(seeds) > 2**60
    brightness = [np.random.default_rng(view_seed(s, 1, 0)).random() for s in range(200)]
    assert 0.4 < np.mean(brightness) < 0.6 and len(set(brightness)) == 200


def test_an_epoch_has_the_steps_it_was_given_even_with_few_images(parts: Path) -> None:
    assert [len(batch["image"]) for batch in mvtec(parts).train_dataloader()] == [5] * 6
    assert len(mvtec(parts, steps_per_epoch=None).train_dataloader()) == 18 // 5
    assert [len(b["image"]) for b in mvtec(parts, batch_size=99).train_dataloader()] == [18] * 6


def test_an_epoch_without_a_number_of_steps_is_one_pass_over_the_images(parts: Path) -> None:
    for pairs in (False, True):
        data = mvtec(parts, pairs=pairs, damages={"cutpaste": 0.5}, batch_size=6, steps_per_epoch=None, group=None)
        assert sum(len(batch["image"]) for batch in data.train_dataloader()) == len(data.split[0]) == 18


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (8, ""),
        (10, "2 processes cannot share batches of 5 pairs evenly: set data.batch_size=8"),
        (99, "2 processes cannot share batches of 9 pairs evenly: set data.batch_size=16"),
        (2, "2 processes cannot share batches of 1 pairs evenly: set trainer.devices=1"),
    ],
)
def test_pairs_that_processes_cannot_share_are_a_clear_error(
    batch_size: int, expected: str, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mvtec(parts, pairs=True, damages={"cutpaste": 0.5}, batch_size=batch_size, group=None)
    monkeypatch.setattr(base, "world", lambda: 2)
    if not expected:
        data.train_dataloader()
        return
    with pytest.raises(UserError, match=f"^{expected}$"):
        data.train_dataloader()


def test_a_folder_of_good_images_is_enough(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "screw/train/good", tmp_path / "mine")
    data = Folder(str(tmp_path / "mine"), None, None, 0.2, **SETTINGS)
    assert len(data.samples.train) == 24
    assert [sample.label for sample in data.test_samples] == [0] * 6  # the held-out fold


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "fold=0 of folds=1: expected folds=0 or at least 2"),
        ({"fold": 4}, "fold=4 of folds=4"),
        ({"folds": 30}, "24 good training images found, at least 30 are needed"),
        ({"moved_copies": -1}, "moved_copies=-1"),
        ({"augmentations": {}}, "choose augmentation=subtle"),
        ({"augmentations": {"blur": 0.5}}, "blur"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, parts: Path) -> None:
    with pytest.raises(UserError, match=message):
        mvtec(parts, **changes).val_dataloader()


def test_mvtec_is_downloaded_once_and_only_when_asked(parts: Path, tmp_path: Path) -> None:
    archive = tmp_path / "mvtec.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(parts / "screw", "screw")
    source = {"url": archive.as_uri(), "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    root = tmp_path / "root"
    data = MVTec(str(root), "screw", download=False, **source, **SETTINGS)
    data.prepare_data()
    assert not root.exists()
    for _ in range(2):  # the second time without the archive: everything is there
        data = MVTec(str(root), "screw", download=True, **source, **SETTINGS)
        data.prepare_data()
        assert len(data.samples.train) == 24 and len(data.samples.test) == 12
        archive.unlink(missing_ok=True)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        mvtec(tmp_path / "nowhere").train_dataloader()
