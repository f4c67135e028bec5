"""Flipped and turned copies of the training images: what they are, where they count, and when they are used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from test_datamodules import mvtec
from torch import Tensor

from gaussad_pl.calibration import cross_conformal
from gaussad_pl.data.base import ImageDataModule
from gaussad_pl.data.symmetry import oriented
from gaussad_pl.errors import UserError
from gaussad_pl.training import selection
from gaussad_pl.training.acceptance import Gain
from gaussad_pl.training.module import GaussianAD

MAP = {"form": "shared", "map_levels": "middle", "combine": "both", "clusters": 8}
TURNS = [lambda x: x, lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(2, (-2, -1)), lambda x: x.rot90(3, (-2, -1))]
SYMMETRIES = [lambda x, turn=turn, flip=flip: turn(x.flip(-1) if flip else x) for turn in TURNS for flip in (0, 1)]


def module() -> GaussianAD:
    torch.manual_seed(0)
    return GaussianAD(TINY, segmentation=MAP).eval()


def test_the_orientations_are_the_symmetries_of_the_square_and_flips_come_first() -> None:
    image = torch.arange(3 * 5 * 5).view(3, 5, 5)
    orientations = [oriented(image, o) for o in range(8)]
    assert {tuple(o.flatten().tolist()) for o in orientations} == {
        tuple(s(image).flatten().tolist()) for s in SYMMETRIES
    }
    assert torch.equal(orientations[0], image)
    for flipped, expected in zip(orientations[1:4], (image.flip(-1), image.flip(-2), image.flip(-1, -2)), strict=True):
        assert torch.equal(flipped, expected)


def test_an_oriented_dataset_estimates_what_the_copies_as_files_would(parts: Path) -> None:
    data = mvtec(parts, symmetry="all", light_copies=0, moved_copies=0, image_size=64)
    one, other = module(), module()
    one.estimate(data.reference_dataloader(), patches=True)
    images = torch.cat([symmetry(data.good_images[data.split[0]]) for symmetry in SYMMETRIES])
    other.estimate([{"image": images, "unchanged": torch.ones(len(images), dtype=torch.bool)}], patches=True)
    for a, b in zip(one.model.gaussians, other.model.gaussians, strict=True):
        assert a.count == b.count and torch.allclose(a.mean, b.mean, atol=1e-5)
        assert torch.allclose(a.whitener, b.whitener, rtol=1e-2, atol=1e-2)
    probe = data.good_images[data.split[1]]
    assert torch.allclose(one(probe).maps, other(probe).maps, rtol=1e-2)  # type: ignore[arg-type]


def test_copies_with_nuisances_lie_in_any_orientation_and_patches_see_unchanged_images_in_all(parts: Path) -> None:
    data = mvtec(parts, symmetry="flips", nuisance={"photometric": 0.0, "shift": 0, "scale": 0, "rotate": 0})
    batches = list(data.reference_dataloader())
    unchanged = torch.cat([batch["unchanged"] for batch in batches])
    images = torch.cat([batch["image"] for batch in batches])
    assert len(unchanged) == 18 * (4 + 2) and unchanged.sum() == 18 * 4
    originals = data.good_images[data.split[0]]
    assert torch.equal(images[unchanged].unflatten(0, (18, 4))[:, 3], originals.flip(-1, -2))
    drawn = images[~unchanged].unflatten(0, (18, 2))
    found = [
        [o for o in range(4) if torch.equal(each[k], oriented(image, o))]
        for each, image in zip(drawn, originals, strict=True)
        for k in range(2)
    ]
    assert all(found) and {o for each in found for o in each} == {0, 1, 2, 3}


def test_pairs_are_drawn_in_every_orientation(parts: Path) -> None:
    damages = {"cutpaste": 0.5}
    data = mvtec(parts, symmetry="all", pairs=True, damages=damages, steps_per_epoch=40)
    originals = data.good_images[data.split[0]]
    known = {o: {oriented(image, o).numpy().tobytes() for image in originals} for o in range(8)}
    for loader in (data.train_dataloader(), data.damage_dataloader()):
        drawn = [image.numpy().tobytes() for batch in loader for image in batch["image"]]
        assert all(any(image in known[o] for image in drawn) for o in range(8))


def test_calibration_scores_the_images_alone_without_any_copy_of_them(
    parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mvtec(parts, symmetry="all", group=None, image_size=64, light_copies=0, moved_copies=0)
    tiny = module()
    tiny.estimate(data.reference_dataloader(data.every_image), patches=True)
    cached = cross_conformal.cross_conformal(tiny.model, data, False, every_image=True)
    assert len(cached) == 24

    images = data.good_images[data.every_image]
    expected = []
    for fold in cross_conformal.partition(np.arange(24), 10, data.seed):
        rest = sorted(set(range(24)) - set(fold))
        copies = torch.cat([symmetry(images[rest]) for symmetry in SYMMETRIES])
        other = module()
        other.estimate([{"image": copies, "unchanged": torch.ones(len(copies), dtype=torch.bool)}])
        expected.append(other.model.distances(other.model.backbone.pooled(images[fold])).detach())
    every = torch.cat(expected).to(cached.distances)
    assert torch.allclose(cached.distances.sort(0).values, every.sort(0).values, rtol=1e-3)

    monkeypatch.setattr(cross_conformal, "CACHE", 0)
    again = cross_conformal.cross_conformal(tiny.model, data, False, every_image=True)
    assert torch.allclose(cached.scores, again.scores, rtol=1e-3)


class Trainer:
    """Stands in for Lightning's: validating estimates the Gaussians."""

    loggers: tuple[Any, ...] = ()

    class strategy:  # noqa: N801
        root_device = torch.device("cpu")

    def validate(self, module: GaussianAD, datamodule: ImageDataModule, verbose: bool) -> None:
        assert module.stale
        module.estimate(datamodule.reference_dataloader(), patches=True)


