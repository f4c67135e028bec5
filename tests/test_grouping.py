"""Shots of one part are on one side of every split: of folds, of the images kept for the test, of the calibration."""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from sklearn.model_selection import KFold
from test_datamodules import SETTINGS
from test_train import QUICK, run
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gaussad_pl.backbones.backbone import Backbone
from gaussad_pl.calibration import cross_conformal, folds
from gaussad_pl.calibration.cross_conformal import calibrate
from gaussad_pl.data import good_images, grouping
from gaussad_pl.data.folder import Folder
from gaussad_pl.data.image_sets import ImageSets
from gaussad_pl.data.part_features import pooled_middle
from gaussad_pl.density.gaussian import SingularCovarianceError
from gaussad_pl.errors import UserError
from gaussad_pl.results import pictures
from gaussad_pl.training.module import GaussianAD


def thumbnails(images: Tensor) -> list[Tensor]:
    """Images ``(N, 3, H, W)`` as features ``(N, 48)``."""
    return [adaptive_avg_pool2d(images.float(), 4).flatten(1)]


def draw(folder: Path, parts: int, shots: int, name: str = "part{part:02}_{shot}.png") -> Path:
    """Images of parts that differ, each photographed several times with a little noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part in range(parts):
        pixels = rng.integers(40, 215, (4, 4, 3)).repeat(12, 0).repeat(12, 1)
        for shot in range(shots):
            noisy = (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name.format(part=part, shot=shot))
    return folder


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 parts in `good`, shot 4 times each, and one bad image beside them."""
    root = tmp_path_factory.mktemp("shots")
    draw(root / "good", 20, 4)
    draw(root / "dent", 1, 1)
    return root


def folder(root: Path, holdout: float = 0.2, **changes: Any) -> Folder:
    return Folder(str(root), None, None, holdout, **{**SETTINGS, "folds": 5, **changes})


def parts_of(data: Folder, images: list[int]) -> set[str]:
    return {data.samples.train[i].path.name.split("_")[0] for i in images}


