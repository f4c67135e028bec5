"""Anomaly maps against scipy and numpy; what is chosen on the augmented validation; what a checkpoint holds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TINY
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from gaussad_pl.backbones.backbone import Level
from gaussad_pl.density.registry import DENSITIES
from gaussad_pl.errors import UserError
from gaussad_pl.metrics.pixel import aupro
from gaussad_pl.model.anomaly_maps import map_score, smooth
from gaussad_pl.model.detection import Detection
from gaussad_pl.model.segmenter import CLUSTERS, Segmenter
from gaussad_pl.training import map_validation
from gaussad_pl.training.map_choice import MARGIN, choose_map
from gaussad_pl.training.map_validation import MapValidation, MapValidationCollector, UpsampledMaps
from gaussad_pl.training.module import GaussianAD

LEVELS = [Level(0, 2, 32, 32, 2), Level(1, 3, 8, 8, 8), Level(2, 2, 4, 4, 16)]
GOOD, COPIES = 6, 2  # good images, and augmented copies of each


def segmenter(**settings: Any) -> Segmenter:
    return Segmenter(LEVELS, **{"clusters": 3, "map_levels": "middle", **settings})


def random_maps(count: int, rng: torch.Generator) -> list[Tensor]:
    """Feature maps of images, one a level."""
    return [torch.randn(count, level.channels, level.height, level.width, generator=rng) for level in LEVELS]


def groups(good: int = GOOD) -> Tensor:
    return torch.arange(COPIES + 1).repeat_interleave(good)


def squares(good: int = GOOD, side: int = 64) -> Tensor:
    """Masks (V, side, side): a square at another place in every copy, nothing in the good images."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.zeros(good * (COPIES + 1), side, side, dtype=torch.bool)
    for mask in masks[good:]:
        y, x = torch.randint(3 * side // 4, (2,), generator=rng).tolist()
        mask[y : y + side // 4, x : x + side // 4] = True
    return masks


def noise(count: int = len(groups()), seed: int = 0) -> Tensor:
    return torch.rand(count, 256, 256, generator=torch.Generator().manual_seed(seed))


def marking(masks: Tensor, seed: int = 0) -> Tensor:
    """Maps (V, 256, 256) that are high where the masks are."""
    return noise(len(masks), seed) + 3 * interpolate(masks[:, None].float(), size=(256, 256))[:, 0]


def validation(**maps: Tensor) -> MapValidation:
    return MapValidation(groups(), squares(), torch.zeros(len(groups())), named(maps))


def named(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps of forms by the names of the candidates that patches of both middle levels make."""
    return {name if "+" in name else candidate(name): part for name, part in maps.items()}


def candidate(form: str, levels: str = "1+2", clusters: int = 3) -> str:
    return f"{form} of {clusters} {levels}" if DENSITIES[form].has_clusters else f"{form} {levels}"


def numpy_map_score(maps: Tensor) -> np.ndarray:
    flat = np.sort(maps.double().numpy().reshape(len(maps), -1), axis=1)
    return flat[:, -round(flat.shape[1] / 100) :].mean(1)


def scipy_smooth(grid: Tensor) -> np.ndarray:
    maps = interpolate(grid[:, None], size=(256, 256), mode="bilinear")[:, 0].numpy()
    return np.stack([gaussian_filter(one, sigma=4, mode="mirror", truncate=3.0) for one in maps])


# ----------------------------------------------------------------------------------------------- maps and their scores


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 28, 28), (3, 1, 1)])
def test_smoothing_equals_scipy(shape: tuple[int, int, int]) -> None:
    grid = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(smooth(grid), scipy_smooth(grid), rtol=1e-10)
    np.testing.assert_allclose(smooth(grid.float()), scipy_smooth(grid), rtol=1e-5)


def test_smoothing_keeps_a_constant_map_up_to_its_borders() -> None:
    torch.testing.assert_close(smooth(torch.full((2, 14, 14), 7.5)), torch.full((2, 256, 256), 7.5))


def test_the_score_of_a_map_is_the_mean_of_its_highest_percent() -> None:
    maps = noise(3)
    np.testing.assert_allclose(map_score(maps), numpy_map_score(maps), rtol=1e-6)
    assert map_score(torch.arange(4.0).reshape(1, 2, 2)).tolist() == [3]  # at least one pixel


@pytest.mark.parametrize("form", DENSITIES)
def test_a_map_is_the_smoothed_grid_of_distances_row_by_row(form: str) -> None:
    rng = torch.Generator().manual_seed(0)
    maps = random_maps(5, rng)
    module = segmenter(form=form)
    patches = module.head.patches(maps)
    assert patches.shape == (5, 64, 5)  # the first level is finer than stride 8: not among the middle ones
    module.observe(maps)
    module.estimate()
    distances = module.head.gaussians(patches).unflatten(1, (8, 8))
    np.testing.assert_allclose(module(maps), scipy_smooth(distances), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"), [({"form": "cluster"}, "form=cluster"), ({"combine": 3}, "combine=3")]
)
def test_an_unknown_form_or_combination_is_a_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"model.segmentation.{message}: expected auto, .*"):
        segmenter(**settings)


# ------------------------------------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize("best", DENSITIES)
def test_the_form_whose_maps_mark_the_augmented_pixels_is_kept_alone(best: str) -> None:
    module = segmenter()
    assert tuple(module.candidates) == tuple(map(candidate, DENSITIES))
    kept = module.heads[candidate(best)]
    maps = {form: marking(squares(), 1) if form == best else noise(seed=2 + i) for i, form in enumerate(DENSITIES)}
    chosen = choose_map(module, validation(**maps))
    assert chosen["form"] == module.head.form == best
    assert module.head is kept and len(module.heads) == 1
    found = {name.split()[0]: signals["aupro"] for name, signals in chosen["candidates"].items()}
    assert found[best] > 0.9 > max(value for form, value in found.items() if form != best)


def test_maps_that_find_the_image_but_not_the_place_lose_to_those_that_find_both() -> None:
    masks = squares()
    elsewhere = masks.roll((32, 32), (1, 2))
    chosen = choose_map(
        segmenter(),
        validation(
            position=marking(elsewhere),
            clusters=marking(masks),
            shared=marking(elsewhere, 1),
            union=marking(elsewhere, 2),
        ),
    )
    assert [signals["image_auroc"] for signals in chosen["candidates"].values()] == [1, 1, 1, 1]
    assert chosen["form"] == "clusters"


@pytest.mark.parametrize("better", [0.0, 1.5 * MARGIN, 2.5 * MARGIN])
def test_broad_clusters_are_taken_where_they_are_clearly_better(better: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = segmenter(form="clusters", clusters="auto")
    fine, broad = (candidate("clusters", clusters=size) for size in CLUSTERS)
    assert tuple(module.candidates) == (fine, broad) and CLUSTERS[0] > CLUSTERS[1]
    worth = {fine: 0.7, broad: 0.7 + better}
    maps = {name: marking(squares(), i) for i, name in enumerate(worth)}
    given = MapValidation(groups(), squares(), torch.zeros(len(groups())), maps)
    of = {id(part): name for name, part in maps.items()}

    def signals(_: MapValidation, scores: Tensor, part: Tensor) -> dict[str, float]:
        return {"image_auroc": worth[of[id(part)]], "aupro": 0.5}

    monkeypatch.setattr(MapValidation, "signals", signals)
    assert choose_map(module, given)["clusters"] == (CLUSTERS[1] if better > 2 * MARGIN else CLUSTERS[0])
    assert len(module.head.gaussians.mean) == 2 * module.head.clusters


@pytest.mark.parametrize("clusters", [0, "many", 1.5])
def test_a_number_of_clusters_that_is_none_is_refused(clusters: Any) -> None:
    with pytest.raises(UserError, match=f"model.segmentation.clusters={clusters}: expected auto or a number"):
        segmenter(clusters=clusters)


def alone(best: Tensor, both: Tensor) -> MapValidation:
    return MapValidation(
        groups(),
        squares(),
        torch.zeros(len(groups())),
        {"shared 1+2": both, "shared 1": noise(seed=7), "shared 2": best},
    )


def test_one_level_alone_makes_the_maps_where_it_is_clearly_better() -> None:
    module = segmenter(form="shared", map_levels="auto")
    assert tuple(module.candidates) == ("shared 1+2", "shared 1", "shared 2")
    chosen = choose_map(module, alone(marking(squares()), noise()))
    assert chosen["map_levels"] == module.head.levels == [2]


def test_both_levels_make_the_maps_where_one_alone_is_hardly_better() -> None:
    module = segmenter(form="shared", map_levels="auto")
    worse = marking(squares())
    worse[-1] = noise()[0]  # one copy is missed
    chosen = choose_map(module, alone(marking(squares()), worse))
    signals = {name: sum(found.values()) for name, found in chosen["candidates"].items()}
    assert signals["shared 1+2"] < signals["shared 2"]
    assert (chosen["map_levels"] == [1, 2]) == (signals["shared 2"] < signals["shared 1+2"] + 0.04)


@pytest.mark.parametrize("given", [[1], [0, 2], [2]])
def test_forced_levels_make_the_patches(given: list[int]) -> None:
    module = segmenter(form="shared", map_levels=given)
    assert [head.levels for head in module.candidates.values()] == [given]
    maps = random_maps(2, torch.Generator().manual_seed(0))
    assert module.head.patches(maps).shape[2] == sum(LEVELS[i].channels for i in given)


@pytest.mark.parametrize("given", [[], [3], "deep"])
def test_levels_that_are_not_there_are_a_clear_error(given: Any) -> None:
    with pytest.raises(UserError, match="model.segmentation.map_levels=.*: expected"):
        segmenter(map_levels=given)


def test_maps_are_smoothed_when_they_are_looked_at() -> None:
    grids = {"a": torch.rand(70, 4, 4), "b": torch.rand(2, 8, 8)}
    maps = UpsampledMaps(grids, dict.fromkeys(grids))
    assert list(maps) == ["a", "b"] and len(maps) == 2
    for name, grid in grids.items():
        torch.testing.assert_close(maps[name], smooth(grid))


@pytest.mark.parametrize("form", DENSITIES)
def test_a_forced_form_stays_whatever_its_maps(form: str) -> None:
    module = segmenter(form=form)
    assert tuple(module.candidates) == (candidate(form),)
    assert choose_map(module, validation(**{form: noise()}))["form"] == module.head.form == form


def combinable(informative: str) -> MapValidation:
    """Pooled scores and maps of which one, both or only their sum tells every copy from every good image."""
    rng = torch.Generator().manual_seed(0)
    is_copy = groups() > 0
    half = torch.arange(len(is_copy)) % 2 == 0
    signal, flat = 100.0 * is_copy, torch.randn(len(is_copy), generator=rng)
    misleading = flat + 500 * is_copy * torch.randn(len(is_copy), generator=rng)
    pooled, level = {
        "pooled": (flat + signal, misleading),
        "map": (misleading, flat + signal),
        "both": (flat.roll(1) + signal * half, flat + signal * ~half),
    }[informative]
    maps = noise() + level[:, None, None]
    return MapValidation(groups(), squares(), pooled.double(), named({"shared": maps}))


@pytest.mark.parametrize(("best", "weights"), [("pooled", [1, 0]), ("map", [0, 1]), ("both", [0.5, 1])])
def test_the_combination_that_tells_the_copies_best_is_chosen(best: str, weights: list[int]) -> None:
    module, given = segmenter(form="shared"), combinable(best)
    chosen = choose_map(module, given)
    assert chosen["combine"] == module.combine == best
    assert module.weights.tolist() == weights
    assert chosen["combinations"][best] == 1
    assert all(value < 0.95 for name, value in chosen["combinations"].items() if name != best)
    assert chosen["worth"] == pytest.approx(1 + chosen["candidates"]["shared 1+2"]["aupro"])


@pytest.mark.parametrize(("forced", "weights"), [("pooled", [1, 0]), ("map", [0, 1]), ("both", [0.5, 1])])
def test_a_forced_combination_stays_though_another_is_better(forced: str, weights: list[int]) -> None:
    module = segmenter(form="shared", combine=forced)
    assert module.weights.tolist() == weights
    better = "pooled" if forced == "map" else "map"
    chosen = choose_map(module, combinable(better))
    assert chosen["combinations"][better] > chosen["combinations"][forced]
    assert chosen["combine"] == module.combine == forced
    assert module.weights.tolist() == weights
    worth = chosen["combinations"][forced] + chosen["candidates"]["shared 1+2"]["aupro"]
    assert chosen["worth"] == pytest.approx(worth)


def test_the_signals_are_means_over_the_augmentations_of_scikit_learn_on_each() -> None:
    masks, label = squares(), groups().numpy()
    maps = noise() + 0.3 * marking(masks, 1)
    given = validation(shared=maps)
    found = given.signals(map_score(maps), maps)
    pairs = [(label == 0) | (label == i) for i in (1, 2)]
    scores = numpy_map_score(maps)
    expected = np.mean([roc_auc_score(label[pair] > 0, scores[pair]) for pair in pairs])
    assert found["image_auroc"] == pytest.approx(expected)
    wide = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    parts = [aupro(maps[torch.from_numpy(pair)], wide[torch.from_numpy(pair)]) for pair in pairs]
    assert found["aupro"] == pytest.approx(np.mean(parts))
    assert parts[0] != parts[1]


def test_an_augmentation_that_marks_no_pixel_counts_for_the_image_auroc_alone() -> None:
    masks = squares()
    maps = marking(masks)
    masks[groups() == 2] = False
    given = MapValidation(groups(), masks, torch.zeros(len(masks)), named({"shared": maps}))
    found = given.signals(map_score(maps), maps)
    first = groups() < 2
    only = MapValidation(groups()[first], masks[first], torch.zeros(int(first.sum())), {"shared": maps[first]})
    assert found["aupro"] == pytest.approx(only.signals(map_score(maps[first]), maps[first])["aupro"])
    assert found["aupro"] > 0.9
    assert found["image_auroc"] == 1


def test_the_form_is_chosen_by_the_images_where_no_augmentation_marks_a_pixel() -> None:
    maps = {"position": noise(), "clusters": marking(squares()), "shared": noise(seed=1), "union": noise(seed=2)}
    given = MapValidation(groups(), torch.zeros_like(squares()), torch.zeros(len(groups())), named(maps))
    assert choose_map(segmenter(), given)["form"] == "clusters"


# ------------------------------------------------------------------------------------------- what good images look like


@pytest.mark.parametrize("side", [64, 256, 300])
def test_masks_of_any_side_are_compared_with_the_maps(side: int) -> None:
    masks = squares(side=side)
    given = MapValidation(groups(), masks, torch.zeros(len(masks)), {})
    assert given.masks.shape == (len(masks), 256, 256) and given.masks.dtype == torch.bool
    share, expected = (x.double().mean((1, 2)) for x in (given.masks, masks))
    torch.testing.assert_close(share, expected, rtol=0.05, atol=0)


def test_scores_are_in_units_of_good_images() -> None:
    module, given = segmenter(form="shared", combine="both"), combinable("both")
    choose_map(module, given)
    parts = np.stack([given.pooled.numpy(), numpy_map_score(given.maps["shared 1+2"])], axis=1)
    good = parts[:GOOD]
    np.testing.assert_allclose(module.centre, good.mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.spread, good.std(0, ddof=1), rtol=1e-5)
    expected = ((parts - good.mean(0)) / good.std(0, ddof=1)) @ [0.5, 1]
    np.testing.assert_allclose(module.score(given.pooled, given.maps["shared 1+2"]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("combine", "column"), [("pooled", 0), ("map", 1)])
def test_the_part_that_does_not_count_leaves_the_score_alone(combine: str, column: int) -> None:
    module, given = segmenter(form="shared", combine=combine), combinable("both")
    choose_map(module, given)
    maps = given.maps["shared 1+2"]
    parts = np.stack([given.pooled.numpy(), numpy_map_score(maps)], axis=1)[:, column]
    expected = (parts - parts[:GOOD].mean()) / parts[:GOOD].std(ddof=1)
    np.testing.assert_allclose(module.score(given.pooled, maps), expected, rtol=1e-4, atol=1e-4)


def test_the_threshold_leaves_one_pixel_in_a_thousand_of_good_images_above() -> None:
    module, maps = segmenter(form="shared"), marking(squares())
    assert module.threshold == torch.inf
    choose_map(module, validation(shared=maps))
    pixels = maps[:GOOD].flatten()
    assert abs(int((pixels > module.threshold).sum()) - len(pixels) / 1000) <= 2
    assert module.median == pixels.median()


def test_one_good_image_gives_finite_scores() -> None:
    masks = squares(good=1)
    maps = marking(masks)
    pooled = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    module = segmenter(form="shared")
    choose_map(module, MapValidation(groups(good=1), masks, pooled, named({"shared": maps})))
    np.testing.assert_allclose(module.spread, module.centre / 10, rtol=1e-6)
    scores = module.score(pooled, maps)
    assert scores.isfinite().all()
    assert scores.argmin() == 0


def test_good_images_of_one_and_the_same_score_give_finite_scores_of_usual_size() -> None:
    module, maps = segmenter(form="shared", combine="both"), marking(squares())
    maps[:GOOD] = maps[0]  # as where a single held-out image is repeated
    given = MapValidation(groups(), squares(), 60 + groups().double(), named({"shared": maps}))
    choose_map(module, given)
    np.testing.assert_allclose(module.spread, module.centre / 10, rtol=1e-6)
    scores = module.score(given.pooled, maps)
    assert scores.isfinite().all() and scores.abs().max() < 100
    given = validation(shared=maps)  # all pooled scores are 0
    choose_map(module, given)
    assert module.score(given.pooled, maps).isfinite().all()


@pytest.mark.parametrize("best", DENSITIES)
def test_a_segmenter_of_the_chosen_form_loads_what_was_chosen(best: str) -> None:
    auto = segmenter()
    rng = torch.Generator().manual_seed(0)
    for count in (7, 4):
        auto.observe(random_maps(count, rng))
    auto.estimate()
    maps = {form: marking(squares(), 1) if form == best else noise(seed=2) for form in DENSITIES}
    chosen = choose_map(auto, validation(**maps))
    assert auto.chosen.items() <= chosen.items()
    forced = segmenter(**auto.chosen)
    forced.load_state_dict(auto.state_dict())
    found = random_maps(3, rng)
    assert torch.equal(forced(found), auto(found))
    pooled = torch.rand(3, dtype=torch.float64)
    assert torch.equal(forced.score(pooled, auto(found)), auto.score(pooled, auto(found)))


# ---------------------------------------------------------------------------------------------------------- the module


def images(count: int, seed: int) -> Tensor:
    """Images (N, 3, 64, 64), uint8: noise on a gradient."""
    rng = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(40, 160, 64)[:, None].expand(64, 64)
    return (ramp + 60 * torch.rand(count, 3, 64, 64, generator=rng)).byte()


def good_batches(seed: int = 0) -> list[dict[str, Tensor]]:
    return [
        {"image": part, "unchanged": torch.ones(len(part), dtype=torch.bool)} for part in images(24, seed).split(10)
    ]


def validation_batches(seed: int = 1) -> list[dict[str, Tensor]]:
    """Six good images, and two copies of each with a bright or a dark square."""
    image, masks = images(GOOD, seed).repeat(COPIES + 1, 1, 1, 1), squares()
    for one, group, mask in zip(image, groups(), masks, strict=True):
        one[:, mask] = 255 if group == 1 else 0
    sources = torch.arange(GOOD).repeat(COPIES + 1)
    parts = zip(image.split(7), groups().split(7), masks.split(7), sources.split(7), strict=True)
    return [{"image": a, "group": b, "mask": c, "source": d} for a, b, c, d in parts]


def tiny(segmentation: dict[str, Any] | None) -> GaussianAD:
    torch.manual_seed(0)
    return GaussianAD(TINY, segmentation=segmentation).eval()


@torch.no_grad()
def detect(model: GaussianAD, seed: int = 2) -> Detection:
    return model(images(4, seed))


@pytest.fixture(scope="module")
def estimated() -> tuple[GaussianAD, dict[str, Any]]:
    """A model that has chosen by itself, and what it says about that; tests that change it copy it."""
    model = tiny({"clusters": 4})
    model.estimate(good_batches(), patches=True)
    return model, model.choose_maps(validation_batches())


def test_validating_sees_all_that_the_choice_needs(estimated: tuple[GaussianAD, dict[str, Any]]) -> None:
    model = tiny({"clusters": 4})
    model.estimate(good_batches(), patches=True)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(model, dataloaders=DataLoader(validation_batches(), batch_size=None), verbose=False)
    assert model.choose_maps() == estimated[1]
    assert model.collector is None


def test_maps_of_a_bounded_number_of_images_and_all_their_copies_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_validation, "IMAGES", 4)
    model = tiny({"form": "shared"}).model
    model.level_weights[1:] = 0
    seen, first = MapValidationCollector(model), 0
    for batch in validation_batches():
        row = torch.arange(first, first := first + len(batch["group"]))
        maps = [torch.zeros(len(row), level.channels, level.height, level.width) for level in model.backbone.levels]
        seen.add(batch, maps, row[:, None].expand(-1, len(model.backbone.levels)).float())
    found = seen.validation()
    assert torch.bincount(found.groups).tolist() == [4, 4, 4]
    rows = found.pooled.long()  # the only weighted distance was the row
    assert torch.equal(rows.reshape(3, 4) % GOOD, (rows[:4] % GOOD).expand(3, 4))  # the same images in every group
    masks = torch.cat([batch["mask"] for batch in validation_batches()])
    assert torch.equal(found.masks, interpolate(masks[rows, None].byte(), size=(256, 256))[:, 0].bool())
    assert all(len(part) == 12 for part in found.maps.values())


def test_without_segmentation_there_are_pooled_scores_and_no_maps() -> None:
    model = tiny(None)
    model.estimate(good_batches())
    found = detect(model)
    assert found.maps is None
    with torch.no_grad():
        assert torch.equal(found.distances, model.model.distances(model.model.backbone.pooled(images(4, 2))))
    torch.testing.assert_close(found.scores, found.distances.double().sum(1))


@pytest.mark.parametrize("combine", ["pooled", "map", "both"])
def test_the_detected_scores_equal_the_formula(combine: str) -> None:
    model = tiny({"form": "shared", "combine": combine})
    model.estimate(good_batches(), patches=True)
    model.choose_levels(torch.rand(2, len(model.model.backbone.levels)))
    model.model.level_weights[:2] = torch.tensor([0.5, 3.0])
    model.choose_maps(validation_batches())
    held_out, found = images(GOOD, 1), detect(model)
    with torch.no_grad():
        good = model(held_out)
    assert good.maps is not None and found.maps is not None
    expected = np.zeros(4)
    if combine != "map":
        pooled, reference = (x.distances.double().numpy() @ model.model.level_weights.numpy() for x in (found, good))
        expected += (0.5 if combine == "both" else 1) * (pooled - reference.mean()) / reference.std(ddof=1)
    if combine != "pooled":
        score, reference = numpy_map_score(found.maps), numpy_map_score(good.maps)
        expected += (score - reference.mean()) / reference.std(ddof=1)
    assert found.scores.dtype == torch.float64
    np.testing.assert_allclose(found.scores, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("is_rounded", [False, True])
def test_the_maps_equal_the_textbook_from_the_features_of_the_backbone(
    is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_rounded:
        monkeypatch.setattr("gaussad_pl.density.patches.rounded", lambda whitener, spread: whitener)
    model = tiny({"form": "shared", "map_levels": "middle"})
    model.estimate(good_batches(), patches=True)
    model.choose_maps(validation_batches())
    with torch.no_grad():
        train, test = (
            torch.cat([m[3], interpolate(m[4], size=(8, 8), mode="bilinear")], dim=1)  # strides 8 and 16
            .permute(0, 2, 3, 1)
            .double()
            for m in (model.model.backbone(images(24, 0)), model.model.backbone(images(4, 2)))
        )
    x = train.reshape(-1, train.shape[-1]).numpy()
    n, d = x.shape
    pooled = np.cov(x.T)
    prior = 0.9 * pooled + 0.1 * np.trace(pooled) / d * np.eye(d)
    inverse = np.linalg.inv((pooled * (n - 1) + d * prior) / (n + d))
    y = test.numpy() - x.mean(0)
    distances = np.sqrt(np.einsum("nhwi,ij,nhwj->nhw", y, inverse, y))
    found = detect(model)
    assert found.maps is not None
    expected = scipy_smooth(torch.from_numpy(distances))
    np.testing.assert_allclose(found.maps, expected, rtol=0.05 if is_rounded else 1e-3)
    assert np.abs(found.maps.numpy() / expected - 1).mean() < 0.02


def test_squares_in_the_validation_decide_what_is_chosen(estimated: tuple[GaussianAD, dict[str, Any]]) -> None:
    model, chosen = estimated
    assert set(chosen["candidates"]) == {*(candidate(form, "3+4", 4) for form in DENSITIES), "position 3", "position 4"}
    margin = {name: 0 if "+" in name else 0.04 for name in chosen["candidates"]}
    worth = {name: sum(found.values()) - margin[name] for name, found in chosen["candidates"].items()}
    best = max(worth, key=lambda name: worth[name])
    assert tuple(model.segmenter.candidates) == (best,)
    assert best == candidate(chosen["form"], "+".join(map(str, chosen["map_levels"])), chosen["clusters"])
    assert chosen["worth"] > 1.2  # chance is 0.5 + 0.15
    for key in ("form", "map_levels", "combine"):
        assert model.hparams["segmentation"][key] == chosen[key]


def test_the_settings_given_to_a_model_stay_as_they_are() -> None:
    settings = {"clusters": 4}
    model = tiny(settings)
    model.estimate(good_batches(), patches=True)
    model.choose_maps(validation_batches())
    assert settings == {"clusters": 4}


@pytest.mark.parametrize("settings", [{}, {"form": "clusters", "combine": "both"}])
def test_a_checkpoint_detects_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny({"clusters": 4, **settings})
    model.estimate(good_batches(), patches=True)
    model.choose_maps(validation_batches())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = GaussianAD.load(tmp_path / "model.ckpt")  # torch.load(..., weights_only=True) inside
    expected, actual = detect(model), detect(loaded)
    assert actual.maps is not None and expected.maps is not None
    assert torch.equal(actual.maps, expected.maps)
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.distances, expected.distances)
    assert loaded.segmenter.threshold == model.segmenter.threshold < torch.inf


def changed(model: GaussianAD) -> GaussianAD:
    """A copy with other weights, whose Gaussians are those of other images."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.model.backbone.parameters():
            parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
    model.estimate(good_batches(seed=5), patches=True)
    model.choose_maps(validation_batches(seed=6))
    return model


def test_a_snapshot_leaves_the_gaussians_of_patches_out_unless_asked(
    estimated: tuple[GaussianAD, dict[str, Any]],
) -> None:
    model, _ = estimated
    small, everything = model.snapshot(), model.snapshot(everything=True)
    scoring = {"backbone", "gaussians", "level_weights"}  # not what the loss alone needs
    assert small.keys() == {key for key in model.model.state_dict() if key.split(".")[0] in scoring}
    assert everything.keys() == model.model.state_dict().keys()


def test_a_snapshot_of_everything_brings_maps_and_scores_back_bit_for_bit(
    estimated: tuple[GaussianAD, dict[str, Any]],
) -> None:
    model, _ = estimated
    expected, snapshot = detect(model), model.snapshot(everything=True)
    other = changed(model)
    found = detect(other)
    assert found.maps is not None and expected.maps is not None
    assert not torch.equal(found.maps, expected.maps) and not torch.equal(found.scores, expected.scores)
    other.restore(snapshot)
    found = detect(other)
    assert found.maps is not None
    assert torch.equal(found.maps, expected.maps)
    assert torch.equal(found.scores, expected.scores)


def test_a_second_estimate_keeps_what_was_chosen_and_forgets_the_first_images(
    estimated: tuple[GaussianAD, dict[str, Any]],
) -> None:
    model, first = estimated
    expected, other = detect(model), changed(model)
    assert other.segmenter.chosen.items() <= first.items()
    other.restore(model.snapshot())  # the weights and the pooled Gaussians
    other.estimate(good_batches(), patches=True)
    other.choose_maps(validation_batches())
    found = detect(other)
    assert found.maps is not None and expected.maps is not None
    assert torch.equal(found.maps, expected.maps)
    assert torch.equal(found.scores, expected.scores)


def test_detections_of_batches_join_in_order(estimated: tuple[GaussianAD, dict[str, Any]]) -> None:
    model, _ = estimated
    with torch.no_grad():
        joined = Detection.join([model(part) for part in images(4, 2).split(3)])
    expected = detect(model)
    assert joined.maps is not None and expected.maps is not None
    torch.testing.assert_close(joined.maps, expected.maps, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(joined.scores, expected.scores, rtol=1e-3, atol=1e-3)
    assert Detection.join([detect(tiny(None))]).maps is None


def test_wide_patches_are_projected_to_orthonormal_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaussad_pl.model.anomaly_maps.FEATURES", 3)
    wide = segmenter(form="shared", seed=1).head
    maps = [torch.randn(2, level.channels, level.height, level.width) for level in LEVELS]
    assert wide.projection is not None
    torch.testing.assert_close(wide.projection.T @ wide.projection, torch.eye(3))
    assert wide.patches(maps).shape == (2, 64, 3)
    same, other = (segmenter(form="shared", seed=seed).head for seed in (1, 2))
    assert torch.equal(wide.patches(maps), same.patches(maps))
    assert not torch.allclose(wide.patches(maps), other.patches(maps))


def test_narrow_patches_stay_as_they_are() -> None:
    assert segmenter(form="shared").head.projection is None