@pytest.mark.parametrize("helps", [True, False])
def test_the_state_that_the_validation_prefers_is_put_in_place(
    helps: bool, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mvtec(parts, symmetry="auto", image_size=64)
    tiny = module()

    class Forgetting:
        history: tuple[dict[str, int], ...] = ()

        def state_dict(self) -> dict[str, Any]:
            return {"history": ({"auroc": data.orientations},)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.history = state["history"]

    def choose_maps() -> dict[str, Any]:
        tiny.validation = tiny.collect(data.val_dataloader())
        return {"worth": float(data.orientations)}

    monkeypatch.setattr(tiny, "choose_maps", choose_maps)
    monkeypatch.setattr(selection, "level_results", lambda *_: {})
    monkeypatch.setattr(selection, "gain", lambda *_, share: Gain(share, 0.1 if helps else -0.1, 0.9, 9))
    forgetting, trainer, logged = Forgetting(), Trainer(), []
    trainer.loggers = (SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics)),)
    results = selection.choose(trainer, tiny, data, forgetting)  # type: ignore[arg-type]
    expected = 8 if helps else 1
    assert data.orientations == expected == results["symmetry"]["orientations"] == results["segmentation"]["worth"]
    assert forgetting.history == ({"auroc": expected},) and logged == [{"forgetting/auroc": expected}]
    assert tiny.model.gaussians[0].count == 18 * (expected + 2)
    other = module()
    other.estimate(data.reference_dataloader(), patches=True)
    probe: Tensor = data.good_images[data.split[1]]
    assert torch.allclose(tiny(probe).scores, other(probe).scores, rtol=1e-5)


def test_copies_are_used_only_if_they_are_more_likely_to_help() -> None:
    likely = Gain(1.0, 0.02, 0.8, 9)
    assert selection.symmetric_copies_help(likely)
    assert not selection.symmetric_copies_help(replace(likely, mean=-0.01))
    assert not selection.symmetric_copies_help(replace(likely, probability=0.4))


def test_copies_are_not_tried_with_many_images(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mvtec(parts, symmetry="auto")
    assert selection.orientations_to_try(data) == [1, 8]
    monkeypatch.setattr(selection, "FEW", 23)
    assert selection.orientations_to_try(data) == [1]
    assert selection.orientations_to_try(mvtec(parts, symmetry="flips")) == [4]


def test_images_are_not_turned_where_a_region_or_tiles_forbid_it(parts: Path, tmp_path: Path) -> None:
    roi = tmp_path / "roi.png"
    Image.new("L", (64, 64), 255).save(roi)
    assert selection.orientations_to_try(mvtec(parts, symmetry="auto", roi=str(roi))) == [1]
    assert selection.orientations_to_try(mvtec(parts, symmetry="auto", tiles="2x1")) == [1, 4]
    for settings in ({"symmetry": "flips", "roi": str(roi)}, {"symmetry": "all", "tiles": "2x1"}):
        with pytest.raises(UserError, match="set data.symmetry=none, or leave out data.roi and data.tiles"):
            mvtec(parts, **settings)


def test_an_unknown_symmetry_is_a_clear_error(parts: Path) -> None:
    with pytest.raises(UserError, match="data.symmetry=mirror: expected auto, none, flips, all"):
        mvtec(parts, symmetry="mirror")