@pytest.mark.parametrize("group", ["auto", r"(part\d+)_", r"part\d+"])
@pytest.mark.parametrize("fold", [0, 3])
def test_no_part_is_on_two_sides(group: str, fold: int, shots: Path) -> None:
    data = folder(shots, group=group, fold=fold)
    data.group_images(thumbnails)
    used, held_out = data.split
    test = [data.samples.train.index(sample) for sample in data.test_samples if not sample.label]
    assert sorted(used + held_out + test) == list(range(80)) and len(test) == 16
    sides = [parts_of(data, images) for images in (used, held_out, test)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sum(map(len, sides)) == 20
    how = "of near-duplicates" if group == "auto" else f"by data.group={group}"
    assert data.grouping == f"80 good images in 20 groups {how}"


@pytest.mark.parametrize("group", [None, "auto"])
def test_without_groups_it_is_the_split_of_single_images(group: str | None, shots: Path) -> None:
    """Null, or nobody said by which features: the numbers of version 14bbd6a."""
    data = folder(shots, group=group)
    test = sorted(random.Random(0).sample(range(80), 16))
    kept = np.setdiff1d(np.arange(80), test)
    used, held_out = next(iter(KFold(5, shuffle=True, random_state=0).split(kept)))
    assert data.split == (kept[used].tolist(), kept[held_out].tolist())
    assert [sample.path for sample in data.test_samples[:16]] == [data.samples.train[i].path for i in test]
    assert data.grouping == "80 good images, each in its own group"
    twins = parts_of(data, data.split[1]) & parts_of(data, data.split[0])
    assert len(twins) == len(parts_of(data, data.split[1]))  # all of them: the mistake that groups mend


def test_images_without_near_duplicates_are_each_in_a_group_of_their_own(shots: Path) -> None:
    data = folder(shots / "good")
    rows = iter(torch.eye(80))  # all as far from each other
    data.group_images(lambda images: [torch.stack([next(rows) for _ in images])])
    assert len(np.unique(data.groups)) == 80 and data.grouping == "80 good images, each in its own group"


def test_the_network_tells_near_duplicates_too(shots: Path) -> None:
    torch.manual_seed(0)
    data = folder(shots, image_size=64)
    data.group_images(partial(pooled_middle, Backbone(**TINY), torch.device("cpu")))
    used, held_out = data.split
    assert not parts_of(data, used) & parts_of(data, held_out) and len(np.unique(data.groups)) >= 10


def test_images_are_decoded_once_and_seen_once(shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    load = good_images.load_images
    monkeypatch.setattr(good_images, "load_images", lambda paths, *rest: decoded.extend(paths) or load(paths, *rest))
    seen: list[int] = []
    data = folder(shots)
    data.group_images(lambda images: seen.append(len(images)) or thumbnails(images))
    data.setup("fit")
    _ = data.good_images, data.test, data.validation, data.grouping
    assert sum(seen) == 80 and len(decoded) == len(set(decoded)) == 81


@pytest.mark.parametrize(("folds", "root"), [(0, "good"), (5, "good")])
def test_features_are_computed_only_for_a_split(folds: int, root: str, shots: Path) -> None:
    seen: list[int] = []
    data = folder(shots / root, folds=folds)
    data.group_images(lambda images: seen.append(len(images)) or thumbnails(images))
    data.setup("test")
    assert bool(seen) == bool(folds) and ("groups" in data.grouping) == bool(folds)


def test_held_out_images_that_are_too_many_go_back_as_whole_parts(shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(good_images, "HELD_OUT", 9)
    data = folder(shots / "good")
    data.group_images(thumbnails)
    used, held_out = data.split
    assert len(held_out) == 8 and len(used) == 72 and not parts_of(data, used) & parts_of(data, held_out)


def test_features_come_before_the_split(shots: Path) -> None:
    data = folder(shots)
    assert data.split
    with pytest.raises(RuntimeError, match="group_images first"):
        data.group_images(thumbnails)


def test_one_process_decides_for_all(shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(shots)
    data.group_images(lambda images: pytest.fail("another process looks"))
    monkeypatch.setattr(grouping, "rank", lambda: 1)
    monkeypatch.setattr(grouping, "gather", lambda mine: [np.arange(80) // 4, mine])
    assert data.groups.tolist() == (np.arange(80) // 4).tolist()


def test_a_run_does_not_go_on_with_another_split(shots: Path) -> None:
    data, other = folder(shots), folder(shots)
    data.group_images(thumbnails)
    other.group_images(lambda images: [torch.randn(len(images), 9)])
    data.load_state_dict(data.state_dict())
    assert "groups" in data.state_dict()
    with pytest.raises(UserError, match="split differently than when the run started"):
        other.load_state_dict(data.state_dict())
    assert folder(shots).state_dict() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "(part"}, r"data.group=\(part is not a regular expression"),
        ({"group": 7}, "data.group=7 is not a regular expression"),
        ({"group": "bolt"}, "data.group=bolt: matches no file name, such as part00_0.png"),
        ({"group": "part"}, "80 good images in 1 group by data.group=part, so none can be kept for the test"),
        ({"group": "part0[0-3]_|part"}, "folds=5 needs 5 different parts to train on, there are 2: .*set folds=2"),
    ],
)
def test_mistakes_are_named_before_any_image_is_decoded(
    changes: dict[str, Any], message: str, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(good_images, "load_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=message) as caught:
        folder(shots, **changes).check()
    assert "\n" not in str(caught.value)


def test_too_few_different_parts_are_named(tmp_path: Path) -> None:
    data = folder(draw(tmp_path / "few", 4, 4), group=r"part\d+")
    with pytest.raises(UserError, match="16 good images in 4 groups .*there are 4: .*set folds=4, or data.group=null"):
        data.check()
    assert len(folder(tmp_path / "few", group=r"part\d+", folds=4).split[1]) == 4


@pytest.mark.parametrize(("holdout", "expected"), [(0.01, 1), (0.3, 3), (0.9, 9)])
def test_a_share_of_the_good_images_is_kept_for_the_test(holdout: float, expected: int, tmp_path: Path) -> None:
    draw(tmp_path / "good", 10, 1)
    draw(tmp_path / "dent", 1, 1)
    data = folder(tmp_path, holdout, folds=0, group=None)
    if expected == 9:
        with pytest.raises(UserError, match="1 good training images found besides 9 for the test"):
            data.check()
        return
    good = [sample.path for sample in data.test_samples if not sample.label]
    used = [data.samples.train[i].path for i in data.split[0]]
    assert len(good) == expected and sorted(good + used) == [sample.path for sample in data.samples.train]
    assert [sample.label for sample in data.test_samples] == [0] * expected + [1]
    other = folder(tmp_path, holdout, folds=0, group=None, seed=3)
    assert other.test_samples != data.test_samples


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 20, float("nan")])
def test_holdout_that_is_no_share_is_refused(shots: Path, holdout: float) -> None:
    with pytest.raises(UserError, match="data.holdout"):
        folder(shots, holdout)


@pytest.mark.parametrize("group", ["auto", r"(part\d+)_", None])
def test_the_calibration_keeps_the_same_groups(group: str | None, shots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = folder(shots, group=group, image_size=64)
    data.group_images(thumbnails)
    module = GaussianAD(TINY).eval()
    module.estimate(data.reference_dataloader())
    parts: list[list[int]] = []
    split = cross_conformal.partition
    monkeypatch.setattr(folds, "FEW", 0)
    monkeypatch.setattr(cross_conformal, "partition", lambda *args: parts.extend(split(*args)) or parts)
    monkeypatch.setattr(
        cross_conformal, "near_duplicates",
        lambda features: pytest.fail("looked") if group != "auto" else np.arange(len(features)) // 4,
    )  # fmt: skip
    found = calibrate(module.model, data, cross_fit=True, fine_tuned=False)
    used = data.split[0]
    sides = [parts_of(data, [used[i] for i in part]) for part in parts]
    assert len(found) == len(used) and len(sides) == 4
    assert (sum(map(len, sides)) == len(parts_of(data, used))) == (group is not None)


@pytest.mark.parametrize("every_image", [False, True])
def test_images_in_the_gaussians_calibrate_nothing(
    every_image: bool, shots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_few(*_: object) -> None:
        raise SingularCovarianceError(4, 2)

    data = folder(shots, group=None, image_size=64)
    module = GaussianAD(TINY).eval()
    module.estimate(data.reference_dataloader())
    monkeypatch.setattr(cross_conformal, "cross_conformal", too_few)
    found = calibrate(module.model, data, cross_fit=True, fine_tuned=False, every_image=every_image)
    assert len(found) == (0 if every_image else len(data.split[1]))
    assert found.scheme.startswith("none: the folds are too small") == every_image
    assert pictures.draw_calibration(found).keys() == (set() if every_image else {"histogram"})


@pytest.mark.slow
def test_a_run_checks_and_groups_its_images(shots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Any] = []
    check, group_images = ImageSets.check, ImageSets.group_images
    monkeypatch.setattr(ImageSets, "check", lambda self: steps.append("check") or check(self))
    monkeypatch.setattr(
        ImageSets, "group_images", lambda self, features: steps.append(self) or group_images(self, features)
    )
    quick = ["data=folder", f"data.root={shots}", f"hydra.run.dir={tmp_path}", *QUICK, "logger=csv", "fine_tune=false"]
    run(monkeypatch, *quick, "model.segmentation=null", "cross_conformal=false")
    first, data = steps
    assert first == "check" and "groups of near-duplicates" in data.grouping
    assert not parts_of(data, data.split[0]) & parts_of(data, data.split[1])


@pytest.mark.slow
def test_real_tiles_are_not_on_two_sides(real_data: Path) -> None:
    """Exposures of one tile look alike: with single images most of the held-out ones have a twin in training."""
    torch.manual_seed(0)
    root = real_data / "magnetic_tile" / "tile"
    data = Folder(str(root), None, None, 0.2, **{**SETTINGS, "folds": 5, "image_size": 64, "eval_batch_size": 64})
    data.group_images(thumbnails)
    assert re.match(r"758 good images in \d+ groups of near-duplicates", data.grouping)
    assert len(np.unique(data.groups)) < 600
